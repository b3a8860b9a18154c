"""Several recipes side by side: names, rows, the Pareto front, failures and files."""

import json
from collections import defaultdict
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from compressor.budget import Budget
from compressor.comparing import comparison as comparing
from compressor.comparing.comparison import Comparison, compare
from compressor.comparing.rows import rows_of
from compressor.comparing.timing import timed_together
from compressor.comparing.words import control_sentences
from compressor.errors import RecipeError, RunFolderError, StageError, WorkloadError, WrongUseError
from compressor.estimate import Estimate
from compressor.measuring.measure import Measurement
from compressor.measuring.session_times import Times
from compressor.measuring.timing import Timing
from compressor.recipe.recipe import Recipe
from compressor.report.record import Step
from compressor.report.report import Report
from compressor.running.lock import FolderLock
from compressor.running.pipeline import Pipeline, PipelineWarning
from compressor.stages import DropBlocks, FineTune, Quantize
from compressor.target import Target

SWEPT_SEEDS = "name: swept\nseed: {sweep: [0, 1]}\nstages: [quantize]"


def about(value: float) -> Estimate:
    return Estimate(value, value * 0.9, value * 1.1)


def measured(score: float, latency_ms: float, size_bytes: int, speedup: float) -> Measurement:
    return Measurement(
        score=about(score),
        parameters=10,
        nonzero_parameters=10,
        macs=100,
        size_bytes=size_bytes,
        compressed_bytes=size_bytes // 2,
        latency_ms=about(latency_ms),
        speedup=about(speedup),
    )


def report_of(measurement: Measurement, *, metric: str = "accuracy", met: bool = True) -> Report:
    better = metric == "accuracy"
    return Report(
        workload={"name": "tiny", "metric": metric, "higher_is_better": better, "bounded": better},
        environment={},
        budget_met=met,
        steps=(
            Step(stage="reference", kept=True, seconds=1.0, measurement=measured(0.9, 1.0, 1000, 1.0)),
            Step(
                stage="quantize",
                kept=True,
                seconds=2.0,
                measurement=measurement,
                validation={"drop": {"value": 0.01, "low": 0.0, "high": 0.02}},
            ),
        ),
        final=1,
    )


@pytest.fixture
def fake_run(monkeypatch):
    """Pipeline.run that returns, or raises, what `.ends` holds for the name of its folder."""
    state = SimpleNamespace(ends={}, asked={})

    def run(self, workload, **asked):
        name = Path(asked["out"]).name
        state.asked[name] = {"stages": self.stages, "budget": self.budget, **asked}
        end = state.ends[name]
        if isinstance(end, BaseException):
            raise end
        return SimpleNamespace(report=end)

    monkeypatch.setattr(Pipeline, "run", run)
    # There are no files whose samples could be compared.
    monkeypatch.setattr(comparing, "_p_values", lambda *_: {})
    return state


def named(name: str, **changes) -> Recipe:
    return Recipe(name=name, stages=(Quantize(),), budget=Budget(), **changes)


def test_rows_and_the_pareto_front(tiny_workload, tmp_path, fake_run) -> None:
    """The reference and each recipe give a row; what another beats in score, time and size is not on the front."""
    fake_run.ends = {
        "fast": report_of(measured(0.8, 0.2, 300, 5.0)),
        "good": report_of(measured(0.9, 0.5, 500, 2.0)),
        "beaten": report_of(measured(0.7, 0.3, 400, 3.0), met=False),
    }
    comparison = compare([named("fast"), named("good"), named("beaten")], tiny_workload, out=tmp_path)
    # The reference scores as "good" does, but is slower and larger.
    assert [(row.name, row.pareto) for row in comparison.rows] == [
        ("reference", False),
        ("fast", True),
        ("good", True),
        ("beaten", False),
    ]
    fast = comparison.rows[1]
    assert (fast.drop, fast.seconds, fast.report) == (Estimate(0.01, 0.0, 0.02), 3.0, "fast/report.html")
    assert comparison.any_budget_met
    assert comparison.failures == {}


