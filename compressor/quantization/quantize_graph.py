"""Integer forms of an ONNX graph's operators: static QDQ, dynamic, weight-only, each where ONNX Runtime has a kernel.

ONNX Runtime's own quantizers place the nodes, so that its optimizer fuses them; scales and zero points are ours.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
from torch import Tensor

from compressor.affine import PerChannel, Scheme, Symmetric, choose_affine, extremes, integer_bounds, quantize
from compressor.quantization.prepare_graph import quiet_logging
from compressor.stage import StageError


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The integers that a placement uses: schemes, and whether activations are signed (Arm) or unsigned (x86)."""

    weights: Scheme
    activations: Scheme
    signed_activations: bool


def tensors_to_observe(model: onnx.ModelProto, nodes: set[str]) -> tuple[list[str], dict[str, str]]:
    """(activations that need a range, tensor -> the tensor whose range it takes) for static `nodes`.

    What only a ReLU or a clip reads takes the range behind it: the integers saturate there, and the node goes.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    floats = {
        value.name
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in model.graph.output}
    observe: dict[str, None] = {}
    same: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in nodes:
            continue
        for name in [*node.input, *node.output]:
            if not name or name in constants or name not in floats:
                continue
            reader = readers[name][0] if len(readers[name]) == 1 else None
            removable = reader is not None and reader.op_type in {"Relu", "Clip"} and reader.name in nodes
            if reader is not None and removable and name not in outputs and name == reader.input[0]:
                same[name] = reader.output[0]
            else:
                observe[name] = None
    return list(observe), same


def place_static(
    model: onnx.ModelProto, nodes: set[str], ranges: Mapping[str, tuple[float, float]], numbers: Numbers
) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around `nodes`, for the given ranges of activations."""
    signed = numbers.signed_activations
    kind = np.int8 if signed else np.uint8
    affine = {
        name: choose_affine(torch.tensor(low), torch.tensor(high), numbers.activations, signed=signed)
        for name, (low, high) in ranges.items()
    }
    overrides: dict[str, list[dict[str, Any]]] = {
        name: [{"scale": scale.numpy(), "zero_point": zero_point.numpy().astype(kind)}]
        for name, (scale, zero_point) in affine.items()
    }
    # ONNX Runtime's quantizer takes every ReLU and clip between integers for saturation, right or not.
    nodes = nodes - _unsaturated(model, nodes, affine, integer_bounds(numbers.activations.bits, signed=signed))
    overrides.update(_weight_overrides(model, nodes, numbers.weights))
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    types = {node.op_type for node in model.graph.node if node.name in nodes}
    with quiet_logging():
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(placed),
            isinstance(numbers.weights.granularity, PerChannel),
            False,
            QuantType.QInt8,
            QuantType.QInt8 if signed else QuantType.QUInt8,
            TensorsData(
                CalibrationMethod.MinMax,
                {
                    name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                    for name, (low, high) in ranges.items()
                },
            ),
            sorted(nodes),
            [],
            sorted(types),
            {"TensorQuantOverrides": overrides, "WeightSymmetric": isinstance(numbers.weights, Symmetric)},
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    _free_outputs(result)
    return result


def place_dynamic(model: onnx.ModelProto, nodes: set[str], weights: Scheme) -> onnx.ModelProto:
    """The graph with `nodes` (LSTM, MatMul, Gemm, embedding Gather) on 8-bit weights and ranges found at run time."""
    types = sorted({node.op_type for node in model.graph.node if node.name in nodes} | {"MatMul"})
    # A Gemm becomes a MatMul of the same name with _MatMul behind it before nodes are selected.
    names = sorted(nodes | {f"{name}_MatMul" for name in nodes})
    with tempfile.TemporaryDirectory() as folder, quiet_logging():
        out = Path(folder) / "dynamic.onnx"
        try:
            quantize_dynamic(
                model,
                str(out),
                op_types_to_quantize=types,
                per_channel=isinstance(weights.granularity, PerChannel),
                reduce_range=weights.bits == 7,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
                extra_options={"WeightSymmetric": isinstance(weights, Symmetric)},
            )
        except Exception as error:  # the quantizer raises bare RuntimeError, ValueError and AssertionError
            raise StageError(
                f"ONNX Runtime could not quantize {', '.join(sorted(nodes))} dynamically: {error}; "
                "leave them out with skip"
            ) from error
        return onnx.load(str(out))


