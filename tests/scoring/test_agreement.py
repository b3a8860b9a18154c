"""Scores without labels: whether decisions agree with the reference's, and what of its signal is left."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.budget import Budget, describe_drop, judge_drop
from compressor.errors import WorkloadError
from compressor.estimate import Estimate
from compressor.files.reading import read_onnx
from compressor.intervals import paired_drop
from compressor.metrics import Metric
from compressor.report.numbers import ScoreScale
from compressor.running.pipeline import Pipeline
from compressor.running.reference_base import without_base
from compressor.scoring.agreement import decisions_of
from compressor.stages.quantization import Quantize
from compressor.workload import Workload
from compressor.workloads import load
from compressor.workloads.unlabelled import workload_of_inputs


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("reference", "kind", "axis"),
    [
        (drawn(9, 5).softmax(1), "classes", 1),
        (drawn(9, 5, 4).softmax(2), "classes", 2),
        (drawn(9, 5, 4).log_softmax(1), "classes", 1),
        (drawn(9, 5), "classes", 1),
        (drawn(9, 6, 8).sigmoid(), "crossings", None),
        (drawn(9, 1).sigmoid(), "crossings", None),
        (10 * drawn(9, 1), "order", None),
        (drawn(9), "order", None),
        (torch.arange(12).reshape(3, 4), "whole numbers", None),
    ],
)
def test_decisions_are_found_from_what_outputs_are(reference: torch.Tensor, kind: str, axis: int | None) -> None:
    """Probabilities and their logarithms have classes, numbers in [0, 1] a threshold, single scores an order."""
    found = decisions_of(reference)
    assert (found.kind, found.axis) == (kind, axis)
    assert found.says()


@pytest.mark.parametrize("reference", [drawn(4, 3, 8, 8), nn.functional.normalize(drawn(9, 16)), drawn(4, 7, 16)])
def test_signals_and_embeddings_hold_no_decisions(reference: torch.Tensor) -> None:
    """Images, rows of length 1 and hidden states are numbers: agreement is refused with the metric to use."""
    assert decisions_of(reference) is None
    with pytest.raises(WorkloadError, match=r"use metric='relative'"):
        Metric.agreement().rows(reference, reference)


def test_shares_are_those_of_a_sample() -> None:
    """Two of three positions, F1 of one hit and one miss, one of two whole numbers, and two of three pairs in order."""
    wanted = torch.tensor([[[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])
    given = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert Metric.agreement(axis=2).rows(given, wanted).tolist() == pytest.approx([2 / 3])
    wanted, given = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.1, 0.1]]), torch.tensor([[0.6, 0.7, 0.2], [0.1, 0.1, 0.1]])
    metric = Metric.agreement().settled_on(wanted)
    assert metric.rows(given, wanted).tolist() == pytest.approx([2 / 3, 1.0])
    assert Metric.agreement(threshold=0.8).settled_on(wanted).rows(given, wanted).tolist() == [0.0, 1.0]
    assert Metric.agreement().rows(torch.tensor([[1, 2]]), torch.tensor([[1, 3]])).tolist() == [0.5]
    wanted, given = torch.tensor([5.0, -1.0, 7.0]), torch.tensor([0.3, 0.1, 0.2])
    metric = Metric.agreement().settled_on(wanted)
    assert metric.score(given, wanted) == pytest.approx(2 / 3)
    assert metric.score(wanted, wanted) == 1.0


def test_relative_is_decibels_around_the_mean_of_the_worst_channel() -> None:
    """A tenth off is 20 dB; an offset counts as noise and a mean not as signal; the channel that is lost decides."""
    wanted = drawn(50, 3, 8, 8)
    metric = Metric.relative()
    assert metric.score(1.1 * wanted, wanted) == pytest.approx(20.0, abs=0.05)
    assert metric.score(wanted, wanted) == 200.0
    assert metric.score(100 + 1.1 * wanted, 100 + wanted) == pytest.approx(20.0, abs=0.05)
    assert metric.score(1.01 * (100 + wanted), 100 + wanted) < 1
    lost = wanted * torch.tensor([1.0, 1.0, 0.0])[None, :, None, None]
    assert metric.score(lost, wanted) == pytest.approx(0.0, abs=0.1)
    assert metric.score(wanted.where(wanted < 3, torch.inf), wanted) == -200.0
    assert Metric.relative(axis=2).score(drawn(6, 4, 5), drawn(6, 4, 5)) == 200.0


def test_infinities_count_where_they_are_others() -> None:
    """Masked at the same places nothing is lost; masked elsewhere, or on the other side, all is."""
    wanted = drawn(50, 3, 8, 8)
    wanted[:, :, 0, 0] = -torch.inf
    metric = Metric.relative()
    assert metric.score(1.1 * wanted, wanted) == pytest.approx(20.0, abs=0.05)
    assert metric.score(wanted.nan_to_num(neginf=torch.inf), wanted) == -200.0
    assert metric.score(wanted.nan_to_num(), wanted) == -200.0


def test_budgets_and_reports_have_decibels() -> None:
    """Noise of 2 % is 17 dB, which a budget of 0.01 (20 dB) does not allow; nothing is told in percent of an error."""
    wanted = drawn(60, 4)
    metric = Metric.relative()
    noise = math.sqrt(0.02) * torch.randn(60, 4, generator=torch.Generator().manual_seed(1)) * wanted.std()
    rows, own = metric.rows(wanted + noise, wanted), metric.rows(wanted, wanted)
    drop = paired_drop(rows, own, metric)
    assert 0.01 < drop.low < drop.value < drop.high < 0.06
    verdict = judge_drop(drop, 0.01, metric)
    assert not verdict.keep
    assert "the budget allows 20.0 dB" in verdict.reason
    assert "%" not in verdict.reason
    assert describe_drop(Estimate(-0.001, -0.002, 0.0), metric) == "relative is no worse"
    scale = ScoreScale(name="relative", bounded=False, decibels=True)
    assert scale.score(17.04, 4) == "17.0 dB"
    assert scale.plain_drop(200.0, 20.0).value == pytest.approx(0.01)


def softmax_file(folder) -> str:
    """A network with 100 classes that ends in Softmax."""
    generator = np.random.default_rng(0)
    sizes = {"W": (1 / 8, (64, 128)), "V": (1 / 8, (128, 128)), "U": (0.25, (128, 100))}
    weights = [
        numpy_helper.from_array(generator.normal(0, *each).astype(np.float32), name) for name, each in sizes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "V"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "U"], ["e"]),
        helper.make_node("Softmax", ["e"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 100])],
        weights,
    )
    path = str(folder / "softmax.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


WAYS = {
    "all at once": lambda model, x: model(x),
    "one by one": lambda model, x: torch.cat([model(x[row : row + 1]) for row in range(len(x))]),
    "from a text file": lambda model, x: (model(x) * 1e6).round() / 1e6,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_score_of_rounding_is_no_base(way: str, tmp_path) -> None:
    """Targets that are the file's own outputs are refused under a budget however they came, with the metrics to use;
    without one no percentage is told.
    """
    model = read_onnx(softmax_file(tmp_path))
    x = drawn(120, 64)
    y = WAYS[way](model, x)

    def workload(metric: str) -> Workload:
        return Workload.from_datasets(model, train=(x[:80], y[:80]), test=(x[80:], y[80:]), metric=metric)

    with pytest.raises(WorkloadError, match=r"no fraction of that means anything\..* metric='agreement' "):
        Pipeline([Quantize()], budget=Budget(max_drop=0.02)).run(workload("mse"), progress=False)
    assert "the reference's mae on validation" in without_base(workload("mae"))
    report = Pipeline([Quantize()]).run(workload("mse"), out=tmp_path / "run", progress=False).report
    assert report.steps[-1].drop is None
    assert report.steps[-1].validation["drop"] is None
    assert any("no fraction" in text for text in report.warnings)
    told = (tmp_path / "run" / "report.md").read_text()
    assert "mse rose" not in told
    for metric in ("agreement", "relative"):
        assert without_base(workload(metric)) == ""
    labelled = Workload.from_datasets(
        model, train=(x[:80], y[:80] + 0.1 * drawn(80, 100)), test=(x[80:], y[80:]), metric="mse"
    )
    assert without_base(labelled) == ""


def test_inputs_alone_are_a_workload(tmp_path) -> None:
    """Without labels a file is judged by its own decisions, an embedding by its signal, and the report says so."""
    model = read_onnx(softmax_file(tmp_path))
    workload = workload_of_inputs(model, drawn(200, 64).numpy())
    assert workload.metric.name == "agreement"
    result = Pipeline([Quantize()], budget=Budget(max_drop=0.1, not_slower=False)).run(workload, progress=False)
    assert result.report.steps[0].measurement.score.value == 1.0
    assert result.report.steps[-1].measurement.score.value > 0.85
    assert result.report.workload["compared"] == "the largest of the classes in dimension 1"
    embedding = nn.Sequential(nn.Linear(64, 8), nn.Flatten()).eval()
    images = workload_of_inputs(nn.Sequential(embedding, nn.Unflatten(1, (2, 2, 2))), drawn(40, 64))
    assert images.metric.name == "relative"
    with pytest.raises(WorkloadError, match="9 inputs, and at least 20 are needed"):
        workload_of_inputs(model, drawn(9, 64))


def test_the_command_line_takes_files_without_labels(tmp_path) -> None:
    """An .npz without targets, one with test inputs of its own, and a metric by name, which other workloads refuse."""
    path = softmax_file(tmp_path)
    np.savez(tmp_path / "inputs.npz", x=drawn(60, 64).numpy())
    workload = load(f"{path}:{tmp_path / 'inputs.npz'}")
    assert workload.metric.name == "agreement"
    inputs, targets = next(iter(workload.test))
    torch.testing.assert_close(targets, workload.model(inputs))
    np.savez(tmp_path / "two.npz", inputs=drawn(60, 64).numpy(), test_inputs=drawn(7, 64).numpy())
    workload = load(f"{path}:{tmp_path / 'two.npz'}", metric="relative")
    assert workload.metric.name == "relative"
    assert sum(len(rows) for _, rows in workload.test) == 7
    for alone in (path, "digits"):
        with pytest.raises(WorkloadError, match=r"a metric is named for model\.onnx:data\.npz alone"):
            load(alone, metric="relative")