def test_lower_errors_are_better(tiny_workload, tmp_path, fake_run) -> None:
    """With an error as the metric, the smaller score is the one on the front."""
    fake_run.ends = {
        "exact": report_of(measured(0.1, 0.5, 500, 2.0), metric="mse"),
        "rough": report_of(measured(0.5, 0.5, 500, 2.0), metric="mse"),
    }
    comparison = compare([named("exact"), named("rough")], tiny_workload, out=tmp_path)
    assert [row.pareto for row in comparison.rows] == [False, True, False]


def test_files(tiny_workload, tmp_path, fake_run) -> None:
    """JSON, Markdown, HTML and SVG are written and tell the same rows."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0)), "b": report_of(measured(0.9, 0.5, 500, 2.0))}
    compare([named("a"), named("b")], tiny_workload, out=tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert (found["schema_version"], found["workload"]) == (1, "tiny")
    assert [row["name"] for row in found["rows"]] == ["reference", "a", "b"]
    assert found["rows"][1]["latency_ms"] == {
        "value": 0.2,
        "low": pytest.approx(1 / 5.5),
        "high": pytest.approx(1 / 4.5),
    }
    assert found["rows"][0]["drop"] is None
    assert [row["budget_met"] for row in found["rows"]] == [None, True, True]
    assert "# tiny: 2 recipes compared" in (tmp_path / "comparison.md").read_text()
    assert "a/report.html" in (tmp_path / "comparison.html").read_text()
    assert (tmp_path / "comparison.svg").read_text().lstrip().startswith("<")


def test_a_failure_is_told_and_the_others_go_on(tiny_workload, tmp_path, fake_run) -> None:
    """A recipe that fails appears with its error in every file; the recipes after it are run."""
    fake_run.ends = {"bad": StageError("no blocks <here>"), "good": report_of(measured(0.9, 0.5, 500, 2.0))}
    comparison = compare([named("bad"), named("good")], tiny_workload, out=tmp_path)
    assert comparison.failures == {"bad": "StageError: no blocks <here>"}
    assert [row.name for row in comparison.rows] == ["reference", "good"]
    assert json.loads((tmp_path / "comparison.json").read_text())["failures"] == comparison.failures
    assert "bad failed: StageError: no blocks <here>" in (tmp_path / "comparison.md").read_text()
    page = (tmp_path / "comparison.html").read_text()
    assert '<ul class="plain"><li>bad failed: StageError: no blocks &lt;here&gt;</li></ul>' in page
    assert page.index("bad failed") < page.index("</main>")


def test_a_page_without_failures_has_no_card_for_them(tiny_workload, tmp_path, fake_run) -> None:
    """Where every recipe ran, nothing stands between the table and the footer."""
    fake_run.ends = {"good": report_of(measured(0.9, 0.5, 500, 2.0))}
    compare([named("good")], tiny_workload, out=tmp_path)
    assert '<section class="card">' not in (tmp_path / "comparison.html").read_text()


def test_all_failures_still_write_files(tiny_workload, tmp_path, fake_run) -> None:
    """Where every recipe fails there are no rows, and the errors are still on disk."""
    fake_run.ends = {"bad": StageError("nothing to do")}
    comparison = compare([named("bad")], tiny_workload, out=tmp_path)
    assert comparison.rows == ()
    assert not comparison.any_budget_met
    assert "nothing to do" in (tmp_path / "comparison.html").read_text()


def test_ctrl_c_ends_the_comparison(tiny_workload, tmp_path, fake_run) -> None:
    """An interrupt is no failed recipe: it ends everything."""
    fake_run.ends = {"a": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        compare([named("a")], tiny_workload, out=tmp_path)


def test_names_seeds_and_pipelines(tiny_workload, tmp_path, fake_run) -> None:
    """Equal names get numbers, pipelines the names of their stages; seeds are the recipes' own unless given."""
    report = report_of(measured(0.9, 0.5, 500, 2.0))
    fake_run.ends = dict.fromkeys(["a", "a-2", "fine_tune-quantize", "reference-2", "int8"], report)
    entries = [
        named("a", seed=4),
        named("a"),
        Pipeline([FineTune(epochs=1), Quantize()]),
        named("reference"),
        "int8",
    ]
    comparison = compare(entries, tiny_workload, out=tmp_path)
    assert [row.name for row in comparison.rows[1:]] == list(fake_run.ends)
    assert [fake_run.asked[name]["seed"] for name in ("a", "a-2")] == [4, 0]
    compare(entries, tiny_workload, out=tmp_path, seed=7)
    assert {asked["seed"] for asked in fake_run.asked.values()} == {7}


