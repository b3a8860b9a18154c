"""Predicted latency: the operators of a whole file, and their times added up."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.files.export import export_onnx
from compressor.latency import table as latency_table
from compressor.latency.operators import Operator
from compressor.latency.prediction import operators_of_graph, predict_ms, summary
from compressor.latency.table import LatencyTable
from compressor.measuring.macs import count_macs
from compressor.measuring.timing import time_interleaved
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.target import Target
from compressor.workload import Workload


class Tagger(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def _workload(model: nn.Module, samples: torch.Tensor) -> Workload:
    data = (samples, torch.arange(len(samples)) % 4)
    return Workload.from_datasets(
        model.eval(), train=data, test=data, batch_size=8, calibration_samples=16, name="predicted"
    )


def _heavy(operators: tuple[Operator, ...]) -> list[Operator]:
    return [operator for operator in operators if operator.kind != "light"]


def _chain(width: int, *, layers: int = 4, size: int = 16, **window: object) -> bytes:
    """A file of `layers` convolutions, (batch, 3, size, size) -> (batch, width, ...)."""
    nodes, weights, name, channels = [], [], "x", 3
    for layer in range(layers):
        weights.append(numpy_helper.from_array(torch.randn(width, channels, 3, 3).numpy(), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"y{layer}"], **(window or {"pads": [1, 1, 1, 1]})))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"z{layer}"]))
        name, channels = f"z{layer}", width
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])]
    graph = helper.make_graph(nodes, "chain", inputs, [onnx.ValueInfoProto(name=name)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def cnn(tiny_cnn: type[nn.Module]) -> tuple[Workload, bytes]:
    workload = _workload(tiny_cnn(), torch.randn(32, 3, 8, 8))
    return workload, export_onnx(workload.model, workload).onnx_bytes


@pytest.fixture
def unit_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """A table in which products take a millisecond per million multiply-accumulates, and all else nothing."""
    monkeypatch.setattr(latency_table, "time_operator", lambda operator, _: operator.macs / 1e6)
    return LatencyTable(Target(), folder=tmp_path, progress=False)


def test_a_cnn_is_its_convolutions(cnn: tuple[Workload, bytes]) -> None:
    """A residual CNN's file has its twelve convolutions and one linear layer, with all of its work, at either level."""
    workload, file = cnn
    for layout in (True, False):
        found = operators_of_graph(file, workload.example_inputs, layout=layout)
        assert summary(found)["conv"] == 12
        assert summary(found)["linear"] == 1
        assert summary(found)["Call"] == 1
        assert sum(operator.macs for operator in found) == count_macs(file, workload.example_inputs)
    doubled = operators_of_graph(file, workload.example_inputs, 2)
    assert {operator.batch for operator in _heavy(doubled)} == {2}


def test_an_lstm_file_is_read_in_both_precisions() -> None:
    """An LSTM and its linear layer are found in the float file and in the quantized one, there on integers."""
    workload = _workload(Tagger(), torch.randn(32, 7, 6))
    file = export_onnx(workload.model, workload).onnx_bytes
    lstm, head = _heavy(operators_of_graph(file, workload.example_inputs))
    assert (lstm.kind, lstm.inputs, lstm.outputs, lstm.size, lstm.flags) == ("lstm", 6, 16, (7,), ("bidirectional",))
    assert (head.inputs, head.outputs, head.batch, head.flags) == (32, 4, 1, ("dynamic",))
    quantized = Quantize().apply(workload.model, workload, Context()).onnx_bytes
    integer = _heavy(operators_of_graph(quantized, workload.example_inputs))
    assert [operator.precision for operator in integer] == ["int8", "int8"]
    assert [(o.inputs, o.outputs) for o in integer] == [(6, 16), (32, 4)]


def test_attention_is_products_of_activations() -> None:
    """A transformer layer has six products: four with weights, two of activations with their heads as batch."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    workload = _workload(nn.Sequential(layer, nn.Flatten(), nn.Linear(80, 4)), torch.randn(32, 5, 16))
    found = _heavy(operators_of_graph(export_onnx(workload.model, workload).onnx_bytes, workload.example_inputs))
    assert [(o.inputs, o.outputs) for o in found if o.kind == "linear"] == [
        (16, 48),
        (16, 16),
        (16, 24),
        (24, 16),
        (80, 4),
    ]
    assert [(o.batch, o.size, o.inputs, o.outputs) for o in found if o.kind == "matmul"] == [
        (2, (5,), 8, 5),
        (2, (5,), 5, 8),
    ]


def test_a_quantized_cnn_says_its_precision(cnn: tuple[Workload, bytes]) -> None:
    """In a quantized file every convolution is on integers with the float file's maps and widths; 3 colours are 4."""
    workload, file = cnn
    quantized = Quantize().apply(workload.model, workload, Context()).onnx_bytes
    plain = [o for o in operators_of_graph(file, workload.example_inputs, layout=False) if o.kind == "conv"]
    integer = [o for o in operators_of_graph(quantized, workload.example_inputs) if o.kind == "conv"]
    assert {operator.precision for operator in integer} == {"int8"}
    plain = [replace(o, inputs=4) if o.inputs == 3 else o for o in plain]
    sizes = [sorted((o.inputs, o.outputs, o.size, o.stride, o.padding) for o in each) for each in (plain, integer)]
    assert sizes[0] == sizes[1]


def test_prediction_adds_up(unit_table: LatencyTable) -> None:
    """A file's time is the sum of its operators'."""
    file, inputs = _chain(16), torch.zeros(1, 3, 16, 16)
    wanted = 256 * 9 * (3 * 16 + 3 * 16 * 16) / 1e6
    assert predict_ms(file, inputs, unit_table) == pytest.approx(wanted)
    assert predict_ms(file, inputs, unit_table, precision="int8") == pytest.approx(wanted)
    # Without blocked layouts, which would pad eight channels to sixteen.
    narrow = 256 * 9 * (3 * 8 + 3 * 8 * 8) / 1e6
    assert predict_ms(_chain(8), inputs, unit_table, precision="int8") == pytest.approx(narrow)


def test_automatic_padding_is_worked_out() -> None:
    """A convolution that pads by itself is the one that pads by as much explicitly."""
    file = _chain(4, layers=1, size=8, auto_pad="SAME_UPPER", strides=[2, 2])
    (found,) = _heavy(operators_of_graph(file, torch.zeros(1, 3, 8, 8), layout=False))
    # (4 - 1) x 2 + 3 - 8 = 1, after the map.
    assert found.padding == (0, 0, 1, 1)


@pytest.mark.usefixtures("own_seconds")
def test_half_the_width_is_predicted_to_be_faster(tmp_path: Path) -> None:
    """Measured for real, half the width is predicted to be faster, and both times to be of the right order."""
    table = LatencyTable(Target(), folder=tmp_path, progress=False)
    inputs = torch.randn(1, 3, 16, 16)
    wide, narrow = _chain(32), _chain(16)
    predicted = [predict_ms(file, inputs, table) for file in (wide, narrow)]
    assert 1.5 * predicted[1] < predicted[0]
    timing = time_interleaved(narrow, wide, inputs, seconds=0.3, repeats=3)
    assert 1 / 3 < predicted[0] / timing.reference_ms.value < 3
