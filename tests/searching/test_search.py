"""A search from end to end, on runs that take no time: rungs, limits, minutes, stops, failures and what is written."""

import json
from dataclasses import replace

import pytest

from compressor.errors import RunFolderError, StageError, WorkloadError, WrongUseError
from compressor.measuring.timing import Timing
from compressor.metrics import Metric
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.searching import ladder
from compressor.searching.rung import Rung
from compressor.searching.search import search
from compressor.stages import Quantize
from compressor.storage import read_json
from workbench.searches import SPACE, FakeRuns, exactly
from workbench.two_layers import small_workload


def found(out, **changes):
    return search(small_workload(), Recipe.loads_all(SPACE), out=out, progress=False, **changes)


def told(result) -> list[tuple[str, int]]:
    return [(trial.recipe_name, trial.rung) for trial in result.trials]


def test_short_trainings_for_all_and_long_ones_for_few(tmp_path, fake_runs: FakeRuns) -> None:
    """Four stems for an epoch, two for three, one for nine, then in its other form; the best is written as a recipe."""
    result = found(tmp_path, max_drop=0.1)
    assert [sum(rung == number for _, rung in told(result)) for number in range(3)] == [4, 2, 2]
    assert [name.rpartition("-epochs")[0] or name for name, _ in told(result)][-2:] == [
        "space-remove_0.6-without",
        "space-remove_0.6-quantize",
    ]
    assert result.recipe is not None
    written = Recipe.load(tmp_path / "best.yaml")
    assert written.stages == result.recipe.stages
    assert written.budget is None
    # The limit is on validation; of what keeps it, nothing is faster or smaller.
    ended = [trial for trial in result.trials if trial.drop.value <= 0.1]
    best = next(trial for trial in result.trials if trial.recipe_name == written.name)
    assert best in ended
    assert result.why.startswith(f"Ship {written.name}: ")
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "trials" / best.name / "model.onnx").read_bytes()
    saved = json.loads((tmp_path / "search.json").read_text())
    assert (saved["schema_version"], saved["recipe"], saved["space"]) == (1, written.name, 8)
    assert len(saved["trials"]) == 8
    assert repr(result) == f"<Search on {result.workload}: {written.name}, 8 trials of 8 recipes>"
    assert sorted(path.stem for path in (tmp_path / "recipes").glob("*.yaml")) == sorted(result.finalists)
    assert written.name in (tmp_path / "search.html").read_text()


def test_no_trial_is_shown_the_test_data(tmp_path, fake_runs: FakeRuns) -> None:
    """Runs are given validation data in its place; finalists alone are scored on it."""
    workload = small_workload()
    search(workload, Recipe.loads_all(SPACE), out=tmp_path, progress=False)
    assert fake_runs.workloads
    assert all(given.test is given.validation for given in fake_runs.workloads)
    assert all(given.test is not workload.test for given in fake_runs.workloads)


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_search_that_is_stopped_goes_on(tmp_path, fake_runs: FakeRuns, stop: int) -> None:
    """Stopped in the middle of a trial, it makes the same trials in the end, and none that had ended twice."""
    whole = found(tmp_path / "whole", max_drop=0.1)
    count = len(fake_runs.asked)
    fake_runs.asked, fake_runs.stop_after = [], stop
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "cut", max_drop=0.1)
    fake_runs.stop_after = None
    again = found(tmp_path / "cut", max_drop=0.1)
    assert told(again) == told(whole)
    assert [trial.recipe for trial in again.trials] == [trial.recipe for trial in whole.trials]
    assert again.recipe.stages == whole.recipe.stages
    # The one that was cut short is begun again, and finalists of the first session tell their reports once more.
    assert len(fake_runs.asked) <= count + 1 + len(whole.finalists)
    trials = [name for name in fake_runs.asked if name in {trial.name for trial in whole.trials}]
    assert set(trials) == {trial.name for trial in whole.trials}


def test_other_limits_cost_no_trial_that_was_made(tmp_path, fake_runs: FakeRuns) -> None:
    """The files are the truth: a wider limit chooses among what there is, and makes only what is new."""
    first = found(tmp_path, max_drop=0.02)
    made = {trial.name for trial in first.trials}
    fake_runs.asked = []
    second = found(tmp_path, max_drop=0.5)
    anew = set(fake_runs.asked) - {trial.name for trial in second.trials if trial.recipe_name in second.finalists}
    assert not anew & made
    assert second.recipe.stages != first.recipe.stages