def test_all_are_measured_under_one_load(tiny_workload, tmp_path, fake_run) -> None:
    """Recipes that ask for different threads cannot be compared unless one target is given for all."""
    fake_run.ends = dict.fromkeys(["a", "b"], report_of(measured(0.9, 0.5, 500, 2.0)))
    recipes = [named("a", threads=2), named("b")]
    with pytest.raises(ValueError, match=r"different loads \(batch_size=1 threads=1, batch_size=1 threads=2\)"):
        compare(recipes, tiny_workload, out=tmp_path)
    compare(recipes, tiny_workload, out=tmp_path, target=Target(threads=2))
    assert {asked["target"].threads for asked in fake_run.asked.values()} == {2}


def test_what_is_refused_before_any_work(tiny_workload, tmp_path, fake_run) -> None:
    """No recipes, an unknown recipe and a workload that cannot work are refused; nothing is run."""
    with pytest.raises(ValueError, match="at least one recipe"):
        compare([], tiny_workload, out=tmp_path)
    with pytest.raises(RecipeError, match="no recipe 'int9'"):
        compare(["int9"], tiny_workload, out=tmp_path)
    tiny_workload.model.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(WorkloadError, match=r"linear\.weight"):
        compare(["int8"], tiny_workload, out=tmp_path)
    assert fake_run.asked == {}


def test_an_impossible_order_is_refused_before_the_first_recipe_has_run(tiny_workload, tmp_path, fake_run) -> None:
    """Hours of the recipes before it would be lost: no comparison was written yet."""
    fake_run.ends = {"a": report_of(measured(0.9, 0.5, 500, 2.0))}
    wrong = Recipe(name="b", stages=(Quantize(), FineTune(epochs=1)))
    with pytest.raises(ValueError, match="quantize"):
        compare([named("a"), wrong], tiny_workload, out=tmp_path)
    assert fake_run.asked == {}


def test_a_sweep_that_makes_an_impossible_order_is_named_with_its_value(tiny_workload, tmp_path, fake_run) -> None:
    """The recipe and what was chosen stand before the reason, for each one that cannot work; nothing is run."""
    path = tmp_path / "swept.yaml"
    path.write_text("stages: [{sweep: [quantize, distill]}, {sweep: [quantize, {fine_tune: {epochs: 1}}]}]")
    with pytest.raises(RecipeError) as error:
        compare([path], tiny_workload, out=tmp_path / "out")
    assert error.value.errors[0].startswith(
        "swept-quantize-quantize (stages.0=quantize, stages.1=quantize): quantize cannot follow quantize"
    )
    assert error.value.errors[1].startswith(
        "swept-quantize-fine_tune_epochs_1 (stages.0=quantize, stages.1={fine_tune: {epochs: 1}}): fine_tune cannot"
    )
    assert fake_run.asked == {}


def test_a_file_with_sweeps_gives_all_its_recipes(tiny_workload, tmp_path, fake_run) -> None:
    """Every combination is a row by its own name; what is doubtful in all of them is said once."""
    path = tmp_path / "swept.yaml"
    path.write_text("stages: [drop_blocks: {remove: {sweep: [0.3, 0.5]}}, quantize]")
    names = ["swept-remove_0.3", "swept-remove_0.5"]
    fake_run.ends = dict.fromkeys(names, report_of(measured(0.9, 0.5, 500, 2.0)))
    with pytest.warns(PipelineWarning) as told:
        comparison = compare([path], tiny_workload, out=tmp_path / "out", controls=False)
    assert len(told) == 1
    assert [row.name for row in comparison.rows[1:]] == names


def test_a_run_that_kept_nothing_is_the_reference(tiny_workload, tmp_path, fake_run) -> None:
    """Its file is the reference's, byte for byte: the same score, no drop, a speed-up of exactly 1, beaten by none."""
    nothing = replace(report_of(measured(0.9, 0.5, 500, 2.0)), final=0)
    fake_run.ends = {"a": nothing, "b": nothing}
    comparison = compare([named("a"), named("b")], tiny_workload, out=tmp_path)
    for row in comparison.rows[1:]:
        assert (row.drop, row.speedup) == (Estimate(0.0, 0.0, 0.0), Estimate(1.0, 1.0, 1.0))
        assert row.latency_ms == comparison.rows[0].latency_ms
    assert {row.pareto for row in comparison.rows} == {True}
    told = "Ship the reference: no recipe gave a file that is faster or smaller."
    assert json.loads((tmp_path / "comparison.json").read_text())["conclusions"] == [told]
    assert told in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize("known", [True, False])
