"""A run that is killed again and again ends with the file of a run that was not."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
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

LOADED = """
from dataclasses import replace
from torch.utils.data import DataLoader, TensorDataset

def loaded():
    workload = tiny()
    inputs, targets = zip(*workload.train)
    data = TensorDataset(torch.cat(inputs)[:512], torch.cat(targets)[:512])
    return replace(workload, train=DataLoader(data, batch_size=64, shuffle=True, num_workers=2))
"""

RECIPE = """
name: killed
stages:
  - drop_blocks: {remove: 0.5}
  - distill: {epochs: 4, tail_epochs: 0, views: 2}
  - quantize
"""


def command(folder: Path, out: str) -> list[str]:
    program = "from compressor.cli import main; main()"
    options = ["run", "killed.yaml", "--workload", "tiny_workload:tiny", "--out", out, "--quiet"]
    return [sys.executable, "-c", program, *options]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_killed_runs_end_with_the_same_bits(tmp_path, seed):
    """Kill -9 at random moments, then the same command again, until it ends: the ONNX file is the same to the bit."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD, encoding="utf-8")
    (tmp_path / "killed.yaml").write_text(RECIPE, encoding="utf-8")
    started = time.perf_counter()
    subprocess.run(command(tmp_path, "whole"), cwd=tmp_path, check=True, timeout=500)
    whole = time.perf_counter() - started  # beside other work everything takes longer, and so must what is killed
    moments, kills = random.Random(seed), 0  # noqa: S311 - moments to kill at, not secrets
    for _ in range(40):
        with subprocess.Popen(command(tmp_path, "cut"), cwd=tmp_path) as process:
            try:
                assert process.wait(timeout=moments.uniform(0.2, 0.7 + kills / 20) * whole) == 0
                break
            except subprocess.TimeoutExpired:
                kills += 1
            finally:
                process.kill()
    assert kills > 0, "the run was never killed: make it longer"
    files = [tmp_path / name / "model.onnx" for name in ("whole", "cut")]
    assert sha256(files[0].read_bytes()) == sha256(files[1].read_bytes())
    steps = [step["stage"] for step in read_json(tmp_path / "cut" / "report.json")["steps"]]
    assert steps == ["reference", "drop_blocks", "distill", "quantize"]
    assert not list((tmp_path / "cut").rglob("*.tmp")), "half-written files were left behind"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_that_are_interrupted_twice_end_without_a_traceback(tmp_path):
    """Ctrl-C at random moments, and again at once, with workers that load data: 130, no traceback, the same bits."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD + LOADED, encoding="utf-8")
    (tmp_path / "killed.yaml").write_text(RECIPE, encoding="utf-8")
    loaded = [*command(tmp_path, "whole")[:-3], "--workload", "tiny_workload:loaded", "--quiet", "--out"]
    started = time.perf_counter()
    subprocess.run([*loaded, "whole"], cwd=tmp_path, check=True, timeout=500)
    whole = time.perf_counter() - started
    moments, interrupts = random.Random(0), 0  # noqa: S311 - moments to interrupt at, not secrets
    for _ in range(40):
        with subprocess.Popen(
            [*loaded, "cut"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads
        ) as process:
            try:
                assert process.wait(timeout=moments.uniform(0.15, 0.7 + interrupts / 20) * whole) == 0
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(moments.uniform(0, 0.5))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                _, err = process.communicate(timeout=120)
        # Python itself ends by the signal where it had not begun, or had all but ended.
        assert process.returncode in {130, -signal.SIGINT}
        assert "Traceback" not in err
        interrupts += 1
    assert interrupts > 0, "the run was never interrupted: make it longer"
    files = [tmp_path / name / "model.onnx" for name in ("whole", "cut")]
    assert sha256(files[0].read_bytes()) == sha256(files[1].read_bytes())
