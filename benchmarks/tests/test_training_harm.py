"""What the benchmark of small networks counts, on rows that can be added up by hand."""

import pytest
import torch

from benchmarks.data.small_networks import CASES, clusters, letters
from benchmarks.documents import training_page
from benchmarks.training_harm import summary
from compressor.training.optimizers.composition import suits_sgd


def part(**rows: list[float]) -> dict:
    ways = {"reference": [1.0] * 40, "pruned": [0.0] * 40, "hand_6": [1.0] * 40, "hand_9": [1.0] * 40, **rows}
    told = {
        ours: {"optimizer": "AdamW", "rate": 0.01, "rate_from": "", "failed": False}
        for ours in ("fine_tune", "distill")
    }
    return {"rows": ways, "told": told}


def test_drops_are_paired_over_the_samples_of_all_seeds() -> None:
    """Ours right on 30 of 40 and on 40 of 40: a drop of an eighth against a hand loop that is always right."""
    right, some = [1.0] * 40, [1.0] * 30 + [0.0] * 10
    found = summary("MLP, tabular", [part(fine_tune=some, distill=right), part(fine_tune=right, distill=right)])
    assert found["samples"] == 80
    assert found["drops"]["fine_tune"]["value"] == pytest.approx(0.125)
    assert found["drops"]["fine_tune"]["low"] > 0
    assert found["drops"]["distill"]["value"] == 0
    assert found["scores"]["pruned"]["value"] == 0


def test_the_page_names_what_was_worse() -> None:
    """A network whose drop lies above zero is named in the page, its scores stand in percent."""
    kind = summary("MLP, tabular", [part(fine_tune=[0.0] * 40, distill=[1.0] * 40)])
    result = {
        "seeds": [0],
        "environment": {"cpu": "some"},
        "networks": [kind],
        "offsets": [{"offset": 100.0, "before": 0.5, "float32": 0.25, "auto": 0.125}],
        "worse": [{"network": "MLP, tabular", "by": "fine_tune"}],
    }
    page = training_page.page("a\n<!-- results -->\nold\n<!-- /results -->\nb\n", result)
    assert page.startswith("a\n<!-- results -->\n## What")
    assert page.endswith("<!-- /results -->\nb\n")
    assert "old" not in page
    assert "beyond noise: MLP, tabular by `fine_tune`. " in page
    assert "| MLP, tabular | 100.0 [91.2, 100.0] | 0.0 [0.0, 8.8] |" in page
    assert "| 100 | 0.50000 | 0.25000 | 0.12500 |" in page


def test_the_kinds_are_what_their_names_say(monkeypatch) -> None:
    """One of eight is trained by SGD; the synthetic data are the same in every process, and no class is missing."""
    monkeypatch.setattr(
        "benchmarks.data.small_networks.images", lambda: (torch.zeros(4280, 1, 14, 14), torch.arange(4280) % 10)
    )
    assert [name for name, make in CASES.items() if suits_sgd(make(0).workload.model)[0]] == ["CNN, BatchNorm"]
    assert len(CASES) == 8
    for data, classes in ((clusters, 6), (letters, 8)):
        inputs, targets = data()
        assert set(targets.tolist()) == set(range(classes))
        assert torch.equal(inputs, data()[0])