def test_times_are_of_one_session(tiny_workload, tmp_path, fake_run, monkeypatch, known) -> None:
    """With all files at hand each is timed again against one reference, whatever its own run measured."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0)), "b": report_of(measured(0.9, 0.5, 500, 2.0))}
    for name in fake_run.ends if known else ():
        for path in (tmp_path / name, tmp_path / name / "stages" / "00-reference"):
            path.mkdir(parents=True, exist_ok=True)
            (path / "model.onnx").write_bytes(str(path.relative_to(tmp_path)).encode())
    timed: list[tuple[bytes, bytes]] = []

    def fake(candidate, reference, *_, **__):
        timed.append((candidate, reference))
        return Timing(reference_ms=about(4.0), candidate_ms=about(1.0), speedup=about(4.0))

    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", fake)
    rows = compare([named("a"), named("b")], tiny_workload, out=tmp_path).rows
    assert timed == ([(b"a", b"a/stages/00-reference"), (b"b", b"a/stages/00-reference")] if known else [])
    assert [row.latency_ms.value for row in rows] == ([4.0, 1.0, 1.0] if known else [1.0, 0.2, 0.5])
    assert [row.speedup.value for row in rows] == ([1.0, 4.0, 4.0] if known else [1.0, 5.0, 2.0])


def test_of_many_files_those_on_the_front_are_timed_again(tiny_workload, tmp_path, fake_run, monkeypatch) -> None:
    """Of 42 files three are on the front by their own times; the front is then among these, by the new ones."""
    best = {"a": (0.8, 0.1, 450), "b": (0.9, 0.3, 400), "c": (0.7, 0.2, 200)}
    others = {f"n{number}": (0.6, 0.5, 500 + number) for number in range(39)}
    fake_run.ends = {
        name: report_of(measured(score, ms, size, 1 / ms)) for name, (score, ms, size) in {**others, **best}.items()
    }
    for name in fake_run.ends:
        for path in (tmp_path / name, tmp_path / name / "stages" / "00-reference"):
            path.mkdir(parents=True, exist_ok=True)
            (path / "model.onnx").write_bytes(path.name.encode())
    timed: list[bytes] = []

    def fake(candidate, reference, *_, **__):
        timed.append(candidate)
        # Timed together, a is no faster than b.
        ms = {b"a": 0.4, b"b": 0.3, b"c": 0.2}[candidate]
        return Timing(reference_ms=about(1.0), candidate_ms=about(ms), speedup=about(1 / ms))

    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", fake)
    rows = compare([named(name) for name in fake_run.ends], tiny_workload, out=tmp_path, controls=False).rows
    assert sorted(timed) == [b"a", b"b", b"c"]
    assert {row.name for row in rows if row.pareto} == {"b", "c"}
    assert [row.latency_ms.value for row in rows if row.name in {"reference", "n0", "a"}] == [1.0, 0.5, 0.4]


def test_printing(tiny_workload, tmp_path, fake_run, capsys) -> None:
    """The table in the terminal names every recipe."""
    fake_run.ends = {"mine": report_of(measured(0.9, 0.5, 500, 2.0))}
    comparison = compare([named("mine")], tiny_workload, out=tmp_path)
    assert isinstance(comparison, Comparison)
    comparison.print()
    out = capsys.readouterr().out
    assert "mine" in out
    assert "reference" in out


def test_long_names_give_way_to_scores(tiny_workload, tmp_path, fake_run) -> None:
    """A name is cut to a third of the columns before the score goes, and before its change does."""
    name = "mine-remove_0.2-distill-epochs_9-quantize-weights_symmetric"
    fake_run.ends = {name: report_of(measured(0.9, 0.5, 500, 2.0))}
    comparison = compare([named(name)], tiny_workload, out=tmp_path)
    for width, shown in ((100, ["score", "change", "speed-up", "file"]), (80, ["change", "speed-up", "file"])):
        out = StringIO()
        comparison.print(Console(file=out, width=width))
        header = next(line for line in out.getvalue().splitlines() if line.strip().startswith("recipe"))
        assert header.split() == ["recipe", *shown]
        assert "mine-remove_0.2-distil" in out.getvalue()


def test_an_estimate_keeps_its_three_columns_together(tiny_workload, tmp_path, fake_run) -> None:
    """In CSV, where the reference has no drop, too."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0))}
    header = compare([named("a")], tiny_workload, out=tmp_path).to_csv().splitlines()[0].split(",")
    assert header[header.index("drop") :][:3] == ["drop", "drop_low", "drop_high"]


