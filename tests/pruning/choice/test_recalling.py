"""Losses without blocks, with what runs ahead of them taken as it was: the same numbers as computed in full."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.pruning.choice.loss_probe import batch_statistics, loss_increases, loss_of
from compressor.pruning.choice.recalling import Recalled
from compressor.structure.blocks import find_blocks, skipped
from compressor.training.passes.threads import Threads

# The steps that were called; what modules keep of a call themselves is undone behind it.
CALLS: list[nn.Module] = []


class Step(nn.Module):
    """A block that writes into what it is given, and may note beside its output what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.seen: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(self)
        if self.seen is not None:
            self.seen.append(x.mean())
        return self.two(F.relu_(self.norm(self.one(x.mul_(1.5))))) + x


class Chain(nn.Module):
    """Blocks in a row, all of whose outputs are used again at the end; `hidden` ones share a list besides."""

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Step() for _ in range(4)])
        self.head, self.hidden = nn.Linear(4, 3), hidden

    def forward(self, x: Tensor) -> Tensor:
        x, seen, hidden = x.clone(), [], [torch.zeros(())]
        for step in self.steps:
            step.seen = hidden if self.hidden else None
            x = step(x)
            seen.append(x.mean(0))
        return self.head(x) * (1 + torch.stack(hidden).sum()) + torch.stack(seen).sum()


def _full(model: nn.Module, data: list, loss: nn.Module) -> dict[str, float]:
    blocks = find_blocks(model, data[0][0])
    with batch_statistics(model):
        before = loss_of(model, data, loss)
        found = {}
        for name, block in blocks.items():
            with skipped(model, {name: block}):
                found[name] = loss_of(model, data, loss) - before
    return found


def _data() -> list:
    return [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]


def test_the_losses_are_those_of_whole_passes() -> None:
    """Bit for bit, with fewer calls, also where blocks write into their inputs."""
    torch.manual_seed(0)
    model, data, loss = Chain().eval(), _data(), nn.CrossEntropyLoss()
    wanted = _full(model, data, loss)
    blocks = find_blocks(model, data[0][0])
    CALLS.clear()
    done: list[int] = []
    found = loss_increases(model, blocks, data, loss, step=lambda: done.append(1))
    assert found == wanted
    assert list(found) == list(wanted)
    assert len(set(found.values())) == 4
    assert len(done) == len(blocks) * len(data)
    # In every batch once as a whole, and once for each block that is left out ahead of it.
    assert [CALLS.count(step) for step in model.steps] == [3 * (1 + ahead) for ahead in range(4)]


def test_blocks_that_share_more_than_outputs_are_computed() -> None:
    """Where a replay of all blocks gives another loss, nothing is taken as it was."""
    torch.manual_seed(0)
    model, data, loss = Chain(hidden=True).eval(), _data(), nn.CrossEntropyLoss()
    blocks = find_blocks(model, data[0][0])
    CALLS.clear()
    loss_increases(model, blocks, data, loss)
    # A batch in full, and three blocks while the fourth is left out; the first batch tried the replay beside.
    assert [CALLS.count(step) for step in model.steps] == [3 * 4] * 4


def test_outputs_that_take_too_much_memory_are_computed(monkeypatch) -> None:
    """The first ones are kept, for most is computed behind the blocks that run first."""
    monkeypatch.setattr("compressor.pruning.choice.recalling.free_memory_bytes", lambda: 4 * 300)
    torch.manual_seed(0)
    model, data, loss = Chain().eval(), _data(), nn.CrossEntropyLoss()
    wanted = _full(model, data, loss)
    assert loss_increases(model, find_blocks(model, data[0][0]), data, loss) == wanted


def test_modules_are_themselves_again_whatever_happens() -> None:
    """A forward that somebody put into the module stays there, too."""
    model = Chain().eval()
    own = model.steps[1].forward
    model.steps[1].forward = own
    recalled = Recalled(model, ["steps.0", "steps.1"])
    with recalled.recording():
        model(torch.randn(2, 4))
    assert recalled.last_first == ["steps.1", "steps.0"]
    with pytest.raises(KeyError), recalled.replaying(before=None):
        vars(model)["nothing"]
    assert "forward" not in vars(model.steps[0])
    assert vars(model.steps[1])["forward"] is own


def test_threads_are_chosen_beside_busy_processes() -> None:
    """Every loss without a block is one that numbers of threads are tried on."""
    torch.manual_seed(0)
    model, data, loss = Chain().eval(), _data(), nn.CrossEntropyLoss()
    threads = Threads(most=2, cores=2, fixed=False, clock=lambda: 0.0, others=lambda: 1, wait=lambda _: None)
    with threads.kept():
        found = loss_increases(model, find_blocks(model, data[0][0]), data, loss, threads=threads)
    assert threads.told is not None
    assert "2, 1 from batch 6 on" in threads.told
    wanted = _full(model, data, loss)
    assert all(abs(found[name] - wanted[name]) < 1e-5 for name in wanted)
