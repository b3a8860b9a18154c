"""A tree of recipes: what they begin with is worked once, and every file is the one that its recipe alone gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.comparing.comparison import Comparison, compare
from compressor.errors import StorageError
from compressor.estimate import Estimate
from compressor.measuring.timing import Timing
from compressor.running import applying
from compressor.running.pipeline import Pipeline
from compressor.storage import read_json
from compressor.store.kept import Store, StoreWarning
from workbench.two_layers import Scale, export, small_workload

TREE = [Pipeline([Scale(by=0.5), Scale(by=by), *more]) for by in (2.0, -1.0) for more in ([], [Scale(by=4.0)])]


@pytest.fixture(autouse=True)
def exports(monkeypatch) -> list[str]:
    """Every file that is exported, and times that say the same of the same file, as a quiet machine's would."""
    made: list[str] = []

    def counted(model: Any, workload: Any, *, memory: Any) -> Any:
        made.append(type(model).__name__)
        return export(model, workload, memory=memory)

    def take(candidate: bytes, reference: bytes, *_: Any, **__: Any) -> Timing:
        one, other = (Estimate(value, value, value) for value in (sum(candidate) % 97 + 1.0, sum(reference) % 97 + 1.0))
        ratio = other.value / one.value
        return Timing(reference_ms=other, candidate_ms=one, speedup=Estimate(ratio, ratio, ratio))

    monkeypatch.setattr(applying, "export_onnx", counted)
    monkeypatch.setattr("compressor.measuring.measure.time_interleaved", take)
    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", take)
    return made


def compared(out: Path, **options: Any) -> Comparison:
    return compare(TREE, small_workload(), out=out, progress=False, **options)


def test_shared_stages_are_worked_once_and_give_the_same_bits(tmp_path, exports) -> None:
    """Four recipes of ten stages in all are six pieces of work; each file is that of the recipe run alone."""
    comparison = compared(tmp_path / "all")
    assert len(exports) == 1 + 1 + 2 + 2
    assert [(each.stage, len(each.recipes)) for each in comparison.cost.shared] == [
        ("scale", 4),
        ("scale", 2),
        ("scale", 2),
    ]
    for number, pipeline in enumerate(TREE):
        alone = pipeline.run(small_workload(), out=tmp_path / str(number), progress=False)
        name = [row.name for row in comparison.rows[1:]][number]
        for file in ("model.onnx", "weights.safetensors", "plan.json"):
            assert (tmp_path / "all" / name / file).read_bytes() == (tmp_path / str(number) / file).read_bytes()
        assert comparison.reports[name].shipped.measurement.score == alone.report.shipped.measurement.score
    text = (tmp_path / "all" / "comparison.md").read_text()
    assert "Made once for several recipes: scale" in text
    assert "Scores that share a letter cannot be told apart" in text
    assert [row.alike for row in comparison.rows][:1] == ["a"]


def test_the_same_call_gives_the_same_table(tmp_path, exports) -> None:
    """All of it, times and cost too; also from another folder with the same store, where nothing is worked at all."""
    store = Store(tmp_path / "stages")
    first = {**compared(tmp_path / "a", store=store).to_json(), "busy": ""}
    count = len(exports)
    assert {**compared(tmp_path / "a", store=store).to_json(), "busy": ""} == first
    assert {**compared(tmp_path / "b", store=store).to_json(), "busy": ""} == first
    assert len(exports) == count


@pytest.mark.parametrize("stop", [2, 5])
def test_a_comparison_that_is_cut_short_goes_on(tmp_path, monkeypatch, exports, stop) -> None:
    """Ended while any of its files is exported, it ends with the table of one that was not, and works nothing twice."""
    whole = compared(tmp_path / "whole").to_json()
    exports.clear()
    real = applying.export_onnx

    def cut(*given: Any, **options: Any) -> Any:
        if len(exports) == stop:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(applying, "export_onnx", cut)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "cut")
    monkeypatch.setattr(applying, "export_onnx", real)
    found = compared(tmp_path / "cut").to_json()
    assert len(exports) == 6
    for one in (found, whole):
        for row in one["rows"]:
            del row["seconds"]
        one["cost"] = [(each["stage"], each["recipes"]) for each in one["cost"]["shared"]]
        one["conclusions"] = [text for text in one["conclusions"] if "The stages took" not in text]
    assert {**found, "busy": ""} == {**whole, "busy": ""}


def test_a_damaged_shared_stage_is_made_again(tmp_path, exports) -> None:
    """The recipes that had it keep theirs; one that comes later makes it anew, and all is told."""
    compared(tmp_path / "a")
    (folder,) = [path.parent for path in (tmp_path / "a" / "shared").glob("*/*/entry.json") if _first_scale(path)]
    (folder / "model.onnx").write_bytes(b"")
    shutil.rmtree(tmp_path / "a" / "scale-scale-2")
    exports.clear()
    with pytest.warns(StoreWarning, match=r"model\.onnx is not the file that was written"):
        comparison = compared(tmp_path / "a")
    assert comparison.failures == {}
    assert len(exports) == 1


def _first_scale(entry: Path) -> bool:
    saved = read_json(entry)
    return saved["stage"] == "scale" and saved["facts"]["details"].get("told") == [0.5]


def test_a_store_of_others_is_refused_before_any_work(tmp_path, exports) -> None:
    """Where the comparison would keep its stages somebody else has files: it says so, and nothing was run."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "thesis.tex").write_text("theirs")
    with pytest.raises(StorageError, match="holds other things"):
        compared(tmp_path)
    assert exports == []
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_recipe_that_always_fails_leaves_the_others(tmp_path, exports) -> None:
    """It is listed with its stage; what it shared with the others stays shared."""
    broken = Pipeline([Scale(by=0.5), Scale(by=float("nan"))])
    comparison = compare([TREE[0], broken], small_workload(), out=tmp_path, progress=False)
    assert list(comparison.failures) == ["scale-scale-2"]
    assert "stage 2, scale" in comparison.failures["scale-scale-2"]
    assert [row.name for row in comparison.rows] == ["reference", "scale-scale"]
    assert comparison.cost.shared[0].recipes == ("scale-scale", "scale-scale-2")
