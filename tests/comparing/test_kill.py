"""A comparison that is killed again and again ends with the table of one that was not."""

from pathlib import Path
from typing import Any

import pytest

from compressor.storage import read_json, sha256
from workbench import ROOT
from workbench.kills import killed_until_it_ends, whole_seconds

WORKLOAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from workbench.tiny import TinyResNet, make_workload

def tiny():
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=1024)
"""

RECIPE = """
name: killed
stages:
  - drop_blocks: {remove: 0.5}
  - distill: {epochs: 3, tail_epochs: 0, views: 2}
  - sweep: [null, quantize]
"""


def command(out: str) -> list[str]:
    return ["compare", "killed.yaml", "--workload", "tiny_workload:tiny", "--out", out, "--quiet", "--no-store"]


def table(folder: Path) -> Any:
    """What must not depend on kills: all but times, and the seconds of a stage that was begun twice."""
    found = read_json(folder / "comparison.json")
    rows = [
        {name: row[name] for name in ("name", "score", "drop", "size_bytes", "compressed_bytes", "alike", "control")}
        for row in found["rows"]
    ]
    shared = [(each["stage"], each["recipes"]) for each in found["cost"]["shared"]]
    files = {path.parent.name: sha256(path.read_bytes()) for path in sorted(folder.glob("*/model.onnx"))}
    return rows, shared, files, found["p_values"], found["failures"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_killed_comparisons_end_with_the_same_table(tmp_path, seed) -> None:
    """Kill -9 at random moments, then the same command again, until it ends: rows, files, letters are the same."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD, encoding="utf-8")
    (tmp_path / "killed.yaml").write_text(RECIPE, encoding="utf-8")
    seconds = whole_seconds(command("whole"), tmp_path)
    kills = killed_until_it_ends(command("cut"), tmp_path, seed=seed, whole=seconds)
    assert kills >= 3, "it was hardly killed: make the comparison longer"
    whole, cut = (table(tmp_path / name) for name in ("whole", "cut"))
    assert whole == cut
    assert [row["name"] for row in whole[0]][:3] == ["reference", "killed-without", "killed-quantize"]
    assert [stage for stage, _ in whole[1]][:2] == ["drop_blocks", "distill"]
    left = [path for path in (tmp_path / "cut").rglob("*.tmp") if path.parent.name != "part"]
    assert not left, "half-written files were left behind"
