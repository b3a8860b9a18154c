"""A run that is killed again and again ends with the file of a run that was not."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.storage import read_json, sha256
from workbench import ROOT

WORKLOAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from workbench.tiny import TinyResNet, make_workload

def tiny():
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=2048)
"""

RECIPE = """
name: killed
stages:
  - drop_blocks: {remove: 0.5}
  - distill: {epochs: 4, tail_epochs: 0, views: 2}
  - quantize
"""


def command(folder: Path, out: str) -> list[str]:
    program = "from compressor.cli.app import main; main()"
    options = ["run", "killed.yaml", "--workload", "tiny_workload:tiny", "--out", out, "--quiet"]
    return [sys.executable, "-c", program, *options]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_runs_end_with_the_same_bits(tmp_path, seed):
    """Kill -9 at random moments, then the same command again, until it ends: the ONNX file is the same to the bit."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD, encoding="utf-8")
    (tmp_path / "killed.yaml").write_text(RECIPE, encoding="utf-8")
    subprocess.run(command(tmp_path, "whole"), cwd=tmp_path, check=True, timeout=300)
    moments, kills = random.Random(seed), 0  # noqa: S311 - moments to kill at, not secrets
    for _ in range(40):
        process = subprocess.Popen(command(tmp_path, "cut"), cwd=tmp_path)
        try:
            assert process.wait(timeout=moments.uniform(4, 14 + kills)) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 0, "the run was never killed: make it longer"
    files = [tmp_path / name / "model.onnx" for name in ("whole", "cut")]
    assert sha256(files[0].read_bytes()) == sha256(files[1].read_bytes())
    steps = [step["stage"] for step in read_json(tmp_path / "cut" / "report.json")["steps"]]
    assert steps == ["reference", "drop_blocks", "distill", "quantize"]
    assert not list((tmp_path / "cut").rglob("*.tmp")), "half-written files were left behind"
