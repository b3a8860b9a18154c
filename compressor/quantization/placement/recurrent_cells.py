"""GRU and RNN layers written out as one product for all steps and a Scan over cells, which can multiply integers.

ONNX Runtime has no integer kernel for them. X W^T + b needs no state and is one product of all steps; what is left of
a step is the product of the state, with R in blocks of integers (MatMulNBits), and the gates in float32. With z, r, n
for the update, reset and candidate gate (Cho et al. 2014, arXiv:1406.1078, eq. 5-8; the ONNX operator GRU):

    z = s(x_z + h R_z^T + b_z)    r = s(x_r + h R_r^T + b_r)    h' = n + z (h - n)
    n = tanh(x_n + r (h R_n^T + b_n)) with linear_before_reset, else tanh(x_n + (r h) R_n^T + b_n)

A step of a GRU costs some 4.5 microseconds beside its product, whatever its width. That is more than the float kernel
takes in all for 128 units and less than integers save from 256 on; from 320 on, float weights no longer fit the cache
of a core, and cells are two to five times faster. MatMulNBits does not saturate on CPUs without VNNI.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import attribute
from compressor.files.operators import Recurrence, operator_of
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.names import in_loop
from compressor.quantization.placement.weight_only import block_product
from compressor.quantization.placement.written import Written

_Array = npt.NDArray[np.float32]
# Adds (nodes, initializers) of one product to a body: (source, target, rows of R, bias or None).
_Product = Callable[[str, str, slice, _Array | None], None]


def why_no_cells(node: onnx.NodeProto, constants: set[str]) -> str | None:
    """Why a GRU or RNN cannot be written out, None where it can: what the report says."""
    names = [*node.input, *([""] * (6 - len(node.input)))]
    given = [value.decode() for value in attribute(node, "activations", [])]
    usual = [*recurrence_of(node).activations]
    if not constants.issuperset(name for name in names[1:4] if name):
        return "its weights are computed at run time"
    if names[4]:
        return "its sequences have lengths of their own"
    if given and given != usual * (len(given) // len(usual)):
        return f"its activations are {', '.join(given)}"
    clip = attribute(node, "clip", 0.0)
    if clip:
        return f"its gates are clipped at {clip:g}"
    return "its batch comes first (layout=1)" if attribute(node, "layout", 0) else None


def recurrence_of(node: onnx.NodeProto) -> Recurrence:
    """What is known of a recurrent node's operator."""
    found = operator_of(node.op_type).recurrence
    assert found is not None
    return found


def hidden_units(node: onnx.NodeProto) -> int:
    """The number of units of a recurrent node, 0 where it does not say."""
    return int(attribute(node, "hidden_size", 0))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A GRU or RNN node and its float constants: W (directions, gates * hidden, inputs), R likewise, B or None."""

    node: onnx.NodeProto
    hidden: int
    bias: _Array | None

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts on the product, so that one product gives all gates."""
        return bool(attribute(self.node, "linear_before_reset", 0))

    @property
    def backward(self) -> tuple[bool, ...]:
        """For every direction whether it reads the steps from the last to the first."""
        name = attribute(self.node, "direction", b"forward").decode()
        return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[name]

    @property
    def rows(self) -> int:
        """Gates times units: how many values the products of the inputs give."""
        return recurrence_of(self.node).gates * self.hidden

    @property
    def kept(self) -> int:
        """How many of the last values of a state's bias have to stay in the cell: those of the candidate, if any."""
        return self.hidden if self.reset_after and self.node.op_type == "GRU" else 0

    @property
    def products(self) -> dict[str, slice]:
        """{result of a product of the state in the cell: its rows of R}."""
        if self.node.op_type == "RNN" or self.reset_after:
            return {"u": slice(None)}
        return {"u_zr": slice(2 * self.hidden), "v": slice(2 * self.hidden, None)}

    def loop(self, direction: int) -> str:
        """The name of the Scan of one direction."""
        return f"{self.node.name}_{direction}_last"

    def biases(self, direction: int) -> tuple[_Array, _Array | None]:
        """(what the product of the inputs takes, what has to stay in the cell: that of the candidate, if any)."""
        both = np.zeros(2 * self.rows, dtype=np.float32) if self.bias is None else self.bias[direction]
        inputs, states = both[: self.rows].copy(), both[self.rows :]
        early = self.rows - self.kept
        inputs[:early] += states[:early]
        return inputs, states[early:] if self.kept else None


