"""An ONNX graph as a torch module: the same numbers as ONNX Runtime, with gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.quantization.torch_layers import LAYERS
from compressor.quantization.torch_operators import OPERATORS, Call, Operator
from compressor.quantization.torch_shapes import SHAPES
from compressor.stage import StageError

_KNOWN: Mapping[str, Operator] = {**OPERATORS, **SHAPES, **LAYERS}
# ai.onnx under its two names, and ONNX Runtime's own operators that are the same computation.
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
# Inputs that hold weights. Of arithmetic operators, constants of more than one value: biases, scales, embeddings.
_WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Gather": (0,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
}
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
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
class _Step:
    """One node, ready to run."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    bounds: tuple[int, int] | None


class TorchGraph(nn.Module):
    """The graph of `model`, float or with QuantizeLinear and DequantizeLinear, run by torch.

    Weights and biases in float32 are parameters, everything else constant is a buffer; `parameter_of` maps
    initializers to the names of both. Rounding passes gradients straight through. Takes inputs as `OnnxModule` does.
    Raises StageError at an operator that it does not know.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self.input_names = [value.name for value in graph.input if value.name not in _names(graph.initializer)]
        self.output_names = [value.name for value in graph.output]
        self.parameter_of: dict[str, str] = {}
        trainable = _weights(graph)
        for tensor in graph.initializer:
            value = torch_tensor(tensor)
            # nn.Module takes no dots in names; ONNX's names have no spaces to be confused with.
            name = self.parameter_of[tensor.name] = tensor.name.replace(".", " ") or "unnamed"
            if hasattr(self, name):
                name = self.parameter_of[tensor.name] = f"{name} initializer"
            if tensor.name in trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self._steps = _steps(model)
        self._makers = {output: index for index, step in enumerate(self._steps) for output in step.outputs if output}

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs: a tensor, or a tuple where there are several."""
        outputs = self.run(self.feeds(args if not kwargs else dict(kwargs)), self.output_names)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def feeds(self, inputs: Inputs) -> dict[str, Tensor]:
        """`inputs` (a tensor, a tuple in order, a dict by name) under the graph's names.

        Raises ValueError where one is missing.
        """
        if isinstance(inputs, Mapping):
            named = dict(inputs)
        else:
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            numbered = {f"input_{index}": tensor for index, tensor in enumerate(given)}
            # The exporter may have dropped an input that the model ignores: the rest keep their numbers.
            dropped = len(given) > len(self.input_names) and set(self.input_names) <= set(numbered)
            named = numbered if dropped else dict(zip(self.input_names, given, strict=False))
        missing = [name for name in self.input_names if name not in named]
        if missing:
            raise ValueError(
                f"the graph has the inputs {self.input_names}, got {sorted(named)}; pass {missing} as well"
            )
        return {name: named[name] for name in self.input_names}

    def run(self, values: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """The tensors `wanted`, from `values`: the inputs, or any tensors that cut the graph behind them.

        A value under an initializer's name stands in for it. Only the nodes that `wanted` needs are run. Raises
        StageError where `values` leaves something open.
        """
        known: dict[str, Tensor] = dict(values)
        order = self._needed(known, wanted)
        last = {name: index for index in order for name in self._steps[index].inputs}
        kept = set(wanted)
        # Autocast would round whole numbers above 256 to bfloat16.
        with torch.autocast(_device_type(values), enabled=False):
            for index in order:
                step = self._steps[index]
                inputs = [self._value(name, known, step.name) if name else None for name in step.inputs]
                call = Call(
                    name=step.name,
                    operator=step.operator,
                    inputs=inputs,
                    attributes=step.attributes,
                    outputs=len(step.outputs),
                    opset=step.opset,
                    bounds=step.bounds,
                )
                result = _KNOWN[step.operator](call)
                known.update(zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=False))
                for name in step.inputs:
                    if last[name] == index and name not in kept:
                        known.pop(name, None)
            return [self._value(name, known, "the caller") for name in wanted]

    def constant(self, name: str) -> Tensor:
        """The parameter or buffer of the initializer `name`."""
        found: Tensor = getattr(self, self.parameter_of[name])
        return found

    def updated(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of `model` in which the initializers that are parameters here hold their present values."""
        result = onnx.ModelProto()
        result.CopyFrom(model)
        for tensor in result.graph.initializer:
            name = self.parameter_of.get(tensor.name)
            if name in self._parameters:
                value = np.ascontiguousarray(self.constant(tensor.name).detach().cpu().numpy())
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return result

    def _value(self, name: str, known: Mapping[str, Tensor], reader: str) -> Tensor:
        if name in known:
            return known[name]
        if name not in self.parameter_of:
            raise StageError(f"the tensor {name!r}, which {reader} reads, is no input, constant or output of a node")
        return self.constant(name)

    def _needed(self, known: Mapping[str, Tensor], wanted: Sequence[str]) -> list[int]:
        found: set[int] = set()
        open_names = [name for name in wanted if name not in known]
        while open_names:
            index = self._makers.get(open_names.pop())
            if index is None or index in found:
                continue
            found.add(index)
            open_names += [name for name in self._steps[index].inputs if name and name not in known]
        return sorted(found)


def torch_tensor(tensor: onnx.TensorProto) -> Tensor:
    """The initializer's values; types that torch lacks in the next wider one."""
    array = numpy_helper.to_array(tensor)
    wider: dict[int, type] = {TensorProto.UINT16: np.int32, TensorProto.UINT32: np.int64, TensorProto.INT4: np.int8}
    kind = np.uint8 if tensor.data_type == TensorProto.UINT4 else wider.get(tensor.data_type)
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array, dtype=kind))


def _device_type(values: Mapping[str, Tensor]) -> str:
    return next((value.device.type for value in values.values()), "cpu")


def _names(tensors: Any) -> set[str]:
    return {tensor.name for tensor in tensors}


def _weights(graph: onnx.GraphProto) -> set[str]:
    """The float32 initializers that hold weights and biases; scales of integers and lone numbers are none."""
    floats = {
        tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    found = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in floats:
                continue
            if position in _WEIGHT_INPUTS.get(node.op_type, ()) or (node.op_type in _ARITHMETIC and floats[name] > 1):
                found.add(name)
    return found


def _steps(model: onnx.ModelProto) -> list[_Step]:
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    steps = []
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type.lower()}_{index}"
        if node.op_type not in _KNOWN or node.domain not in _DOMAINS:
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
                raise StageError(f"QuantizeLinear {name!r} to the ONNX type {kind} is no integer type known here")
            bounds = _BOUNDS[kind]
        steps.append(
            _Step(
                name=name,
                operator=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes=attributes,
                opset=opset,
                bounds=bounds,
            )
        )
    scalars = {tensor.name for tensor in model.graph.initializer if int(np.prod(tensor.dims)) == 1}
    return _paired(steps, scalars)


def _paired(steps: list[_Step], scalars: set[str]) -> list[_Step]:
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
