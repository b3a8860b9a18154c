"""Nodes without a form in torch, run by ONNX Runtime one by one: numbers, and no gradients.

What only looks at the values of a graph, as rounding layer by layer does, needs no form of its own for every operator.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from compressor.errors import StageError, first_said
from compressor.files.graphs import names_read
from compressor.runtime import open_session

_Kinds = tuple[str, ...]


class ForeignNode:
    """One node of `model` as a function of all that it reads, what its branches and loops read from outside too."""

    def __init__(self, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
        self.node = node
        self.opsets = model.opset_import
        self.ir_version = model.ir_version
        self.inputs = tuple(dict.fromkeys(names_read(node)))
        self._sessions: dict[_Kinds, Any] = {}

    def __call__(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The node's outputs, for its `inputs` by name. Raises StageError where ONNX Runtime cannot run it alone."""
        feeds = {name: values[name].detach().cpu().numpy() for name in self.inputs}
        try:
            kinds = tuple(str(value.dtype) for value in feeds.values())
            if kinds not in self._sessions:
                self._sessions[kinds] = open_session(self._model(feeds))
            found = self._sessions[kinds].run(None, feeds)
            given = iter(map(_tensor, found))
            return tuple(next(given) if name else torch.empty(0) for name in self.node.output)
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            raise StageError(
                f"the operator {self.node.op_type} (node {self.node.name!r}) has no form in torch, and cannot be run "
                f"alone: {first_said(error)}; leave what learns the graph out for this model"
            ) from error

    def _model(self, feeds: Mapping[str, Any]) -> bytes:
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim if value.ndim else []
            )
            for name, value in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.node.output if name]
        graph = helper.make_graph([self.node], "node", inputs, outputs)
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
        content: bytes = model.SerializeToString()
        return content


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, np.ndarray):
        raise TypeError("it gives a sequence")
    return torch.from_numpy(value)
