"""Signals that meet in one tensor, and operators that make new values: each is rounded on a grid that fits it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.file.compact_graph import kernels
from compressor.quantization.placement.forms import Dynamic, Static
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import open_session
from compressor.stage import Context
from workbench.onnx_graphs import calibrated_on

SAME = [1, 1, 1, 1]
FLOAT_MIN = float(np.finfo(np.float32).min)


def _model(nodes: list, constants: Mapping[str, Any], shape: list) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _weight(*shape: int, size: float = 0.2) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) * size).astype(np.float32)


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _images() -> torch.Tensor:
    return torch.randn(48, 3, 12, 12)


class Quantized:
    """A model and its integer file on the same inputs."""

    def __init__(self, model: bytes, inputs: torch.Tensor, **settings: Any) -> None:
        context = Context(progress=False)
        self.file = quantized_file(model, QuantizationSettings(**settings), calibrated_on(inputs), context)
        self.details = context.details
        feeds = {"x": inputs.numpy()}
        self.wanted, self.got = (open_session(file).run(None, feeds)[0] for file in (model, self.file))

    def db(self, *place: Any) -> float:
        """Decibels of signal to noise in a part of the output."""
        return sqnr_db(self.wanted[place], self.got[place])

    @property
    def kernels(self) -> Mapping[str, int]:
        return kernels(self.file)

    @property
    def reasons(self) -> dict[str, str]:
        left = self.details["left_in_float"]
        return {entry["node"]: entry["reason"] for entry in left}


def _node(*args: Any, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(*args, **attributes)


def _conv(source: str, target: str, weight: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], f"conv_{target}", **attributes)


def _detector(scale: float) -> bytes:
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Relu", ["a"], ["r"]),
        _conv("r", "b0", "wb"),
        _node("Sigmoid", ["b0"], ["b1"]),
        _node("Mul", ["b1", "size"], ["boxes"]),
        _conv("r", "c0", "wc"),
        _node("Sigmoid", ["c0"], ["scores"]),
        _node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "wb": _weight(4, 16, 1, 1), "wc": _weight(16, 16, 1, 1)}
    return _model(nodes, {**constants, "size": _number(scale)}, [3, 12, 12])


@pytest.mark.parametrize("scale", [640.0, 1.0])
def test_boxes_and_scores_in_one_output_keep_their_own_steps(scale: float) -> None:
    """Scores from 0 to 1 beside boxes in pixels are as exact as beside boxes from 0 to 1: over 25 dB."""
    found = Quantized(_detector(scale), _images())
    assert found.db(slice(None), slice(4, None)) > 25
    assert found.db(slice(None), slice(4)) > 25
    assert len(np.unique(found.got[:, 4:])) > 50


def test_a_joined_output_that_is_turned_and_cut_keeps_its_steps() -> None:
    """What only moves values behind the Concat makes no difference."""
    model = onnx.load_from_string(_detector(640.0))
    model.graph.node[-1].output[0] = "joined"
    shape = numpy_helper.from_array(np.array([0, 20, -1]), "flat")
    model.graph.initializer.append(shape)
    model.graph.node.append(_node("Reshape", ["joined", "flat"], ["rows"]))
    model.graph.node.append(_node("Transpose", ["rows"], ["y"], perm=[0, 2, 1]))
    found = Quantized(model.SerializeToString(), _images())
    assert found.db(slice(None), slice(None), slice(4, None)) > 25


def _joined_layers(factor: float, *, dead: bool = False, behind: str = "") -> bytes:
    joined = "apart" if behind else "both"
    pool = {"kernel_shape": [2, 2]} if behind == "AveragePool" else {}
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _conv("x", "b", "v", pads=SAME),
        _node("Mul", ["a", "factor"], ["large"]),
        _node("Concat", ["large", "b"], [joined], "join", axis=1),
        *([_node(behind, [joined], ["both"], "behind", **pool)] if behind else []),
        helper.make_node("Conv", ["both", "u"], ["y"], "reader"),
    ]
    u = _weight(8, 32, 1, 1)
    u[:, :16] /= factor
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(16, 3, 3, 3, size=0.0 if dead else 0.2), "u": u}
    return _model(nodes, {**constants, "factor": _number(factor)}, [3, 12, 12])


@pytest.mark.parametrize("behind", ["", "Relu", "AveragePool", "LeakyRelu"])
def test_a_layer_that_reads_signals_of_different_scale_stays_in_float(behind: str) -> None:
    """A convolution over [500 a, b] would lose b; it stays in float and says why, and the two before it do not."""
    found = Quantized(_joined_layers(500.0, behind=behind), _images())
    assert found.kernels["QLinearConv"] == 2
    assert "joins signals of different scale (in join)" in found.reasons["reader"]
    assert found.db() > 25


def test_signals_of_like_scale_are_joined_on_integers() -> None:
    """Four times the scale is no reason to leave integers, nor is a branch that gives nothing but zeros."""
    for model in (_joined_layers(4.0), _joined_layers(4.0, dead=True)):
        found = Quantized(model, _images())
        assert found.kernels["QLinearConv"] == 3
        assert found.kernels["QLinearConcat"] == 1
        assert found.db() > 25


def test_a_signal_that_is_taken_apart_again_is_read_on_integers() -> None:
    """Scores that a Split takes out of [640 a, a] have their own grid: both layers run on integers."""
    nodes = [
        _conv("x", "c", "w", pads=SAME),
        _node("Sigmoid", ["c"], ["a"]),
        _node("Mul", ["a", "factor"], ["boxes"]),
        _node("Concat", ["boxes", "a"], ["both"], "join", axis=1),
        _node("Split", ["both"], ["first", "second"], axis=1, num_outputs=2),
        _conv("second", "y", "v"),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1), "factor": _number(640.0)}
    found = Quantized(_model(nodes, constants, [3, 12, 12]), _images())
    assert found.kernels["QLinearConv"] == 2
    assert found.db() > 25


def test_a_layer_with_ranges_found_at_run_time_is_spared_too() -> None:
    """One grid for [1000 x, x] is too coarse whether it is calibrated or found at every call."""
    nodes = [
        _node("MatMul", ["x", "v"], ["a"], "first"),
        _node("Mul", ["a", "factor"], ["large"]),
        _node("Concat", ["large", "a"], ["both"], "join", axis=-1),
        _node("MatMul", ["both", "u"], ["y"], "reader"),
    ]
    u = _weight(32, 8)
    u[:16] /= 1000
    model = _model(nodes, {"v": _weight(16, 16), "u": u, "factor": _number(1000.0)}, [16])
    found = Quantized(model, torch.randn(64, 16), form=Dynamic())
    assert found.kernels["DynamicQuantizeMatMul"] == 1
    assert "joins signals of different scale" in found.reasons["reader"]
    assert found.db() > 25


def test_nothing_to_quantize_names_the_signals() -> None:
    """Where the only layer reads joined signals, the refusal says so."""
    nodes = [
        _node("Mul", ["x", "factor"], ["large"]),
        _node("Concat", ["large", "x"], ["both"], "join", axis=1),
        _conv("both", "y", "w", pads=SAME),
    ]
    model = _model(nodes, {"w": _weight(16, 6, 3, 3), "factor": _number(1000.0)}, [3, 12, 12])
    with pytest.raises(StageError, match=r"nothing to quantize: 1 nodes: .*different scale"):
        Quantized(model, _images())


@pytest.mark.parametrize("value", [-1.0, 3.0, 40.0, 0.0])
def test_a_pad_puts_in_the_value_that_it_is_told(value: float) -> None:
    """The padded column is as exact as the rest, though a ReLU's integers reach neither -1 nor 40."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Relu", ["a"], ["r"]),
        _node("Pad", ["r", "pads", "value"], ["q"]),
        _conv("q", "y", "v"),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1), "value": _number(value)}
    constants["pads"] = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    found = Quantized(_model(nodes, constants, [3, 12, 12]), _images())
    if value:
        assert found.db(..., slice(-1, None)) > 25
    assert found.db() > 25


