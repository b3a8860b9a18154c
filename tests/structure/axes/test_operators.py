"""Operators between two layers: what they leave free is narrowed exactly, what they do not is locked for its reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.kept_state import private_copy
from compressor.structure.couplings import Couplings
from compressor.structure.graph import trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.tensor_ids import mask_

Operator = Callable[["Between", Tensor], Tensor]


class Between(nn.Module):
    """A layer of 12 channels, an operator, and a layer that reads `outputs` of what it gives."""

    def __init__(self, operator: Operator, *, outputs: int = 12, is_map: bool = False) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 12, 3, padding=1) if is_map else nn.Linear(6, 12)
        parts: dict[str, Callable[[], nn.Module | nn.Parameter]] = {
            "other": lambda: nn.Conv2d(3, 10, 3, padding=1) if is_map else nn.Linear(6, 10),
            "square": lambda: nn.Parameter(torch.randn(12, 12) * 0.3),
            "table": lambda: nn.Parameter(torch.randn(9, 12)),
            "pair": lambda: nn.Bilinear(12, 10, 12),
        }
        for name in parts.keys() & set(operator.__code__.co_names):  # what nothing reaches would lock what fits it
            setattr(self, name, parts[name]())
        self.operator, self.head = operator, nn.Linear(outputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        y = self.operator(self, torch.relu(self.make(x)))
        return self.head(y.flatten(2).mean(2) if y.ndim > 2 else y)


def _marked(_: Between, y: Tensor) -> Tensor:
    y = y.clone()
    y[y > 0.5] = 0.25
    y[y < 0.1] = 0
    return y


def _marked_rows(_: Between, y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    rows = y.sum(-1) > -1
    out[rows] = y[rows] * 2
    return out


def _picked_rows(_: Between, y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[:, torch.arange(12)] = y
    return out


def _order(y: Tensor, dim: int) -> Tensor:
    return torch.arange(y.shape[dim]).flip(0)


FREE: dict[str, tuple[Operator, dict[str, int]]] = {
    "bilinear": (lambda net, y: net.pair(y, torch.relu(net.other(net.x))), {}),
    "cdist": (lambda net, y: torch.cdist(y, net.table), {"outputs": 9}),
    "index_add": (lambda _, y: torch.zeros_like(y).index_add(0, _order(y, 0), y), {}),
    "index_copy": (lambda _, y: torch.zeros_like(y).index_copy(0, _order(y, 0), y), {}),
    "index_reduce": (lambda _, y: torch.zeros_like(y).index_reduce(0, _order(y, 0), y, "amax"), {}),
    "index_fill_of_places": (lambda _, y: y.index_fill(2, torch.tensor([0]), 0.0), {"is_map": True}),
    "scatter_add": (lambda _, y: torch.zeros_like(y).scatter_add(0, torch.zeros_like(y).long(), y), {}),
    "scatter_reduce": (lambda _, y: y.scatter_reduce(0, torch.zeros_like(y).long(), y, "sum"), {}),
    "mask_of_elements": (_marked, {}),
    "mask_of_rows": (_marked_rows, {}),
    "bucketize": (lambda _, y: y * torch.bucketize(y, torch.tensor([0.0, 0.5])), {}),
    "searchsorted": (lambda _, y: y * torch.searchsorted(torch.tensor([0.1, 0.5]), y), {}),
    "complex": (lambda _, y: torch.view_as_real(torch.complex(y, y * 2)).sum(-1), {}),
    "polar": (lambda _, y: torch.polar(y, y).real, {}),
    "fourier_over_places": (lambda _, y: torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[-2:]), {"is_map": True}),
    "channel_shuffle": (lambda _, y: F.channel_shuffle(y, 3), {"is_map": True}),
    "cumsum_over_places": (lambda _, y: y.cumsum(2), {"is_map": True}),
    "addr": (lambda net, y: y @ torch.addr(net.square, net.table[0], net.table[1]), {}),
    "einsum": (lambda net, y: torch.einsum("bi,ij,bj->bj", y, net.square, y), {}),
    "repeat_interleave": (lambda _, y: y.repeat_interleave(2, 1), {"outputs": 24}),
    "unfold_and_fold": (lambda _, y: F.fold(F.unfold(y, 2, stride=2), (6, 6), 2, stride=2), {"is_map": True}),
    "pixel_unshuffle": (lambda _, y: F.pixel_unshuffle(y, 2), {"outputs": 48, "is_map": True}),
    "interpolate": (lambda _, y: F.interpolate(y, scale_factor=2, mode="bilinear"), {"is_map": True}),
    "lp_pool": (lambda _, y: F.lp_pool2d(y, 2, 2), {"is_map": True}),
}

LOCKED: dict[str, tuple[Operator, str, dict[str, int]]] = {
    "index_add": (lambda _, y: torch.zeros_like(y).index_add(1, _order(y, 1), y), "written by their number", {}),
    "index_fill": (lambda _, y: y.index_fill(1, torch.tensor([0, 5]), 1.0), "written by their number", {}),
    "scatter": (lambda _, y: y.scatter(1, _order(y, 1).expand_as(y), y), "written by their number", {}),
    "indexed_write": (_picked_rows, "written by their number", {}),
    "masked_scatter": (lambda _, y: y.masked_scatter(y > 1, torch.ones(y.numel())), "one after another", {}),
    "fourier": (lambda _, y: torch.fft.irfft(torch.fft.rfft(y, dim=1), n=12, dim=1), "a Fourier transform", {}),
    "fourier_shift": (lambda _, y: torch.fft.fft(y, dim=1).real, "a Fourier transform", {}),
    "solve": (lambda net, y: torch.linalg.solve(net.square + torch.eye(12), y.T).T, "whole matrices", {}),
    "inverse": (lambda net, y: y @ torch.linalg.inv(net.square + torch.eye(12)), "whole matrices", {}),
    "qr": (lambda net, y: y @ torch.linalg.qr(net.square)[0], "whole matrices", {}),
    "matrix_exp": (lambda net, y: y @ torch.matrix_exp(net.square), "whole matrices", {}),
    "as_strided": (lambda _, y: y.as_strided((y.shape[0], 12), (12, 1)), "place in memory", {}),
    "cross": (lambda _, y: torch.cross(y[:, :3], y[:, 3:6], dim=1).repeat(1, 4), "a vector product", {}),
    "rot90": (lambda _, y: torch.rot90(y.unsqueeze(2), 1, (1, 2)).squeeze(1), "shifted or reversed", {}),
    "roll": (lambda _, y: y.roll(3, 1), "shifted or reversed", {}),
    "sort": (lambda _, y: y.sort(1).values, "sort runs over it", {}),
    "topk": (lambda _, y: y.topk(4, 1).values, "topk runs over it", {"outputs": 4}),
    "cumsum": (lambda _, y: y.cumsum(1), "cumsum runs over it", {}),
    "one_hot": (lambda _, y: F.one_hot(y.argmax(1), 12) * y, "argmax runs over it", {}),
    "complex_pairs": (
        lambda _, y: torch.view_as_real(torch.view_as_complex(y.view(-1, 6, 2)) * 2).flatten(1),
        "shape|real and imaginary",
        {},
    ),
    "sampling_grid": (
        lambda _, y: F.grid_sample(y, y[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
        "where to look in a map",
        {"is_map": True},
    ),
}


def _inputs(samples: int, *, is_map: bool) -> Tensor:
    return torch.randn(samples, 3, 6, 6) if is_map else torch.randn(samples, 6)


@pytest.mark.parametrize("name", FREE)
def test_what_is_free_is_narrowed_exactly(name: str) -> None:
    """The narrowed network computes, on inputs it was not traced with, what the masked original computes."""
    operator, settings = FREE[name]
    is_map = bool(settings.get("is_map"))
    model = Between(operator, **settings).eval()
    graph = trace_structure(model, _inputs(2, is_map=is_map))
    free = [group for group in graph.groups if group.locked is None]
    made = {part.module for group in free for part in group.parts if part.makes}
    assert "make" in made, [(group.name, group.locked) for group in graph.groups]
    gone = {group: list(range(group.width // 2)) for group in free}
    narrow = apply_plan_(private_copy(model), graph.entries(gone))
    masked = mask_(private_copy(model), graph.sizes_without(gone))
    x = _inputs(5, is_map=is_map)
    torch.testing.assert_close(narrow(x), masked(x))


@pytest.mark.parametrize("name", LOCKED)
def test_what_cannot_be_narrowed_says_why(name: str) -> None:
    """What an operator computes over keeps its width, and the reason names what runs over it."""
    operator, reason, settings = LOCKED[name]
    model = Between(operator, **settings).eval()
    graph = trace_structure(model, _inputs(2, is_map=bool(settings.get("is_map"))))
    reasons = [
        group.locked or ""
        for group in graph.groups
        if any(part.module == "make" and part.makes for part in group.parts)
    ]
    assert any(any(word in text for word in reason.split("|")) for text in reasons), reasons


@torch.library.custom_op("house::backwards", mutates_args=())
def _backwards(x: Tensor) -> Tensor:
    return x.flip(1).clone()


_backwards.register_autograd(lambda _context, gradient: gradient.flip(1))
_backwards.register_fake(torch.empty_like)


class Unknown(nn.Module):
    """An operator that nobody knows, beside layers that have nothing to do with it where `apart` is set."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(_backwards(x) if self.apart else x))
        return self.head(torch.relu(self.second(y if self.apart else _backwards(y))))


