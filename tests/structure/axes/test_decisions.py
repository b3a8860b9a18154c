"""Programs that branch on numbers they computed, or on how many there are."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.calling.shown import Shown
from compressor.structure.graph import trace_structure
from workbench.halving import free, halves, locks


class Refining(nn.Module):
    """Layers of one width, one of which runs for hard samples alone."""

    def __init__(self, is_hard: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__()
        self.is_hard = is_hard
        self.stem, self.refine, self.mid, self.head = (
            nn.Linear(a, b) for a, b in ((6, 16), (16, 16), (16, 16), (16, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        hard = x.abs().amax(1) > 4
        x = F.relu(self.stem(x))
        if self.is_hard(hard, x):
            x = x + self.refine(x)
        return self.head(F.relu(self.mid(x)))


CONDITIONS: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "any": lambda hard, _x: bool(hard.any()),
    "item": lambda hard, _x: hard.sum().item() > 0,
    "float": lambda hard, _x: float(hard.float().mean()) > 0.5,
    "length of nonzero": lambda hard, _x: len(hard.nonzero()) > 0,
    "where": lambda hard, _x: torch.where(hard)[0].numel() > 0,
    "picked rows": lambda hard, x: x[hard].shape[0] > 0,
    "masked select": lambda hard, _x: hard.float().masked_select(hard).numel() > 0,
    "unique": lambda hard, _x: hard.long().unique().numel() > 1,
    "bincount": lambda hard, _x: len(torch.bincount(hard.long())) > 1,
    "repeat": lambda hard, _x: len(torch.repeat_interleave(hard.long())) > 0,
    "equal": lambda hard, _x: not torch.equal(hard, torch.zeros_like(hard)),
    "list": lambda hard, _x: any(hard.tolist()),
    "array": lambda hard, _x: hard.numpy().any(),
}
# Sizes that no other numbers are tried for: they lock by width.
BY_WIDTH = {"bincount", "repeat"}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_branch_locks_what_its_layer_meets(condition: str) -> None:
    """Value or size: the branch's input stays, what is made after it goes, and hard samples still compute the same."""
    narrow, masked, graph = halves(Refining(CONDITIONS[condition]), torch.rand(2, 6))
    assert list(graph.unreached) == ["refine"]
    assert "stem" in locks(graph)
    assert set(free(graph)) == (set() if condition in BY_WIDTH else {"mid"})
    if condition not in BY_WIDTH:
        assert "branches on a computed value" in locks(graph)["stem"]
    for x in (torch.rand(3, 6), torch.full((3, 6), 5.0)):
        torch.testing.assert_close(narrow(x), masked(x))


@pytest.mark.parametrize(
    "largest", [lambda x: max(x.flatten().tolist()), lambda x: x.numpy().max(), lambda x: np.asarray(x).max()]
)
def test_numbers_that_leave_torch_are_decisions(largest: Callable[[Tensor], float]) -> None:
    """In a list or an array they are seen no more; what a branch on them reverses must not have gone in part."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            hard = largest(x) > 4
            x = torch.relu(self.mid(torch.relu(self.stem(x))))
            return self.head(x.flip(1) if hard else x)

    narrow, masked, graph = halves(Turning(), torch.rand(2, 6))
    assert set(free(graph)) == {"stem"}
    for x in (torch.rand(3, 6), torch.full((3, 6), 5.0)):
        torch.testing.assert_close(narrow(x), masked(x))


def test_an_example_on_the_other_side_frees_the_width() -> None:
    """With one hard and one easy sample every layer runs, and nothing needs a lock."""
    x = torch.cat([torch.rand(1, 6), torch.full((1, 6), 5.0)])
    _, _, graph = halves(Refining(CONDITIONS["any"]), x)
    assert set(free(graph)) == {"stem", "mid"}
    assert graph.unreached == {}


def test_the_other_side_of_a_branch_may_use_the_same_layers_otherwise() -> None:
    """No layer is left out, but on the other side features are reversed: they keep their number."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 10), nn.Linear(10, 5)

        def forward(self, x: Tensor) -> Tensor:
            large = x.abs().max() > 4
            x = F.relu(self.first(x))
            if large:
                x = x.flip(1)
            return self.head(F.relu(self.second(x)))

    narrow, masked, graph = halves(Turning(), torch.rand(2, 6))
    assert set(free(graph)) == {"second"}
    assert "shifted or reversed" in locks(graph)["first"]
    large = torch.full((2, 6), 5.0)
    torch.testing.assert_close(narrow(large), masked(large))


