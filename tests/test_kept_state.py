"""What models keep from their calls: never used again once weights changed, whatever it is kept in."""

import functools
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compressor.batches import Batches
from compressor.files.export import export_onnx
from compressor.kept_state import private_copy
from compressor.pruning.choice.targets import Parameters
from compressor.pruning.ranking.criteria import Hessian, Taylor
from compressor.pruning.ranking.gradients import loss_gradients
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.fine_tuning import FineTune
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.training.optimizers.choices import SGD
from compressor.workload import Workload, call_model, predict
from workbench.same_data import same_data


class Biased(nn.Module):
    """Two layers and a computed bias of 4 numbers, which subclasses keep in eval mode, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)
        self.bias = nn.Parameter(torch.randn(4, 3))
        self.register_buffer("order", torch.tensor([0, 2, 1, 0]), persistent=False)

    def computed(self) -> Tensor:
        return self.bias[self.order, 0]

    def kept(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) + (self.computed() if self.training else self.kept())


class InDict(Biased):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def kept(self) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.computed()
        return self.cache["bias"]


class InList(Biased):
    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Tensor] = []

    def kept(self) -> Tensor:
        if not self.cache:
            self.cache.append(self.computed())
        return self.cache[0]


class InAttribute(Biased):
    def __init__(self) -> None:
        super().__init__()
        self.is_ready, self.cache = False, None

    def kept(self) -> Tensor:
        if not self.is_ready:
            self.is_ready, self.cache = True, self.computed()
        return self.cache


class InNewAttribute(Biased):
    def kept(self) -> Tensor:
        if not hasattr(self, "cache"):
            self.cache = self.computed()
        return self.cache


class InBuffer(Biased):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None, persistent=False)

    def kept(self) -> Tensor:
        if self.cache is None:
            self.cache = self.computed()
        return self.cache


class InClass(Biased):
    cache: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def kept(self) -> Tensor:
        return self.cache.setdefault(tuple(self.bias.shape), self.computed())


class InDefault(Biased):
    def kept(self, cache: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006 - this is how some keep things
        return cache.setdefault("bias", self.computed())


class InClosure(Biased):
    def __init__(self) -> None:
        super().__init__()
        found = None

        def remembered(compute: Any) -> Tensor:
            nonlocal found
            found = compute() if found is None else found
            return found

        self.remembered = remembered

    def kept(self) -> Tensor:
        return self.remembered(self.computed)


class InObject(Biased):
    def __init__(self) -> None:
        super().__init__()
        self.state = SimpleNamespace(caches=[{}])

    def kept(self) -> Tensor:
        return self.state.caches[0].setdefault(0, self.computed())


class InFunctools(Biased):
    @functools.lru_cache  # noqa: B019 - this is how some keep things
    def kept(self) -> Tensor:
        return self.computed()


class UntilTraining(InDict):
    """As the attention biases of LeViT: dropped when the model is set to train."""

    def train(self, mode: bool = True) -> "UntilTraining":  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        if mode:
            self.cache = {}
        return self


KINDS = [
    InDict,
    InList,
    InAttribute,
    InNewAttribute,
    InBuffer,
    InClass,
    InDefault,
    InClosure,
    InObject,
    InFunctools,
    UntilTraining,
]


def _workload(model: nn.Module) -> Workload:
    inputs = torch.randn(24, 8)
    return same_data(model.eval(), Batches((inputs, torch.arange(24) % 4), batch_size=4), inputs[:2])


def _fresh(model: Biased, x: Tensor) -> Tensor:
    """What the model computes with the weights that it has."""
    with torch.no_grad():
        return model.b(torch.relu(model.a(x))) + model.computed()


class Never(Biased):
    """Keeps nothing."""

    def kept(self) -> Tensor:
        return self.computed()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_model_that_keeps_nothing(kind: type[Biased]) -> None:
    """Every batch goes back to the weights behind the constant, through a graph of its own."""
    plain = Never()
    model = kind()
    model.load_state_dict(plain.state_dict())
    workload = _workload(plain)
    wanted, given = (loss_gradients(each.eval(), workload, 3, 0)["bias"] for each in (plain, model))
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_ranking_by_gradients_computes_it_anew(kind: type[Biased]) -> None:
    """Every batch goes back through its own graph, and the narrowed model computes with the weights that it has."""
    workload = _workload(kind())
    for criterion in (Taylor(), Hessian(samples=8)):
        context = Context(progress=False, details={}, plan=[])
        small = PruneChannels(remove=0.3, align=1, criterion=criterion).apply(
            private_copy(workload.model), workload, context
        )
        x = torch.randn(3, 8)
        torch.testing.assert_close(predict(small, x), _fresh(small, x))


@pytest.mark.parametrize("kind", [InDict, InNewAttribute, InBuffer, InClass, InFunctools])
def test_a_file_holds_what_the_last_weights_give(kind: type[Biased]) -> None:
    """After training, model and exported file compute with the new weights, though it was run in between."""
    workload = _workload(kind())
    context = Context(progress=False, details={}, plan=[])
    tuned = FineTune(epochs=2, optimizer=SGD(rate=0.1)).apply(private_copy(workload.model), workload, context).eval()
    x = torch.randn(3, 8)
    assert not torch.allclose(tuned.bias, workload.model.bias)
    torch.testing.assert_close(predict(tuned, x), _fresh(tuned, x))
    file = OnnxModule(export_onnx(tuned, workload).onnx_bytes)
    torch.testing.assert_close(predict(file, x), _fresh(tuned, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_brings_along_is_emptied(kind: type[Biased]) -> None:
    """A model that ran before it was handed over has a full cache: it is found, and does not outlive the weights."""
    model = kind().eval()
    x = torch.randn(3, 8)
    with torch.no_grad():
        before = model(x)
    workload = _workload(model)
    context = Context(progress=False, details={}, plan=[])
    small = PruneChannels(remove=0.3, align=1).apply(private_copy(model), workload, context)
    tuned = FineTune(epochs=1, optimizer=SGD(rate=0.1)).apply(private_copy(model), workload, context).eval()
    for changed in (small, tuned):
        with torch.no_grad():
            changed.bias.add_(1)
        torch.testing.assert_close(predict(changed, x), _fresh(changed, x))
    torch.testing.assert_close(model(x), before)


class Anchored(nn.Module):
    """Constants of its own in an attribute, a container and a buffer: no call makes them again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale, self.table = nn.Linear(8, 4), torch.full((4,), 2.0), {"shift": torch.ones(4)}
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.scale + self.table["shift"]) * self.mask


