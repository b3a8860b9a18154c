"""The benchmark of comparisons: what it counts, that it goes on, and that its recipes can be read."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks.compare import tree
from benchmarks.documents import comparing_page
from compressor import Pipeline, Recipe
from compressor.storage import read_json


@pytest.mark.parametrize("name", list(tree.SETS))
def test_each_set_has_twelve_recipes(name: str) -> None:
    """By names that differ; those of the second set share all but the last stage."""
    recipes = Recipe.loads_all(tree.SETS[name].format(epochs=2))
    assert len({recipe.name for recipe in recipes}) == 12
    assert len({recipe.stages[:2] for recipe in recipes}) == (4 if name == "every combination" else 1)


def test_seconds_and_files(tmp_path, monkeypatch, small_workload) -> None:
    """A comparison of 4 seconds against two runs of 5: 0.4 of both, 0.8 of one; a file that differs is counted out."""
    clock = iter([0.0, 4.0, 10.0, 15.0, 20.0, 25.0])
    spent = iter([0.0, 3.0, 3.0, 5.0, 5.0, 7.0])
    monkeypatch.setattr(tree, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(tree, "processor_seconds", lambda: next(spent))

    def compared(recipes, workload, *, out, controls):
        assert not controls
        for recipe in recipes:
            _leave(out / recipe.name, recipe.name.encode())
        return SimpleNamespace(failures={})

    def run(self, workload, *, out, seed):
        _leave(out, b"another" if out.name == "b" else out.name.encode())

    monkeypatch.setattr(tree, "compare", compared)
    monkeypatch.setattr(Pipeline, "run", run)
    recipes = [Recipe.loads(f"name: {name}\nstages: [quantize]") for name in "ab"]
    found = tree.measured("every combination", recipes, small_workload, tmp_path, alone=2)
    assert (found["seconds"]["of_one_by_one"], found["seconds"]["of_one"], found["same_files"]) == (0.4, 0.8, 1)
    assert (found["cpu_seconds"]["of_one_by_one"], found["cpu_seconds"]["of_one"]) == (0.75, 1.5)
    # All of it is kept: the clock, which has run out, is not asked again.
    assert tree.measured("every combination", recipes, small_workload, tmp_path, alone=2) == found
    assert "0.40x all one by one (at most 0.4x wanted), 0.75x by the processor; 1 of 2 files the same" in tree.line(
        found
    )


def test_a_set_is_stored_beside_the_other(tmp_path, monkeypatch, small_workload) -> None:
    """Two processes work one set each, each as long as it was asked; what is asked again takes its own place."""
    numbers = {"of_one_by_one": 0.4, "of_one": 1.5, "together": 4.0}

    def measured(name: str, *_: object, alone: int) -> dict[str, object]:
        row = {"set": name, "recipes": 12, "goal": 1.6, "alone": alone, "same_files": alone}
        return {**row, "seconds": numbers, "cpu_seconds": numbers}

    monkeypatch.setattr(tree, "measured", measured)
    monkeypatch.setitem(tree.WORKLOADS, "tiny", lambda _: small_workload)
    result = tmp_path / "compare.json"
    for asked in (["--sets", "one beginning", "--alone", "3"], ["--sets", "every combination", "--epochs", "1"], []):
        monkeypatch.setattr("sys.argv", ["tree", "--workload", "tiny", "--result", str(result), *asked])
        tree.main()
        if asked:
            last = {found["set"]: (found["epochs"], found["alone"]) for found in read_json(result)["sets"]}
    assert last == {"every combination": (1, 12), "one beginning": (3, 3)}
    assert [found["epochs"] for found in read_json(result)["sets"]] == [3, 3]
    assert read_json(result)["sets"][0]["environment"]["threads"] == torch.get_num_threads()


def test_some_alone_tell_how_many_times_one_recipe(tmp_path, monkeypatch, small_workload) -> None:
    """And nothing of all one by one, which did not run."""

    def compared(recipes, workload, *, out, controls):
        for recipe in recipes:
            _leave(out / recipe.name, recipe.name.encode())
        return SimpleNamespace(failures={})

    spent = count(1)
    monkeypatch.setattr(tree, "processor_seconds", lambda: next(spent))
    monkeypatch.setattr(tree, "compare", compared)
    monkeypatch.setattr(Pipeline, "run", lambda self, workload, *, out, seed: _leave(out, out.name.encode()))
    recipes = [Recipe.loads(f"name: {name}\nstages: [quantize]") for name in "abc"]
    found = tree.measured("one beginning", recipes, small_workload, tmp_path, alone=2)
    assert (found["alone"], found["same_files"]) == (2, 2)
    assert set(found["seconds"]) == {"together", "one", "of_one"}
    assert tree.line(found).endswith("2 of 2 files the same")


def test_the_page_tells_seconds_of_the_processor() -> None:
    """A row for each set: as many times one recipe, and the part of all of them where all were run."""
    spent = {"together": 1300.0, "one": 400.0, "of_one": 3.25}
    row = {"workload": "resnet20", "epochs": 3, "images": 12_500, "alone": 3, "same_files": 3, "cpu_seconds": spent}
    whole = {"cpu_seconds": {**spent, "one_by_one": 4000.0, "of_one_by_one": 0.325}, "alone": 12, "same_files": 11}
    sets = [{**row, **whole, "set": "every combination"}, {**row, "set": "one beginning", "workload": "digits"}]
    page = comparing_page.page("before\n<!-- saved -->\nformer\n<!-- /saved -->\nafter", {"sets": sets})
    assert "former" not in page
    assert (
        "| resnet20 | 3 epochs of 12,500 images | 1,300 s | 400 s: 3.25x of it | 4,000 s: 0.33x of it | 11 of 12 |"
        in page
    )
    assert "| digits | 3 epochs | 1,300 s | 400 s: 3.25x of it | not run | 3 of 3 |" in page


def _leave(folder, content: bytes) -> None:
    folder.mkdir(parents=True)
    for file in ("model.onnx", "weights.safetensors", "plan.json"):
        (folder / file).write_bytes(content)
