"""Channels of an ONNX graph whose scale is free: what makes them can be divided by what their readers multiply with.

Rescaling leaves the function as it is, because what stands between is positively homogeneous, f(s x) = s f(x) for s > 0
(Nagel et al. 2019, arXiv:1906.04721, section 4.1); `channel_tracing` finds where.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from compressor.files.graphs import copy_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where an initializer holds the channels: seen with `shape`, `axes` together enumerate them."""

    initializer: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def extremes(self, value: Array) -> Array:
        """The largest magnitude of every channel, (channels,) float64."""
        others = tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)
        largest: Array = np.abs(value.astype(np.float64)).reshape(self.shape).max(axis=others).reshape(-1)
        return largest

    def scaled(self, value: Array, factors: Array) -> Array:
        """`value` with every channel multiplied by its factor, the shape and type of `value`."""
        spread = factors.reshape([size if axis in self.axes else 1 for axis, size in enumerate(self.shape)])
        return (value.astype(np.float64).reshape(self.shape) * spread).reshape(value.shape).astype(value.dtype)


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """A Clip to [0, `high`] within a group, which is homogeneous only for channels that stay below `high`."""

    node: str
    source: str
    high: float


@dataclass(kw_only=True)
class ScalingGroup:
    """Tensors whose channels share one free scale.

    `producers` hold the weights whose output channels they are, `offsets` the biases, `consumers` the weights that read
    them. `tensors` gives every tensor's channel axis. `nodes` are the names of the producing and consuming operators.
    """

    channels: int
    tensors: dict[str, int]
    producers: list[Slot] = field(default_factory=list)
    offsets: list[Slot] = field(default_factory=list)
    consumers: list[Slot] = field(default_factory=list)
    clippings: list[Clipping] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)


def rescale_(weights: dict[str, Array], group: ScalingGroup, scale: Array) -> None:
    """Divides what makes the channels of `group` by `scale` (channels, > 0) and multiplies what reads them, in place.

    `weights` holds the graph's initializers by name.
    """
    for slot in (*group.producers, *group.offsets):
        weights[slot.initializer] = slot.scaled(weights[slot.initializer], 1 / scale)
    for slot in group.consumers:
        weights[slot.initializer] = slot.scaled(weights[slot.initializer], scale)


def read_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """The float32 initializers of the graph by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def with_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the graph whose initializers named in `weights` hold those values; new names are added."""
    changed = copy_of(model)
    missing = dict(weights)
    for tensor in changed.graph.initializer:
        if tensor.name in missing:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(missing.pop(tensor.name), order="C"), tensor.name))
    changed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in missing.items())
    return changed