def test_groups_of_the_other_graph_are_tried_before_use() -> None:
    """torch-pruning takes an unknown operator for one that keeps channels apart: its group is locked by a trial."""
    model, x = Unknown(apart=False).eval(), torch.randn(2, 6)
    couplings = Couplings(model, x)
    assert [group.locked for group in couplings.groups] == [None, None, None]
    couplings.settle()
    reasons = {group.name: group.locked for group in couplings.groups}
    assert "something else" in (reasons["first"] or "")
    assert reasons["second"] is None
    free = [group for group in trace_structure(model, x).groups if group.locked is None and not group.makes_output]
    assert [group.name for group in free] == ["second"]


class Singular(nn.Module):
    """Fails where channels are zero, with an error of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight[:, :4] + 0.1
        if self.first.weight.shape[0] == 4:
            torch.linalg.cholesky(weight @ weight.T)
        return self.head(_backwards(self.first(x)))


def test_a_model_that_fails_with_zeros_locks_and_never_crashes() -> None:
    """A masked original that raises is a reason to leave the channels alone, in either graph."""
    model, x = Singular().eval(), torch.randn(2, 6)
    couplings = Couplings(model, x)
    couplings.settle()
    assert all(group.locked for group in couplings.groups if not group.makes_output)
    assert all(group.locked for group in trace_structure(model, x).groups if not group.makes_output)
