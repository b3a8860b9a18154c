"""Membership inference by loss: by hand, against scikit-learn, and on models that learned by heart or nothing."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from compressor import MembershipInference, Metric, Pipeline, Recipe, Workload
from compressor.evaluations.evaluation import Known, Subject, evaluated
from compressor.evaluations.membership import told_apart
from compressor.evaluations.membership_attacks import Asked, beside_references, learned
from compressor.files.export import export_onnx
from compressor.stages import Quantize
from compressor.storage import read_json


def scores(*, count: int, above: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(above, 1, count)


def test_both_numbers_by_hand() -> None:
    """Of 100 others one may be above: the second best, 99, is the threshold, and the members at 100 and more are found.

    Members at 50 win against 50 others and tie with one, 0.505; those at 100 win against 99, tie none of [0, 98] and
    100 others lie at 0 to 99, so all 100.
    """
    others = np.arange(100.0)
    members = np.concatenate([np.full(150, 50.0), np.full(50, 100.0)])
    (area,), (found,) = told_apart([members], [others], seed=0)
    assert area.value == pytest.approx((150 * 0.505 + 50 * 1.0) / 200)
    assert found.value == pytest.approx(0.25)
    assert area.low < area.value < area.high


@pytest.mark.parametrize("ties", [False, True])
def test_both_numbers_are_scikit_learns(ties) -> None:
    """The area, and the best true positive rate of the curve at no more than 1 % false positives."""
    members, others = scores(count=700, above=0.6), scores(count=930, seed=1)
    if ties:
        members, others = members.round(1), others.round(1)
    (area,), (found,) = told_apart([members], [others], seed=0)
    labels = np.repeat([1, 0], [700, 930])
    assert area.value == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    false, true, _ = roc_curve(labels, np.concatenate([members, others]), drop_intermediate=False)
    assert found.value == pytest.approx(true[false <= 0.01].max())


def test_resamples_counted_by_weight_are_resamples() -> None:
    """A resample counts each sample as often as it was drawn: the interval is that of resampling the samples."""
    members, others = scores(count=200, above=0.5), scores(count=150, seed=1)  # no ties
    (area,), _ = told_apart([members], [others], seed=3)
    generator = np.random.default_rng(3)
    drawn = []
    for _ in range(1000):
        own, rest = members[generator.integers(200, size=200)], others[generator.integers(150, size=150)]
        drawn.append((own[:, None] > rest).mean())
    assert [area.low, area.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())


def test_a_file_against_itself_differs_by_nothing() -> None:
    """The same resamples serve both; one that tells less is better by what it is."""
    members, others = scores(count=300, above=1.0), scores(count=300, seed=1)
    for found in told_apart([members, members], [others, others], seed=0):
        assert (found[2].value, found[2].low, found[2].high) == (0.0, 0.0, 0.0)
    area, _ = told_apart([scores(count=300), members], [scores(count=300, seed=2), others], seed=0)
    assert area[2].high < -0.1


def test_guessing_is_guessing() -> None:
    """Scores of one kind: one half, and one in a hundred, within their intervals."""
    (area,), (found,) = told_apart([scores(count=1000)], [scores(count=1000, seed=1)], seed=0)
    assert area.low < 0.5 < area.high
    assert found.low <= 0.01 <= found.high


def small(labels_of_test: int = 300) -> Workload:
    """A wide network and labels that are noise, so that whatever it learns is learned by heart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300 + labels_of_test, 10, generator=generator)
    labels = torch.randint(2, (len(inputs),), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 2))
    train, test = (inputs[:300], labels[:300]), (inputs[300:], labels[300:])
    return Workload.from_datasets(model, train=train, validation=test, test=test)


def asked(workload: Workload, model: nn.Module) -> list[dict]:
    file = export_onnx(model.eval(), workload).onnx_bytes
    subject = Subject(onnx_bytes=file, reference=file, workload=workload, known=Known(workload))
    return evaluated([MembershipInference(samples=300)], subject)["evaluations"]


