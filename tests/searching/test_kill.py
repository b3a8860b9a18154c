"""A search that is killed again and again ends with what one that was not killed has found."""

from pathlib import Path
from typing import Any

import pytest

from compressor.storage import read_json
from workbench import ROOT
from workbench.kills import killed_until_it_ends, whole_seconds

WORKLOAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from workbench.tiny import TinyResNet, make_workload

def tiny():
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=512)
"""

SPACE = """
name: space
stages:
  - sweep: [{drop_blocks: {remove: 0.5}}, {prune_channels: {remove: 0.4}}]
  - distill: {epochs: 3, tail_epochs: 0, views: 2}
  - sweep: [null, quantize]
"""


def command(out: str) -> list[str]:
    options = ["--workload", "tiny_workload:tiny", "--max-drop", "0.5", "--out", out, "--quiet", "--no-store"]
    return ["auto", "space.yaml", *options]


def found(folder: Path) -> Any:
    """What must not depend on kills: all but seconds."""
    saved = read_json(folder / "search.json")
    seconds = {"seconds", "predicted_seconds", "made_seconds", "ended_at"}
    trials = [{name: value for name, value in trial.items() if name not in seconds} for trial in saved["trials"]]
    files = {name: (folder / name).read_bytes() for name in ("best.yaml", "model.onnx")}
    recipes = {path.name: path.read_text() for path in sorted((folder / "recipes").iterdir())}
    return trials, saved["finalists"], saved["why"], saved["p_values"], files, recipes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_killed_searches_end_with_the_same_result(tmp_path, seed) -> None:
    """Kill -9 at random moments, then the same command again, until it ends: trials, finalists, the file."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD, encoding="utf-8")
    (tmp_path / "space.yaml").write_text(SPACE, encoding="utf-8")
    whole = whole_seconds(command("whole"), tmp_path)
    kills = killed_until_it_ends(command("cut"), tmp_path, seed=seed, whole=whole)
    assert kills >= 3, "it was hardly killed: make the search longer"
    uncut, cut = (found(tmp_path / name) for name in ("whole", "cut"))
    assert uncut == cut
    assert [trial["rung"] for trial in uncut[0]][:4] == [0, 0, 1, 1]
    left = [path for path in (tmp_path / "cut").rglob("*.tmp") if path.parent.name != "part"]
    assert not left, "half-written files were left behind"
