"""The nodes of an ONNX graph as steps that torch can run: operators that it knows, attributes as torch has them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from compressor.errors import StageError
from compressor.files.graphs import names_read, opset_of
from compressor.quantization.torch_graph.dynamic import DYNAMIC
from compressor.quantization.torch_graph.foreign import ForeignNode
from compressor.quantization.torch_graph.layers import LAYERS
from compressor.quantization.torch_graph.operators import OPERATORS, Operator
from compressor.quantization.torch_graph.shapes import SHAPES

KNOWN: Mapping[str, Operator] = {**OPERATORS, **SHAPES, **LAYERS, **DYNAMIC}
# The operator that runs a graph of its own, which `TorchGraph` does.
SCAN = "Scan"
# A node that torch has no form for, among the steps of a graph that is only looked at.
FOREIGN = "foreign"
# ai.onnx under its two names, and ONNX Runtime's own operators that are the same computation.
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
# (low, high) of the integers, by onnx.TensorProto's element types.
_BOUNDS: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node, ready to run."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    bounds: tuple[int, int] | None
    foreign: ForeignNode | None = None


def steps_of(model: onnx.ModelProto, *, foreign: bool = False) -> list[Step]:
    """The nodes in order; with `foreign` those that torch has no form for, too, each with a way to run it all the same.

    Raises StageError at an operator that has no form in torch otherwise.
    """
    opset = opset_of(model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    steps = []
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type.lower()}_{index}"
        known = node.op_type in {*KNOWN, SCAN} and node.domain in _DOMAINS
        if not known and not foreign:
            where = f" of {node.domain}" if node.domain else ""
            raise StageError(
                f"the operator {node.op_type}{where} (node {name!r}) has no form in torch here, so the graph cannot be "
                "trained; leave training of the quantized graph out for this model"
            )
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        if node.op_type == "Constant":
            attributes = {"value": _constant(attributes)}
        bounds = None
        if node.op_type == "QuantizeLinear":
            kind = types.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            kind = kind or attributes.get("output_dtype") or TensorProto.UINT8
            if kind not in _BOUNDS:
                raise StageError(
                    f"QuantizeLinear {name!r} to the ONNX type {kind} is no integer type that can be trained; quantize "
                    "to 8 bits, or without training"
                )
            bounds = _BOUNDS[kind]
        steps.append(
            Step(
                name=name,
                operator=node.op_type if known else FOREIGN,
                # Also what its branches and loops read: it has to be there when the node runs.
                inputs=tuple(node.input) if known else tuple(names_read(node)),
                outputs=tuple(node.output),
                attributes=attributes,
                opset=opset,
                bounds=bounds,
                foreign=ForeignNode(node, model) if foreign else None,
            )
        )
    scalars = {tensor.name for tensor in model.graph.initializer if int(np.prod(tensor.dims)) == 1}
    return _paired(steps, scalars)


def _paired(steps: list[Step], scalars: set[str]) -> list[Step]:
    """The steps with DequantizeLinear right behind QuantizeLinear computed from the latter's input."""
    quantizers = {step.outputs[0]: step for step in steps if step.operator == "QuantizeLinear"}
    paired = []
    for step in steps:
        before = quantizers.get(step.inputs[0]) if step.operator == "DequantizeLinear" else None
        if before is not None and before.inputs[1:] == step.inputs[1:] and before.inputs[1] in scalars:
            paired.append(replace(before, name=step.name, operator="FakeQuantize", outputs=step.outputs))
        else:
            paired.append(step)
    return paired


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return torch_tensor(value)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if attribute.type in {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS} else value


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    for name, kind in (("value_int", torch.int64), ("value_ints", torch.int64), ("value_float", torch.float32)):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=kind)
    if "value_floats" in attributes:
        return torch.tensor(attributes["value_floats"], dtype=torch.float32)
    value: Tensor = attributes["value"]
    return value


def torch_tensor(tensor: onnx.TensorProto) -> Tensor:
    """The initializer's values; types that torch lacks in the next wider one."""
    array = numpy_helper.to_array(tensor)
    wider: dict[int, type] = {TensorProto.UINT16: np.int32, TensorProto.UINT32: np.int64, TensorProto.INT4: np.int8}
    kind = np.uint8 if tensor.data_type == TensorProto.UINT4 else wider.get(tensor.data_type)
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array, dtype=kind))