def test_nothing_keeps_the_limits(tmp_path, fake_runs: FakeRuns) -> None:
    """No recipe is written, and the sentence says what comes nearest, and by what it misses."""
    result = found(tmp_path, max_drop=0.1, max_size_bytes=10)
    assert result.recipe is None
    assert not result.within_limits
    assert not (tmp_path / "best.yaml").exists()
    assert result.why.startswith("Nothing keeps the limits (a drop of 0.1, 10 bytes)")
    assert "50 bytes where 10 bytes are allowed" in result.why
    # A file of an earlier call that found something does not stay.
    found(tmp_path, max_drop=0.1)
    assert (tmp_path / "best.yaml").exists()
    found(tmp_path, max_drop=0.1, max_size_bytes=10)
    assert not (tmp_path / "best.yaml").exists()


def test_where_nothing_keeps_the_limit_what_loses_less_is_trained_whole(tmp_path, fake_runs: FakeRuns) -> None:
    """The one of four that went on to its whole length drops by 0.09; the one that lost least in an epoch by 0.01."""
    result = found(tmp_path, max_drop=0.02)
    whole = [
        (name, trial.drop.value) for (name, rung), trial in zip(told(result), result.trials, strict=True) if rung == 2
    ]
    assert [name for name, _ in whole[:2]] == ["space-remove_0.6-without", "space-remove_0.2-without"]
    assert result.recipe is not None
    assert result.recipe.name.startswith("space-remove_0.2")
    # Not more than `eta` are, where they do not keep it either.
    hopeless = found(tmp_path / "hopeless", max_drop=0.001, eta=2)
    assert hopeless.recipe is None
    alone = {trial.candidate for trial in hopeless.trials if trial.rung == 2 and trial.candidate.endswith("without")}
    assert len(alone) == 1 + 2


def test_limits_of_files_are_judged_in_every_encoding(tmp_path, fake_runs: FakeRuns) -> None:
    """Which of them fit is known from the first rung, so that nothing is trained on that cannot."""
    result = found(tmp_path, max_drop=0.1, max_size_bytes=130)
    first = [trial for trial in result.trials if trial.rung == 0]
    assert len(first) == 8
    assert all(trial.size_bytes <= 130 for trial in result.trials if trial.rung)


