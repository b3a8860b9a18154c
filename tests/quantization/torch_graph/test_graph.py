"""ONNX graphs in torch against ONNX Runtime, on networks of every kind and on single nodes."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerTensor, Scheme, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.dynamic import place_dynamic
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.placement.weight_only import place_weight_only
from compressor.quantization.torch_graph.graph import TorchGraph
from compressor.quantization.torch_graph.straight_through import dynamic_integers
from compressor.runtime import feeds_of, open_session
from compressor.workload import Workload
from workbench.cpu import exact_outputs
from workbench.same_data import same_data


class Autoencoder(nn.Module):
    """Convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, 2, 1), nn.Hardswish())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Pools(nn.Module):
    """Every pooling, with padding, a concatenation and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.average = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.largest = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x.flip(1).clamp(-0.5, 0.5)], dim=1)
        x = self.average(nn.functional.relu6(self.depthwise(x))) + self.largest(x)
        return self.last(x.flatten(1))


class Encoder(nn.Module):
    """A transformer over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.encoder(self.embedding(tokens)).mean(dim=1))


class Recurrent(nn.Module):
    """An LSTM in both directions, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0][:, -1]


def exported(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    batch = [(example, torch.zeros(len(example), dtype=torch.long))]
    workload = same_data(model, batch, example)
    return clean_graph(export_onnx(model, workload).onnx_bytes)


def runtime_outputs(graph: onnx.ModelProto, inputs: Tensor) -> Tensor:
    session = open_session(graph.SerializeToString())
    return torch.from_numpy(session.run(None, feeds_of(session, inputs))[0])


NETWORKS = {
    "autoencoder": (Autoencoder, lambda: torch.randn(4, 3, 16, 16)),
    "pools": (Pools, lambda: torch.randn(4, 3, 8, 8)),
    "transformer": (Encoder, lambda: torch.randint(0, 20, (4, 7))),
    "recurrent": (Recurrent, lambda: torch.randn(4, 6, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_onnx_runtime(name: str) -> None:
    """Whole networks give ONNX Runtime's outputs to float32 accuracy."""
    build, sample = NETWORKS[name]
    inputs = sample()
    graph = exported(build().eval(), inputs)
    got = TorchGraph(graph)(inputs)
    torch.testing.assert_close(got, runtime_outputs(graph, inputs), atol=2e-6, rtol=2e-5)


def test_residual_network_equals_onnx_runtime_and_its_own_module(trained_workload: Workload) -> None:
    """A trained residual CNN runs as ONNX Runtime runs it, and every weight and bias has a gradient."""
    graph = clean_graph(export_onnx(trained_workload.model, trained_workload).onnx_bytes)
    inputs = next(iter(trained_workload.validation))[0]
    network = TorchGraph(graph)
    outputs = network(inputs)
    torch.testing.assert_close(outputs, runtime_outputs(graph, inputs), atol=1e-5, rtol=1e-5)
    outputs.square().sum().backward()
    constants = [tensor for tensor in graph.graph.initializer if tensor.data_type == TensorProto.FLOAT and tensor.dims]
    parameters = dict(network.named_parameters())
    assert len(parameters) == len(constants)
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters.values())


def test_gradients_equal_those_of_the_module() -> None:
    """The gradient of a weight of the graph is that of the module that was exported."""
    model, inputs = Autoencoder().eval(), torch.randn(2, 3, 16, 16)
    network = TorchGraph(exported(model, inputs))
    network(inputs).square().sum().backward()
    model(inputs).square().sum().backward()
    ours = network.constant("down.0.weight").grad
    assert ours is not None
    torch.testing.assert_close(ours, model.down[0].weight.grad, atol=1e-5, rtol=1e-4)