def test_rows_picked_by_value_may_be_none() -> None:
    """A layer that gets no row of this example has run all the same: its widths are known."""

    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.refine, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            hard = x.abs().amax(1) > 4
            x = F.relu(self.stem(x))
            more = torch.zeros_like(x)
            more[hard] = self.refine(x[hard])
            return self.head(x + more)

    for x in (torch.rand(2, 6), torch.tensor([[0.0] * 6, [5.0] * 6])):
        narrow, masked, graph = halves(Picking(), x)
        assert set(free(graph)) == {"stem"}
        for other in (torch.rand(3, 6), torch.full((3, 6), 5.0)):
            torch.testing.assert_close(narrow(other), masked(other))


def test_a_loop_until_a_value_is_small_comes_to_an_end() -> None:
    """Decisions are turned once: a loop that would never end is not entered for ever."""

    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.step, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            change = torch.ones(())
            while float(change) > 0.5:
                new = torch.tanh(self.step(x)) * 0.1
                x, change = new, (new - x).abs().sum() * 0.01
            return self.head(x)

    graph = trace_structure(Solver().eval(), torch.randn(2, 4))
    assert set(free(graph)) == {"first"}


class Experts(nn.Module):
    """Each row goes to the expert that a gate picks: few rows reach few experts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(6, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16)) for _ in range(4))
        self.mid, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        picked, mixed = self.gate(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (picked == number).nonzero().flatten()
            if rows.numel():
                mixed[rows] = expert(x[rows])
        return self.head(F.relu(self.mid(x + mixed)))


def test_experts_that_no_row_reaches_keep_what_they_read_and_their_own_width() -> None:
    """The second and later decisions of a line are taken otherwise too; the reached expert and what follows go."""
    torch.manual_seed(1)
    narrow, masked, graph = halves(Experts(), torch.randn(1, 6).repeat(2, 1))
    assert len(graph.unreached) == 6
    assert "stem" in locks(graph)
    assert "mid" in free(graph)
    assert any(name.startswith("experts.") for name in free(graph))
    x = torch.randn(64, 6)
    torch.testing.assert_close(narrow(x), masked(x))


def test_a_batch_of_many_rows_reaches_more() -> None:
    """Where two samples leave experts out, more of the data are shown, and the trials are made on those too."""
    torch.manual_seed(1)
    x = torch.randn(64, 6)
    narrow, masked, graph = halves(Experts(), Shown(example=x[:1].repeat(2, 1), batches=(x[:32],)))
    assert graph.unreached == {}
    assert {"stem", "mid", *(f"experts.{number}.0" for number in range(4))} <= set(free(graph))
    torch.testing.assert_close(narrow(x), masked(x))


class Otherwise(nn.Module):
    """Layers that all run, and something else between the first two of them where `wanted` says so."""

    def __init__(self, wanted: Callable[[Tensor, "Otherwise"], Tensor]) -> None:
        super().__init__()
        self.wanted = wanted
        self.stem, self.mid, self.head = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return self.head(F.relu(self.mid(self.wanted(F.relu(self.stem(x)), self))))


def _last_first(features: Tensor, number: int) -> Tensor:
    return torch.cat([features[:, number:], features[:, :number]], 1)


OTHERWISE: dict[str, Callable[[Tensor, Otherwise], Tensor]] = {
    "a written size": lambda y, net: y.view(-1, 4, 4).mT.reshape(-1, 16) if net.x.max() > 4 else y,
    "a part of a weight": lambda y, net: F.linear(y, net.mid.weight[:16]) if net.x.max() > 4 else y,
    "a cut at a number": lambda y, net: _last_first(y, int(net.x.max())),
    "values that are all alike": lambda y, net: y.flip(1) if len(net.x.round().unique()) == 1 else y,
    "a second condition": lambda y, net: y.flip(1) if net.x.min() < 9 and net.x.max() > 4 else y,
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_the_other_side_of_a_branch_is_tried_without_what_is_to_go(kind: str) -> None:
    """No layer is left out, and what the rules cannot see of the other side, the trials do."""
    narrow, masked, graph = halves(Otherwise(OTHERWISE[kind]), torch.rand(2, 6))
    assert "stem" not in free(graph)
    for x in (torch.rand(3, 6), torch.full((3, 6), 5.0)):
        torch.testing.assert_close(narrow(x), masked(x))


CODE, RANGE, NAMES = 12, (30.25, 30.75), {"17": 1}


def _at_code(y: Tensor, x: Tensor, limit: int = 21) -> Tensor:
    return y.flip(1) if int(x.max()) == limit else y


# What is done to features where the largest input is the number, and nothing is for the values that are always tried.
EXACT: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    "rounded": (5.2, lambda y, x: y.flip(1) if round(x.max().item()) == 5 else y),
    "a text": (7.1, lambda y, x: y.flip(1) if f"{x.max().item():.0f}" == "7" else y),
    "how a text begins": (34.0, lambda y, x: y.flip(1) if str(int(x.max())).startswith("3") else y),
    "a key": (9.9, lambda y, x: {9: y.flip(1)}.get(int(x.max()), y)),
    "a global name": (12.5, lambda y, x: y.flip(1) if int(x.max()) == CODE else y),
    "keys of a global name": (17.0, lambda y, x: y.flip(1) if f"{x.max():.0f}" in NAMES else y),
    "a default": (21.3, _at_code),
    "a remainder": (26.0, lambda y, x: y.flip(1) if int(x.max()) % 7 == 5 else y),
    "a range": (30.5, lambda y, x: y.flip(1) if RANGE[0] < float(x.max()) < RANGE[1] else y),
    "a constant that won": (8.0, lambda y, x: y.flip(1) if max(x.max(), torch.tensor(4.0)) > 4 else y),
    "a list": (6.0, lambda y, x: y.flip(1) if 6.0 in x.flatten().tolist() else y),
    "a second decision": (40.0, lambda y, x: (y.flip(1) if x.max() < 50 else y) if x.max() > 30 else y),
}


@pytest.mark.parametrize("kind", EXACT)
def test_numbers_that_the_program_compares_with_are_tried(kind: str) -> None:
    """A branch on one very value reverses features: they stay, and those behind them go."""
    number, otherwise = EXACT[kind]
    narrow, masked, graph = halves(Otherwise(lambda y, net: otherwise(y, net.x)), torch.rand(2, 6))
    assert set(free(graph)) == {"mid"}
    x = torch.rand(3, 6)
    x[0, 0] = number
    torch.testing.assert_close(narrow(x), masked(x))


class Coded(Otherwise):
    """Features are reversed where the largest input is the code, a number in an attribute."""

    def __init__(self, code: int | tuple[int, ...]) -> None:
        super().__init__(lambda y, _: y)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        codes = self.code if isinstance(self.code, tuple) else (self.code,)
        if round(x.max().item()) in codes:
            y = y.flip(1)
        return self.head(F.relu(self.mid(y)))


@pytest.mark.parametrize("code", [19, (5, 19)])
def test_numbers_in_attributes_are_tried(code: int | tuple[int, ...]) -> None:
    """A setting of the model is compared with like a number in its text."""
    narrow, masked, graph = halves(Coded(code), torch.rand(2, 6))
    assert set(free(graph)) == {"mid"}
    x = torch.full((3, 6), 19.0)
    torch.testing.assert_close(narrow(x), masked(x))


@pytest.mark.parametrize("number", [2, 0.125])
def test_decisions_that_change_nothing_lock_nothing(number: float) -> None:
    """Numbers that are tried and lead to the same operators cost no width."""
    _, _, graph = halves(Otherwise(lambda y, net: y * (2 if net.x.max() == number else 3)), torch.rand(2, 6))
    assert set(free(graph)) == {"stem", "mid"}


SAMPLES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "a number": (3, lambda y: y.flip(1) if y.shape[0] == 3 else y),
    "another": (11, lambda y: y.flip(1) if len(y) == 11 else y),
    "more than": (17, lambda y: y.softmax(1) if y.size(0) > 16 else y),
    "a remainder": (10, lambda y: y.flip(1) if len(y) % 5 == 0 else y),
    "one of some": (8, lambda y: y.flip(1) if len(y) in {4, 8} else y),
    "a written size": (5, lambda y: y.view(len(y), 4, 4).mT.reshape(y.shape) if not len(y) < 5 else y),
    "positions": (7, lambda y: y + y[:, : len(y)].sum(1, keepdim=True)),
    "one position": (7, lambda y: y * y[:, len(y) - 1].sigmoid()[:, None]),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_what_runs_for_other_numbers_of_samples_alone_is_tried_too(kind: str) -> None:
    """As many samples as the program's text mentions, and positions that follow their number."""
    number, otherwise = SAMPLES[kind]
    narrow, masked, graph = halves(Otherwise(lambda y, _: otherwise(y)), torch.rand(2, 6))
    assert set(free(graph)) == {"mid"}
    for size in (1, 2, number):
        x = torch.rand(size, 6)
        torch.testing.assert_close(narrow(x), masked(x))


