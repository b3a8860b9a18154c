"""Copies of a model to try things on."""

import copy
import gc
import re
from typing import ClassVar

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.structure.axes.runs import trace_axes
from compressor.structure.calling.shown import Shown
from compressor.structure.graph import trace_structure
from compressor.structure.model_copies import masked_copy, shape_copy, sharing_copy
from compressor.structure.tensor_ids import Sizes, mask_, tensors_of
from compressor.structure.trials import difference


class Tangled(nn.Module):
    """Ties, a module kept in a plain list, a recurrent layer, buffers and a nested plain value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False)
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.again = [self.first]
        self.table = {"sizes": [4, 6]}
        self.tied = nn.Linear(4, 6)
        self.tied.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.norm(self.again[0](x) + self.tied(x)))
        return self.rnn(hidden[:, None])[0][:, 0]


def test_a_sharing_copy_computes_the_same_from_the_same_parameters() -> None:
    """A copy has the model's own parameters but those asked for, its own modules and buffers, and the same output."""
    model, x = Tangled().eval(), torch.randn(2, 4)
    twin = sharing_copy(model, own={"second.weight"})
    assert torch.equal(twin(x), model(x))
    assert twin.first.weight is model.first.weight is twin.tied.weight
    assert twin.second.weight is not model.second.weight
    assert twin.norm.running_mean is not model.norm.running_mean
    assert twin.again[0] is twin.first is not model.first
    assert twin.table == model.table
    assert twin.table["sizes"] is not model.table["sizes"]
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]


def test_a_layer_that_says_how_it_is_copied_is_asked() -> None:
    """A module with a __deepcopy__ of its own is copied by it."""

    class Odd(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
            return nn.Identity()

    assert isinstance(sharing_copy(nn.Sequential(Odd(2, 2)))[0], nn.Identity)


def test_a_shape_copy_has_no_numbers() -> None:
    """A shape copy runs on the meta device, gives the shape of the output, and keeps ties."""
    model = Tangled().eval()
    twin = shape_copy(model)
    assert all(tensor.is_meta for tensor in tensors_of(twin).values())
    assert twin.first.weight is twin.tied.weight
    assert twin(torch.empty(5, 4, device="meta")).shape == (5, 3)
    assert not any(tensor.is_meta for tensor in tensors_of(model).values())


def test_a_masked_copy_is_the_masked_model() -> None:
    """What is left out is zero along each dimension, in parameters and buffers, and the model stays as it was."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    sizes = Sizes(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()},
        kept={"0.weight": {0: [0, 2], 1: [1]}, "1.running_var": {0: [0, 2]}, "2.weight": {1: [0, 2]}},
        attributes={},
    )
    masked, wanted = masked_copy(model, sizes), mask_(copy.deepcopy(model), sizes)
    for name, tensor in tensors_of(masked).items():
        assert torch.equal(tensor, tensors_of(wanted)[name])
        assert torch.equal(tensors_of(model)[name], before[name])
    assert masked[2].bias is model[2].bias


def test_gradients_and_flags_are_left_alone_by_a_trial() -> None:
    """Comparing runs a backward pass through shared parameters, whose gradients and flags stay."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)).eval()
    model[0].weight.requires_grad_(False)
    twin = sharing_copy(model)
    assert difference(twin, model, torch.randn(2, 2), samples=1, backward=True) is None
    assert [parameter.grad for parameter in model.parameters()] == [None, None]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True]