def single(
    operator: str, inputs: Sequence[np.ndarray], outputs: int = 1, **attributes: object
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A graph of one node whose first input is fed, with what ONNX Runtime makes of it."""
    names = [f"x{index}" for index in range(len(inputs))]
    node = helper.make_node(operator, names, [f"y{index}" for index in range(outputs)], "node", **attributes)
    first = inputs[0]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x0", helper.np_dtype_to_tensor_dtype(first.dtype), first.shape)],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(value, name) for value, name in zip(inputs[1:], names[1:], strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = open_session(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return model, session.run(None, {"x0": first})


FLOATS = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
PICTURE = np.arange(2 * 2 * 5 * 5, dtype=np.float32).reshape(2, 2, 5, 5) / 7
KERNEL = np.linspace(-1, 1, 4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


NODES: dict[str, tuple[str, list[np.ndarray], int, dict[str, object]]] = {
    "slice backwards": ("Slice", [FLOATS, ints(3), ints(-10), ints(2), ints(-2)], 1, {}),
    "slice with negative axis": ("Slice", [FLOATS, ints(1), ints(2**62), ints(-2)], 1, {}),
    "split": ("Split", [FLOATS, ints(1, 3)], 2, {"axis": 2}),
    "uneven split": ("Split", [FLOATS], 2, {"axis": 1, "num_outputs": 2}),
    "gather of rows, some from the end": ("Gather", [FLOATS, np.array([[0, -1], [2, 1]])], 1, {"axis": 1}),
    "squared mean over two axes": ("ReduceL2", [FLOATS, ints(0, 2)], 1, {"keepdims": 0}),
    "mean over everything": ("ReduceMean", [FLOATS], 1, {}),
    "expand with a one": ("Expand", [FLOATS, ints(2, 1, 3, 1)], 1, {}),
    "pad one side": ("Pad", [PICTURE, ints(0, 1, 2, 0), np.float32(7), ints(2, 3)], 1, {}),
    "reflect": ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 2, 1)], 1, {"mode": "reflect"}),
    "same padding": ("Conv", [PICTURE, KERNEL], 1, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "uneven padding": ("Conv", [PICTURE, KERNEL], 1, {"pads": [0, 1, 2, 0], "dilations": [1, 2]}),
    "uneven pooling": ("AveragePool", [PICTURE], 1, {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    "pooling over the padding": (
        *("AveragePool", [PICTURE], 1),
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "transposed with output padding": (
        *("ConvTranspose", [PICTURE, KERNEL.transpose(1, 0, 2, 3).copy()], 1),
        {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [0, 0]},
    ),
    "hard sigmoid": ("HardSigmoid", [FLOATS], 1, {"alpha": 0.3}),
    "clip from below": ("Clip", [FLOATS, np.float32(-1)], 1, {}),
    "gelu": ("Gelu", [FLOATS], 1, {"approximate": "tanh"}),
    "layer norm over two axes": ("LayerNormalization", [FLOATS, np.ones((3, 4), np.float32)], 1, {"axis": 1}),
    "trilu": ("Trilu", [FLOATS, np.array(1)], 1, {"upper": 0}),
    "integer division": ("Div", [np.array([-7, 7]), np.array([2, 2])], 1, {}),
    "softmax inside": ("Softmax", [FLOATS], 1, {"axis": 1}),
    "bilinear": (
        *("Resize", [PICTURE, np.array([], np.float32), np.array([1, 1, 2, 1.5], np.float32)], 1),
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ),
    "integers of a call": ("DynamicQuantizeLinear", [FLOATS * 1.3 + 0.7], 3, {}),
    "integers of positive values": ("DynamicQuantizeLinear", [FLOATS + 9], 3, {}),
    "integers of zeros": ("DynamicQuantizeLinear", [np.zeros((2, 3), np.float32)], 3, {}),
    "product of integers": (
        *(
            "MatMulInteger",
            [np.uint8([[0, 7, 255], [200, 9, 31]]), np.int8([[-128, 5], [127, 64], [3, -77]]), np.uint8(90)],
            1,
        ),
        {},
    ),
    "quantize": ("QuantizeLinear", [FLOATS, np.float32(0.5), np.uint8(3)], 1, {}),
    "quantize to signed": ("QuantizeLinear", [FLOATS, np.float32(0.02), np.int8(-5)], 1, {}),
    "dequantize by channel": (
        *(
            "DequantizeLinear",
            [np.arange(6, dtype=np.int8).reshape(2, 3), np.float32([1, 2, 3]), np.int8([0, 1, 2])],
            1,
        ),
        {"axis": 1},
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_node_equals_onnx_runtime(name: str) -> None:
    """Single nodes in forms that networks rarely have give what ONNX Runtime gives."""
    operator, inputs, outputs, attributes = NODES[name]
    model, expected = single(operator, inputs, outputs, **attributes)
    found = TorchGraph(model).run({"x0": torch.from_numpy(inputs[0])}, [f"y{index}" for index in range(outputs)])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=1e-5, rtol=1e-5)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, UNITS = 9, 3, 20, 24


def recurrent(op: str, direction: str, *, bias: bool = True, states: bool = True, **attributes) -> onnx.ModelProto:
    """A recurrent node "layer" on the input x (steps, batch, inputs) with constant first states."""
    count, rows, random = 2 if direction == "bidirectional" else 1, GATES[op] * UNITS, np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    constants = {"W": normal(count, rows, INPUTS), "R": normal(count, rows, UNITS)}
    constants |= {"B": normal(count, 2 * rows)} if bias else {}
    constants |= {name: normal(count, BATCH, UNITS) for name in ("h", "c")} if states else {}
    names = ["x", "W", "R", "B" if bias else "", "", *(("h", "c") if states else ())][: 7 if op == "LSTM" else 6]
    outputs = ["all", "last", "cell"] if op == "LSTM" else ["all", "last"]
    node = helper.make_node(op, names, outputs, "layer", direction=direction, hidden_size=UNITS, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUTS])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def largest_difference(model: onnx.ModelProto) -> float:
    """Between torch and ONNX Runtime over all outputs, which lie within [-1, 1] or near."""
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    names = [output.name for output in model.graph.output]
    network = TorchGraph(model)
    with torch.no_grad():
        found = network.run(network.feeds(torch.from_numpy(x)), names)
    pairs = zip(found, exact_outputs(model.SerializeToString(), {model.graph.input[0].name: x}), strict=True)
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in pairs)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_float_recurrent_node_equals_onnx_runtime(op: str, direction: str) -> None:
    """Float layers of every kind and direction, with first states, agree to float32 accuracy."""
    attributes = {"linear_before_reset": 1} if op == "GRU" else {}
    assert largest_difference(recurrent(op, direction, **attributes)) < 2e-6
    assert largest_difference(recurrent(op, direction, bias=False, states=False, **attributes)) < 2e-6


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("scheme", [Symmetric(), Symmetric(bits=4), Asymmetric(granularity=PerTensor())], ids=str)
def test_dynamic_lstm_equals_onnx_runtime(scheme: Scheme, direction: str) -> None:
    """The integer LSTM rounds its state at every step as ONNX Runtime does: no state ends on another integer."""
    for options in ({}, {"bias": False, "states": False}):
        model = recurrent("LSTM", direction, **options)
        placed = place_dynamic(model, {"layer"}, nearest_grids(model, {"layer": scheme}))
        assert [node.op_type for node in placed.graph.node] == ["DynamicQuantizeLSTM"]
        # A state on the other integer would be off by 1 / 255 of the largest, some 4e-3.
        assert largest_difference(placed) < 2e-5


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("scheme", [Symmetric(), Symmetric(bits=4), Asymmetric(granularity=PerTensor())], ids=str)
@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_integer_cells_equal_onnx_runtime(op: str, scheme: Scheme, direction: str, after: int) -> None:
    """Layers written out as a Scan over cells of integers give ONNX Runtime's states, in either form of a GRU."""
    model = recurrent(op, direction, **({"linear_before_reset": after} if op == "GRU" else {}))
    placed = place_dynamic(model, {"layer"}, nearest_grids(model, {"layer": scheme}))
    assert "Scan" in {node.op_type for node in placed.graph.node}
    assert largest_difference(placed) < 2e-5


@pytest.mark.parametrize("scheme", [Symmetric(), Symmetric(bits=4), Symmetric(bits=4, granularity=PerBlock(size=32))])
def test_blocks_of_weights_equal_onnx_runtime(scheme: Scheme) -> None:
    """MatMulNBits rounds its activations block by block; packed weights are unpacked as the kernel reads them."""
    weight = np.random.default_rng(0).standard_normal((INPUTS, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, BATCH, 16])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    placed = place_weight_only(model, {"product"}, nearest_grids(model, {"product": scheme}))
    assert [node.op_type for node in placed.graph.node] == ["MatMulNBits"]
    assert largest_difference(placed) < 2e-5


def test_integers_of_a_call_by_hand() -> None:
    """The range takes in 0, the steps are a 255th of it, and every value hands on the gradient over the step."""
    values = torch.tensor([-1.0, 0.004, 1.55], requires_grad=True)
    integers, scale, zero_point = dynamic_integers(values)
    assert (integers.tolist(), zero_point.tolist()) == ([0, 100, 255], 100)
    assert scale.tolist() == pytest.approx(0.01)
    integers.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([100, 100, 100])
    # Positive values: the range begins at 0.
    assert dynamic_integers(torch.tensor([51.0, 255.0]))[0].tolist() == [51, 255]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"clip": 3.0}, "LSTM 'layer' has sequence lengths, peepholes, a clip.* leave it in float with skip"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "other activations or its batch first, and has no form"),
    ],
)
def test_unusual_integer_lstm_is_refused(attributes: dict, message: str) -> None:
    """An LSTM that torch would compute otherwise is named, with the way out."""
    model = recurrent("LSTM", "forward", **attributes)
    placed = place_dynamic(model, {"layer"}, nearest_grids(model, {"layer": Symmetric()}))
    with pytest.raises(StageError, match=message):
        TorchGraph(placed)(torch.zeros(STEPS, BATCH, INPUTS))


