"""Improvements that find nothing to improve, and layers and operators that learned rounding has no form for."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor import Pipeline, Recipe, Workload
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.placement.forms import Static
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import open_session
from compressor.stage import Context
from workbench.onnx_graphs import calibrated_on

ALL = {
    "equalization": CrossLayerEqualization(),
    "smoothing": SmoothQuant(),
    "bias_correction": BiasCorrection(method="analytic"),
    "give_back": GiveBack(slower=False, min_sqnr_db=10.0),
}


class SmoothActivations(nn.Module):
    """Convolutions without biases behind SiLUs: nothing to equalize, to smooth or to correct."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.SiLU(), nn.Conv2d(16, 16, 3, bias=False), nn.SiLU()
        )
        self.head = nn.Linear(16, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean((2, 3)))


class Words(nn.Module):
    """A transformer layer over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", dropout=0.0)
        self.head = nn.Linear(32, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layer(self.words(words)).mean(1))


class Recurrent(nn.Module):
    """An LSTM alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)

    def forward(self, steps: Tensor) -> Tensor:
        return self.lstm(steps)[0][:, -1]


def _inputs(model: nn.Module) -> Tensor:
    if isinstance(model, Words):
        return torch.randint(0, 100, (96, 10))
    return torch.randn(96, 3, 12, 12) if isinstance(model, SmoothActivations) else torch.randn(96, 7, 16)


def _quantized(file: bytes, inputs: Tensor, **settings: Any) -> tuple[float, dict[str, Any]]:
    """(decibels that the outputs keep, what the report is told)."""
    context = Context(progress=False)
    made = quantized_file(file, QuantizationSettings(**settings), calibrated_on(inputs), context)
    feeds = {open_session(file).get_inputs()[0].name: inputs.numpy()}
    wanted, got = (open_session(one).run(None, feeds)[0] for one in (file, made))
    return sqnr_db(wanted, got), context.details


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        (SmoothActivations, {"equalization", "smoothing"}),
        (Words, {"equalization", "smoothing"}),
        (Recurrent, {"equalization", "smoothing", "bias_correction"}),
    ],
)
def test_improvements_with_nothing_to_improve_are_noted(kind: type[nn.Module], left_out: set[str]) -> None:
    """Networks without what an improvement works on are quantized, and the report says what was left out and why."""
    model = kind().eval()
    inputs = _inputs(model)
    workload = Workload.from_datasets(model, train=(inputs, inputs), test=(inputs, inputs), metric="mse")
    decibels, details = _quantized(export_onnx(model, workload).onnx_bytes, inputs, **ALL)
    assert decibels > 20
    assert set(details["left_out"]) == left_out
    assert all(reason.startswith(("nothing to", "no bias to")) for reason in details["left_out"].values())


def test_widths_are_left_out_where_no_layer_is_static() -> None:
    """What the recipe `int4` asks of a transformer, whose products take their ranges from every call."""
    model = Words().eval()
    inputs = _inputs(model)
    workload = Workload.from_datasets(model, train=(inputs, inputs), test=(inputs, inputs), metric="mse")
    exported = export_onnx(model, workload).onnx_bytes
    decibels, details = _quantized(exported, inputs, weights=Symmetric(bits=4), mixed=MixedPrecision(size=0.53))
    assert details["left_out"] == {"mixed": "no static layer has constant weights, so there are no widths to choose"}
    assert details["form"]["weight_bits"] == 4
    assert decibels > 10


