"""Expressions of the user's own code that no call evaluates keep the features that they would take apart."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.calling.shown import Shown
from compressor.structure.graph import trace_structure
from workbench.halving import free, halves, locks

X = torch.randn(4, 6)


class Between(nn.Module):
    """Sixteen features, something that is done to them with what comes in, and twelve behind."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.between, self.turned = between, False
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, kind: str = "plain", more: Tensor | None = None) -> Tensor:
        y = self.between(F.relu(self.a(x.float())), x, kind, more)
        return self.head(F.relu(self.b(y)))


def _turned(y: Tensor) -> Tensor:
    return y.flip(1)


def _by_name(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    if kind == "turned":
        return _turned(y)
    return y


def _by_type(y: Tensor, x: Tensor, _kind: str, _more: Tensor | None) -> Tensor:
    if not x.is_floating_point():
        y = y.view(-1, 4, 4).mT.reshape(-1, 16)
    return y


def _by_error(y: Tensor, x: Tensor, _kind: str, more: Tensor | None) -> Tensor:
    try:
        return y * len(more)
    except TypeError:
        return y
    finally:
        if more is not None:
            y.copy_(y.roll(1, 1))


def _by_case(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    match kind:
        case "turned":
            return y.softmax(1)
        case _:
            return y


def _after_a_return(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    if kind == "plain":
        return y
    first = y[:, :1]
    return y * first


def _in_a_loop(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    for _ in range(len(kind) - 5):
        y = y.flip(1)
    return y


def _through_a_variable(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    if kind == "turned":
        z = y * 2
        return z.roll(1, -1)
    return y


def _deep(y: Tensor) -> Tensor:
    def inner(z: Tensor) -> Tensor:
        return _turned(z)

    return inner(y)


def _behind_a_case_that_ran(y: Tensor, x: Tensor, kind: str, _more: Tensor | None) -> Tensor:
    if x.ndim == 2:
        y = y.flatten(1)
    return _deep(y) if kind == "turned" else y


BETWEEN: dict[str, tuple[Callable[..., Tensor], Callable[[nn.Module], Tensor]]] = {
    "a function by a name": (_by_name, lambda net: net(X, "turned")),
    "a type": (_by_type, lambda net: net(torch.arange(24).view(4, 6))),
    "an error": (_by_error, lambda net: net(X, "plain", X)),
    "a case": (_by_case, lambda net: net(X, "turned")),
    "in one line": (lambda y, x, *_: y.flip(1) if x.requires_grad else y, lambda net: net(X.clone().requires_grad_())),
    "a loop": (_in_a_loop, lambda net: net(X, "turned")),
    "a variable": (_through_a_variable, lambda net: net(X, "turned")),
    "functions within functions": (_behind_a_case_that_ran, lambda net: net(X, "turned")),
    "its greatest": (lambda y, x, kind, *_: y * y.amax(1, keepdim=True) if kind == "a" else y, lambda net: net(X, "a")),
    "its mean, from behind": (
        lambda y, x, kind, more: y - y.mean(-1, keepdim=True) if kind == "a" else y,
        lambda net: net(X, "a"),
    ),
    "dimensions": (lambda y, x, kind, more: y.cumsum(-1) if x.ndim == 3 else y, lambda net: net(X[None])),
    "a written number": (
        lambda y, x, kind, more: y if more is None else y * torch.linspace(0, 1, 16),
        lambda net: net(X, "plain", X),
    ),
    "and": (lambda y, x, kind, more: y + (more is not None and y.flip(1)), lambda net: net(X, "plain", X)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BETWEEN)
def test_what_is_never_evaluated_keeps_what_it_takes_apart(kind: str) -> None:
    """The features stay with the line, those behind them go, and the call that was not shown gives the same."""
    between, use = BETWEEN[kind]
    narrow, masked, graph = halves(Between(between), X)
    assert set(free(graph)) == {"b"}
    assert "test_skipped_code.py:" in locks(graph)["a"]
    assert "no call comes to it" in locks(graph)["a"]
    torch.testing.assert_close(use(narrow.requires_grad_(False)), use(masked.requires_grad_(False)))


def test_one_position_that_stays_is_enough() -> None:
    """After an early return the first feature weighs the others."""
    narrow, masked, graph = halves(Between(_after_a_return), X)
    assert "a" not in free(graph)
    torch.testing.assert_close(narrow(X, "other"), masked(X, "other"))


def test_an_input_that_comes_to_it_has_the_last_word() -> None:
    """Shown, sixteen written numbers are met by the trace, which knows the reason."""
    shown = Shown(example={"x": X}, others=({"x": X, "more": X},))
    graph = trace_structure(Between(BETWEEN["a written number"][0]).eval(), shown)
    assert "it is counted out or drawn in forward" in locks(graph)["a"]
    assert graph.unreached == {}


HARMLESS: dict[str, Callable[..., Tensor]] = {
    "scaled": lambda y, x, kind, more: y * 2 if kind == "other" else y,
    "summed": lambda y, x, kind, more: F.dropout(F.relu(y)) + y if x.ndim == 3 else y,
    "flattened": lambda y, x, kind, more: y.view(y.size(0), -1) if x.ndim == 4 else y,
    "over samples": lambda y, x, kind, more: y - y.mean(0, keepdim=True) if kind == "other" else y,
    "checked": lambda y, x, kind, more: y if x.ndim != 3 else y.clamp(min=0, max=6),
    "of the input": lambda y, x, kind, more: y * x[:, 2:3] if kind == "other" else y,
    "a function within": lambda y, x, kind, more: max([y], key=lambda z: z[..., None].numel()),
    "in a comprehension that runs": lambda y, x, kind, more: sum(z.view(len(z), -1) * 1 for z in [y] if x.ndim == 2),
    "pieces in one": lambda y, x, kind, more: y + sum(z[:, :1] for z in [x] if kind == "plain"),
    "refused": lambda y, x, kind, more: y if kind == "plain" else _refuse(kind),
}


def _refuse(kind: str) -> Tensor:
    raise ValueError(f"no {kind}")


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm_locks_nothing(kind: str) -> None:
    """Code that is not evaluated may do to features what leaves each on its own."""
    graph = trace_structure(Between(HARMLESS[kind]).eval(), X)
    assert set(free(graph)) == {"a", "b"}
    assert graph.unreached == {}


RANKED: dict[str, tuple[Callable[..., Tensor], set[str]]] = {
    "pooled": (lambda y, *_: y if y.ndim == 2 else y.mean(dim=1), {"a", "b"}),
    "first of a sequence": (lambda y, *_: y[:, 0] if y.dim() == 3 else y, {"a", "b"}),
    "pooled, behind a shape": (lambda y, *_: y.amax(1) if len(y.shape) > 2 else y, {"a", "b"}),
    "pooled, turned round": (lambda y, *_: y if y.ndim != 3 else y.softmax(1).sum(1), {"a", "b"}),
    "from behind": (lambda y, *_: y.softmax(-1) if y.ndim == 3 else y, {"b"}),
    "a piece from behind": (lambda y, *_: y[..., :1] * y if y.ndim == 3 else y, {"b"}),
    "of another": (lambda y, x, *_: y - y.mean(1, keepdim=True) if x.ndim == 3 else y, {"b"}),
    "not alone": (lambda y, x, kind, _: y.flip(1) if y.ndim == 2 and kind == "a" else y, {"b"}),
}


@pytest.mark.parametrize("kind", RANKED)
def test_with_another_number_of_dimensions_the_second_is_not_the_last(kind: str) -> None:
    """Sequences are averaged over their steps where single vectors are not: features are counted from behind alone."""
    between, expected = RANKED[kind]
    graph = trace_structure(Between(between).eval(), X)
    assert set(free(graph)) == expected


class Set(Between):
    """What is done to its features depends on its own attributes as well."""

    def __init__(self, what: str) -> None:
        super().__init__(lambda y, *_: y)
        self.what, self.mode, self.calls = what, "plain", 0
        self.flip = Flip()

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, self.what)(F.relu(self.a(x)), x)
        return self.head(F.relu(self.b(y)))

    def flag(self, y: Tensor, _x: Tensor) -> Tensor:
        if self.turned:
            y = y.flip(1)
        return y

    def string(self, y: Tensor, x: Tensor) -> Tensor:
        if x.ndim == 2:
            if self.mode == "plain":
                return y
            y = y.softmax(1)
        return y

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        if x.ndim == 3:
            y = y * 2
            if self.mode == "plain":
                y = y.flip(-1)
        return y

    def state(self, y: Tensor, _x: Tensor) -> Tensor:
        self.calls = self.calls + len(y) // 1000
        if self.calls:
            y = y.flip(1)
        return y

    def module(self, y: Tensor, x: Tensor) -> Tensor:
        return self.flip(y) if x.ndim == 3 else y


class Flip(nn.Module):
    """Without a parameter by which it could be seen to be unread."""

    def forward(self, y: Tensor) -> Tensor:
        return y.flip(-1)


@pytest.mark.parametrize("what", ["flag", "string"])
def test_a_setting_of_the_model_is_told_alone(what: str) -> None:
    """No call changes it: whoever does finds it among the dangers, and nothing is locked."""
    graph = trace_structure(Set(what).eval(), X)
    assert set(free(graph)) == {"a", "b"}
    (text,) = graph.unreached.values()
    assert text.startswith("danger: as the model is set, no call comes to it")


@pytest.mark.parametrize("what", ["within", "module"])
def test_what_calls_decide_is_no_setting(what: str) -> None:
    """Where the input decides first, a setting within, and a member that is called there, stay as they are."""
    narrow, masked, graph = halves(Set(what), X)
    assert set(free(graph)) == {"b"}
    torch.testing.assert_close(narrow(X[None]), masked(X[None]))


def test_what_calls_count_is_no_setting() -> None:
    """An attribute that calls assign is none."""
    graph = trace_structure(Set("state").eval(), X)
    assert set(free(graph)) == {"b"}


class Map(nn.Module):
    """Channels that may be averaged from any side."""

    def __init__(self, average: Callable[[Tensor, str], Tensor]) -> None:
        super().__init__()
        self.average = average
        self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor, kind: str = "") -> Tensor:
        y = F.relu(self.a(x))
        y = y * self.average(y, kind)
        return self.head(F.relu(self.b(y)).mean((2, 3)))


AVERAGES: dict[str, tuple[Callable[[Tensor, str], Tensor], set[str]]] = {
    "map": (lambda y, kind: y.mean((2, 3), keepdim=True) if kind else y, set()),
    "map from behind": (lambda y, kind: torch.mean(y, dim=(-2, -1), keepdim=True) if kind else y, set()),
    "map, flattened": (lambda y, kind: y.flatten(2).mean(2)[..., None, None] if kind else y, set()),
    "channels": (lambda y, kind: y.mean(1, keepdim=True) if kind else y, {"a"}),
    "channels from behind": (lambda y, kind: F.softmax(y, -3) if kind else y, {"a"}),
    "norm": (lambda y, kind: F.layer_norm(y, y.shape[1:]) if kind else y, {"a"}),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_only_the_dimensions_that_are_counted_stay(name: str) -> None:
    """Positions of a map may be averaged, channels not; what was not shown is the same."""
    average, kept = AVERAGES[name]
    image = torch.randn(2, 3, 4, 4)
    narrow, masked, graph = halves(Map(average), image)
    assert {"a", "b"} - set(free(graph)) == kept
    torch.testing.assert_close(narrow(image, "averaged"), masked(image, "averaged"))


def test_of_a_function_that_was_seen_through_nothing_is_locked() -> None:
    """What stands behind the last place that was waited for ran as well."""

    class Seen(Between):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            if x.ndim == 2:
                x = x.flip(1)
            y = y.reshape(len(y), -1, 1).squeeze(2)
            return self.head(F.relu(self.b(y))) * x[:, :1]

    graph = trace_structure(Seen(lambda y, *_: y).eval(), X)
    assert set(free(graph)) == {"a", "b"}
    assert graph.unreached == {}


def test_under_a_debugger_it_is_told_that_nobody_watches() -> None:
    """The tracer that is there stays, and nothing is locked."""
    known, tracer = sys.gettrace(), lambda *_: None
    sys.settrace(tracer)
    try:
        graph = trace_structure(Between(_by_name).eval(), X)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(known)
    assert set(free(graph)) == {"a", "b"}
    assert "under a debugger" in graph.unreached["debugger"]