@pytest.mark.parametrize("value", [-np.inf, FLOAT_MIN, -1e9])
def test_padding_before_a_max_pool_costs_nothing(value: float) -> None:
    """Minus infinity around a max pool, as converters write "same" padding, runs on integers as its lowest one."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Pad", ["a", "pads", "value"], ["q"]),
        _node("MaxPool", ["q"], ["m"], kernel_shape=[3, 3], strides=[2, 2]),
        _conv("m", "y", "v"),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1), "value": _number(value)}
    constants["pads"] = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    found = Quantized(_model(nodes, constants, [3, 12, 12]), _images())
    assert found.kernels["QLinearConv"] == 2
    assert found.kernels["QuantizeLinear"] == 1
    assert found.db() > 25


@pytest.mark.parametrize("value", [-np.inf, FLOAT_MIN, -10000.0])
@pytest.mark.parametrize("way", ["Add", "Where"])
def test_masked_scores_keep_what_is_not_masked(way: str, value: float) -> None:
    """Attention over a convolution, masked by a constant before Softmax, is as exact as without a mask."""
    allowed = np.tril(np.ones((12, 12), bool))
    mask = np.where(allowed, 0, value).astype(np.float32)
    masked = {
        "Add": _node("Add", ["scores", "mask"], ["masked"], "mask"),
        "Where": _node("Where", ["allowed", "scores", "lowest"], ["masked"], "mask"),
    }[way]
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("MatMul", ["a", "a"], ["scores"], "product"),
        masked,
        _node("Softmax", ["masked"], ["weights"]),
        _node("MatMul", ["weights", "a"], ["read"], "reading"),
        _conv("read", "y", "v"),
    ]
    constants = {"w": _weight(8, 3, 3, 3), "v": _weight(8, 8, 1, 1)}
    constants |= {"mask": mask} if way == "Add" else {"allowed": allowed, "lowest": _number(value)}
    found = Quantized(_model(nodes, constants, [3, 12, 12]), _images())
    assert np.isfinite(found.got).all()
    assert found.db() > 20


def test_a_layer_that_reads_a_mask_stays_in_float() -> None:
    """A product that reads masked values as they are has no grid for them and for the rest."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Where", ["allowed", "a", "lowest"], ["masked"], "mask"),
        _node("MatMul", ["masked", "u"], ["y"], "reader"),
    ]
    constants = {"w": _weight(8, 3, 3, 3), "u": _weight(12, 4), "lowest": _number(-1e9)}
    found = Quantized(_model(nodes, {**constants, "allowed": np.eye(12, dtype=bool)}, [3, 12, 12]), _images())
    assert "joins signals of different scale (in mask)" in found.reasons["reader"]


