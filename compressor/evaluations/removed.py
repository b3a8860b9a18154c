"""What the parts that a structural stage removed did before: how large and how changeable what they gave was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checks import check_count, explains_settings
from compressor.evaluations.evaluation import Subject
from compressor.kept_state import private_copy
from compressor.notes.evaluations import RemovedPart, RemovedParts
from compressor.training.replay import replayed
from compressor.workload import call_model, first_batches

# Relative to the largest value of the layer: below that a channel gives one number.
_SILENT = 1e-6


@explains_settings
@dataclass(frozen=True, kw_only=True)
class WhatWent:
    """Activation statistics of removed channels beside kept ones, and how much removed blocks changed their inputs.

    They are of the model before the stage, on `batches` (>= 1) batches of calibration data. Stages that remove nothing
    have none, nor have channels that a stage of several steps removed after its first.
    """

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the batches of calibration data that are looked at")

    def evaluate(self, subject: Subject) -> Sequence[RemovedParts]:
        """One note; see `Evaluation`."""
        if subject.before is None:
            return []
        channels, blocks = _channels(subject.plan), _blocks(subject.plan)
        if not channels and not blocks:
            return []
        model = private_copy(subject.before).eval()
        modules = dict(model.named_modules())
        watched: dict[str, Any] = {}
        for name, kept in channels.items():
            module = modules.get(name)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                watched[name] = _Channels(kept, axis=-1 if isinstance(module, nn.Linear) else 1)
        watched |= {name: _Block() for name in blocks if name in modules}
        hooks = [modules[name].register_forward_hook(_hook(each)) for name, each in watched.items()]
        try:
            with replayed(0, 0), torch.no_grad():
                for inputs, _ in first_batches(subject.workload.calibration, self.batches):
                    call_model(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        parts = [part for name, each in watched.items() if (part := each.part(name)) is not None]
        return [RemovedParts(removed_parts=tuple(parts))] if parts else []


def _channels(plan: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The kept outputs of every layer that the plan narrows, by module; of several cuts the first."""
    found: dict[str, list[int]] = {}
    for entry in plan:
        if entry.get("kind") == "slice":
            for tensor, dims in entry.get("tensors", {}).items():
                module, _, own = tensor.rpartition(".")
                if own == "weight" and "0" in dims:
                    found.setdefault(module, dims["0"])
    return found


def _blocks(plan: Sequence[dict[str, Any]]) -> list[str]:
    return [name for entry in plan if entry.get("kind") == "identity" for name in entry.get("modules", [])]


def _hook(watch: Any) -> Callable[..., None]:
    def see(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        watch.see(inputs, output)

    return see


class _Channels:
    """Sums over all values of every channel that a layer gave."""

    def __init__(self, kept: list[int], *, axis: int) -> None:
        self.kept, self.axis = kept, axis
        self.count = 0
        self.sums: Tensor | None = None

    def see(self, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2:
            return
        values = output.detach().double().movedim(self.axis, 0).flatten(1)
        sums = torch.stack([values.abs().sum(1), values.sum(1), values.square().sum(1)])
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += values.shape[1]

    def part(self, name: str) -> RemovedPart | None:
        if self.sums is None or self.sums.shape[1] <= max(self.kept) or len(self.kept) == self.sums.shape[1]:
            return None
        sizes, means, squares = self.sums / self.count
        spreads = (squares - means.square()).clamp(min=0).sqrt()
        kept = torch.zeros(len(sizes), dtype=torch.bool)
        kept[self.kept] = True
        silent = spreads[~kept] <= _SILENT * spreads.max().clamp(min=1e-30)
        return RemovedPart(
            part=name,
            removed=int((~kept).sum()),
            of=len(sizes),
            kept_size=float(sizes[kept].mean()),
            removed_size=float(sizes[~kept].mean()),
            kept_spread=float(spreads[kept].mean()),
            removed_spread=float(spreads[~kept].mean()),
            silent=float(silent.double().mean()),
        )


class _Block:
    """How far the output of a block was from its input."""

    def __init__(self) -> None:
        self.apart = self.size = 0.0

    def see(self, inputs: tuple[Any, ...], output: Any) -> None:
        given = next((each for each in inputs if isinstance(each, Tensor)), None)
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and given is not None and first.shape == given.shape:
            own, other = first.detach().double(), given.detach().double()
            self.apart += float((own - other).square().sum())
            self.size += float(other.square().sum())

    def part(self, name: str) -> RemovedPart | None:
        if not self.size:
            return None
        return RemovedPart(part=name, removed=1, of=1, moved=(self.apart / self.size) ** 0.5)
