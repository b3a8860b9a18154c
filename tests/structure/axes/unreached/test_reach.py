"""Layers that no example reaches: what they could read or make keeps its width, and all else may go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.calling.shown import Shown
from compressor.structure.graph import trace_structure
from workbench.halving import free, halves, locks


class ByLength(nn.Module):
    """One layer for short inputs, another for long ones, and a width that neither of them has."""

    def __init__(self, limit: int = 16) -> None:
        super().__init__()
        self.limit = limit
        self.stem, self.short = nn.Conv1d(4, 12, 3, padding=1), nn.Conv1d(12, 12, 3, padding=1)
        self.long = nn.Conv1d(12, 12, 5, padding=2)
        self.wide, self.head = nn.Conv1d(12, 20, 1), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.short(x)) if x.shape[-1] < self.limit else F.relu(self.long(x))
        return self.head(F.relu(self.wide(x)).mean(-1))


SHORT = torch.randn(2, 4, 8)


@pytest.mark.parametrize("limit", [16, 1000], ids=["found by trying lengths", "never found"])
def test_a_layer_for_other_lengths_locks_what_it_could_meet(limit: int) -> None:
    """Twelve channels are read and made by what does not run; the twenty beside them go, and long inputs still run."""
    narrow, masked, graph = halves(ByLength(limit), SHORT)
    assert set(free(graph)) == {"wide"}
    assert {"stem", "short"} <= set(locks(graph))
    assert "long (" in locks(graph)["stem"]
    assert "give inputs that reach it as other_inputs" in locks(graph)["stem"]
    other = torch.randn(3, 4, 1003)
    torch.testing.assert_close(narrow(other), masked(other))


def test_the_danger_names_the_line_that_would_call_the_layer() -> None:
    """Whoever reads it finds the branch, and how much it costs."""
    unreached = trace_structure(ByLength().eval(), SHORT).unreached
    assert list(unreached) == ["long"]
    assert unreached["long"].startswith("danger: it (")
    line = ByLength.forward.__code__.co_firstlineno + 2
    assert f"test_reach.py:{line})" in unreached["long"]
    assert "2 widths that it could meet are locked" in unreached["long"]


def test_a_second_example_reaches_the_layer_and_frees_the_widths() -> None:
    """With a long input beside the short one everything goes, and both lengths compute what the masked model does."""
    long = torch.randn(2, 4, 20)
    narrow, masked, graph = halves(ByLength(), Shown(example=SHORT, others=(long,)))
    assert set(free(graph)) == {"stem", "short", "wide"}
    assert graph.unreached == {}
    for x in (SHORT, long, torch.randn(5, 4, 31)):
        torch.testing.assert_close(narrow(x), masked(x))


def test_trials_are_made_on_every_example() -> None:
    """What a long input alone reads by position is refused, with the same layers in use for both."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x, long = self.first(x).mean(-1), x.shape[-1] > 9
            return self.head(x * (x.shape[1] / 8.0 if long else 1.0))

    short, long = torch.randn(2, 3, 4), torch.randn(2, 3, 12)
    assert set(free(trace_structure(Weighted().eval(), short))) == {"first"}
    reasons = locks(trace_structure(Weighted().eval(), Shown(example=short, others=(long,))))
    assert "computes something else" in reasons["first"]


class ByKeyword(nn.Module):
    """A layer for a keyword that examples do not give, one for another method, and parameters that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.gate, self.project = nn.Linear(3, 16), nn.Linear(24, 2)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        x = F.relu(self.first(x))
        if extra is not None:
            x = x * self.gate(extra)
        return self.head(F.relu(self.second(x)))

    def encode(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.second(F.relu(self.first(x)))))


def test_keywords_and_other_methods_keep_what_they_use() -> None:
    """A keyword's layer locks 16, a method's layer 24; with the keyword shown as another input the 16 go."""
    x, extra = torch.randn(2, 6), torch.randn(2, 3)
    narrow, masked, graph = halves(ByKeyword(), x)
    assert not free(graph)
    assert set(graph.unreached) == {"gate", "project"}
    torch.testing.assert_close(narrow(x, extra), masked(x, extra))
    shown = Shown(example={"x": x}, others=({"x": x, "extra": extra},))
    narrow, masked, graph = halves(ByKeyword(), shown)
    assert set(free(graph)) == {"first"}
    torch.testing.assert_close(narrow(x, extra), masked(x, extra))
    torch.testing.assert_close(narrow.encode(x), masked.encode(x))


class Spare(nn.Module):
    """Maps of 6 and 10 channels, and one more thing that no input reaches."""

    def __init__(self, spare: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.six, self.ten, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1), nn.Linear(10, 2)
        self.spare = spare

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ten(F.relu(self.six(x))).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("spare", "locked"),
    [
        (lambda: nn.Conv2d(6, 7, 1), {"six"}),
        (lambda: nn.ConvTranspose2d(7, 10, 2), {"ten"}),
        (lambda: nn.Linear(6 * 49, 7), {"six"}),  # a flattened map of another size
        (lambda: nn.Linear(10 * 16, 7), {"ten"}),  # of the size of the example
        (lambda: nn.Conv2d(16, 7, 1), {"six", "ten"}),  # both, concatenated
        (lambda: nn.Conv2d(13, 7, 1), {"ten"}),  # beside the three channels that come in
        (lambda: nn.Parameter(torch.randn(1, 10, 1, 1)), {"ten"}),
        (lambda: nn.Embedding(50, 6), {"six"}),
        (lambda: nn.Embedding(6, 7), set()),  # six words are no channels
        (lambda: nn.BatchNorm2d(10), {"ten"}),
        (lambda: nn.Linear(7, 11), set()),
    ],
)
def test_only_widths_that_fit_are_locked(spare: Callable[[], nn.Module], locked: set[str]) -> None:
    """As it is, flattened or concatenated: what a layer could read or make stays, and nothing else."""
    graph = trace_structure(Spare(spare()).eval(), torch.randn(2, 3, 4, 4))
    assert {"six", "ten"} - set(free(graph)) == locked
    assert len(graph.unreached) == 1
    assert ("nothing that could go fits it" in graph.unreached["spare"]) is (not locked)
