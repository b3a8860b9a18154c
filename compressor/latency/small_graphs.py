"""A small ONNX graph under construction: nodes without readers, random weights, and what to feed it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

# Opset 20 has Gelu; this IR is the newest that ONNX Runtime 1.23 reads.
_OPSET, _IR = 20, 10
MICROSOFT = "com.microsoft"
NCHWC = "com.microsoft.nchwc"
_NUMBERS = 1 << 20
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}


@dataclass(frozen=True)
class OperatorGraph:
    """A model with copies of one operator, what to feed it, and whether ONNX Runtime may optimise it."""

    onnx_bytes: bytes
    feeds: dict[str, NDArray[Any]]
    optimize: bool


@cache
def _pool(kind: str) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    if kind == "float":
        return generator.standard_normal(_NUMBERS).astype(np.float32) * np.float32(0.05)
    return generator.integers(-100, 100, _NUMBERS).astype(np.int8)


@dataclass
class SmallGraph:
    """Nodes, weights and inputs, named as they come."""

    signed: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    feeds: dict[str, NDArray[Any]] = field(default_factory=dict)
    known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    @property
    def activations(self) -> type[np.generic]:
        return np.int8 if self.signed else np.uint8

    def feed(self, name: str, shape: Sequence[int], kind: type[np.generic] = np.float32) -> str:
        numbers = np.resize(_pool("float" if kind is np.float32 else "int"), shape)
        self.feeds[name] = numbers if kind is np.float32 else numbers.view(np.uint8).astype(kind)
        return name

    def weight(self, shape: Sequence[int], kind: type[np.generic] = np.float32) -> str:
        name, count = f"w{len(self.weights)}", math.prod(shape)
        pool = _pool("float" if kind is np.float32 else "int")
        # Each weight starts elsewhere in the pool: equal ones would be merged.
        start = 997 * len(self.weights) % (_NUMBERS // 2)
        values = pool[start : start + count] if start + count <= _NUMBERS else np.resize(pool[start:], count)
        raw = values.astype(kind, copy=False).tobytes()
        self.weights.append(TensorProto(name=name, data_type=_TYPES[np.dtype(kind)], dims=list(shape), raw_data=raw))
        return name

    def constant(self, value: Any, kind: type[np.generic] = np.float32) -> str:
        array = np.asarray(value, dtype=kind)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.known:
            name = f"c{len(self.known)}"
            self.known[key] = name
            raw = array.tobytes()
            self.weights.append(
                TensorProto(name=name, data_type=_TYPES[array.dtype], dims=list(array.shape), raw_data=raw)
            )
        return self.known[key]

    def node(self, kind: str, inputs: Sequence[str], *, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        made = [f"n{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, domain=domain, **attributes))
        return made[0]

    def finished(self, *, optimize: bool) -> OperatorGraph:
        # The one output has nothing to do with the copies: what they compute is never brought into another layout.
        self.feeds["tick"] = np.zeros(1, dtype=np.float32)
        nodes = [*self.nodes, helper.make_node("Neg", ["tick"], ["tock"])]
        inputs = [helper.make_tensor_value_info(n, _TYPES[v.dtype], v.shape) for n, v in self.feeds.items()]
        output = helper.make_tensor_value_info("tock", TensorProto.FLOAT, [1])
        graph = helper.make_graph(nodes, "operator", inputs, [output], self.weights)
        opsets = [helper.make_opsetid("", _OPSET), *(helper.make_opsetid(name, 1) for name in (MICROSOFT, NCHWC))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        return OperatorGraph(model.SerializeToString(), self.feeds, optimize)
