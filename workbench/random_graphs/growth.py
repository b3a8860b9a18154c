"""Random ONNX graphs: branches, concatenated scales, several outputs, inner graphs, states and odd names."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Names as files have them, and names that a quantizer might make up itself.
_NAMES = (
    "{}",
    "/block.{}/out",
    "a b {}",
    "größe_{}",
    "{}_scale",
    "{}_quantized",
    "{}_DequantizeLinear",
    "model.{}.weight:0",
)
_FLOAT = TensorProto.FLOAT
Shape = tuple[int, ...]


@dataclass(kw_only=True)
class RandomGraph:
    """The graph that `seed` stands for: `model`, checked, whose inputs and outputs have a free batch first.

    Some carry a `state`, (its input, its output), (1, batch, width), noted as a stream's; some are `single`, without a
    batch that one could give several samples in.
    """

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    # Tensors that can be read, with their shapes after the batch.
    live: dict[str, Shape] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Apart from what grows, so that a seed keeps its graph.
        kind = Random(f"{self.seed} kind").random()  # noqa: S311 - the same
        self.single = kind < 0.1
        self.state: tuple[str, str] | None = None
        self.random = Random(self.seed)  # noqa: S311 - a graph, no secret
        self.numbers = np.random.default_rng(self.seed)
        self.count = 0
        self.inputs = self._inputs()
        self._layer()
        for _ in range(self.random.randint(2, 9)):
            self._grow()
        if kind > 0.85:
            self._carry()
        self.model = self._model()

    def samples(self, count: int, seed: int) -> dict[str, NDArray[np.float32]]:
        """Inputs for `count` samples, normal and now and then far larger."""
        numbers = np.random.default_rng((self.seed, seed))
        return {
            name: (
                numbers.normal(size=(count, *shape)) * numbers.choice([1, 1, 1, 3], size=(count, *[1] * len(shape)))
            ).astype(np.float32)
            for name, shape in self.inputs.items()
        }

    def _inputs(self) -> dict[str, Shape]:
        image = self.random.random() < 0.6
        given = {self._name(): (self.random.choice((1, 3, 4)), 8, 8) if image else (self.random.choice((6, 16)),)}
        if self.random.random() < 0.2:
            given[self._name()] = (self.random.choice((6, 8)),)
        self.live.update(given)
        return given

    # Names, constants and nodes. ------------------------------------------------------------------------------------

    def _name(self) -> str:
        self.count += 1
        return self.random.choice(_NAMES).format(self.count)

    def _constant(self, value: NDArray[np.generic]) -> str:
        name = self._name()
        self.constants[name] = value
        return name

    def _weight(self, *shape: int) -> str:
        # One tensor in ten has channels that reach much further than others.
        scale = (
            self.numbers.uniform(0.05, 20, size=(shape[0], *[1] * (len(shape) - 1)))
            if self.random.random() < 0.1
            else 1
        )
        fan = max(1, int(np.prod(shape)) // max(shape))
        return self._constant((self.numbers.normal(size=shape) * scale / np.sqrt(fan)).astype(np.float32))

    def _node(self, kind: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        name = self._name()
        self.nodes.append(helper.make_node(kind, inputs, [name], self._name(), **attributes))
        self.live[name] = shape
        return name

    def _read(self, rank: int | None = None) -> str | None:
        """A tensor to go on with, mostly one of the last."""
        fitting = [name for name, shape in self.live.items() if rank is None or len(shape) == rank]
        return self.random.choice(fitting[-3:] if self.random.random() < 0.8 else fitting) if fitting else None

    # Growth. --------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        steps: list[Callable[[], None]] = [
            self._layer,
            self._layer,
            self._layer,
            self._activation,
            self._activation,
            self._scaled,
            self._joined,
            self._pooled,
            self._padded,
            self._branch,
            self._loop,
            self._softmax,
            self._chosen,
        ]
        self.random.choice(steps)()

    def _layer(self) -> None:
        source = self._read()
        assert source is not None  # there is always an input
        shape = self.live[source]
        width = self.random.choice((4, 6, 8, 16))
        if len(shape) == 1:
            if self.random.random() < 0.5:
                self._node("MatMul", [source, self._weight(shape[0], width)], (width,))
            else:
                bias = self._constant(self.numbers.normal(size=width).astype(np.float32))
                self._node("Gemm", [source, self._weight(width, shape[0]), bias], (width,), transB=1)
            return
        depthwise = self.random.random() < 0.25
        groups, out = (shape[0], shape[0]) if depthwise else (1, width)
        weight = self._weight(out, shape[0] // groups, 3, 3)
        inputs = [source, weight]
        if self.random.random() < 0.5:
            inputs.append(self._constant(self.numbers.normal(size=out).astype(np.float32)))
        self._node("Conv", inputs, (out, *shape[1:]), pads=[1] * 4, group=groups)

    def _activation(self) -> None:
        source = self._read()
        assert source is not None  # there is always an input
        kind = self.random.choice(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip"))
        limits = [self._constant(np.array(value, dtype=np.float32)) for value in (0, 6)] if kind == "Clip" else []
        self._node(kind, [source, *limits], self.live[source])

    def _scaled(self) -> None:
        source = self._read()
        assert source is not None  # there is always an input
        value = np.array(10 ** self.random.uniform(-2, 3), dtype=np.float32)
        self._node("Mul", [source, self._constant(value)], self.live[source])

    def _joined(self) -> None:
        """A sum, a product or a concatenation of two tensors that fit."""
        first = self._read()
        assert first is not None  # there is always an input
        shape = self.live[first]
        others = [name for name, other in self.live.items() if len(other) == len(shape) and other[1:] == shape[1:]]
        second = self.random.choice(others)
        if self.live[second] == shape and self.random.random() < 0.5:
            self._node(self.random.choice(("Add", "Mul", "Sub")), [first, second], shape)
        else:
            self._node("Concat", [first, second], (shape[0] + self.live[second][0], *shape[1:]), axis=1)

    def _pooled(self) -> None:
        source = self._read(rank=3)
        if source is None:
            return
        channels, height, width = self.live[source]
        if self.random.random() < 0.5 and height > 2:
            kind = self.random.choice(("MaxPool", "AveragePool"))
            self._node(kind, [source], (channels, height // 2, width // 2), kernel_shape=[2, 2], strides=[2, 2])
        else:
            pooled = self._node("GlobalAveragePool", [source], (channels, 1, 1))
            self._node("Flatten", [pooled], (channels,))

    def _padded(self) -> None:
        source = self._read(rank=3)
        if source is None:
            return
        channels, height, width = self.live[source]
        if height > 10:
            return
        pads = self._constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64))
        value = self._constant(np.array(self.random.choice((0.0, 1.0, -3.0)), dtype=np.float32))
        self._node("Pad", [source, pads, value], (channels, height + 2, width + 2))

    def _branch(self) -> None:
        """An If whose branches read an outer tensor; one multiplies it by a weight of its own, or a shared one."""
        source = self._read(rank=1)
        if source is None:
            return
        (width,) = self.live[source]
        shared = self._weight(width, width)
        condition = self._constant(np.array(self.random.random() < 0.5))
        branches = {}
        for way, kind in (("then_branch", "MatMul"), ("else_branch", "Identity")):
            out = self._name()
            inputs = [source, shared] if kind == "MatMul" else [source]
            inside = helper.make_node(kind, inputs, [out], self._name())
            value = helper.make_tensor_value_info(out, _FLOAT, [None, width])
            branches[way] = helper.make_graph([inside], way, [], [value])
        self._node("If", [condition], (width,), **branches)

    def _loop(self) -> None:
        """Two or three turns of state = tanh(state @ weight + outer)."""
        source = self._read(rank=1)
        if source is None:
            return
        (width,) = self.live[source]
        weight = self._weight(width, width)
        step, going, before, after, product, total, still = (self._name() for _ in range(7))
        state = [helper.make_tensor_value_info(name, _FLOAT, [None, width]) for name in (before, after)]
        truth = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in (going, still)]
        body = helper.make_graph(
            [
                helper.make_node("MatMul", [before, weight], [product], self._name()),
                helper.make_node("Add", [product, source], [total], self._name()),
                helper.make_node("Tanh", [total], [after], self._name()),
                helper.make_node("Identity", [going], [still], self._name()),
            ],
            "body",
            [helper.make_tensor_value_info(step, TensorProto.INT64, []), truth[0], state[0]],
            [truth[1], state[1]],
        )
        turns = self._constant(np.array(self.random.randint(2, 3), dtype=np.int64))
        always = self._constant(np.array(True))
        self._node("Loop", [turns, always, source], (width,), body=body)

    def _carry(self) -> None:
        """A state that the graph reads with its width, and gives anew: tanh(state @ weight + what is read)."""
        source = self._read(rank=1)
        if source is None:
            return
        (width,) = self.live[source]
        given, before, product, total, after, out = (self._name() for _ in range(6))
        axis = self._constant(np.array([0], dtype=np.int64))
        self.nodes += [
            helper.make_node("Squeeze", [given, axis], [before], self._name()),
            helper.make_node("MatMul", [before, self._weight(width, width)], [product], self._name()),
            helper.make_node("Add", [product, source], [total], self._name()),
            helper.make_node("Tanh", [total], [after], self._name()),
            helper.make_node("Unsqueeze", [after, axis], [out], self._name()),
        ]
        self.live[after] = (width,)
        self.state, self.width = (given, out), width

    def _softmax(self) -> None:
        source = self._read(rank=1)
        if source is not None:
            self._node("Softmax", [source], self.live[source], axis=-1)

    def _chosen(self) -> None:
        """The place of the largest value: whole numbers, which nothing reads."""
        source = self._read(rank=1)
        if source is not None and not self.whole:
            name = self._node("ArgMax", [source], (1,), axis=1, keepdims=1)
            del self.live[name]
            self.whole.append(name)

    # The model. -----------------------------------------------------------------------------------------------------

    def _model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        ends = [name for name in self.live if name not in read and name not in self.inputs]
        inner = [name for name in self.live if name in read and name not in self.inputs]
        if not ends:
            ends = [self._node("Identity", [next(reversed(self.live))], self.live[next(reversed(self.live))])]
        chosen = ends + (self.random.sample(inner, 1) if inner and self.random.random() < 0.4 else [])
        self.random.shuffle(chosen)
        outputs = [helper.make_tensor_value_info(name, _FLOAT, ["n", *self.live[name]]) for name in chosen]
        outputs += [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 1]) for name in self.whole]
        inputs = [helper.make_tensor_value_info(name, _FLOAT, ["n", *shape]) for name, shape in self.inputs.items()]
        noted: dict[str, object] = {}
        if self.state is not None:
            given, out = self.state
            shape = [1, "n", self.width]
            inputs.append(helper.make_tensor_value_info(given, _FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(out, _FLOAT, shape))
            noted = {"inputs": {given: 1}, "outputs": {out: 1}, "streams": {out: given}}
        elif self.single:
            noted = {"single": True}
            for value in (*inputs, *outputs):
                value.type.tensor_type.shape.dim[0].dim_value = 1
        graph = helper.make_graph(
            self.nodes,
            "grown",
            inputs,
            outputs,
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if noted:
            helper.set_model_props(model, {"compressor.layout": json.dumps(noted)})
        onnx.checker.check_model(model, full_check=True)
        return model