def test_what_goes_wrong_in_a_trial_is_told() -> None:
    """Other values, other shapes, a second batch size that differs and a backward pass that fails are all found."""

    class Off(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if len(x) == 2 else x

    class Backwards(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: object, *_gradients: object) -> torch.Tensor:
            raise RuntimeError("no way back")

    class Forwards(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Backwards.apply(super().forward(x))

    x = torch.randn(2, 3)
    same = nn.Identity()
    assert difference(same, same, x, samples=1, backward=False) is None
    for samples in (1, 2):
        assert "something else" in str(difference(Off(), same, x, samples=samples, backward=False))
    assert "becomes" in str(difference(nn.Linear(3, 2), same, x, samples=1, backward=False))
    one = Forwards(3, 3)
    reason = difference(one, one, x, samples=1, backward=True)
    assert reason is not None
    assert re.fullmatch(r"RuntimeError: no way back \(.*test_model_copies.py:\d+\)", reason)
    assert difference(one, one, x, samples=1, backward=False) is None


def test_models_that_mix_samples_are_compared_size_by_size() -> None:
    """What each sample gives may depend on the others, if it does so in both; a fault in either size is found."""

    class Mix(nn.Module):
        def __init__(self, *, wrong: int = 0) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.mean(0) + (len(x) == self.wrong)

    x = torch.randn(2, 3)
    for samples in (1, 2):
        assert difference(Mix(), Mix(), x, samples=samples, backward=False) is None
        for wrong in (1, 2):
            assert "something else" in str(difference(Mix(wrong=wrong), Mix(), x, samples=samples, backward=False))


def test_the_collector_rests_during_a_trace_alone() -> None:
    """While a structure is found no reference cycles are looked for; afterwards they are, an error or not."""

    class Watched(nn.Linear):
        seen: ClassVar[list[bool]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(gc.isenabled())
            return super().forward(x)

    trace_structure(nn.Sequential(Watched(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4))
    assert Watched.seen
    assert not any(Watched.seen)
    assert gc.isenabled()
    with pytest.raises(StageError, match="cannot be traced"):
        trace_structure(Watched(4, 4), torch.randn(2, 5))
    assert gc.isenabled()


@pytest.mark.parametrize("looks", [False, True])
def test_numbers_are_needed_only_where_the_program_looks_at_them(*, looks: bool) -> None:
    """A network is traced by shapes alone, one that looks at a value with numbers, and both find the same group."""

    class Looking(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if looks:
                assert float(x.sum()) < 1e9
            return super().forward(x)

    model = Looking(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3, 3, 3)
    assert trace_axes(model, Shown.of(x))[1] is not looks
    graph = trace_structure(model, x)
    assert [(group.name, group.width, group.locked) for group in graph.groups if group.locked is None] == [
        ("0", 4, None)
    ]


def test_attention_is_one_operator_without_numbers_too() -> None:
    """Attention by one kernel has the same groups, kinds and locks whether numbers are computed or not."""

    class Attention(nn.Module):
        def __init__(self, *, look: bool) -> None:
            super().__init__()
            self.look = look
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.look:
                x.sum().item()
            q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            found = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(found.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    first, second = (
        [(group.name, group.width, group.kind, group.locked is None) for group in graph.groups]
        for graph in (trace_structure(Attention(look=look).eval(), torch.randn(2, 3, 8)) for look in (False, True))
    )
    assert first == second
    assert ("q", 2, "heads", True) in first


def test_zeros_in_activations_are_zeros_in_weights() -> None:
    """Layers of their own keep their weights and compute what zeroed weights give; tied and grouped ones are zeroed."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.grouped = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
            self.norm, self.line = nn.BatchNorm2d(4), nn.Linear(4, 4)
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.grouped(self.norm(self.conv(x))).mean(dim=(2, 3))
            return self.second(self.first(self.line(input=x)))

    model = Layers().eval()
    kept = {
        "conv.weight": {0: [0, 3], 1: [1]},
        "conv.bias": {0: [0, 3]},
        "norm.bias": {0: [0, 3]},
        "grouped.weight": {0: [0, 1, 2]},
        "line.weight": {1: [2]},
        "first.weight": {0: [0, 1], 1: [1, 2]},
    }
    sizes = Sizes(shapes={}, kept=kept, attributes={})
    masked = masked_copy(model, sizes, by_activations=True)
    assert masked.conv.weight is model.conv.weight
    assert masked.line.weight is model.line.weight
    assert masked.grouped.weight is not model.grouped.weight
    assert masked.first.weight is masked.second.weight is not model.first.weight
    x = torch.randn(2, 2, 8, 8)
    wanted = mask_(copy.deepcopy(model), sizes)(x)
    torch.testing.assert_close(masked(x), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(x), wanted)


def test_torchs_own_derivatives_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial runs a backward pass through derivatives that a program brings along, and through no others."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * x

        @staticmethod
        def backward(_ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0]

    class Squared(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Square.apply(super().forward(x))

    ran = []
    own = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: ran.append(1) or own(*args, **kwargs))
    x = torch.randn(2, 1, 6, 6)
    usual = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert difference(usual, usual, x, samples=1, backward=True) is None
    assert ran == []
    foreign = nn.Sequential(usual, Squared(2, 2)).eval()
    assert difference(foreign, foreign, x, samples=1, backward=True) is None
    assert ran == [1]


@pytest.mark.parametrize(("width", "threads"), [(16, 1), (600, 2)])
def test_large_weights_get_all_threads(width: int, threads: int) -> None:
    """A trial of small layers takes one thread, one of large layers all, and the number ends as it was."""
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Watched(width, width)
        assert difference(model, model, torch.randn(2, width), samples=1, backward=False) is None
        assert set(seen) == {threads}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
