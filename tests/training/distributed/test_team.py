"""Trainings in parts: what members add up is what one process computes, for batches of any size and for odd losses."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.tensor_files import read_tensor_file
from compressor.training.distributed import team as teams
from compressor.training.distributed.normalizing import normalized_together
from compressor.training.distributed.team import Team, each_alone, present_team, told_by_first
from workbench import ROOT


@dataclass(frozen=True, kw_only=True)
class Alone(Team):
    """A team whose other members add nothing."""

    rank: int = 0
    size: int = 2
    added: list[Any] = field(default_factory=list)

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (5, 3, 4, 2))])
def test_normalization_over_one_part_is_the_module_s_own(kind, shape, momentum) -> None:
    """Output, gradients of input and weights, and running statistics, over two batches; none is left patched."""
    own, ours = kind(3, momentum=momentum), kind(3, momentum=momentum)
    with torch.no_grad():
        for norm in (own, ours):
            norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
    for turn in range(2):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(turn)) * 3 + 1
        given = [inputs.clone().requires_grad_() for _ in range(2)]
        wanted = own(given[0])
        with normalized_together(ours, Alone()):
            found = ours(given[1])
        torch.testing.assert_close(found, wanted)
        weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
        (wanted * weight).sum().backward()
        (found * weight).sum().backward()
        torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.weight.grad, own.weight.grad)
    torch.testing.assert_close(ours.state_dict(), own.state_dict())
    assert "forward" not in vars(ours)
    ours.eval()
    own.eval()
    with normalized_together(ours, Alone()):
        torch.testing.assert_close(ours(inputs), own(inputs))


def test_parts_are_all_of_a_batch_and_small_ones_are_whole() -> None:
    """Ten samples for three members, each once; five are fewer than two a member. Nested inputs, other targets."""
    members = [Team(rank=rank, size=3) for rank in range(3)]
    inputs, targets = {"x": torch.arange(10), "y": torch.arange(20).reshape(10, 2)}, (torch.arange(10), torch.zeros(3))
    parts = [member.part(inputs, targets) for member in members]
    assert torch.cat([part[0]["x"] for part in parts]).tolist() == list(range(10))
    assert torch.cat([part[0]["y"] for part in parts]).tolist() == inputs["y"].tolist()
    assert torch.cat([part[1][0] for part in parts]).tolist() == list(range(10))
    assert all(part[1][1].shape == (3,) and part[2] for part in parts)
    assert members[2].part(torch.arange(5), torch.arange(5))[2] is False


def test_random_numbers_of_members_differ_and_leave_those_of_the_data_alone() -> None:
    """The same number of a member gives the same draws; the global generator goes on as if nothing had been."""
    torch.manual_seed(3)
    drawn = []
    for rank in (0, 1, 1):
        with Team(rank=rank, size=2).own_draws(0, 7):
            drawn.append(torch.rand(3))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_there_is_no_team_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of ranks that something else sets start nothing; nor does one process of torchrun alone."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert present_team() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert present_team() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    with each_alone():
        assert present_team() is None
    assert told_by_first(None, lambda: 3) == 3
    assert teams._each_alone.get() is False


MEMBERS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import torch
from compressor.stage import Context
from compressor.stages import Distill, FineTune, Polynomial, QuantizationAwareTraining, SparsifyWeights
from compressor.tensor_files import tensor_file
from compressor.storage import write_atomic
from compressor.training.distributed.team import present_team
from compressor.training.optimizers.choices import SGD
from compressor.training.precision import Float32
from workbench.tiny import TinyResNet, make_workload
torch.set_num_threads(1)

def workload():
    torch.manual_seed(0)
    # 100 samples: batches of 32, 32, 32 and 4, in which members have 2.
    return make_workload(TinyResNet().eval(), train=100, test=32)

how = dict(optimizer=SGD(rate=0.05), precision=Float32())
stages = {{
    "fine_tune": FineTune(epochs=2, tail_epochs=0, **how),
    "accumulated": FineTune(epochs=2, tail_epochs=0, accumulate=2, averaging=0.9, **how),
    "distill": Distill(epochs=2, tail_epochs=0, views=2, **how),
    "sparsify": SparsifyWeights(sparsity=0.5, schedule=Polynomial(epochs=2, tail_epochs=0, **how)),
    "aware": QuantizationAwareTraining(epochs=1, **how),
    "auto": FineTune(epochs=2, tail_epochs=1),
}}
team, out = present_team(), Path(sys.argv[1])
for name in sys.argv[2:]:
    asked = workload()
    torch.manual_seed(1)
    model = TinyResNet()
    context = Context(seed=3, folder=out / "snapshots", progress=False)
    made = stages[name].apply(model, asked, context)
    if team is None or team.leads:
        tensors = dict(made.state_dict()) or {{"outputs": made(asked.example_inputs)}}
        told = {{"epochs": context.details["epochs"], "training": context.details["trainings"][0]}}
        write_atomic(out / f"{{name}}.safetensors", tensor_file(tensors, told))
"""


def members(tmp_path: Path, count: int, *names: str) -> dict[str, tuple[dict[str, Tensor], Any]]:
    """The weights that `count` processes train, by the names of stages."""
    out = tmp_path / str(count)
    out.mkdir(exist_ok=True)
    program = tmp_path / "members.py"
    program.write_text(MEMBERS, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(out), *names],
            env={**os.environ, **told, "RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return {name: read_tensor_file(out / f"{name}.safetensors", way_out="") for name in names}


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path) -> None:
    """Weights, statistics of normalization and losses, with batches that do not divide, up to the order of sums."""
    names = ("fine_tune", "accumulated", "distill", "sparsify", "aware", "auto")
    one, two = members(tmp_path, 1, *names), members(tmp_path, 2, *names)
    for name in names:
        losses = [[epoch["loss"] for epoch in told["epochs"]] for _, told in (one[name], two[name])]
        assert losses[1] == pytest.approx(losses[0], rel=2e-3), name
        rates = [told["training"]["rate"] for _, told in (one[name], two[name])]
        assert rates[0] == pytest.approx(rates[1]), name
    # Rates that are found make more updates, and roundings that an integer graph makes are larger.
    for name in names[:4]:
        torch.testing.assert_close(
            two[name][0], one[name][0], rtol=2e-3, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_a_team_of_another_size_goes_on_from_the_snapshots(tmp_path) -> None:
    """What one process has trained, two take as it is: nothing is trained again, to the bit."""
    one = members(tmp_path, 1, "fine_tune")["fine_tune"]
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "snapshots").rename(tmp_path / "2" / "snapshots")
    two = members(tmp_path, 2, "fine_tune")["fine_tune"]
    assert all(torch.equal(two[0][name], tensor) for name, tensor in one[0].items())
    assert two[1] == one[1], "seconds of epochs tell that they were not trained again"
