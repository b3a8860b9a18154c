"""Cross-validation: the samples of a fold, what is refused before work, and that finished folds are not run again."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import Fold, Pipeline, Workload
from compressor.batches import Batches
from compressor.errors import FoldsError, RunFolderError, StageError, WrongUseError
from compressor.given.splits import in_fold
from compressor.metrics import Metric
from compressor.report.folds.page import folds_html, folds_markdown
from compressor.report.folds.record import FoldsRecord
from compressor.stage import Effect
from compressor.workloads.unlabelled import workload_of_inputs
from workbench import ROOT

LABELS = torch.arange(60) % 3
INPUTS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + F.one_hot(LABELS, 6) * 2.0


def did(what: str) -> int:
    """Notes in a file that something is done, and how often it was: counted in an object, it would be content."""
    path = Path(os.environ["DONE_IN_FOLDS"])
    path.write_text(f"{path.read_text()}{what}\n")
    return times(what)


def times(what: str) -> int:
    return Path(os.environ["DONE_IN_FOLDS"]).read_text().count(f"{what}\n")


@pytest.fixture(autouse=True)
def _counted(tmp_path_factory, monkeypatch) -> None:
    path = tmp_path_factory.mktemp("done") / "done.txt"
    path.write_text("")
    monkeypatch.setenv("DONE_IN_FOLDS", str(path))


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """A stage that scales the last layer, which changes no decision."""

    effect: ClassVar[Effect] = Effect.VALUES
    factor: float = 0.5

    def apply(self, model: nn.Module, workload: Workload, context) -> nn.Module:
        if did("stage") == int(os.environ.get("FAILS_AT", "0")):
            raise RuntimeError("killed")
        with torch.no_grad():
            model[-1].weight.mul_(self.factor)
            model[-1].bias.mul_(self.factor)
        return model


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def fit(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def workload_of_parts(model: nn.Module, parts) -> Workload:
    sets = {
        name: (INPUTS[part], LABELS[part]) for name, part in zip(("train", "validation", "test"), parts, strict=True)
    }
    return Workload.from_datasets(model, **sets, batch_size=16, calibration_samples=16, name="three")


def folded(fold: Fold) -> Workload:
    parts = fold.split(LABELS, validation=0.2)

    def train(model: nn.Module) -> None:
        did("training")
        fit(model, INPUTS[parts.train], LABELS[parts.train])

    return workload_of_parts(fold.trained(network, train), parts)


def fold(number: int = 1, folds: int = 3, **changed) -> Fold:
    return Fold(**{"number": number, "folds": folds, "repeat": 1, "repeats": 1, "seed": 0, "folder": Path(), **changed})


def test_every_sample_tests_once_and_every_part_has_every_class() -> None:
    """Three folds of 60 samples of three classes: 20 test, each once, with 6 or 7 of each class; no two parts share."""
    parts = [fold(number).split(LABELS, validation=0.2) for number in (1, 2, 3)]
    assert np.array_equal(np.sort(np.concatenate([each.test for each in parts])), np.arange(60))
    for train, validation, test in parts:
        assert sorted([*train, *validation, *test]) == list(range(60))
        assert [len(part) for part in (train, validation, test)] == [32, 8, 20]
        for part in (train, validation, test):
            assert np.bincount(LABELS.numpy()[part], minlength=3).min() >= len(part) // 3


def test_a_list_of_labels_is_parted_as_an_array_is() -> None:
    """Labels as Python has them, numbers or texts."""
    wanted = fold().split(LABELS).test
    assert np.array_equal(fold().split(LABELS.tolist()).test, wanted)
    assert np.array_equal(fold().split([f"class {label}" for label in LABELS.tolist()]).test, wanted)


def test_the_same_seed_parts_alike_and_another_repeat_does_not() -> None:
    """What a fold holds follows from seed and repeat alone."""
    first, again, other = fold(), fold(), fold(repeat=2, repeats=2)
    assert np.array_equal(first.split(LABELS).test, again.split(LABELS).test)
    assert not np.array_equal(first.parts.test, other.split(LABELS).test)
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    "targets", [torch.linspace(0, 1, 10), torch.randn(10, 4), [{"any": 1}] * 10, [[1, 2], [3]] * 5]
)
def test_targets_that_are_no_classes_are_parted_plainly(targets) -> None:
    """Numbers, rows of numbers and whatever else: 5 folds of 10 samples hold 2 each."""
    tested = [in_fold(targets, folds=5, number=number, seed=0, stratified=None).tolist() for number in range(1, 6)]
    assert sorted(index for part in tested for index in part) == list(range(10))


@pytest.mark.parametrize(
    ("targets", "folds", "says"),
    [
        (torch.arange(4), 5, "5 folds need at least as many samples, got 4"),
        (torch.tensor([0] * 10 + [1] * 2), 3, "at least 3 samples of every class.*class 1 has 2"),
        (np.array(["a"] * 9 + ["b"] * 3), 2, "at least 4 samples of every class.*class 'b' has 3"),
        (torch.zeros(9, dtype=torch.long), 3, "all 9 targets are 0"),
        (None, 3, "got none"),
        ([None] * 9, 3, "got none"),
        (torch.tensor(3), 3, "a single int64"),
    ],
)
def test_folds_that_cannot_be_are_refused(targets, folds, says) -> None:
    """More folds than samples, a fold without a class, one class, no targets: each with what to do."""
    with pytest.raises(FoldsError, match=says):
        fold(folds=folds).split(targets)


def test_counts_that_are_no_classes_can_be_said_to_be_none() -> None:
    """Whole numbers to predict are parted plainly where the caller says so."""
    counts = torch.arange(12)
    with pytest.raises(FoldsError, match="stratified=False"):
        fold().split(counts)
    assert len(fold().split(counts, stratified=False).test) == 4


def test_objects_are_what_they_hold() -> None:
    """An array of objects, as tables give it, is parted as the whole numbers in it are."""
    plain = fold().split(LABELS)
    assert np.array_equal(fold().split(np.array(LABELS.tolist(), dtype=object)).test, plain.test)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"validation": 0.99},
            r"validation=0\.99 takes 40 of the 40 samples beside fold-1, and none is left",
        ),
        ({"stratified": "yes"}, "stratified is True, False or left out, got 'yes'"),
    ],
)
def test_splits_that_leave_nothing_or_mean_nothing_are_refused(asked, says) -> None:
    with pytest.raises(FoldsError, match=says):
        fold().split(LABELS, **asked)


def test_a_second_split_by_other_targets_is_refused() -> None:
    """Two splits of one fold would share samples."""
    one = fold()
    one.split(LABELS)
    one.split(LABELS)
    with pytest.raises(FoldsError, match="split once"):
        one.split(LABELS.flip(0))


def cross(workload, out=None, **asked):
    return Pipeline([Shrink()]).cross_validate(workload, **{"folds": 3, "out": out, "progress": False, **asked})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"folds": 1}, "at least 2; got 1"),
        ({"folds": True}, "a whole number"),
        ({"repeats": 0}, "at least 1; got 0"),
        ({"reference": "old"}, "anew, given"),
        ({"seed": -1}, "seed decides every draw, at least 0; got -1"),
        ({"seed": 1.5}, "seed decides every draw, a whole number"),
        ({"run_seed": 1 << 32}, "run_seed decides every draw, at most 4294967293; got 4294967296"),
    ],
)
def test_settings_without_a_meaning_are_refused_before_work(asked, says, tmp_path) -> None:
    """One fold and the like: no run is begun, and the error is one that command lines answer with 2."""
    with pytest.raises(FoldsError, match=says) as caught:
        cross(folded, tmp_path / "out", **asked)
    assert isinstance(caught.value, WrongUseError)
    assert not (tmp_path / "out").exists()
    assert (times("training"), times("stage")) == (0, 0)


def given() -> Workload:
    """A model trained on the first 24 samples; the other 36 are held back."""
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    model = network()
    fit(model, INPUTS[order[:24]], LABELS[order[:24]])
    return workload_of_parts(model.eval(), (order[:24], order[24:42], order[42:]))


def unlabelled() -> Workload:
    return workload_of_inputs(network().eval(), INPUTS)


def leaking() -> Workload:
    """What it holds back for the report is what it trains on."""
    parts = torch.arange(24), torch.arange(24, 42), torch.arange(24)
    return workload_of_parts(network().eval(), parts)


@pytest.mark.parametrize(
    ("made", "asked", "says"),
    [
        (given, {}, "was trained on its own training samples.*reference='given'"),
        (unlabelled, {"reference": "given"}, "folds need labels"),
        (lambda: replace(given(), metric=Metric.unscored()), {"reference": "given"}, "folds need labels"),
        (leaking, {"reference": "given"}, "100 % of the samples of test are in train, too"),
        (lambda: replace(given(), test=[(INPUTS, LABELS)]), {"reference": "given"}, "test is a list"),
        (given, {"reference": "given", "folds": 40}, "40 folds need"),
        (given, {"reference": "given", "folds": 18}, "at least 18 samples of every class"),
        (lambda: 3, {}, "a function of the fold"),
    ],
)
def test_workloads_whose_folds_would_lie_are_refused(made, asked, says, tmp_path) -> None:
    """A reference that knows what tests it, no labels, sets that cannot be parted: before any work."""
    with pytest.raises(FoldsError, match=says):
        cross(made(), tmp_path, **asked)
    assert times("stage") == 0


def unsplit(fold: Fold) -> Workload:
    return given()


def whole_test(fold: Fold) -> Workload:
    train, validation, _ = fold.split(LABELS)
    return workload_of_parts(network().eval(), (train, validation, np.arange(60)))


def trained_on_all(fold: Fold) -> Workload:
    _, validation, test = fold.split(LABELS)
    return workload_of_parts(network().eval(), (np.arange(60), validation, test))


def decided_by_test(fold: Fold) -> Workload:
    train, _, test = fold.split(LABELS)
    return workload_of_parts(network().eval(), (train, test, test))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (unsplit, "did not ask it for its samples"),
        (whole_test, "tests on 20 samples, and test of the workload has 60"),
        (lambda fold: fold, "must return a compressor.Workload"),
        (trained_on_all, "100 % of the samples that test in fold-1 are in train, too"),
        (decided_by_test, "100 % of the samples that test in fold-1 are in validation, too"),
    ],
)
def test_functions_that_do_not_heed_the_fold_are_refused(function, says, tmp_path) -> None:
    """All folds would test on the same samples, on too many, or on those that train or decide."""
    with pytest.raises(FoldsError, match=says):
        cross(function, tmp_path)
    assert times("stage") == 0


def test_a_reference_that_is_not_trained_anew_is_found_out(tmp_path) -> None:
    """The second fold brings the weights of the first: it has seen what tests it."""
    torch.manual_seed(0)
    model = network().eval()
    with pytest.raises(FoldsError, match="fold-2 has the weights of that of fold-1"):
        cross(lambda fold: workload_of_parts(model, fold.split(LABELS)), tmp_path)


def test_folds_go_on_where_they_were_and_are_told_together(tmp_path, monkeypatch) -> None:
    """A stage fails in the last fold: called again, only that fold is compressed, and nothing is trained again.

    The numbers of the table are those of the folds' own reports, and both files and objects tell the same.
    """
    monkeypatch.setenv("FAILS_AT", "2")
    with pytest.raises(StageError, match="killed"):
        cross(folded, tmp_path, folds=2)
    assert (times("training"), times("stage")) == (2, 2)
    found = cross(folded, tmp_path, folds=2)
    assert (times("training"), times("stage")) == (2, 3)
    again = cross(folded, tmp_path, folds=2)
    assert (times("training"), times("stage")) == (2, 3)
    assert [row.split for row in again.rows] == [row.split for row in found.rows]
    reports = [json.loads((tmp_path / row.report).with_suffix(".json").read_text()) for row in found.rows]
    scores = [report["steps"][1]["measurement"]["score"]["value"] for report in reports]
    assert found.score.value == pytest.approx(sum(scores) / 2)
    assert (found.drop.value, found.drop.low, found.drop.high) == (0.0, 0.0, 0.0)
    assert [(row.tested, row.rest) for row in found.rows] == [(30, 30)] * 2
    stored = json.loads((tmp_path / "folds.json").read_text())
    assert stored["means"]["score"]["value"] == found.score.value
    assert FoldsRecord.from_json(stored).rows == found.rows
    assert (tmp_path / "folds.md").read_text() == folds_markdown(found)
    assert (tmp_path / "folds.html").read_text() == folds_html(found)
    assert "not to be told apart from none" in folds_html(found)
    assert found.difference(again).value == 0.0
    with pytest.raises(FoldsError, match="other samples in their folds"):
        found.difference(replace(again, rows=again.rows[::-1]))


def test_other_code_trains_the_reference_anew(tmp_path) -> None:
    """What is on disk is taken for the same functions alone."""
    one = fold(folder=tmp_path)
    one.split(LABELS)
    calls = []

    def zeros(model: nn.Module) -> None:
        calls.append("zeros")
        nn.init.zeros_(model[0].weight)

    def ones(model: nn.Module) -> None:
        calls.append("ones")
        nn.init.ones_(model[0].weight)

    first = one.trained(network, zeros)
    assert not first.training
    calls.clear()
    assert one.trained(network, ones)[0].weight.min() == 1


def test_one_reference_in_all_folds_is_tested_on_what_it_has_not_seen(tmp_path) -> None:
    """Folds part validation and test; each of these 36 samples tests once, and training stays as it was."""
    workload = given()
    seen: list[Workload] = []

    class Watching(Pipeline):
        def run(self, workload, **asked):
            seen.append(workload)
            return super().run(workload, **asked)

    found = Watching([Shrink()]).cross_validate(workload, folds=2, reference="given", out=tmp_path, progress=False)
    tested = torch.cat([batch for own in seen for batch, _ in own.test])
    held_back = torch.cat([batch for part in (workload.validation, workload.test) for batch, _ in part])
    assert sorted(map(tuple, tested.tolist())) == sorted(map(tuple, held_back.tolist()))
    for own in seen:
        assert own.train is workload.train
        assert isinstance(own.validation, Batches)
        tests, decides = (
            set(map(tuple, torch.cat([x for x, _ in part]).tolist())) for part in (own.test, own.validation)
        )
        assert not tests & decides
    assert [(row.tested, row.rest) for row in found.rows] == [(18, 18)] * 2
    assert "One reference stood in all folds" in folds_markdown(found)
    assert found.rows[0].name == "fold-1"


def test_files_that_no_cross_validation_wrote_stay(tmp_path) -> None:
    """A folds.json of somebody else's is not replaced."""
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(RunFolderError, match="no folds wrote"):
        cross(folded, tmp_path)


def test_the_documented_function_is_one_of_the_fold(tmp_path) -> None:
    """The example of docs/folds.md gives a workload whose model has seen its training samples alone."""
    block = (
        (ROOT / "docs" / "folds.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("\n\n\nfound")[0]
    )
    names = {"labels": LABELS, "inputs": INPUTS, "MyModel": network, "fit": fit}
    exec(compile(block, "folds.md", "exec"), names)
    one = fold(folder=tmp_path)
    workload = names["workload"](one)
    assert torch.equal(workload.test.samples[1], LABELS[one.parts.test])
    assert (tmp_path / "reference.safetensors").is_file()