def layer_of(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Layer:
    """The layer of a node that `why_no_cells` has nothing against."""
    name = node.input[3] if len(node.input) > 3 else ""
    recurrence = constants[node.input[2]]
    return Layer(node=node, hidden=recurrence.dims[2], bias=numpy_helper.to_array(constants[name]) if name else None)


def write_layer(layer: Layer, projected: list[str], recurrence: Sequence[WeightGrid | _Array]) -> Written:
    """What takes the place of the layer's node, given X W^T + b of every direction, (steps, batch, gates * hidden).

    `recurrence` holds R of every direction, (gates * hidden, hidden): as a grid of integers, or as floats, which is
    exactly the layer.
    """
    written, node = Written(), layer.node
    states = node.input[5] if len(node.input) > 5 else ""
    firsts = _first_states(written, layer, states)
    count = len(projected)
    everything, lasts = [], []
    for index, (source, weight, backward) in enumerate(zip(projected, recurrence, layer.backward, strict=True)):
        prefix = f"{node.name}_{index}"
        body = _named_in(layer.loop(index), _body(layer, weight, layer.biases(index)[1]))
        sources = [source]
        if node.op_type == "GRU":
            sizes = written.constant(f"{prefix}_sizes", np.array([2 * layer.hidden, layer.hidden]))
            sources = [f"{prefix}_gates", f"{prefix}_candidates"]
            written.add("Split", [source, sizes], *sources, axis=2)
        outputs = [layer.loop(index), f"{prefix}_states"]
        written.add(
            "Scan",
            [firsts[index], *sources],
            *outputs,
            body=body,
            num_scan_inputs=len(sources),
            scan_input_directions=[int(backward)] * len(sources),
            scan_output_directions=[int(backward)],
        )
        lasts.append(outputs[0])
        everything.append(outputs[1])
    for position, parts, axis in ((0, everything, 1), (1, lasts, 0)):
        target = node.output[position] if position < len(node.output) else ""
        if target:
            # Y is (steps, directions, batch, hidden), the last states are (directions, batch, hidden).
            place = written.constant(f"{node.name}_axis{axis}", np.array([axis]))
            if count == 1:
                written.add("Unsqueeze", [parts[0], place], target)
            else:
                apart = [written.add("Unsqueeze", [part, place], f"{part}_apart") for part in parts]
                written.add("Concat", apart, target, axis=axis)
    return written


def _first_states(written: Written, layer: Layer, states: str) -> list[str]:
    """The first state (batch, hidden) of every direction: what the node is given, else zeros."""
    name, directions = layer.node.name, len(layer.backward)
    if not states:
        batch = written.add("Shape", [layer.node.input[0]], f"{name}_batch", start=1, end=2)
        width = written.constant(f"{name}_hidden", np.array([layer.hidden]))
        shape = written.add("Concat", [batch, width], f"{name}_shape", axis=0)
        return [written.add("ConstantOfShape", [shape], f"{name}_zeros")] * directions
    axis = written.constant(f"{name}_direction", np.array([0]))
    if directions == 1:
        return [written.add("Squeeze", [states, axis], f"{name}_first")]
    parts = [f"{name}_first{index}" for index in range(directions)]
    written.add("Split", [states], *parts, axis=0, num_outputs=directions)
    return [written.add("Squeeze", [part, axis], f"{part}_flat") for part in parts]


def _body(layer: Layer, weight: WeightGrid | _Array, bias: _Array | None) -> onnx.GraphProto:
    """One step: (state, what the inputs give) -> (next state, the same as the step's output)."""
    written = Written()
    product = _float_product(written, weight) if isinstance(weight, np.ndarray) else _block_product(written, weight)
    hidden = layer.hidden
    scanned = {"x": hidden}
    if layer.node.op_type == "RNN":
        product("h", "u", layer.products["u"], None)
        written.add("Tanh", [written.add("Add", ["u", "x"], "a")], "next")
    else:
        scanned = {"x_zr": 2 * hidden, "x_n": hidden}
        halves = written.constant("halves", np.array([hidden, hidden]))
        if layer.reset_after:
            thirds = written.constant("thirds", np.array([2 * hidden, hidden]))
            full = None if bias is None else np.concatenate([np.zeros(2 * hidden, dtype=np.float32), bias])
            product("h", "u", layer.products["u"], full)
            written.add("Split", ["u", thirds], "u_zr", "u_n", axis=1)
        else:
            product("h", "u_zr", layer.products["u_zr"], None)
        gates = written.add("Sigmoid", [written.add("Add", ["u_zr", "x_zr"], "a_zr")], "zr")
        written.add("Split", [gates, halves], "z", "r", axis=1)
        if layer.reset_after:
            written.add("Mul", ["r", "u_n"], "v")
        else:
            product(written.add("Mul", ["r", "h"], "rh"), "v", layer.products["v"], None)
        written.add("Tanh", [written.add("Add", ["v", "x_n"], "a_n")], "n")
        written.add("Mul", ["z", written.add("Sub", ["h", "n"], "difference")], "moved")
        written.add("Add", ["n", "moved"], "next")
    # A scan needs an output of its own beside the state that it hands on.
    written.add("Identity", ["next"], "step")

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

    inputs = [value("h", hidden), *(value(name, width) for name, width in scanned.items())]
    outputs = [value("next", hidden), value("step", hidden)]
    return helper.make_graph(written.nodes, "cell", inputs, outputs, written.initializers)


def _named_in(loop: str, body: onnx.GraphProto) -> onnx.GraphProto:
    """`body` with names of its own: it sees the tensors outside, and may make none of their names again."""
    for value in (*body.input, *body.output, *body.initializer):
        value.name = in_loop(loop, value.name)
    for node in body.node:
        node.name = in_loop(loop, node.name)
        node.input[:] = [name and in_loop(loop, name) for name in node.input]
        node.output[:] = [name and in_loop(loop, name) for name in node.output]
    return body


def _float_product(written: Written, weight: _Array) -> _Product:
    def product(source: str, target: str, rows: slice, bias: _Array | None) -> None:
        matrix = written.constant(f"R_{target}", np.ascontiguousarray(weight[rows].T))
        plain = written.add("MatMul", [source, matrix], target if bias is None else f"{target}_plain")
        if bias is not None:
            written.add("Add", [plain, written.constant(f"b_{target}", bias)], target)

    return product


def _block_product(written: Written, grid: WeightGrid) -> _Product:
    def product(source: str, target: str, rows: slice, bias: _Array | None) -> None:
        written.extend(*block_product(grid, rows, source, target, bias))

    return product