def test_scan_along_another_axis_is_refused() -> None:
    """A loop over columns is named rather than run over rows."""
    model = recurrent("RNN", "forward")
    placed = place_dynamic(model, {"layer"}, nearest_grids(model, {"layer": Symmetric()}))
    loop = next(node for node in placed.graph.node if node.op_type == "Scan")
    loop.attribute.append(helper.make_attribute("scan_input_axes", [1]))
    with pytest.raises(StageError, match="Scan 'layer_0_last' walks along another axis than the first"):
        TorchGraph(placed)(torch.zeros(STEPS, BATCH, INPUTS))


def test_run_starts_and_ends_anywhere() -> None:
    """A tensor that is given cuts the graph behind it, one under an initializer's name stands in for it."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"], "double"),
        helper.make_node("MatMul", ["doubled", "weight"], ["y"], "product"),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", floats, ["n", 2])],
        [helper.make_tensor_value_info("y", floats, ["n", 1])],
        [
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.float32([[1], [10]]), "weight"),
        ],
    )
    network = TorchGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    x = torch.tensor([[1.0, 2.0]])
    assert network(x).tolist() == [[42]]
    doubled, y = network.run({"x": x, "weight": torch.tensor([[1.0], [0.0]])}, ["doubled", "y"])
    assert (doubled.tolist(), y.tolist()) == ([[2, 4]], [[2]])
    assert network.run({"doubled": x}, ["y"])[0].tolist() == [[21]]
    # The lone factor is arithmetic, the matrix is a weight.
    assert [name for name, _ in network.named_parameters()] == ["weight"]
    with pytest.raises(StageError, match="the tensor 'x', which double reads, is no input"):
        network.run({}, ["y"])


def test_updated_writes_parameters_back() -> None:
    """A learned weight comes back in the graph under its own name, and ONNX Runtime runs with it."""
    model, inputs = Autoencoder().eval(), torch.randn(2, 3, 16, 16)
    graph = exported(model, inputs)
    network = TorchGraph(graph)
    with torch.no_grad():
        network.constant("down.0.weight").mul_(0.5)
    updated = network.updated(graph)
    torch.testing.assert_close(runtime_outputs(updated, inputs), network(inputs).detach(), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(runtime_outputs(graph, inputs), network(inputs).detach(), atol=1e-3)


def test_unknown_operator_is_refused_by_name() -> None:
    """An operator without a form in torch is named with its node before anything runs."""
    node = helper.make_node("Einsum", ["x"], ["y"], "attention.sum", equation="ij->ji")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]))
    with pytest.raises(StageError, match=r"the operator Einsum \(node 'attention.sum'\) has no form in torch"):
        TorchGraph(model)


def test_gradient_passes_straight_through_rounding_alone() -> None:
    """A quantized pair hands on gradients within its range and none from where it saturates."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "d"),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    graph = helper.make_graph(pair, "g", info[:1], info[1:], constants)
    network = TorchGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    x = torch.tensor([-0.2, 0.26, 25.5, 30.0], requires_grad=True)
    y = network(x)
    torch.testing.assert_close(y.detach(), torch.tensor([0.0, 0.3, 25.5, 25.5]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
