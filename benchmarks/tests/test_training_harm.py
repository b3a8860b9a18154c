"""What the benchmark of small networks counts, on rows that can be added up by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import training_harm
from benchmarks.data.small_networks import CASES, clusters, letters
from benchmarks.documents import training_page
from benchmarks.soft_weight import decided
from benchmarks.training_harm import summary, until_still_, worse_of
from compressor.training.optimizers.composition import suits_sgd


def part(**rows: list[float]) -> dict:
    ways = {"reference": [1.0] * 40, "pruned": [0.0] * 40, "hand_6": [1.0] * 40, "hand_9": [1.0] * 40, **rows}
    told = {
        ours: {"optimizer": "AdamW", "rate": 0.01, "rate_from": "", "failed": False}
        for ours in ("fine_tune", "distill")
    }
    return {"rows": ways, "told": told | {"reference": {"epochs": 90, "best": 40}}}


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
        "comparisons": 2,
        "worse_alone": [{"network": "MLP, tabular", "by": "fine_tune", "p_value": 0.011, "corrected": 0.022}],
        "worse": [{"network": "MLP, tabular", "by": "fine_tune"}],
    }
    page = training_page.page("a\n<!-- results -->\nstale\n<!-- /results -->\nb\n", result, None)
    assert page.startswith("a\n<!-- results -->\n## What")
    assert page.endswith("<!-- /results -->\nb\n")
    assert "stale" not in page
    assert "for 2 comparisons: MLP, tabular by `fine_tune`.**" in page
    assert "MLP, tabular by `fine_tune`, p = 0.011 by itself, 0.02 corrected" in page
    assert "| MLP, tabular | 100.0 [91.2, 100.0] | 0.0 [0.0, 8.8] |" in page
    assert "| 100 | 0.50000 | 0.25000 | 0.12500 |" in page
    assert "stands still, after 90 to 90 epochs" in page


def test_what_chance_explains_is_told_and_not_called_worse() -> None:
    """Of four comparisons one at 0.03 is beyond its interval alone, one at 0.001 after the correction too."""
    low = {"fine_tune": {"low": 0.001}, "distill": {"low": -0.1}}
    kinds = [
        {"name": "weak", "drops": low, "p_values": {"fine_tune": 0.03, "distill": 0.5}},
        {"name": "strong", "drops": low, "p_values": {"fine_tune": 0.001, "distill": 0.9}},
    ]
    count, alone, worse = worse_of(kinds)
    assert count == 4
    assert [(entry["network"], round(entry["corrected"], 3)) for entry in alone] == [("weak", 0.09), ("strong", 0.004)]
    assert [entry["network"] for entry in worse] == ["strong"]


class Scores:
    """Stands for a network that is trained: its only weight counts its epochs, which have these scores."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.rates = iter(scores), []
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)

    def epoch(self, model: nn.Module, _workload: object, _step: object) -> float:
        with torch.no_grad():
            model.weight += 1
        return next(self.scores)


def test_a_reference_is_trained_until_validation_stands_still(monkeypatch) -> None:
    """Two epochs without a better one end a rate; the next goes on from the best, and the best of all is kept."""
    scores = Scores([0.5, 0.6, 0.6, 0.5, 0.7, 0.1, 0.2, 0.3, 0.3, 0.9])
    monkeypatch.setattr(training_harm, "PATIENCE", 2)
    monkeypatch.setattr(training_harm, "epoch_", scores.epoch)
    case = SimpleNamespace(workload=None, rate=1.0, adaptive=True)
    # 0.6 is the best at the first rate (two epochs), 0.7 at the second (a third epoch); the third rate finds nothing.
    assert until_still_(scores.model, case, 0) == {"epochs": 9, "best": 5}
    assert scores.model.weight.item() == 3.0


def kind_of(name: str, **drops: tuple[float, float]) -> dict:
    return {"name": name, "drops": {weight: {"value": value, "low": low} for weight, (value, low) in drops.items()}}


def test_the_weight_that_harms_fewest_kinds_is_taken() -> None:
    """0.5 is worse on one kind, 0.7 and 0.9 on none, 0.7 better on average; a large network may speak against it."""
    kinds = [
        kind_of("a", **{"0.5": (-0.1, -0.2), "0.7": (-0.02, -0.1), "0.9": (0.01, -0.1)}),
        kind_of("b", **{"0.5": (0.02, 0.01), "0.7": (0.0, -0.1), "0.9": (0.0, -0.1)}),
    ]
    assert decided(kinds, None)["best"] == 0.7
    assert decided(kinds, None)["weight"] == 0.9
    assert decided(kinds, None)["worse"] == {"0.5": 1, "0.7": 0, "0.9": 0}
    assert decided(kinds, kind_of("large", **{"0.7": (0.01, 0.002)}))["weight"] == 0.9
    assert decided(kinds, kind_of("large", **{"0.7": (0.01, -0.002)}))["weight"] == 0.7


def test_the_kinds_are_what_their_names_say(monkeypatch) -> None:
    """One of eight is trained by SGD; synthetic data follow from the seed, and no class is missing."""
    monkeypatch.setattr(
        "benchmarks.data.small_networks.images", lambda _: (torch.zeros(4280, 1, 14, 14), torch.arange(4280) % 10)
    )
    assert [name for name, make in CASES.items() if suits_sgd(make(0).workload.model)[0]] == ["CNN, BatchNorm"]
    assert len(CASES) == 8
    for data, classes in ((clusters, 6), (letters, 8)):
        inputs, targets = data(3)
        assert set(targets.tolist()) == set(range(classes))
        assert torch.equal(inputs, data(3)[0])
        assert not torch.equal(inputs, data(4)[0])
