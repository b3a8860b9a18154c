"""SmoothQuant: outliers of a transformer's activations moved into the weights that multiply them.

Channel j of the input X of a linear layer is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) and row j of its
weight multiplied by it (Xiao et al. 2022, arXiv:2211.10438, equation 4), which changes nothing in float. What makes the
channels, a LayerNormalization or a linear layer in front of a ReLU, absorbs 1 / s. Where its output has other readers,
as the residual behind a normalization that follows its sum, a Mul in front of the layer does, if `insert` allows it.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressor.checks import check_count, check_fraction
from compressor.errors import NothingToImproveError
from compressor.files.graphs import attribute, copy_of, initializers, ranks, replace_nodes_
from compressor.files.operators import operator_of
from compressor.notes.quantization import Smoothed
from compressor.quantization.accuracy.channel_scaling import (
    Array,
    ScalingGroup,
    read_weights,
    rescale_,
    with_weights,
)
from compressor.quantization.accuracy.channel_statistics import channel_statistics, output_sqnr_db
from compressor.quantization.accuracy.channel_tracing import scaling_groups
from compressor.stage import Context
from compressor.workload import Workload

# A channel that calibration saw at zero alone tells nothing: it is treated as this share of the largest one.
_FLOOR = 1e-5


@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Activations and weights of linear layers made equally hard to round, `alpha` in [0, 1] of the way.

    alpha 0 levels the weights, 1 the activations. `insert` also smooths the layers whose input cannot be rescaled where
    it is made, with one Mul each at run time. Ranges come from `samples` calibration samples.
    """

    alpha: float = 0.5
    insert: bool = False
    samples: int = 256

    def __post_init__(self) -> None:
        check_fraction(self.alpha, "alpha is the share of the difficulty moved into weights", within="[0, 1]")
        check_count(self.samples, "samples is the number of samples that are looked at")

    def apply(self, graph: onnx.ModelProto, workload: Workload, context: Context) -> tuple[onnx.ModelProto, Smoothed]:
        """(the smoothed float graph, what the report is told).

        Raises NothingToImproveError where no layer can be smoothed.
        """
        kinds = {node.name: node.op_type for node in graph.graph.node}
        groups = [
            group
            for group in scaling_groups(graph)
            if any(operator_of(kinds[name]).multiplies_matrices for name in group.readers)
        ]
        covered = {name for group in groups for name in group.readers}
        inserted = _unscalable(graph, covered) if self.insert else {}
        if not groups and not inserted:
            raise NothingToImproveError(
                "smoothing",
                "nothing to smooth: no Gemm or MatMul reads what a normalization or another layer alone makes; "
                "SmoothQuant(insert=True) smooths more",
            )
        read = {group.readers[0]: group for group in groups}
        inputs = {node.name: node.input[0] for node in graph.graph.node if node.name in read or node.name in inserted}
        axes = {inputs[name]: group.tensors[inputs[name]] for name, group in read.items()}
        known_ranks = ranks(graph)
        # Channels lie last, on axis -1 where the rank is unknown.
        axes |= {inputs[name]: known_ranks.get(inputs[name], 0) - 1 for name in inserted}
        seen = channel_statistics(graph, axes, workload.calibration, samples=self.samples, progress=context.progress)
        weights = read_weights(graph)
        for name, group in read.items():
            moments = seen[inputs[name]]
            largest = _per_channel(np.maximum(-moments.low, moments.high), group)
            rescale_(weights, group, smoothing_scale(largest, _row_ranges(weights, group), self.alpha))
        smoothed = with_weights(graph, weights)
        if inserted:
            smoothed = self._insert(smoothed, inserted, seen, inputs)
        note = Smoothed(
            smoothed=tuple(sorted(covered)),
            smoothed_by_mul=tuple(sorted(inserted)),
            float_sqnr_db=output_sqnr_db(graph, smoothed, workload.calibration, samples=self.samples),
        )
        return smoothed, note

    def _insert(
        self, graph: onnx.ModelProto, nodes: dict[str, str], seen: dict[str, Any], inputs: dict[str, str]
    ) -> onnx.ModelProto:
        """The graph with one Mul for every tensor that some of `nodes` (name -> weight) read."""
        changed = copy_of(graph)
        weights = read_weights(changed)
        readers: dict[str, list[str]] = defaultdict(list)
        for name in nodes:
            readers[inputs[name]].append(name)
        axis = {node.name: _row_axis(node) for node in changed.graph.node if node.name in nodes}
        before: dict[str, onnx.NodeProto] = {}
        for tensor, names in readers.items():
            moments = seen[tensor]
            largest = np.maximum(-moments.low, moments.high)
            rows = np.max([np.abs(weights[nodes[name]]).max(axis=1 - axis[name]) for name in names], axis=0)
            scale = smoothing_scale(largest, rows.astype(np.float64), self.alpha)
            for name in names:
                weight = weights[nodes[name]]
                factor = scale[:, None] if axis[name] == 0 else scale[None, :]
                weights[nodes[name]] = (weight * factor).astype(np.float32)
            changed.graph.initializer.append(
                numpy_helper.from_array((1 / scale).astype(np.float32), f"{tensor}_smoothing")
            )
            before[names[0]] = helper.make_node(
                "Mul", [tensor, f"{tensor}_smoothing"], [f"{tensor}_smooth"], f"{names[0]}.smoothing"
            )
        placed = []
        for node in changed.graph.node:
            if node.name in before:
                placed.append(before[node.name])
            if node.name in nodes:
                node.input[0] = f"{node.input[0]}_smooth"
            placed.append(node)
        replace_nodes_(changed.graph, placed)
        return with_weights(changed, weights)


def smoothing_scale(activations: Array, weights: Array, alpha: float) -> Array:
    """S = activations^alpha / weights^(1 - alpha) for every channel, both (channels,) largest magnitudes.

    Channels without any activation or weight keep scale 1. Xiao et al. 2022, equation 4.
    """
    usable = (activations > activations.max(initial=0) * _FLOOR) & (weights > 0)
    safe_activations, safe_weights = np.where(usable, activations, 1.0), np.where(usable, weights, 1.0)
    scale: Array = np.where(usable, safe_activations**alpha / safe_weights ** (1 - alpha), 1.0)
    return scale


def _row_ranges(weights: dict[str, Array], group: ScalingGroup) -> Array:
    found: Array = np.max([slot.extremes(weights[slot.initializer]) for slot in group.consumers], axis=0)
    return found


def _per_channel(largest: Array, group: ScalingGroup) -> Array:
    # Behind a Flatten of feature maps a channel is several entries wide.
    found: Array = largest.reshape(group.channels, -1).max(axis=1)
    return found


def _unscalable(graph: onnx.ModelProto, covered: set[str]) -> dict[str, str]:
    """The Gemm and MatMul nodes with constant weights that no group reaches, and their weights."""
    constants = initializers(graph.graph)
    found = {}
    for node in graph.graph.node:
        weight = constants.get(node.input[1]) if operator_of(node.op_type).multiplies_matrices else None
        if weight is None or node.name in covered or node.input[0] in constants or len(weight.dims) != 2:
            continue
        if not attribute(node, "transA", 0):
            found[node.name] = weight.name
    return found


def _row_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
