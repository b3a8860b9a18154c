"""Bias correction: what rounding shifts in the mean of every channel, taken out of the biases, at no cost at run time.

Rounded weights change the expected output of a channel, E[W~ x~] != E[W x]; the difference goes into the bias (Nagel et
al. 2019, arXiv:1906.04721, section 4.2).

- empirical (appendix D there): layer by layer in graph order, the mean over calibration data of the float output minus
  that of the quantized one, with all earlier layers corrected already, so that nothing is corrected twice.
  Beside rounding that learns, `layer_rounding` does the same on its way, so that the weights behind see it.
- analytic (equations 16 to 19): (W - W~) E[x], all layers at once. Behind a ReLU or ReLU6, E[x] is the mean of a
  clipped normal distribution; its mean and deviation in front of the activation are measured, because BatchNorm's own
  are folded away in an exported graph. Other inputs have their measured mean. Padding counts as if it held E[x].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from compressor.checks import check_count, check_one_of
from compressor.errors import NothingToImproveError
from compressor.files.graphs import attribute, initializers, producers
from compressor.notes.quantization import BiasesCorrected
from compressor.progress.bars import progress_bar
from compressor.quantization.accuracy.channel_scaling import Array, read_weights, with_weights
from compressor.quantization.accuracy.channel_statistics import (
    ChannelStatistics,
    channel_statistics,
    outputs_sqnr_db,
    probed,
    with_outputs,
)
from compressor.quantization.accuracy.linear_layers import (
    LinearLayer,
    linear_layers,
    node_in_placed,
    tensor_in_placed,
    with_biases,
)
from compressor.quantization.placement.movement import cut_at
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.workload import Workload

Place = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """Biases that make up for the mean error of every quantized channel, measured or computed.

    `method` "analytic" computes the error from the weights and the mean inputs, "empirical" runs the quantized network
    up to every layer in turn. With 8-bit weights both help alike; with 4 bits matching the means alone does harm where
    rounding has also narrowed the distributions. "auto" is empirical where rounding learns, which then leaves the means
    to the biases, and analytic where weights go to the nearest; it is for graphs with calibrated ranges alone, and says
    nothing where there is nothing to correct. Means come from `samples` calibration samples.
    """

    method: Literal["auto", "empirical", "analytic"] = "auto"
    samples: int = 128

    def __post_init__(self) -> None:
        check_one_of(self.method, "method is how the shift is found", ("auto", "empirical", "analytic"))
        check_count(self.samples, "samples is the number of samples that are looked at")

    def apply(
        self, graph: onnx.ModelProto, place: Place, workload: Workload, context: Context
    ) -> tuple[onnx.ModelProto, BiasesCorrected]:
        """(the float graph with corrected biases, what the report is told).

        `place` gives the quantized graph of a float graph; layers that it leaves in float stay as they are. A
        correction that does not bring the outputs on calibration data closer to those of the float graph is not kept:
        `graph` comes back. Raises NothingToImproveError where no layer with a bias is quantized.
        """
        placed = place(graph)
        biased, layers = self.biased(graph, placed)
        if not layers:
            raise NothingToImproveError(
                "bias_correction", "no bias to correct: no Conv, Gemm or MatMul with a bias is quantized"
            )

        def placed_once(each: onnx.ModelProto) -> onnx.ModelProto:
            return placed if each is graph else place(each)

        if self.method == "empirical":
            # It changes the graph that it is given.
            corrected, missing = self._empirical(biased, layers, place, workload, context)
        else:
            corrected, missing = self._analytic(biased, layers, placed_once, workload, context)
        return self.judged(graph, corrected, placed_once, workload, layers=len(layers), missing=missing)

    def biased(self, graph: onnx.ModelProto, placed: onnx.ModelProto) -> tuple[onnx.ModelProto, list[LinearLayer]]:
        """The float graph with a bias for every layer that `placed`, its quantized graph, has quantized; these."""
        return with_biases(graph, [layer for layer in linear_layers(graph) if _is_quantized(placed, layer)])

    def judged(
        self,
        graph: onnx.ModelProto,
        corrected: onnx.ModelProto,
        place: Place,
        workload: Workload,
        *,
        layers: int,
        missing: Sequence[str] = (),
        learned: bool = False,
    ) -> tuple[onnx.ModelProto, BiasesCorrected]:
        """`corrected`, or `graph` where that leaves more signal, and what the report is told; `learned` with rounding.

        `missing` of the `layers` could not be corrected.
        """
        placed = [place(each) for each in (graph, corrected)]
        before, after = outputs_sqnr_db(graph, placed, workload.calibration, samples=self.samples)
        method = ("empirical" if learned else "analytic") if self.method == "auto" else self.method
        note = BiasesCorrected(
            method=method,
            layers=layers - len(missing),
            missing=tuple(missing),
            sqnr_db_before=before,
            sqnr_db_after=after,
            kept=after > before,
        )
        return (corrected if after > before else graph), note

    def _empirical(
        self, graph: onnx.ModelProto, layers: list[LinearLayer], place: Place, workload: Workload, context: Context
    ) -> tuple[onnx.ModelProto, list[str]]:
        axes = {layer.output: layer.output_axis for layer in layers}
        wanted = self._statistics(graph, axes, workload, context)
        weights, placed, missing = read_weights(graph), place(graph), []
        for layer in progress_bar(layers, desc="bias correction", unit="layer", shown=context.progress):
            tensor = tensor_in_placed(placed, layer)
            if tensor is None:
                missing.append(layer.name)
                continue
            part = with_outputs(placed, [tensor])
            got = _mean(part, tensor, layer.output_axis, workload, self.samples)
            change = wanted[layer.output].mean - got
            weights[layer.bias] = _added(weights[layer.bias], change)
            # Placing a whole graph again for every layer takes longer than all the rest.
            if not _patch_(placed, layer, change):
                placed = place(with_weights(graph, weights))
        return with_weights(graph, weights), missing

    def _analytic(
        self, graph: onnx.ModelProto, layers: list[LinearLayer], place: Place, workload: Workload, context: Context
    ) -> tuple[onnx.ModelProto, list[str]]:
        weights, placed, missing = read_weights(graph), place(graph), []
        bounds = _activations(graph)
        axes = {layer.input: layer.input_axis for layer in layers}
        axes |= {bounds[layer.input][0]: layer.input_axis for layer in layers if layer.input in bounds}
        seen = self._statistics(graph, axes, workload, context)
        for layer in layers:
            node = node_in_placed(placed, layer)
            value = integer_weight(placed, layer.output) if node is None else constant_value(placed, node.input[1])
            if value is None or value.shape != weights[layer.weight].shape:
                missing.append(layer.name)
                continue
            mean = seen[layer.input].mean
            if layer.input in bounds:
                source, low, high = bounds[layer.input]
                mean = clipped_normal_mean(seen[source].mean, seen[source].deviation, low, high)
            change = layer.applied(weights[layer.weight].astype(np.float64) - value, mean)
            weights[layer.bias] = _added(weights[layer.bias], change)
        return with_weights(graph, weights), missing

    def _statistics(
        self, graph: onnx.ModelProto, axes: Mapping[str, int], workload: Workload, context: Context
    ) -> dict[str, ChannelStatistics]:
        return channel_statistics(graph, axes, workload.calibration, samples=self.samples, progress=context.progress)


def clipped_normal_mean(mean: Array, deviation: Array, low: float, high: float) -> Array:
    """E[clip(z, low, high)] for normal z, elementwise; bounds may be infinite, a deviation of 0 gives clip(mean).

    Nagel et al. 2019, equation 19 (and 18 for ReLU, low 0 and high infinite).
    """
    # Where nothing varies, the clipped mean below is what counts.
    wide = np.where(deviation > 0, deviation, 1.0)
    a, b = (low - mean) / wide, (high - mean) / wide

    def density(z: Array) -> Array:
        found: Array = np.exp(-0.5 * np.square(np.clip(z, -40, 40))) / np.sqrt(2 * np.pi)
        return found

    def share(z: Array) -> Array:
        found: Array = torch.special.ndtr(torch.from_numpy(np.asarray(z, dtype=np.float64))).numpy()
        return found

    inside = mean * (share(b) - share(a)) + wide * (density(a) - density(b))
    below = low * share(a) if np.isfinite(low) else 0.0
    above = high * (1 - share(b)) if np.isfinite(high) else 0.0
    total: Array = inside + below + above
    return np.where(deviation > 0, total, np.clip(mean, low, high))


def constant_value(model: onnx.ModelProto, tensor: str) -> Array | None:
    """The value of a tensor that follows from initializers alone, as ONNX Runtime computes it; None for others."""
    constants = initializers(model.graph)
    if tensor in constants:
        return numpy_helper.to_array(constants[tensor])
    made = producers(model.graph.node).get(tensor)
    if made is not None and made.op_type == "DequantizeLinear" and constants.keys() >= set(made.input):
        values = [numpy_helper.to_array(constants[name]) for name in made.input]
        if values[1].ndim <= 1:
            # As nearly all weights are: a session for each takes longer than all the rest.
            return _dequantized(made, values)
    part = with_outputs(model, [tensor])
    produced = {*producers(part.graph.node), *constants, ""}
    if tensor not in produced or any(name not in produced for node in part.graph.node for name in node.input):
        return None
    del part.graph.input[:]
    value: Array = open_session(part.SerializeToString()).run([tensor], {})[0]
    return value


def _dequantized(node: onnx.NodeProto, values: list[Array]) -> Array:
    """What the DequantizeLinear `node` gives for the constants `values`: integers, scale and zero point."""
    integers, scale, *rest = values
    axis = int(attribute(node, "axis", 1)) if scale.ndim else 0
    shape = [-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)] if scale.ndim else []
    zero_point = rest[0].astype(np.int32).reshape(shape) if rest else 0
    found: Array = (integers.astype(np.int32) - zero_point).astype(np.float32) * scale.reshape(shape)
    return found


def _mean(part: onnx.ModelProto, tensor: str, axis: int, workload: Workload, samples: int) -> Array:
    total, count = np.zeros(1), 0
    for values in probed(part, [tensor], workload.calibration, samples=samples):
        rows = np.moveaxis(values[tensor], axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        total, count = total + rows.sum(axis=1, dtype=np.float64), count + rows.shape[1]
    mean: Array = total / count
    return mean


def integer_weight(model: onnx.ModelProto, tensor: str) -> Array | None:
    """The float values of the weight of the MatMulInteger that `tensor` is made of by casts, scales and biases."""
    values = {name: numpy_helper.to_array(item) for name, item in initializers(model.graph).items()}
    made = producers(model.graph.node)
    scale, open_ends = np.ones(1), [tensor]
    while open_ends:
        node = made.get(open_ends.pop())
        if node is None or node.op_type not in {"MatMulInteger", "Mul", "Add", "Cast"}:
            continue
        if node.op_type == "MatMulInteger":
            zero = values.get(node.input[3], np.zeros(1)) if len(node.input) > 3 else np.zeros(1)
            integers = values.get(node.input[1])
            return None if integers is None else (integers.astype(np.float64) - zero) * scale
        constants = [values[name] for name in node.input if name in values]
        if node.op_type == "Mul" and constants:
            scale = constants[0].astype(np.float64)
        # The scales' product ends in constants and the input's scale: what is pushed last is looked at first.
        open_ends.extend(sorted(node.input, key=lambda name: getattr(made.get(name), "op_type", "") == "Mul"))
    return None


def _is_quantized(placed: onnx.ModelProto, layer: LinearLayer) -> bool:
    node = node_in_placed(placed, layer)
    floats = {tensor.name for tensor in placed.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    # A layer that is gone by its name was replaced by an integer operator.
    return node is None or node.input[1] not in floats


def _patch_(placed: onnx.ModelProto, layer: LinearLayer, change: Array) -> bool:
    """Adds `change` to the layer's bias in the placed graph, whether it is float there or int32; whether it could."""
    constants = initializers(placed.graph)
    own = constants.get(layer.bias)
    if own is not None and own.data_type == TensorProto.FLOAT:
        own.CopyFrom(numpy_helper.from_array(_added(numpy_helper.to_array(own), change), own.name))
        return True
    node = node_in_placed(placed, layer)
    if node is None or len(node.input) < 3:
        return False
    source = next((item for item in placed.graph.node if node.input[2] in item.output), None)
    if source is None or source.op_type != "DequantizeLinear" or any(name not in constants for name in source.input):
        return False
    integers = constants[source.input[0]]
    if integers.data_type != TensorProto.INT32:
        return False
    scale = numpy_helper.to_array(constants[source.input[1]]).astype(np.float64)
    value = numpy_helper.to_array(integers)
    added = value.astype(np.float64) + np.rint(change / scale).reshape(value.shape)
    limits = np.iinfo(np.int32)
    integers.CopyFrom(numpy_helper.from_array(np.clip(added, limits.min, limits.max).astype(np.int32), integers.name))
    return True


def _added(bias: Array, change: Array) -> Array:
    added: Array = (bias.astype(np.float64) + change.reshape(bias.shape)).astype(np.float32)
    return added


def _activations(graph: onnx.ModelProto) -> dict[str, tuple[str, float, float]]:
    """Outputs of ReLU and Clip with constant bounds: (what goes in, low, high)."""
    constants = initializers(graph.graph)
    linear = {name for layer in linear_layers(graph) for name in (layer.output,)}
    found = {}
    for node in graph.graph.node:
        bounds = cut_at(node, constants)
        if bounds is not None and node.input[0] in linear:
            found[node.output[0]] = (node.input[0], *bounds)
    return found