def test_minutes_begin_no_trial_that_cannot_end(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """By a clock that runs 30 s a trial: what there was no time for is named, and more minutes go on."""
    seconds = iter(range(0, 10**6, 10))
    monkeypatch.setattr("compressor.searching.clock.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("compressor.searching.clock.step_seconds", lambda _: 1.0)
    short = found(tmp_path, max_drop=0.1, minutes=2.5)
    assert 0 < len(short.trials) < 8
    assert any("Not begun, for it could not have ended within 2.5 minutes" in text for text in short.told)
    longer = found(tmp_path, max_drop=0.1, minutes=600.0)
    assert len(longer.trials) >= 8
    assert {trial.name for trial in short.trials} <= {trial.name for trial in longer.trials}


def test_encodings_have_a_share_of_the_minutes(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """A quarter of the time is left for them after three rungs; where none wait the rungs have all of it."""
    shares: list[float] = []

    def rung(**asked: object) -> Rung:
        shares.append(asked["share"])  # type: ignore[arg-type]
        return Rung(**asked)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "Rung", rung)
    found(tmp_path / "a", max_drop=0.1)
    assert shares == [1 / 4, 2 / 4, 3 / 4, 1.0]
    shares.clear()
    alone = SPACE.replace("  - sweep: [null, quantize]\n", "")
    search(small_workload(), Recipe.loads_all(alone), out=tmp_path / "b", progress=False, max_drop=0.1)
    assert shares == [1 / 3, 2 / 3, 1.0]


def test_minutes_that_suffice_for_nothing_are_refused(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """Before any work, with what the shortest trial takes."""
    monkeypatch.setattr("compressor.searching.clock.step_seconds", lambda _: 60.0)
    with pytest.raises(WrongUseError, match=r"0.5 minutes do not suffice for one trial: .* space-remove_0.2"):
        found(tmp_path, minutes=0.5)
    assert fake_runs.asked == []


def test_what_fails_is_told_once_and_the_others_go_on(tmp_path, fake_runs: FakeRuns) -> None:
    """A stage that fails is not tried again in another recipe that begins with it."""
    fake_runs.broken = 0.7
    result = found(tmp_path, max_drop=0.1)
    failed = [trial for trial in result.trials if not trial.ended]
    assert len(failed) == 2
    assert sum(trial.seconds > 0 for trial in failed) == 1
    assert failed[1].error.startswith("its beginning is that of space-remove_0.8")
    assert any("2 failed" in text for text in result.told)
    assert result.recipe is not None


def test_a_space_that_always_fails_is_told(tmp_path, fake_runs: FakeRuns) -> None:
    """With the reason; asked again, each beginning is tried again once."""
    fake_runs.broken = 0.0
    for count in (4, 8):
        with pytest.raises(StageError, match=r"8 trials failed, and none gave a file. space-remove_0.*: no channel is"):
            found(tmp_path)
        assert len(fake_runs.asked) == count


def test_what_failed_once_may_work_the_next_time(tmp_path, fake_runs: FakeRuns) -> None:
    """Where it was the machine, the same call gives what a new folder would."""
    fake_runs.broken = 0.0
    with pytest.raises(StageError):
        found(tmp_path / "a", max_drop=0.1)
    fake_runs.broken = 2.0
    again, anew = (found(tmp_path / name, max_drop=0.1) for name in "ab")
    assert again.recipe == anew.recipe
    assert told(again) == told(anew)


def test_what_failed_before_and_is_not_tried_again_is_not_told(tmp_path, fake_runs: FakeRuns) -> None:
    """All encodings of the stems that failed then; now their first ones suffice."""
    fake_runs.broken = 0.0
    with pytest.raises(StageError):
        found(tmp_path, max_drop=0.1)
    fake_runs.broken = 2.0
    result = found(tmp_path, max_drop=0.1)
    assert all(trial.ended for trial in result.trials)
    assert not any("failed" in text for text in result.told)


def test_two_finalists_of_one_name_are_both_told(tmp_path, fake_runs: FakeRuns) -> None:
    """A short training of one recipe is called as another recipe is."""
    texts = [
        f"name: {name}\nstages: [prune_channels: {{remove: {remove}}}, distill: {{epochs: {epochs}, tail_epochs: 0}}]"
        for name, remove, epochs in (("a", 0.2, 9), ("a-epochs_1", 0.8, 1), ("b", 0.8, 9))
    ]
    result = search(
        small_workload(), [Recipe.loads(text) for text in texts], out=tmp_path, max_drop=None, progress=False
    )
    assert len(result.finalists) == len(result.rows) - 1
    assert {"a-epochs_1", "a-epochs_1-2"} <= set(result.finalists) | {row.name for row in result.rows}
    for name, recipe in result.finalists.items():
        assert Recipe.load(tmp_path / "recipes" / f"{name}.yaml") == recipe


def test_the_page_is_of_validation_and_says_so(tmp_path, fake_runs: FakeRuns) -> None:
    """The reference among the trials has its score on validation; finalists on test data are told in sentences."""
    result = found(tmp_path, max_drop=0.1)
    assert result.validation_score is not None
    page = (tmp_path / "search.html").read_text()
    assert "as they score on validation data" in page
    assert "Scores are on test data" not in page
    assert page.count("On test data: ") == len(result.finalists)
    # One time of one trial in all files: that of the session in which the finalists were timed.
    saved = json.loads((tmp_path / "search.json").read_text())["trials"]
    shown = json.loads(page.split('id="rows">')[1].split("</script>")[0])["rows"]
    by_name = {trial["recipe_name"]: trial["latency_ms"]["value"] for trial in saved}
    assert all(row["ms"][0] == pytest.approx(by_name[row["name"]]) for row in shown[1:])
    assert all(trial.latency_ms.value * trial.speedup.value == pytest.approx(1.0) for trial in result.trials)
    first = json.loads(page.split('id="rows">')[1].split("</script>")[0])["rows"][0]
    assert first["score"][0] == pytest.approx(100 * result.validation_score.value)
    assert first["score"][0] != pytest.approx(100 * result.rows[0].score.value)


def test_all_times_are_of_the_session_of_the_finalists(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """In which the reference takes three times as long as in the trials: so do they, in every file of the search."""

    def take(*_: object, **__: object) -> Timing:
        return Timing(reference_ms=exactly(3.0), candidate_ms=exactly(1.5), speedup=exactly(2.0))

    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", take)
    result = found(tmp_path, max_drop=0.1)
    assert result.rows[0].latency_ms.value == 3.0
    assert [each.latency_ms.value for each in result.trials] == [
        pytest.approx(3.0 / each.speedup.value) for each in result.trials
    ]


def test_a_damaged_trial_is_made_again(tmp_path, fake_runs: FakeRuns) -> None:
    """A trial's file that is not as it was written is told, and counts as none."""
    result = found(tmp_path)
    path = tmp_path / "trials" / f"{result.trials[3].name}.json"
    path.write_text(path.read_text().replace('"rung": 0', '"rung": 1'))
    with pytest.warns(UserWarning, match="tells of no trial"):
        again = found(tmp_path)
    assert told(again) == told(result)


def test_another_workload_is_refused(tmp_path, fake_runs: FakeRuns) -> None:
    """By what differs; a folder with files of others as well, and a workload without scores."""
    found(tmp_path / "a")
    other = replace(small_workload(seed=1), name=small_workload().name)
    with pytest.raises(RunFolderError, match=r"holds a search of something else:\n  model: was"):
        search(other, Recipe.loads_all(SPACE), out=tmp_path / "a", progress=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "best.yaml").write_text("mine")
    with pytest.raises(RunFolderError, match="holds"):
        found(tmp_path / "b")


def test_values_that_make_no_sense_are_refused(tmp_path, fake_runs: FakeRuns) -> None:
    """Before any work, each with its name."""
    for changes, says in (
        ({"minutes": 0}, "minutes is the time"),
        ({"eta": 1}, "eta is how many times longer"),
        ({"max_drop": 50.0}, "max_drop"),
        ({"trials": 0}, "trials counts the recipes"),
    ):
        with pytest.raises(ValueError, match=says):
            found(tmp_path, **changes)
    assert fake_runs.asked == []
    unscored = replace(small_workload(), metric=Metric.unscored())
    with pytest.raises(WorkloadError, match="a search compares scores"):
        search(unscored, Recipe.loads_all(SPACE), out=tmp_path, progress=False)


def test_a_frame_of_trials(tmp_path, fake_runs: FakeRuns) -> None:
    """A row a trial, with three columns for an estimate."""
    pytest.importorskip("pandas")
    table = found(tmp_path).to_frame()
    assert {"recipe_name", "rung", "drop", "drop_low", "drop_high", "size_bytes", "seconds"} <= set(table.columns)


def test_fewer_trials_of_the_first_rung(tmp_path, fake_runs: FakeRuns) -> None:
    """`trials` are those that the sampler asks for first; the sentence says how many of the space were tried."""
    result = found(tmp_path, trials=3, max_drop=0.5)
    assert sum(trial.rung == 0 for trial in result.trials) == 3
    # And the other form of the one that was trained whole.
    assert "of 8 recipes, 4 tried" in result.why


def test_what_is_predicted_too_slow_is_set_aside(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """By the latency table, before any trial; where that is all of the space, it is refused."""
    wanted = ladder.TooSlow(names=frozenset(each.name for each in Recipe.loads_all(SPACE)[:2]))
    monkeypatch.setattr(ladder, "too_slow", lambda *_, **__: wanted)
    result = found(tmp_path / "a", max_drop=0.5, max_latency_ms=1.0)
    assert not any(trial.candidate in wanted.names for trial in result.trials)
    assert any(text.startswith("Set aside before any training") for text in result.told)
    wanted = ladder.TooSlow(names=frozenset(each.name for each in Recipe.loads_all(SPACE)))
    with pytest.raises(WrongUseError, match=r"no recipe of the space can be as fast as 0.001 ms"):
        found(tmp_path / "b", max_latency_ms=0.001)
    # Where earlier limits found something, it does not stay as what keeps these, and the nearest is told.
    assert (tmp_path / "a" / "best.yaml").exists()
    nearest = found(tmp_path / "a", max_latency_ms=0.001)
    assert nearest.why.startswith("Nothing keeps the limits")
    assert not (tmp_path / "a" / "best.yaml").exists()
    assert not (tmp_path / "a" / "model.onnx").exists()
    # What earlier calls made of another space is not of this one.
    other = Recipe.loads_all(SPACE.replace("name: space", "name: other").replace("0.2, ", "0.3, "))
    other = [each for each in other if "0.3" in each.name]
    wanted = ladder.TooSlow(names=frozenset(each.name for each in other))
    with pytest.raises(WrongUseError, match=r"no recipe of the space can be as fast as 0.001 ms"):
        search(small_workload(), other, out=tmp_path / "a", max_latency_ms=0.001, progress=False)


def test_files_of_a_search_hold_plain_json(tmp_path, fake_runs: FakeRuns) -> None:
    """Every trial is a file that any program reads."""
    result = found(tmp_path)
    saved = read_json(tmp_path / "trials" / f"{result.trials[0].name}.json")
    assert saved["drop"] == vars(result.trials[0].drop)
    assert Recipe.loads(saved["recipe"]).name == result.trials[0].recipe_name


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"workload": "digits"}, "search takes a Workload, got str"),
        ({"space": Pipeline([Quantize()])}, "got a Pipeline"),
        ({"space": 3}, "got a int"),
        ({"sampler": "grid"}, "sampler is a Sampler, got 'grid'"),
        ({"target": "x"}, "target is a Target, got 'x'"),
        ({"store": "x"}, "store is a Store, got 'x'"),
        ({"out": ""}, "out is the folder of the search, and '' names nothing"),
    ],
)
def test_what_is_of_another_kind_is_told(tmp_path, asked: dict[str, object], says: str) -> None:
    """Before any work, by its name."""
    given = {"workload": small_workload(), "space": "int8", "out": tmp_path, "progress": False, **asked}
    with pytest.raises((WrongUseError, TypeError, ValueError), match=says):
        search(given.pop("workload"), given.pop("space"), **given)