def test_a_sum_over_samples_is_cut_at_their_number() -> None:
    """As `torch.addbmm(...)[:len(y)]` does: no width that is cut there is free."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 10), nn.Linear(6, 12), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, two = F.relu(self.a(x)), F.relu(self.b(x))
            both = torch.addbmm(torch.zeros(1, 1), two.T[None], one[None])
            return self.head(one + both[: len(x)].sum(0))

    narrow, masked, graph = halves(Sums(), torch.rand(2, 6))
    assert set(free(graph)) == {"a"}
    for size in (1, 2, 7):
        x = torch.rand(size, 6)
        torch.testing.assert_close(narrow(x), masked(x))


def test_samples_that_are_picked_one_by_one_lock_nothing() -> None:
    """A loop over samples takes other positions for more of them, but none of the features."""

    def each(y: Tensor, _: Otherwise) -> Tensor:
        return torch.stack([y[number] for number in range(len(y))])

    narrow, masked, graph = halves(Otherwise(each), torch.rand(2, 6))
    assert set(free(graph)) == {"stem", "mid"}
    x = torch.rand(5, 6)
    torch.testing.assert_close(narrow(x), masked(x))


LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "long": lambda y: y.view(len(y), -1, 4, 4).mT.reshape(y.shape) if y.shape[1] > 8 else y,
    "very long": lambda y: y.flip(2) if y.shape[1] > 16 else y,
    "short": lambda y: y.softmax(2) if y.shape[1] < 3 else y,
    "one": lambda y: y.flip(2) if y.size(1) == 1 else y,
    "exactly so long": lambda y: y.flip(2) if y.shape[1] == 7 else y,
    "a constant of its own": lambda y: y * torch.linspace(0.1, 1, 16) if y.shape[1] % 4 == 0 else y,
    "longer than so": lambda y: y.flip(2) if y.shape[1] > 40 else y,
}


@pytest.mark.parametrize("length", LENGTHS)
def test_what_runs_for_other_lengths_alone_is_tried_too(length: str) -> None:
    """The same layers, used otherwise for inputs that the example does not show."""
    narrow, masked, graph = halves(Otherwise(lambda y, _: LENGTHS[length](y)), torch.rand(2, 5, 6))
    assert set(free(graph)) == {"mid"}
    for size in (1, 2, 5, 7, 9, 20, 41):
        x = torch.rand(3, size, 6)
        torch.testing.assert_close(narrow(x), masked(x))


def test_more_positions_of_the_same_operators_lock_nothing() -> None:
    """A program that does the same at every length keeps its freedom."""
    _, _, graph = halves(Otherwise(lambda y, _: y - y.mean(1, keepdim=True)), torch.rand(2, 5, 6))
    assert set(free(graph)) == {"stem", "mid"}