def test_constants_are_no_caches() -> None:
    """What no call fills again stays where it is."""
    model = Anchored().eval()
    x = torch.randn(3, 8)
    before = model(x)
    empty_caches_(model, x)
    torch.testing.assert_close(model(x), before)


def test_losses_are_measured_without_old_constants() -> None:
    """Choosing structure by measured losses masks weights between calls: no mask is answered from a cache."""
    workload = _workload(InDict())
    context = Context(progress=False, details={}, plan=[])
    stage = ShrinkStructure(target=Parameters(0.6), align=1, rounds=1, batches=1)
    small = stage.apply(private_copy(workload.model), workload, context)
    x = torch.randn(3, 8)
    torch.testing.assert_close(predict(small, x), _fresh(small, x))


@pytest.mark.parametrize("kind", [UntilTraining, InFunctools])
def test_a_model_that_ran_with_gradients_can_be_copied(kind: type[Biased]) -> None:
    """A cache with a graph stops torch's deep copy; the copy has forgotten it, and the model still has it."""
    model = kind().eval()
    x = torch.randn(3, 8)
    before = model(x)
    twin = private_copy(model)
    with torch.no_grad():
        twin.bias.add_(1)
    torch.testing.assert_close(predict(twin, x), _fresh(twin, x))
    torch.testing.assert_close(model(x), before)


class Counts(nn.Module):
    """Counts its calls, notes what it saw, and hands its own notes out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.notes = 0, dict[str, Tensor]()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if self.training:
            self.register_buffer("last", x.detach())
        self.notes["logits"] = self.layer(x)
        return self.notes


def test_what_training_keeps_stays() -> None:
    """In training mode a model may change itself: statistics, counters, codebooks."""
    model = Counts().train()
    call_model(model, torch.ones(1, 2))
    assert model.calls == 1
    assert "last" in dict(model.named_buffers())


def test_what_a_model_hands_out_is_not_taken_back() -> None:
    """The container that a model fills and returns is the caller's, though the model's own is as before."""
    model = Counts().eval()
    assert list(call_model(model, torch.ones(1, 2))) == ["logits"]
    assert model.notes == {}


class Lazy(nn.Module):
    """Makes its layer at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is None:
            self.layer = nn.Linear(x.shape[-1], 2)
        self.seen = x
        return self.layer(x)


def test_layers_that_a_first_call_makes_stay() -> None:
    """A layer is no cache, whatever made it."""
    model = Lazy().eval()
    x = torch.ones(1, 3)
    torch.testing.assert_close(call_model(model, x), call_model(model, x))