def _filled(marker: float) -> tuple[bytes, torch.Tensor]:
    """Two layers behind what fills missing values in, and samples of which every tenth value is the `marker`."""
    nodes = [
        _node("IsNaN" if np.isnan(marker) else "IsInf", ["x"], ["missing"], "find"),
        _node("Where", ["missing", "usual", "x"], ["whole"], "fill"),
        _node("MatMul", ["whole", "v"], ["a"], "first"),
        _node("Relu", ["a"], ["r"], "relu"),
        _node("MatMul", ["r", "u"], ["y"], "last"),
    ]
    inputs = torch.randn(64, 16)
    inputs[torch.rand(64, 16) < 0.1] = marker
    return _model(nodes, {"v": _weight(16, 16), "u": _weight(16, 8), "usual": _number(0.3)}, [16]), inputs


@pytest.mark.parametrize("marker", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", [Static(), Dynamic()])
def test_markers_of_missing_values_keep_no_layer_from_integers(form: Static | Dynamic, marker: float) -> None:
    """Only what fills them in reads the marked input, and computes floats anyway; the report says which and why."""
    found = Quantized(*_filled(marker), form=form)
    assert not found.reasons
    assert found.details["integer_kernels"] == (
        {"DynamicQuantizeMatMul": 2} if form == Dynamic() else {"MatMulIntegerToFloat": 1, "QLinearMatMul": 1}
    )
    assert found.db() > 25
    if form == Static():
        (why,) = found.details["calibration"]["without_range"].items()
        assert why == ("x", f"it holds {'NaN' if np.isnan(marker) else 'infinite values'}, which no grid has")


def test_a_marker_that_reaches_a_layer_is_refused() -> None:
    """Nobody fills the missing values in: what the layer reads is named."""
    model = _model([_node("MatMul", ["x", "v"], ["y"], "only")], {"v": _weight(16, 8)}, [16])
    with pytest.raises(StageError, match=r"'x' cannot be calibrated: it produced NaN"):
        Quantized(model, _filled(float("nan"))[1], form=Static())


def test_infinite_outputs_of_a_layer_are_refused() -> None:
    """A convolution that overflows is no mask: the model or the data is wrong, and the message names the tensor."""
    nodes = [_conv("x", "a", "w", pads=SAME), _node("Relu", ["a"], ["r"]), _conv("r", "y", "v")]
    constants = {"w": np.full((8, 3, 3, 3), 3e38, np.float32), "v": _weight(8, 8, 1, 1)}
    with pytest.raises(StageError, match=r"'(a|r|y)' cannot be calibrated"):
        Quantized(_model(nodes, constants, [3, 12, 12]), 10 * _images())


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizing_shifts_no_mean(mode: str) -> None:
    """Twice the size between two convolutions: no channel's mean error is more than a tenth of its deviation's."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Relu", ["a"], ["r"]),
        _node("Resize", ["r", "", "scales"], ["q"], mode=mode),
        _conv("q", "y", "v"),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": np.abs(_weight(8, 16, 1, 1))}
    constants["scales"] = np.array([1, 1, 2, 2], np.float32)
    found = Quantized(_model(nodes, constants, [3, 12, 12]), _images())
    error = np.moveaxis(found.got - found.wanted, 1, 0).reshape(8, -1)
    # Integers that are cut down instead of rounded are half a step too low everywhere.
    assert float(np.abs(error.mean(axis=1) / error.std(axis=1)).max()) < 0.5
    assert found.db() > 30
    assert found.kernels["Resize"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1},
        {"strides": [2, 2], "pads": SAME, "ceil_mode": 1, "count_include_pad": 1},
        {"strides": [2, 2], "pads": SAME, "ceil_mode": 1},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_windows_of_every_kind_are_averaged_as_in_float(settings: Mapping[str, Any]) -> None:
    """Where ONNX Runtime's integer pooling is another one, or none, floats are pooled."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("AveragePool", ["a"], ["m"], kernel_shape=[3, 3], **settings),
        _conv("m", "y", "v"),
    ]
    found = Quantized(_model(nodes, {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1)}, [3, 12, 12]), _images())
    assert found.kernels["QLinearConv"] == 2
    assert found.db() > 25