def test_biases_are_corrected_unasked_and_never_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions get biases by default; a recurrent network gets none and no note; what fails unasked is noted."""
    model = SmoothActivations().eval()
    inputs = _inputs(model)
    workload = Workload.from_datasets(model, train=(inputs, inputs), test=(inputs, inputs), metric="mse")
    exported = export_onnx(model, workload).onnx_bytes
    _, details = _quantized(exported, inputs)
    assert (details["bias_correction"]["method"], details["bias_correction"]["kept"]) == ("analytic", True)
    assert details["bias_correction"]["layers"] == 3
    _, details = _quantized(exported, inputs, bias_correction=None)
    assert "bias_correction" not in details

    def fails(*_: object) -> None:
        raise StageError("cannot be run alone")

    monkeypatch.setattr(BiasCorrection, "apply", fails)
    _, details = _quantized(exported, inputs)
    assert details["left_out"] == {"bias_correction": "cannot be run alone"}
    with pytest.raises(StageError, match="cannot be run alone"):
        _quantized(exported, inputs, bias_correction=BiasCorrection(method="analytic"))
    recurrent = Recurrent().eval()
    inputs = _inputs(recurrent)
    workload = Workload.from_datasets(recurrent, train=(inputs, inputs), test=(inputs, inputs), metric="mse")
    _, details = _quantized(export_onnx(recurrent, workload).onnx_bytes, inputs)
    assert not {"bias_correction", "left_out"} & details.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SmoothActivations, Words])
def test_the_careful_recipe_runs_on_every_network(kind: type[nn.Module]) -> None:
    """`int8_careful` never fails for lack of something to improve: it is kept, or too slow on this machine."""
    model = kind().eval()
    inputs = _inputs(model)
    targets = model(inputs).detach().argmax(1)
    workload = Workload.from_datasets(model, train=(inputs, targets), test=(inputs, targets))
    step = Pipeline.from_recipe(Recipe.load("int8_careful")).run(workload, progress=False).report.steps[-1]
    assert step.kept or "slower" in step.reason or "neither" in step.reason


def _graph(nodes: list, constants: dict[str, np.ndarray], shape: list) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32)


@pytest.mark.parametrize("method", [GPTQ(samples=64), AdaRound(iterations=300, samples=64)])
@pytest.mark.parametrize("stacked", [(4, 32, 32), (2, 4, 32, 32), (32, 32)])
def test_stacks_of_matrices_learn_their_rounding(method: GPTQ | AdaRound, stacked: tuple[int, ...]) -> None:
    """A MatMul with a matrix for each head is rounded head by head, and better than to nearest at 4 bits."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "heads"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "last"),
    ]
    file = _graph(nodes, {"w": _weight(*stacked), "v": _weight(32, 8)}, [4, 5, 32])
    # Correlated inputs, over which errors can make up for each other.
    shape = (64, *stacked[:1], 4, 5, 32) if len(stacked) == 4 else (64, 4, 5, 32)
    inputs = torch.randn(*shape) @ (torch.eye(32) + torch.randn(32, 32) / 3)
    if len(stacked) == 4:
        file = _graph(nodes, {"w": _weight(*stacked), "v": _weight(32, 8)}, [2, 4, 5, 32])
    settings = {"weights": Symmetric(bits=4), "form": Static(), "portable": None}
    nearest, _ = _quantized(file, inputs, **settings)
    learned, details = _quantized(file, inputs, **settings, rounding=method)
    assert details["rounding"]["layers"] == 2
    assert details["rounding"]["to_nearest"] == []
    assert learned > nearest + 1


def test_a_stack_along_a_one_is_rounded_to_nearest() -> None:
    """A weight (1, 4, 32, 32) is passed over by name, the matrix behind it learns."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "heads"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "last"),
    ]
    file = _graph(nodes, {"w": _weight(1, 4, 32, 32), "v": _weight(32, 8)}, [4, 5, 32])
    _, details = _quantized(file, torch.randn(48, 4, 5, 32), form=Static(), rounding=GPTQ(samples=32))
    assert details["rounding"]["to_nearest"] == ["w"]
    assert details["rounding"]["layers"] == 1


def _between(middle: list, constants: dict[str, np.ndarray] | None = None) -> bytes:
    """Two convolutions with `middle` from "a" to "m" between them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1] * 4),
        *middle,
        helper.make_node("Conv", ["m", "v"], ["y"], "last"),
    ]
    weights = {"w": _weight(16, 3, 3, 3) * 3, "v": _weight(8, 16, 1, 1)}
    return _graph(nodes, {**weights, **(constants or {})}, [3, 10, 10])


def _branch(operator: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(operator, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(operator, ["a"], [operator])], operator, [], [value])


FOREIGN = {
    "Celu": ([helper.make_node("Celu", ["a"], ["m"], "odd")], {}),
    "LRN": ([helper.make_node("LRN", ["a"], ["m"], "odd", size=3)], {}),
    "max pool with places": (
        [helper.make_node("MaxPool", ["a"], ["m", "places"], "odd", kernel_shape=[2, 2], strides=[1, 1])],
        {},
    ),
    "If": (
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "z"], ["c"]),
            helper.make_node("If", ["c"], ["m"], "odd", then_branch=_branch("Relu"), else_branch=_branch("Abs")),
        ],
        {"z": np.array(0, np.float32)},
    ),
}


@pytest.mark.parametrize("odd", FOREIGN)
@pytest.mark.parametrize("method", [GPTQ(samples=32), AdaRound(iterations=100, samples=32)])
def test_one_operator_without_a_form_in_torch_stops_no_layer(odd: str, method: GPTQ | AdaRound) -> None:
    """Operators that ONNX Runtime alone knows are run by it: both layers around them learn their rounding."""
    decibels, details = _quantized(_between(*FOREIGN[odd]), torch.randn(64, 3, 10, 10), rounding=method)
    assert decibels > 20
    assert details["rounding"]["layers"] == 2
    assert "left_out" not in details


def test_what_cannot_be_run_alone_leaves_rounding_out() -> None:
    """Sequences are no tensors and cross no border: weights are rounded to nearest, and the report says why."""
    middle = [
        helper.make_node("SplitToSequence", ["a", "half"], ["parts"], "odd", axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["m"], "whole", axis=1),
    ]
    file = _between(middle, {"half": np.array(8)})
    decibels, details = _quantized(file, torch.randn(64, 3, 10, 10), rounding=GPTQ(samples=32))
    assert decibels > 20
    assert "SplitToSequence" in details["left_out"]["rounding"]
