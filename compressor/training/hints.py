"""Hints: inner features of a student are drawn to those of its teacher, through maps that learn to fit and then go.

Romero et al. 2015, arXiv:1412.6550, eq. 3; by which distance, `objectives.features` says.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.training.objectives.features import AttentionMaps, FeatureValues
from compressor.training.precision import Form, at_least_float32
from compressor.training.replay import kept_modes, replayed
from compressor.training.teaching import Teacher
from compressor.workload import Workload, call_model, output_tensor

_CHANNELS_SECOND = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)


@dataclass(frozen=True, kw_only=True)
class Hint:
    """A module of the student and one of the teacher, by their names, whose outputs are to agree."""

    student: str
    teacher: str

    @classmethod
    def of(cls, feature: "str | Hint") -> "Hint":
        """`feature` itself, or the module of that name in both."""
        return cls(student=feature, teacher=feature) if isinstance(feature, str) else feature

    def says(self) -> str:
        """Both names, or the one that they share."""
        return self.student if self.student == self.teacher else f"{self.student} to {self.teacher}"


class Hinted(nn.Module):
    """A student with the maps that compare its features to the teacher's, so that one loop trains and saves both."""

    def __init__(
        self,
        student: nn.Module,
        hints: tuple[Hint, ...],
        adapters: nn.ModuleList,
        *,
        axes: tuple[int, ...],
        compare: FeatureValues | AttentionMaps,
    ) -> None:
        super().__init__()
        self.student, self.adapters = student, adapters
        self.hints, self.axes, self.compare = hints, axes, compare

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)

    def distance(self, own: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """The sum over hints of the distance between the student's mapped features and the teacher's."""
        return torch.stack(
            [
                self.compare.distance(
                    adapter(at_least_float32(own[hint.student])),
                    at_least_float32(wanted[hint.teacher]).to(own[hint.student].device, torch.float32),
                    axis,
                )
                for hint, adapter, axis in zip(self.hints, self.adapters, self.axes, strict=True)
            ]
        ).sum()

    def adapted(self) -> dict[str, str]:
        """{feature: the classes of the maps that fit the student's to the teacher's}, for the report."""
        return {
            hint.says(): ", ".join(type(part).__name__ for part in _parts(adapter))
            for hint, adapter in zip(self.hints, self.adapters, strict=True)
        }


class Resized(nn.Module):
    """Maps (batch, channels, ...) of another size along the last dimensions: averaged down, or interpolated up."""

    def __init__(self, size: tuple[int, ...], *, last: bool = False) -> None:
        super().__init__()
        self.size, self.last = size, last

    def forward(self, features: Tensor) -> Tensor:
        maps = features.movedim(-1, 1) if self.last else features
        own = tuple(maps.shape[2:])
        if own != self.size:
            # Each dimension by itself: a map may be wider and less high than the other.
            least = tuple(map(min, own, self.size))
            maps = _AVERAGES[len(own)](maps, least) if least != own else maps
            maps = F.interpolate(maps, self.size, mode=_MODES[len(own)]) if least != self.size else maps
        return maps.movedim(1, -1) if self.last else maps

    def extra_repr(self) -> str:
        """The size, for printing."""
        return f"size={self.size}"


_AVERAGES: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_MAPS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@contextmanager
def tapped(model: nn.Module, names: tuple[str, ...]) -> Iterator[Mapping[str, Tensor]]:
    """The outputs of the named modules of `model`, filled in while it runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output_tensor(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def hinted(
    model: nn.Module,
    teacher: Teacher,
    hints: tuple[Hint, ...],
    workload: Workload,
    *,
    seed: int,
    compare: FeatureValues | AttentionMaps,
) -> Hinted:
    """`model` with a map for each hint, whose sizes are those of the example inputs.

    Raises StageError for modules that are not there or do not run, and for features that no map here fits.
    """
    form = Form.of(model)
    for hint in hints:
        _check_name(hint.student, model, "student")
        _check_name(hint.teacher, teacher.model, "teacher")
    with replayed(seed, 0), torch.no_grad(), kept_modes(model):
        model.eval()
        with tapped(model, tuple(hint.student for hint in hints)) as ours:
            call_model(model, form.place(workload.example_inputs))
        with tapped(teacher.model, tuple(hint.teacher for hint in hints)) as theirs:
            call_model(teacher.asked, teacher.form.place(workload.example_inputs))
        for hint in hints:
            for name, seen, side in ((hint.student, ours, "student"), (hint.teacher, theirs, "teacher")):
                if name not in seen:
                    raise StageError(
                        f"features: {name!r} does not run in the {side}; name a module that every input meets"
                    )
        shapes = [(ours[hint.student].shape, theirs[hint.teacher].shape) for hint in hints]
        second = [isinstance(model.get_submodule(hint.student), _CHANNELS_SECOND) for hint in hints]
        adapters = [
            _adapter(hint, *both, second=channels, widths=compare.maps_widths)
            for hint, both, channels in zip(hints, shapes, second, strict=True)
        ]
        axes = tuple(_axis(own, second=channels) for (own, _), channels in zip(shapes, second, strict=True))
    return Hinted(model, hints, nn.ModuleList(adapters).to(form.device), axes=axes, compare=compare)


def _axis(shape: torch.Size, *, second: bool) -> int:
    """The dimension of channels: the second of maps, and of signals where a module says so, else the last."""
    return 1 if len(shape) > 3 or (len(shape) == 3 and second) else -1


def _adapter(hint: Hint, ours: torch.Size, theirs: torch.Size, *, second: bool, widths: bool) -> nn.Module:
    if not widths and min(len(ours), len(theirs)) < 3:
        raise StageError(
            f"features: {hint.says()} gives {tuple(ours)} in the student and {tuple(theirs)} in the teacher, which has "
            "no places to attend to; name modules that give maps or sequences, or compare by FeatureValues()"
        )
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) and len(ours) in {2, 3, 4, 5} and ours[0] == theirs[0]:
        dimensions = len(ours) - 2
        axis = _axis(ours, second=second)
        maps = axis == 1
        sizes = (ours[2:], theirs[2:]) if maps else (ours[1:-1], theirs[1:-1])
        resized = [] if sizes[0] == sizes[1] else [Resized(tuple(sizes[1]), last=not maps)]
        own, other = ours[axis], theirs[axis]
        fitted: list[nn.Module] = []
        if own != other and widths:
            fitted = [_MAPS[dimensions](own, other, 1) if maps else nn.Linear(own, other)]
        parts = [*resized, *fitted]
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()
    raise StageError(
        f"features: {hint.says()} gives {tuple(ours)} in the student and {tuple(theirs)} in the teacher; only sizes "
        "may differ, not the number of dimensions; name another module"
    )


def _parts(adapter: nn.Module) -> list[nn.Module]:
    return list(adapter) if isinstance(adapter, nn.Sequential) else [adapter]


def _check_name(name: str, model: nn.Module, side: str) -> None:
    known = [each for each, _ in model.named_modules() if each]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        way_out = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:10])}"
        raise StageError(f"features: the {side} has no module {name!r}; {way_out}")
