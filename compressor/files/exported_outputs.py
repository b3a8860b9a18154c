"""A model of torch as a function of tensors whose outputs have names, all of which go into its ONNX file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.errors import ExportError
from compressor.given.judging import JUDGED, Judge
from compressor.outputs.returned import CACHES
from compressor.workload import output_tensor, raw_output

# Of the largest output. Another order of summation and folded BatchNorm move float32 outputs by 1e-6 to 1e-4 of their
# scale, deep nets included; a frozen length, branch or wrong axis moves them by 1e-2 and more.
TOLERANCE = 1e-3
# float16 and bfloat16 round every layer at 1e-3 and 8e-3.
HALF_TOLERANCE = 3e-2
# The name of a lone output, and of the first of a tuple; others of a tuple have their place behind it.
_ALONE = "output"
# What numpy, and so ONNX Runtime in Python, has no numbers for.
_NO_NUMBERS = {torch.bfloat16, torch.complex32, torch.complex64, torch.complex128}


@dataclass(frozen=True, kw_only=True)
class OutputNames:
    """The names of a file's outputs in the model's order, `judged` the one that loss and metric read."""

    names: tuple[str, ...] = (_ALONE,)
    judged: str = _ALONE

    @property
    def others(self) -> tuple[str, ...]:
        """Those that are not judged."""
        return tuple(name for name in self.names if name != self.judged)

    @property
    def alone(self) -> "OutputNames":
        """The judged one alone."""
        return OutputNames(names=(self.judged,), judged=self.judged)


class NamedModel(nn.Module):
    """The model as a function of positional tensors that gives its `outputs` as a tuple, in their order."""

    def __init__(self, model: nn.Module, keywords: tuple[str, ...] | None, outputs: OutputNames) -> None:
        super().__init__()
        self.model = model
        self.keywords = keywords
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        raw = self.raw(tensors)
        if not self.outputs.others:
            return (output_tensor(raw),)
        found = self.named(raw)
        return tuple(found[name] for name in self.outputs.names)

    def named(self, raw: Any) -> dict[str, Tensor]:
        """The outputs by their names in the file; one that is chosen by its name keeps it."""
        found, judge = named_outputs(raw), judge_of(self.model)
        if judge is None or not isinstance(judge.which, str) or JUDGED not in found:
            return found
        own = _place(judge.which)
        return {own if name == JUDGED else name: tensor for name, tensor in found.items() if name != own}

    def raw(self, tensors: Sequence[Tensor]) -> Any:
        """What the model itself gives for `tensors`."""
        inputs: Inputs = tuple(tensors) if self.keywords is None else dict(zip(self.keywords, tensors, strict=True))
        return raw_output(self.model, inputs)


def names_of_outputs(raw: Any, found: Mapping[str, Tensor], taken: Sequence[str] = ()) -> OutputNames:
    """The names under which what a model gives, `found` by name, goes into its file: keys, fields, or places.

    A lone output, and the first of a tuple, is "output", the second of a tuple "output_1", and what lies deeper has its
    names joined by dots. Caches for the next call are left out, and so is everything but the judged output where the
    names of outputs are `taken`, by inputs, where it is no container, and tensors that numpy has no numbers for.
    """
    judged = output_tensor(raw)
    name = next((name for name, tensor in found.items() if tensor is judged), None)
    if name is None or name in taken:
        return OutputNames()
    numbers = [
        name for name, tensor in found.items() if tensor.dtype not in _NO_NUMBERS and tensor.layout == torch.strided
    ]
    return OutputNames(names=tuple(each for each in numbers if each == name or each not in taken), judged=name)


def named_outputs(raw: Any) -> dict[str, Tensor]:
    """The tensors of `raw` by the names under which they are exported, in its order; one that occurs twice, twice."""
    return dict(_walk(raw, ""))


def judge_of(model: nn.Module) -> Judge | None:
    """What chooses the judged output of `model`, where its workload has it chosen."""
    hooks = model._forward_hooks.values()  # noqa: SLF001 - torch has no other way to ask for them
    return next((hook for hook in hooks if isinstance(hook, Judge)), None)


def _place(name: str) -> str:
    """The name in the file of what stands at the place `name` of a tuple, else `name` itself."""
    return name if not name.isdigit() else f"{_ALONE}_{name}" if int(name) else _ALONE


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path or _ALONE, value
        return
    for name, item in _entries(value, top=not path):
        if name not in CACHES:
            yield from _walk(item, f"{path}.{name}" if path else name)


def _entries(value: Any, *, top: bool) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(_place(str(key)) if top else str(key), item) for key, item in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(_place(str(place)) if top else str(place), item) for place, item in enumerate(value)]
    return []


def compare(name: str, actual: Tensor, expected: Tensor, shapes: str) -> None:
    """Nothing where the output `name` of a file is the model's for inputs of `shapes`. Raises ExportError."""
    what = f"for inputs of shape {shapes} ONNX Runtime"
    of_it = "" if name == _ALONE else f" in {name!r}"
    if actual.shape != expected.shape:
        raise ExportError(f"{what} gives shape {tuple(actual.shape)}{of_it}, torch {tuple(expected.shape)}")
    if not expected.is_floating_point():
        wrong = int((actual != expected).sum())
        if wrong:
            raise ExportError(f"{wrong} of {expected.numel()} integer outputs{of_it} differ for shape {shapes}")
        return
    finite = expected.isfinite()
    infinite = actual[~finite].double().nan_to_num(), expected[~finite].double().nan_to_num()
    same_nan = torch.equal(actual.isnan(), expected.isnan())
    if not same_nan or not torch.equal(actual.isfinite(), finite) or not torch.equal(*infinite):
        raise ExportError(f"{what} gives NaN or Inf{of_it} where torch does not")
    difference = (actual.double() - expected.double())[finite].abs()
    scale = expected[finite].abs()
    if not scale.numel():
        return
    allowed = TOLERANCE if expected.dtype in {torch.float32, torch.float64} else HALF_TOLERANCE
    # The smallest scale is that of a model whose output is zero by construction.
    relative = float(difference.max()) / max(float(scale.max()), 1e-6)
    if not relative <= allowed:
        raise ExportError(
            f"{what} differs from torch{of_it} by {relative:.2g} of the output's scale, allowed is {allowed:g}"
        )
