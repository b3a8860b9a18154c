"""A run under torchrun: rank 0 leads and writes alone, the others help, and a rank that is killed costs an epoch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.errors import CompressorError, WrongUseError
from compressor.running.together import helping
from compressor.running.together.helping import Over, helped, leading, refuse_teams
from compressor.storage import read_json
from compressor.training.distributed.team import Team, present_team
from workbench import ROOT

WORKLOAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from workbench.tiny import TinyResNet, make_workload

def tiny():
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=1024, test=64)
"""
RECIPE = """
name: together
stages:
  - drop_blocks: {remove: 0.5}
  - fine_tune: {epochs: 4, tail_epochs: 0}
  - quantize
"""


def test_what_is_shared_out_otherwise_is_refused(monkeypatch) -> None:
    """With the way out; without torchrun nothing is."""
    refuse_teams("a comparison", "take --workers")
    monkeypatch.setattr(helping, "present_team", lambda: Team(rank=1, size=2))
    with pytest.raises(WrongUseError, match=r"a comparison is not for torchrun.*take --workers"):
        refuse_teams("a comparison", "take --workers")


class Told(Team):
    """A team whose rank 0 is a list of what it tells."""

    def told(self, value):
        found = self.list.pop(0) if not self.leads else value()
        if self.leads:
            self.list.append(found)
        return found


def team(rank: int, told: list) -> Team:
    found = Told(rank=rank, size=2)
    object.__setattr__(found, "list", told)
    return found


def test_the_others_are_told_how_a_run_ends() -> None:
    """By its report, or by the words of its failure, which are theirs, too; meanwhile rank 0 works by itself."""
    told: list = []
    with leading(team(0, told)) as ends:
        assert present_team() is None
        ends.append(Over(path=Path("here")))
    with pytest.raises(ValueError, match="no room"), leading(team(0, told)):
        raise ValueError("no room")
    assert helped(team(1, told), None).path == Path("here")  # type: ignore[arg-type]
    with pytest.raises(CompressorError, match="rank 0 leads has failed: no room"):
        helped(team(1, told), None)  # type: ignore[arg-type]


def command(out: str, *options: str) -> list[str]:
    run = ["-m", "compressor.cli", "run", "together.yaml", "-w", "tiny_workload:tiny", "--out", out, "--no-store", "-q"]
    return [sys.executable, *options, *run]


def members_of(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_rank_that_is_killed_is_recovered_and_the_result_is_that_of_one_process(tmp_path) -> None:
    """Torchrun with two processes, rank 1 killed in mid-training: it ends well, with one report, near one process's."""
    (tmp_path / "tiny_workload.py").write_text(WORKLOAD, encoding="utf-8")
    (tmp_path / "together.yaml").write_text(RECIPE, encoding="utf-8")
    subprocess.run(command("alone"), cwd=tmp_path, check=True, timeout=900)
    options = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    process = subprocess.Popen(command("team", *options), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    snapshots = tmp_path / "team" / "stages" / "02-fine_tune" / "snapshots"
    killed = False
    while process.poll() is None:
        if not killed and any(snapshots.rglob("*.safetensors")):
            os.kill(max(members_of(process.pid)), signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert killed, "the training was over before anybody was killed: make it longer"
    assert said.split() == [str(Path("team") / "model.onnx")], "the path is printed by rank 0 alone"
    alone, together = (read_json(tmp_path / name / "report.json") for name in ("alone", "team"))
    assert [step["stage"] for step in together["steps"]] == [step["stage"] for step in alone["steps"]]
    losses = [[epoch["loss"] for epoch in each["steps"][2]["details"]["epochs"]] for each in (alone, together)]
    assert len(losses[1]) == 4
    # Sums in another order grow apart from step to step.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=2e-3)
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