def test_what_was_learned_by_heart_is_found_out() -> None:
    """A network fitted to noise gives its training samples away, and the same one before that does not."""
    workload = small()
    model = workload.model
    area, found = asked(workload, model)
    assert area["value"]["low"] < 0.5 < area["value"]["high"]
    inputs, labels = zip(*((batch[0], batch[1]) for batch in workload.train), strict=True)
    inputs, labels = torch.cat(inputs), torch.cat(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    area, found = asked(workload, model)
    assert area["value"]["low"] > 0.7
    assert found["value"]["value"] >= 0.0
    assert "50: guessing" in area["what"]


def test_where_it_cannot_be_asked_it_says_why() -> None:
    """Too few test samples, and models that are no classifiers."""
    workload = small(labels_of_test=60)
    (row,) = asked(workload, workload.model)
    assert "asked where there are 100 samples of either kind, got 300 for training and 60 for test" in row["why"]
    inputs = torch.randn(300, 3)
    numbers = Workload.from_datasets(
        nn.Linear(3, 1), train=(inputs, inputs[:, :1]), test=(inputs, inputs[:, :1]), metric=Metric.mse()
    )
    (row,) = asked(numbers, numbers.model)
    assert "asked of classifiers alone" in row["why"]
    with pytest.raises(ValueError, match="samples is at least 100"):
        MembershipInference(samples=99)


def test_a_run_reports_it_by_its_name(tmp_path) -> None:
    """From a recipe, for the reference and the stage, with the change between them; the report shows both rows."""
    recipe = Recipe.loads("stages: [quantize]\nevaluations:\n  - membership_inference: {samples: 300}\n")
    assert recipe.evaluations == (MembershipInference(samples=300),)
    assert recipe.stages == (Quantize(),)
    Pipeline.from_recipe(recipe).run(small(), out=tmp_path, progress=False)
    steps = read_json(tmp_path / "report.json")["steps"]
    assert [len(step["details"]["evaluations"]) for step in steps] == [2, 4]
    area, _, both, found = steps[1]["details"]["evaluations"]
    assert "by this file and the reference" in both["what"]
    assert "by this file and the reference" in found["what"]
    assert both["reference"]["value"] > 0.0
    assert area["worse"]["low"] <= area["worse"]["value"] <= area["worse"]["high"]
    assert "training samples found by loss at 1 % false alarms" in (tmp_path / "report.md").read_text()


def said(logits: np.ndarray) -> Asked:
    """What a file of two classes says that gives the own class these logits."""
    own = -np.logaddexp(0, -logits)
    others = -np.logaddexp(0, logits)
    return Asked(own, others, np.maximum(own, others))


def test_beside_other_models_hard_samples_are_no_longer_taken_for_strangers() -> None:
    """By hand: a logit of 5 where others have 1 and 3 lies 3 above, in deviations of all, sqrt(2 / 4); one: 4 above.

    What every model finds easy tells nothing: of scores that are difficulty and a shift, the shift alone is left.
    """
    asked = said(np.array([5.0, 2.0]))
    assert asked.logits == pytest.approx([5.0, 2.0])
    two = beside_references(asked, [said(np.array([1.0, 2.0])), said(np.array([3.0, 2.0]))])
    assert two == pytest.approx([3 / np.sqrt(0.5), 0.0])
    assert beside_references(asked, [said(np.array([1.0, 2.0]))]) == pytest.approx([4.0, 0.0])
    easy = scores(count=2000) * 5
    members, others = easy[:1000] + 1, easy[1000:]
    (plain,), _ = told_apart([members], [others], seed=0)
    beside = [
        beside_references(said(part), [said(known)]) for part, known in ((members, easy[:1000]), (others, easy[1000:]))
    ]
    (area,), _ = told_apart([beside[0]], [beside[1] + scores(count=1000, seed=2) * 0.5], seed=0)
    assert plain.value < 0.6
    assert area.value > 0.95


def test_two_models_tell_more_than_one_where_compression_moved_members_alone() -> None:
    """The attack learns it on one half and finds it in the other; where nothing differs it guesses."""
    before = [scores(count=1000, seed=seed) for seed in (0, 1)]
    noise = [scores(count=1000, seed=seed) for seed in (2, 3)]
    moved = [before[0] + 1.5 + 0.5 * noise[0], before[1] + 0.5 * noise[1]]
    both = learned([said(moved[0]), said(before[0])], [said(moved[1]), said(before[1])], seed=0)
    alone = learned([said(before[0])], [said(before[1])], seed=0)
    area, _ = told_apart([both[0], alone[0]], [both[1], alone[1]], seed=0)
    assert area[0].value > 0.9
    assert area[1].low < 0.5 < area[1].high
    assert area[2].low > 0.3


def test_scores_of_a_half_know_nothing_of_that_half() -> None:
    """With as many features as noise has, an attack that was fitted on what it tells would find members in noise."""
    chance = np.random.default_rng(0)
    found = [
        learned(
            [said(chance.normal(size=60)) for _ in range(6)], [said(chance.normal(size=60)) for _ in range(6)], seed=s
        )
        for s in range(4)
    ]
    areas = [(one[0][:, None] > one[1]).mean() for one in found]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.12)


def test_reference_models_are_files(tmp_path) -> None:
    """Their paths are settings of the recipe; the rows say how many there were."""
    workload = small()
    path = tmp_path / "other.onnx"
    path.write_bytes(export_onnx(workload.model.eval(), workload).onnx_bytes)
    attack = MembershipInference(samples=300, references=(str(path),))
    assert eval(repr(attack)) == attack  # noqa: S307 - our own
    file = path.read_bytes()
    subject = Subject(onnx_bytes=file, reference=file, workload=workload, known=Known(workload))
    rows = evaluated([attack], subject)["evaluations"]
    assert [row["why"] for row in rows] == [""] * 4
    assert "beside 1 other models" in rows[2]["what"]
    assert rows[2]["value"]["value"] == pytest.approx(0.5)  # a model beside itself