@pytest.mark.parametrize(
    ("metric", "scores", "told"),
    [("mse", (2.4e-5, 1.4e-4), "-0.000116 (less is better)"), ("accuracy", (0.8, 0.792), "+0.8 points")],
)
def test_controls_tell_differences_of_any_size(metric: str, scores: tuple[float, float], told: str) -> None:
    """Small errors are not rounded to nothing, and of an error less is better."""
    rows = rows_of({"a": [report_of(measured(scores[0], 0.2, 300, 5.0), metric=metric)]}, {}, {})
    rows = (*rows, replace(rows[1], name="c", score=about(scores[1]), control="random structure"))
    (said,) = control_sentences(rows, {("a", "c"): 0.001}, {"a": {"random structure": "c"}})
    assert f"scores {told} against a random one" in said


@pytest.mark.parametrize("theirs", [{"comparison.md": "theirs"}, {"comparison.json": "[1]", "comparison.svg": ""}])
def test_files_of_others_are_not_replaced(tmp_path, fake_run, tiny_workload, theirs: dict[str, str]) -> None:
    """A comparison.md that no comparison wrote is named before any work; beside other files there is room."""
    (tmp_path / "thesis.tex").write_text("theirs")
    for name, content in theirs.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(RunFolderError, match=rf"holds {', '.join(theirs)}, which no comparison wrote"):
        compare(["int8"], tiny_workload, out=tmp_path, progress=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {**theirs, "thesis.tex": "theirs"}
    for name in theirs:
        (tmp_path / name).unlink()
    for _ in range(2):
        compare(["int8"], tiny_workload, out=tmp_path, progress=False)
    assert (tmp_path / "thesis.tex").read_text() == "theirs"


STRUCTURE = (DropBlocks(remove=0.5), FineTune(epochs=2, tail_epochs=0))


def test_every_recipe_with_structure_has_controls(tiny_workload, tmp_path, fake_run) -> None:
    """Each its own training and a random choice of as much, under its seed; equal ones are run once."""
    slow, fast = (report_of(measured(0.8, latency, 300, 1 / latency)) for latency in (0.5, 0.2))
    shared, drawn = "control-training_only-slow", ["control-random_structure-slow", "control-random_structure-fast"]
    fake_run.ends = dict.fromkeys(["slow", "plain", "other", shared, *drawn, "control-training_only-other"], slow)
    fake_run.ends["fast"] = fast
    fake_run.ends["control-random_structure-other"] = slow
    training = FineTune(epochs=1, tail_epochs=0)
    plans = [
        Recipe(name="slow", stages=(DropBlocks(remove=0.3), training), budget=Budget()),
        Recipe(name="fast", stages=(DropBlocks(remove=0.5), training), budget=Budget()),
        Recipe(name="other", stages=(DropBlocks(remove=0.5), training), seed=4),
        named("plain"),
    ]
    comparison = compare(plans, tiny_workload, out=tmp_path)
    controls = {name: asked for name, asked in fake_run.asked.items() if name.startswith("control")}
    assert controls[shared]["stages"] == (training,)
    assert controls[drawn[0]]["stages"] == (DropBlocks(remove=0.3).by_chance(), training)
    assert {name: asked["seed"] for name, asked in controls.items() if asked["seed"]} == {
        "control-training_only-other": 4,
        "control-random_structure-other": 4,
    }
    assert {asked["budget"] for asked in controls.values()} == {None}
    assert comparison.controls["fast"] == {"training only": shared, "random structure": drawn[1]}
    assert "plain" not in comparison.controls
    assert [row.name for row in comparison.rows[5:]] == list(controls)
    assert not any(row.pareto for row in comparison.rows[5:])
    assert list(comparison.reports) == ["slow", "fast", "other", "plain"]
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["rows"][2]["controls"] == comparison.controls["fast"]
    fake_run.asked.clear()
    compare(plans, tiny_workload, out=tmp_path, controls=False)
    assert list(fake_run.asked) == ["slow", "fast", "other", "plain"]


def test_names_of_runs_are_their_own(tiny_workload, tmp_path, fake_run) -> None:
    """A recipe that is called as another one's second seed, as a control or as the store, has a folder of its own."""
    fine = report_of(measured(0.8, 0.2, 300, 5.0))
    fake_run.ends = defaultdict(lambda: fine)
    plans = [
        Recipe(name="a", stages=STRUCTURE),
        named("a-seed_1"),
        named("control-training_only"),
        named("shared"),
    ]
    compare(plans, tiny_workload, out=tmp_path, seeds=2)
    assert len(fake_run.asked) == 12
    assert {"a-seed_1-2", "a-seed_1", "control-training_only-2", "shared-2"} <= fake_run.asked.keys()
    assert fake_run.asked["a-seed_1"]["stages"] == (Quantize(),)


def test_one_comparison_at_a_time_in_a_folder(tiny_workload, tmp_path, fake_run) -> None:
    """A second one is refused, by the process that writes there."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0))}
    with (
        FolderLock(tmp_path),
        pytest.raises(RunFolderError, match="is being written by process"),
    ):
        compare([named("a")], tiny_workload, out=tmp_path)
    assert fake_run.asked == {}


def test_a_control_that_fails_is_told_and_no_failed_recipe(tiny_workload, tmp_path, fake_run) -> None:
    """The comparison stands without it."""
    fine = report_of(measured(0.8, 0.2, 300, 5.0))
    fake_run.ends = {"a": fine, "control-training_only": StageError("no\nluck"), "control-random_structure": fine}
    comparison = compare([Recipe(name="a", stages=STRUCTURE)], tiny_workload, out=tmp_path)
    assert comparison.failures == {}
    assert "control-training_only, training only, failed: StageError: no luck" in comparison.told
    assert [row.name for row in comparison.rows] == ["reference", "a", "control-random_structure"]


def test_seeds_make_one_row_of_several_runs(tiny_workload, tmp_path, fake_run) -> None:
    """Score and drop are means, with the scatter of the seeds in the interval; file and time are the first seed's."""
    scores = {"a": 0.80, "a-seed_8": 0.84, "a-seed_9": 0.82}
    fake_run.ends = {name: report_of(measured(score, 0.2, 300, 5.0)) for name, score in scores.items()}
    (reference, row) = compare([named("a", seed=7)], tiny_workload, out=tmp_path, seeds=3).rows
    assert [asked["seed"] for asked in fake_run.asked.values()] == [7, 8, 9]
    assert (row.seeds, row.score.value, row.seconds) == (3, pytest.approx(0.82), 9.0)
    # Student's t for two degrees of freedom, 4.303, times the standard error 0.02 / sqrt(3), beside the samples' 0.082.
    assert row.score.high - 0.82 == pytest.approx((0.082**2 + (4.3027 * 0.02 / 3**0.5) ** 2) ** 0.5, rel=1e-4)
    assert (row.drop.value, reference.seeds) == (pytest.approx(0.01), 1)
    fake_run.ends["a-seed_9"] = StageError("once")
    failed = compare([named("a", seed=7)], tiny_workload, out=tmp_path, seeds=3)
    assert failed.failures == {"a": "seed 9: StageError: once"}
    assert failed.rows == ()
    with pytest.raises(ValueError, match="seeds counts"):
        compare([named("a")], tiny_workload, out=tmp_path, seeds=0)


def test_seeds_of_which_some_kept_nothing(tiny_workload, tmp_path, fake_run) -> None:
    """Those lost nothing, and the mean says so: half of the 20 points that the other lost."""
    lost = report_of(measured(0.7, 0.2, 300, 5.0))
    lost = replace(lost, steps=(lost.steps[0], replace(lost.steps[1], drop=Estimate(0.2, 0.2, 0.2))))
    nothing = replace(lost, final=0)
    for order in ((lost, nothing), (nothing, lost)):
        fake_run.ends = dict(zip(("a", "a-seed_1"), order, strict=True))
        (_, row) = compare([named("a")], tiny_workload, out=tmp_path, seeds=2).rows
        assert row.drop.value == pytest.approx(0.1)
        assert row.score.value == pytest.approx(0.8)


def test_the_reference_has_no_recipe(tiny_workload, tmp_path, fake_run) -> None:
    """Nor stages, nor a way that led to it."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0))}
    reference = compare([named("a")], tiny_workload, out=tmp_path).rows[0]
    assert (reference.stages, reference.recipe, len(reference.course)) == ((), "", 1)


def test_recipes_may_come_from_a_generator(tiny_workload, tmp_path, fake_run) -> None:
    """Which is read once."""
    fake_run.ends = {"a": report_of(measured(0.8, 0.2, 300, 5.0))}
    assert list(compare((each for each in [named("a")]), tiny_workload, out=tmp_path).reports) == ["a"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"recipes": None}, "a list of recipes, then a workload; got None"),
        ({"workload": "digits"}, "compare takes a Workload, got str"),
        ({"target": "x"}, "target is a Target"),
        ({"seed": -1}, "seed is a whole number, at least 0; got -1"),
        ({"seed": "a"}, "seed is a whole number"),
        ({"store": "x"}, "store is a Store, got 'x'"),
        ({"out": ""}, "out is the folder of the comparison, and '' names nothing"),
        ({"recipes": [named(f"n{number}") for number in range(501)]}, "501 recipes are given, and at most 500"),
        ({"recipes": Recipe.loads_all(SWEPT_SEEDS), "seed": 7}, "seed=7 is one seed for all, and swept-seed_0 is of a"),
    ],
)
def test_what_is_of_another_kind_is_told(tiny_workload, tmp_path, fake_run, asked, says) -> None:
    """Before any work, by its name."""
    given = {"recipes": [named("a")], "workload": tiny_workload, "out": tmp_path, **asked}
    with pytest.raises((WrongUseError, ValueError, TypeError), match=says):
        compare(given.pop("recipes"), given.pop("workload"), **given)
    assert fake_run.asked == {}


def test_no_recipe_takes_the_place_of_a_file_of_the_comparison(tiny_workload, tmp_path, fake_run) -> None:
    """Such a name gets a number."""
    names = ["times.json", "comparison.html", "comparison.json"]
    fake_run.ends = {f"{name}-2": report_of(measured(0.8, 0.2, 300, 5.0)) for name in names}
    comparison = compare([named(name) for name in names], tiny_workload, out=tmp_path)
    assert list(comparison.reports) == [f"{name}-2" for name in names]
    assert json.loads((tmp_path / "comparison.json").read_text())["workload"] == "tiny"


def test_controls_of_another_recipe_give_way(tiny_workload, tmp_path, fake_run) -> None:
    """Their folders are the comparison's own: recipes must agree to a change there, controls do."""
    fine = report_of(measured(0.8, 0.2, 300, 5.0))
    fake_run.ends = {"a": fine, "control-training_only": StageError("no"), "control-random_structure": fine}
    comparison = compare([Recipe(name="a", stages=STRUCTURE)], tiny_workload, out=tmp_path)
    assert {name: asked["accept_changes"] for name, asked in fake_run.asked.items()} == {
        "a": False,
        "control-training_only": True,
        "control-random_structure": True,
    }
    # One that failed has no row, and nothing points to it.
    assert comparison.controls == {"a": {"random structure": "control-random_structure"}}


def test_the_same_bytes_are_timed_once(monkeypatch, tiny_workload) -> None:
    """Two names of one file have one time."""
    asked = []

    def fake(candidate, reference, *_, **__):
        asked.append(candidate)
        return Timing(reference_ms=about(1.0), candidate_ms=about(0.5 + len(asked)), speedup=about(2.0))

    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", fake)
    files = {"a": b"one", "b": b"two", "c": b"one"}
    found = timed_together(files, b"reference", tiny_workload, Target(), Times())
    assert asked == [b"one", b"two"]
    assert found["a"] == found["c"] != found["b"]