def test_the_places_that_a_max_pool_gives_are_no_values() -> None:
    """The second output of a max pool holds whole numbers and is left alone."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("MaxPool", ["a"], ["m", "places"], kernel_shape=[2, 2], strides=[2, 2]),
        _conv("m", "b", "v"),
        _node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
        _node("ReduceMax", ["p"], ["most"], keepdims=0),
        _node("Mul", ["most", "nothing"], ["zero"]),
        _node("Add", ["b", "zero"], ["y"]),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1), "nothing": _number(0.0)}
    assert Quantized(_model(nodes, constants, [3, 12, 12]), _images()).db() > 25


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_bounds_of_a_clip_are_numbers_or_arrays_of_one(shape: tuple[int, ...]) -> None:
    """ReLU6 with bounds of shape [1], as several converters write it, goes through every improvement."""
    nodes = [
        _conv("x", "a", "w", pads=SAME),
        _node("Clip", ["a", "low", "high"], ["r"]),
        helper.make_node("Conv", ["r", "v", "bias"], ["y"], "last"),
    ]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1), "bias": _weight(8)}
    constants |= {"low": np.zeros(shape, np.float32), "high": np.full(shape, 6, np.float32)}
    model = _model(nodes, constants, [3, 12, 12])
    for settings in ({}, {"equalization": CrossLayerEqualization(), "bias_correction": BiasCorrection()}):
        found = Quantized(model, _images(), **settings)
        assert found.kernels["QLinearConv"] == 2
        assert found.kernels["Clip"] == 0
        assert found.db() > 30
