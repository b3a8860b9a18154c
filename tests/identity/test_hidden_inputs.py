"""Inputs that no attribute and no bytecode shows at once: each changes the digest, or is said not to be known."""

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from compressor.identity.values import Identifier
from compressor.identity.workload import identify
from compressor.stages import FineTune
from workbench.same_data import three_classes

SCALE = 1.0


def own_scale(x: Any) -> Any:
    return x * SCALE


LOOKUPS: dict[str, Callable[[Any], Any]] = {
    "a key": lambda x: x * globals()["SCALE"],
    "get": lambda x: x * globals().get("SCALE"),
    "get or": lambda x: x * globals().get("SCALE", 1.0),
    "eval": lambda x: eval("x * SCALE", {"x": x, "SCALE": SCALE}) + SCALE,  # noqa: S307 - under test
    "a function": lambda x: 2 * globals()["own_scale"](x),
    "inside": lambda x: [row * globals()["SCALE"] for row in x],
}
UNKNOWN: dict[str, Callable[..., Any]] = {
    "a name made up": lambda x, name: x * globals()[name],
    "a sum": lambda x, end: x * globals()["SCA" + end],
    "a text made up": lambda x, end: x * globals()[f"SCA{end}"],
    "all of them": lambda x: x * dict(globals())["SCALE"],
    "text that is run": lambda x, text: eval(text),  # noqa: S307 - under test
    "a frame": lambda x: x * sys._getframe().f_globals["SCALE"],
    "another function": lambda x: x * own_scale.__globals__["SCALE"],
    "a module made up": lambda x, name: importlib.import_module(name).scale * x,
    "a module that is there": lambda x, name: sys.modules[name].scale * x,
}


def evaluated(x: Any) -> Any:
    return eval("SCALE * 2") * x  # noqa: S307 - under test


@pytest.mark.parametrize("function", [*LOOKUPS.values(), evaluated], ids=[*LOOKUPS, "eval of text"])
def test_a_name_that_is_looked_up_as_text_counts(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bytecode names it, and the function computes with it."""
    before = Identifier().digest(function)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    after = Identifier().digest(function)
    assert before.text != after.text or (before.unknown and after.unknown)
    if function is not LOOKUPS["eval"]:
        assert not before.unknown
        monkeypatch.setitem(globals(), "SCALE", 1.0)
        assert Identifier().digest(function) == before


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_a_name_that_is_made_up_is_not_known(function: Any) -> None:
    """Nothing says which one it will be."""
    (unknown,) = Identifier().digest(function).unknown
    assert "it looks up as text" in unknown


def test_modules_that_are_looked_up_as_text_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their name in a call, or in the list of those that are loaded."""
    helpers = ModuleType("helpers_of_mine")
    helpers.scale = 1.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "helpers_of_mine", helpers)
    functions = [
        lambda x: importlib.import_module("helpers_of_mine").scale * x,
        lambda x: sys.modules["helpers_of_mine"].scale * x,
        lambda x: __import__("helpers_of_mine").scale * x,
    ]
    before = [Identifier().digest(function) for function in functions]
    assert not any(each.unknown for each in before)
    helpers.scale = 2.0  # type: ignore[attr-defined]
    for function, was in zip(functions, before, strict=True):
        assert Identifier().digest(function).text != was.text


def test_methods_of_the_same_names_are_no_lookups() -> None:
    """model.eval() and model.modules() look nothing up, though the function knows sys."""

    def step(model: nn.Module) -> int:
        model.eval()
        return len(list(model.modules())) + sys.maxsize

    assert Identifier().digest(step).unknown == ()


def test_the_position_of_a_generator_counts() -> None:
    """A loss that draws from its own generator draws other numbers from another position."""

    class Noisy:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(3)

        def __call__(self, outputs: Tensor, _: Tensor) -> Tensor:
            return outputs.mean() + torch.randn((), generator=self.generator)

    one, same, other = Noisy(), Noisy(), Noisy()
    torch.randn(5, generator=other.generator)
    first, second, third = (Identifier().digest(loss).text for loss in (one, same, other))
    assert first == second != third


class Hiding:
    """Leaves out of copies what it calls a cache, and computes with it."""

    def __init__(self, scale: Any) -> None:
        self.scale, self.name = scale, "hiding"

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).mean() * self.scale


class Blanking(Hiding):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "scale": None}


class Reducing(Hiding):
    def __reduce__(self) -> Any:
        return Reducing, ("default",)


class HidingModule(nn.Module):
    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.scale = scale

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "scale"}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("kind", [Hiding, Blanking, Reducing, HidingModule])
def test_settings_that_a_class_leaves_out_of_copies_count(kind: Any) -> None:
    """A number, a list, an array, a function; what nobody can look into (a lock, a session) is passed over."""
    for one, other in [
        (1.0, 2.0),
        ([1, 2], [1, 3]),
        (np.ones(2), np.zeros(2)),
        (lambda x: x, lambda x: -x),
    ]:
        first, same, second = (Identifier().digest(kind(value)) for value in (one, one, other))
        assert first == same
        assert first.text != second.text
        assert not first.unknown
    # A session that is not open yet is no other one.
    assert Identifier().digest(kind(memoryview(b"1"))) == Identifier().digest(kind(None))
    assert Identifier().digest(kind(None)).unknown == ()
    assert Identifier().digest(kind(threading.Lock())) == Identifier().digest(kind(threading.Lock()))


class Late(Dataset[Any]):
    """Samples that are other ones from some pass on; what it counts is no setting."""

    def __init__(self, *, warm_up: int = 3, milestones: tuple[int, ...] = (5, 8), late: bool = True) -> None:
        self.warm_up, self.milestones, self.late = warm_up, milestones, late
        self.given = self.last = 0
        self.length: int | None = None

    def __len__(self) -> int:
        self.length = 12
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.given += 1
        self.last = index
        late = self.late and self.given > 12 * max(self.warm_up, self.milestones[0])
        return torch.full((4,), float(index + 100 * late)), torch.tensor(index % 3)


class LateLoader:
    """The same as a stream."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.passes = warm_up, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        shift = 100.0 * (self.passes > self.warm_up)
        return iter([(torch.ones(6, 4) + shift, torch.arange(6) % 3)])


def told(train: Any) -> Any:
    workload = three_classes(nn.Linear(4, 3).requires_grad_(requires_grad=True), 4)
    torch.nn.init.ones_(workload.model.weight)  # type: ignore[arg-type]
    changed = identify(type(workload)(**{**vars(workload), "train": train}), [FineTune(epochs=1)])
    return changed.told["train"]


def test_numbers_of_a_dataset_that_act_later_count() -> None:
    """One pass shows nothing of them. What a pass moves on is a counter: it makes no other data of the set."""
    first = told(DataLoader(Late(), batch_size=6))
    assert told(DataLoader(Late(), batch_size=6)) == first
    for other in (Late(warm_up=4), Late(milestones=(5, 9)), Late(late=False)):
        assert told(DataLoader(other, batch_size=6)) != first
    used = Late()
    for index in (0, 11, 5):
        used[index]
    assert len(used) == 12
    assert told(DataLoader(used, batch_size=6)) == first
    assert told(LateLoader(3)) == told(LateLoader(3)) != told(LateLoader(4))