def place_weight_only(model: onnx.ModelProto, nodes: set[str], weights: Scheme) -> onnx.ModelProto:
    """The graph with the weights of GRU `nodes` as int8 behind DequantizeLinear: smaller, and no faster."""
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in placed.graph.initializer}
    ahead: list[onnx.NodeProto] = []
    for node in placed.graph.node:
        if node.name not in nodes:
            continue
        # W and R are (directions, gates * hidden, inputs): rows are the output channels, shared by both directions.
        for position in (1, 2):
            tensor = constants[node.input[position]]
            values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            axis = 1 if isinstance(weights.granularity, PerChannel) else None
            scale, zero_point = choose_affine(*extremes(values, axis), weights, signed=True)
            integers = quantize(values, scale, zero_point, bits=weights.bits, signed=True, axis=axis)
            parts = {"int8": integers.to(torch.int8), "scale": scale, "zero": zero_point.to(torch.int8)}
            for part, value in parts.items():
                placed.graph.initializer.append(numpy_helper.from_array(value.numpy(), f"{tensor.name}_{part}"))
            ahead.append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{tensor.name}_{part}" for part in parts],
                    [f"{tensor.name}_float"],
                    f"{tensor.name}_dequantize",
                    axis=axis,
                )
            )
            placed.graph.initializer.remove(tensor)
            node.input[position] = f"{tensor.name}_float"
    nodes_after = list(placed.graph.node)
    del placed.graph.node[:]
    placed.graph.node.extend([*ahead, *nodes_after])
    return placed


def _unsaturated(
    model: onnx.ModelProto, nodes: set[str], affine: Mapping[str, tuple[Tensor, Tensor]], bounds: tuple[int, int]
) -> set[str]:
    """The ReLUs and clips among `nodes` whose bounds the integers of their output would not enforce by saturating."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    names = set()
    for node in model.graph.node:
        if node.name not in nodes or node.op_type not in {"Relu", "Clip"} or node.output[0] not in affine:
            continue
        limits = [0.0, float("inf")] if node.op_type == "Relu" else [float("-inf"), float("inf")]
        known = True
        for side, name in enumerate(node.input[1:]):
            if name in constants:
                limits[side] = float(numpy_helper.to_array(constants[name]))
            known &= not name or name in constants
        scale, zero_point = (float(value) for value in affine[node.output[0]])
        lowest, highest = ((bound - zero_point) * scale for bound in bounds)
        # Half a step is what rounding costs anyway.
        if not known or lowest < limits[0] - scale / 2 or highest > limits[1] + scale / 2:
            names.add(node.name)
    return names


def _weight_overrides(model: onnx.ModelProto, nodes: set[str], scheme: Scheme) -> dict[str, list[dict[str, Any]]]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if node.name not in nodes or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            continue
        tensor = constants.get(node.input[1])
        if tensor is None:
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        axis = weight_axis(node, values.ndim) if isinstance(scheme.granularity, PerChannel) else None
        scale, zero_point = choose_affine(*extremes(values, axis), scheme, signed=True)
        scales, zeros = np.atleast_1d(scale.numpy()), np.atleast_1d(zero_point.numpy().astype(np.int8))
        overrides[tensor.name] = [
            {"scale": s, "zero_point": z} | ({} if axis is None else {"axis": axis})
            for s, z in zip(scales, zeros, strict=True)
        ]
    return overrides


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of the output channels in the weight (input 1) of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Gemm" and attributes.get("transB", 0):
        return 0
    return rank - 1


def _free_outputs(model: onnx.ModelProto) -> None:
    # Gemm and MatMul have kernels with float output: quantizing the last one's only to convert it back costs an
    # operator and the logits' precision.
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for value in model.graph.output:
        last = producers.get(value.name)
        if last is None or last.op_type != "DequantizeLinear" or readers[value.name]:
            continue
        previous = producers.get(last.input[0])
        if previous is None or previous.op_type != "QuantizeLinear" or readers[last.input[0]] != 1:
            continue
        source = producers.get(previous.input[0])
        if source is None or source.op_type not in {"Gemm", "MatMul"} or readers[previous.input[0]] != 1:
            continue
        source.output[list(source.output).index(previous.input[0])] = value.name
        model.graph.node.remove(last)
        model.graph.node.remove(previous)


def sqnr_db(reference: npt.NDArray[Any], output: npt.NDArray[Any]) -> float:
    """Signal to quantization noise in decibels: 10 log10 of the power of `reference` over that of the difference."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - output).sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))
