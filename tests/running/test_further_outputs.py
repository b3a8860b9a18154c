"""Outputs that the metric does not read are compared with the float file's, and have a limit of their own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.budget import Budget
from compressor.errors import StageError
from compressor.files.reading import read_onnx
from compressor.running.pipeline import Pipeline
from compressor.runtime import judged_output, open_session
from compressor.stages.quantization import Quantize
from compressor.workload import Workload


def with_a_map(folder: Path, spread: float) -> Path:
    """Scores, and beside them a map whose channels are 10 ** (+-spread) apart before a convolution mixes them."""
    generator = np.random.default_rng(0)
    apart = 10.0 ** np.linspace(-spread, spread, 16)

    def drawn(*shape: int) -> np.ndarray:
        return generator.normal(0, 0.2, shape).astype(np.float32)

    constants = {
        "w": drawn(16, 3, 3, 3),
        "head": drawn(16, 10),
        "w2": drawn(16, 16, 3, 3),
        "apart": apart.reshape(1, 16, 1, 1),
        "w3": generator.normal(size=(16, 16, 1, 1)) / apart.reshape(1, 16, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["scores"]),
        helper.make_node("Conv", ["r", "w2"], ["b"], pads=[1] * 4),
        helper.make_node("Mul", ["b", "apart"], ["m"]),
        helper.make_node("Conv", ["m", "w3"], ["map"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", "map")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "map.onnx"))
    return folder / "map.onnx"


def workload_of(model: nn.Module, x: Tensor) -> Workload:
    with torch.no_grad():
        answer = model(x)
    scores = (answer if isinstance(answer, tuple) else (answer,))[0]
    noisy = scores + 0.2 * scores.std() * torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    data = (x, noisy)
    return Workload.from_datasets(model, train=data, validation=data, test=data, metric="mse", batch_size=16)


IMAGES = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_a_second_output_that_is_destroyed_is_refused(tmp_path: Path) -> None:
    """Scores are as good as before, the map is noise: refused by its name, and rolled back under a budget."""
    workload = workload_of(read_onnx(with_a_map(tmp_path, 4.0)), IMAGES)
    with pytest.raises(
        StageError, match=r"quantization broke the model: 'map' keeps -?\d.* at least 5 dB of an output"
    ):
        Pipeline([Quantize()]).run(workload, progress=False)
    report = Pipeline([Quantize()], budget=Budget(max_drop=0.05, not_slower=False)).run(workload, progress=False).report
    assert not report.steps[-1].kept
    assert "'map' keeps" in report.steps[-1].reason


@pytest.mark.parametrize(("least", "kept"), [(80.0, False), (None, True), (10.0, True)])
def test_other_outputs_have_a_limit_of_their_own(least: float | None, *, kept: bool, tmp_path: Path) -> None:
    """A map that keeps some 30 dB stays under the usual limit, and goes where 80 dB are asked for."""
    workload = workload_of(read_onnx(with_a_map(tmp_path, 0.0)), IMAGES)
    budget = Budget(max_drop=0.05, not_slower=False, min_others_db=least)
    step = Pipeline([Quantize()], budget=budget).run(workload, progress=False).report.steps[-1]
    assert step.kept is kept
    told = {entry["output"]: entry for entry in step.details["outputs"]}
    assert list(told) == ["scores", "map"]
    assert told["scores"]["judged"]
    assert told["map"]["db"] > 20
    assert told["map"]["channel_db"] > 10
    assert step.details["sqnr_db"] == min(entry["db"] for entry in told.values())
    assert ("the budget asks for 80 dB" in step.reason) is (least == 80.0)


class Two(nn.Module):
    """A class and an embedding, in the order of a dict whose judged entry stands last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.head, self.embedding = nn.Linear(64, 4), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"embedding": self.embedding(hidden), "logits": self.head(hidden)}


def test_both_heads_of_a_model_of_torch_ship(tmp_path: Path) -> None:
    """The integer file has both outputs under their keys, the judged one known, and the report a line for each."""
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(96, 32)
    with torch.no_grad():
        y = model(x)["logits"].argmax(1)
    workload = Workload.from_datasets(model, train=(x, y), validation=(x, y), test=(x, y), batch_size=16)
    result = Pipeline([Quantize()]).run(workload, out=tmp_path / "run", progress=False)
    session = open_session(result.artifact.path)
    assert [value.name for value in session.get_outputs()] == ["embedding", "logits"]
    assert judged_output(session) == "logits"
    assert result.report.steps[-1].measurement.score.value > 0.9
    page = (tmp_path / "run" / "report.md").read_text()
    assert "- output 'embedding' keeps " in page
    assert "- output 'logits' keeps " in page


@pytest.mark.parametrize("metric", ["mse", "mae", "agreement", "relative"])
def test_outputs_of_one_number_a_sample_are_judged(metric: str, tmp_path: Path) -> None:
    """A regressor whose output is (batch,) is scored row by row, by every metric of numbers, and ships so."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)).eval()
    x = torch.randn(80, 32)
    with torch.no_grad():
        exact = layers(x)
    y = exact + 0.3 * torch.randn(80)
    workload = Workload.from_datasets(layers, train=(x, y), validation=(x, y), test=(x, y), metric=metric)
    result = Pipeline([Quantize()]).run(workload, out=tmp_path / "run", progress=False)
    reference, quantized = (step.measurement.score.value for step in result.report.steps)
    by_hand = {"mse": float((exact - y).square().mean()), "mae": float((exact - y).abs().mean())}
    assert reference == pytest.approx(by_hand.get(metric, reference), rel=1e-4)
    assert abs(quantized - reference) < 0.1 * abs(reference)
    file = read_onnx(tmp_path / "run" / "model.onnx")
    assert file(x).shape == (80,)
