"""What is counted of a file's logits, where a layer's noise is found, and how the page tells it."""

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from benchmarks.data import photographs as data
from benchmarks.quantization.photographs import arms, judged, layer_noise, section
from workbench.onnx_graphs import calibrated_on, graph_of

ESTIMATE = {"value": 0.004, "low": -0.01, "high": 0.02}


def test_decisions_by_hand() -> None:
    """Of four photographs the file loses one that float has and wins one: no drop, half of the decisions alike."""
    reference = np.array([[2.0, 1], [2, 1], [1, 2], [1, 2]], dtype=np.float32)
    found = np.array([[2.0, 1], [1, 2], [2, 1], [1, 2]], dtype=np.float32)
    workload = calibrated_on(torch.ones(4, 1))
    told = judged(found, reference, np.array([0, 0, 0, 1]), workload)
    assert (told["score"], told["lost"], told["won"], told["agreement"]) == (0.75, 1, 1, 0.5)
    assert told["drop"]["value"] == 0
    # A power of 20 against four differences of 1.
    assert told["sqnr_db"] == pytest.approx(10 * np.log10(20 / 4))


def test_noise_of_a_layer_by_hand() -> None:
    """0.5 rounds to 64/127 beside 1: on inputs 1 and 3 the errors are e and 3e, 8 of 10 parts of their power mean."""
    model = graph_of(
        [helper.make_node("Conv", ["input", "w", "b"], ["output"], "conv")],
        {"w": np.array([1.0, 0.5]).reshape(1, 2, 1, 1), "b": np.zeros(1)},
        ["n", 2, 1, 1],
        ["n", 1, 1, 1],
    )
    inputs = torch.tensor([[0.0, 1.0], [0.0, 3.0]]).repeat(2, 1)[:, :, None, None]
    (found,) = layer_noise(model.SerializeToString(), calibrated_on(inputs))
    assert found["mean_share"] == pytest.approx(0.8)
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(0.5 / (10 * (64 / 127 - 0.5) ** 2)), abs=1e-3)
    assert (found["kind"], found["narrows"]) == ("pointwise", True)


def test_what_is_scored_is_read_by_nothing_else() -> None:
    """Training, validation and calibration have the known photographs, the test set the others; pixels near [-1, 1]."""
    known = torch.zeros(60, 3, 2, 2, dtype=torch.uint8), torch.zeros(60, dtype=torch.long)
    scored = torch.full((70, 3, 2, 2), 255, dtype=torch.uint8), torch.ones(70, dtype=torch.long)
    workload = data.around(nn.Flatten(), known, scored)
    for part in (workload.train, workload.validation, workload.calibration):
        assert {int(label) for _, labels in part for label in labels} == {0}
        assert all(bool((images == -127 / 128).all()) for images, _ in part)
    assert sum(len(labels) for _, labels in workload.test) == 70
    assert all(bool((images == 1).all()) and bool((labels == 1).all()) for images, labels in workload.test)


def test_the_page_says_what_was_lost_first() -> None:
    """Conclusions name drop, agreement and decibels of both; a failed arm says why; kinds of layers have a row each."""
    row = {
        "score": 0.85, "drop": ESTIMATE, "lost": 2, "won": 1, "agreement": 0.984, "sqnr_db": 21.5, "seconds": 12.0,
        "speedup": {"value": 2.0, "low": 1.5, "high": 2.5}, "size_bytes": 100, "details": {},
    }  # fmt: skip
    names = list(arms())
    rows = [{"arm": name, **row} for name in names[:-1]] + [{"arm": names[-1], "failed": "no | wheel"}]
    layer = {"layer": "a", "kind": "depthwise", "narrows": False, "sqnr_db": 40.0, "mean_share": 0.7}
    result = {
        "environment": {"cpu": "a CPU"}, "workload": "net", "metric": "accuracy", "samples": 250,
        "float": {"score": 0.86, "size_bytes": 400}, "layers": [layer], "rows": rows,
    }  # fmt: skip
    lines = section(result)
    assert "loses 0.40 [-1.00, 2.00] points and agrees with float on 98.4 %" in lines[2]
    assert "weights of 4 bits by GPTQ it loses 0.40" in lines[2]
    assert (
        "| ours: int8 | 85.0 | 0.40 [-1.00, 2.00] | 2, 1 | 98.4 % | 21.5 | 2.00x [1.50, 2.50] | 4.00x | 12 |" in lines
    )
    assert f"| {names[-1]} | failed: no \\| wheel |  |  |  |  |  |  |  |" in lines
    assert lines[-1] == "| depthwise | 1 | 40.0 | 70.0 % |"
