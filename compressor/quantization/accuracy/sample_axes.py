"""In which dimension of every tensor of a network samples lie: found by running it on two samples, and on three."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from compressor.files.carrying import fixed_batch, noted_layout

Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class SampleAxes:
    """Samples of tensors, kept in rows, and as a network has them: in dimension `axes`, None where it has one alone.

    Tensors without an entry carry no samples.
    """

    axes: Mapping[str, int | None]

    def placed(self, rows: Values) -> Values:
        """Tensors with samples in rows as the network has them. One sample is there where it has one alone."""
        return {name: _placed(value, self.axes[name]) for name, value in rows.items()}

    def in_rows(self, values: Values) -> Values:
        """The network's tensors with samples in rows."""
        return {name: _in_rows(value, self.axes[name]) for name, value in values.items()}


def axes_of_inputs(graph: onnx.ModelProto) -> dict[str, int | None]:
    """Where samples lie in every input of the graph, as its layout notes."""
    layout = noted_layout(graph)
    return {value.name: layout.axis_of(value.name) for value in graph.graph.input}


def find_sample_axes(
    graph: onnx.ModelProto, run: Callable[[Values], Values], rows: Values
) -> tuple[SampleAxes, dict[str, int]]:
    """(where samples lie, the bytes of one sample) in the float activations that `run` gives, for inputs in `rows`.

    What has two slices for two samples and three for three has its samples there; of a graph that takes a fixed number
    of them, the first dimension of that size is taken. What carries no samples, such as a shape, is left out.
    """
    given = axes_of_inputs(graph)
    inputs = SampleAxes(axes=given)
    fixed, single = fixed_batch(graph), noted_layout(graph).single
    found = []
    for count in (fixed,) if fixed else (2, 3):
        some = {name: value[torch.arange(count) % len(value)] for name, value in rows.items()}
        values = run(inputs.placed(some))
        found.append({name: value for name, value in values.items() if value.dtype == torch.float32})
    axes: dict[str, int | None] = {}
    sizes: dict[str, int] = {}
    for name, value in found[0].items():
        if single:
            axes[name], sizes[name] = None, value.numel() * value.element_size()
            continue
        axis = _axis(value, found[-1][name], fixed) if name in found[-1] else None
        if axis is not None:
            axes[name] = axis
            sizes[name] = value.numel() // value.shape[axis] * value.element_size()
    return SampleAxes(axes=axes | given), sizes


def _axis(few: Tensor, more: Tensor, fixed: int) -> int | None:
    if fixed:
        return 0 if few.ndim and len(few) == fixed else None
    if few.ndim != more.ndim:
        return None
    differing = [axis for axis in range(few.ndim) if few.shape[axis] != more.shape[axis]]
    (axis,) = differing if len(differing) == 1 else (None,)
    return axis if axis is not None and (few.shape[axis], more.shape[axis]) == (2, 3) else None


def _placed(value: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return value[0]
    return value.movedim(0, axis).contiguous() if axis else value


def _in_rows(value: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return value.unsqueeze(0)
    return value.movedim(axis, 0).contiguous() if axis else value
