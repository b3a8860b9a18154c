"""An ONNX graph as a torch module: the same numbers as ONNX Runtime, with gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.files.graphs import copy_of
from compressor.files.operators import Fact, operator_of
from compressor.quantization.torch_graph.operators import Call
from compressor.quantization.torch_graph.scan import scan
from compressor.quantization.torch_graph.steps import FOREIGN, KNOWN, SCAN, Step, steps_of, torch_tensor


class TorchGraph(nn.Module):
    """The graph of `model`, in floats or with integers as the placements here write them, run by torch.

    Weights and biases in float32 are parameters (those among `learn` alone, where it is given), everything else
    constant is a buffer, and so is all that the bodies of loops hold; `parameter_of` maps initializers to the names of
    both. Rounding passes gradients straight through. Takes inputs as `OnnxModule` does. Raises StageError at an
    operator that it does not know; with `foreign` ONNX Runtime runs such nodes, without gradients.
    """

    def __init__(self, model: onnx.ModelProto, *, learn: frozenset[str] | None = None, foreign: bool = False) -> None:
        super().__init__()
        graph = model.graph
        self.input_names = [value.name for value in graph.input if value.name not in _names(graph.initializer)]
        self.output_names = [value.name for value in graph.output]
        self.parameter_of: dict[str, str] = {}
        trainable = _weights(graph) if learn is None else _weights(graph) & learn
        self.bodies = nn.ModuleDict()
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
        self._steps = steps_of(model, foreign=foreign)
        for step in self._steps:
            if step.operator == SCAN:
                body = helper.make_model(step.attributes["body"], opset_imports=model.opset_import)
                self.bodies[_body_key(step)] = TorchGraph(body, learn=frozenset())
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

        A value under an initializer's name stands in for it, one called "loop/..." for what the body of the Scan node
        "loop" holds by this name. Only the nodes that `wanted` needs are run. Raises
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
                result = self._run_step(step, known)
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
        result = copy_of(model)
        for tensor in result.graph.initializer:
            name = self.parameter_of.get(tensor.name)
            if name in self._parameters:
                value = np.ascontiguousarray(self.constant(tensor.name).detach().cpu().numpy())
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return result

    def _run_step(self, step: Step, known: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        inputs = [self._value(name, known, step.name) if name else None for name in step.inputs]
        if step.operator == FOREIGN:
            return self._run_foreign(step, inputs)
        call = Call(
            name=step.name,
            operator=step.operator,
            inputs=inputs,
            attributes=step.attributes,
            outputs=len(step.outputs),
            opset=step.opset,
            bounds=step.bounds,
        )
        try:
            return self._loop(step, call, known) if step.operator == SCAN else KNOWN[step.operator](call)
        except StageError:
            # Settings that torch has no form for.
            if step.foreign is None or step.operator == "FakeQuantize":
                raise
            return self._run_foreign(step, inputs)

    def _run_foreign(self, step: Step, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        assert step.foreign is not None  # what has no form in torch is told of where the steps are made
        named = zip(step.inputs, inputs, strict=True)
        return step.foreign({name: value for name, value in named if value is not None})

    def _loop(self, step: Step, call: Call, known: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        body = self.bodies[_body_key(step)]
        assert isinstance(body, TorchGraph)
        inside = f"{step.name}/"
        stand_ins = {name: value for name, value in known.items() if name.startswith(inside)}

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            return body.run(stand_ins | dict(zip(body.input_names, inputs, strict=True)), body.output_names)

        return scan(call, run)

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


def _body_key(step: Step) -> str:
    return f"body of {step.name}".replace(".", " ")


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
            row = operator_of(node.op_type)
            if position in row.inputs.trained or (Fact.BROADCASTS in row.facts and floats[name] > 1):
                found.add(name)
    return found
