"""The benchmark of searches: its grid, what it counts, and that a search on it is cheaper than the grid."""

import pytest

from benchmarks.compare import search as bench
from benchmarks.documents import searching_page
from compressor import Recipe
from compressor.searching.space import candidates_of
from workbench.searches import FakeRuns, fake_runs  # noqa: F401 - pytest finds fixtures by their names here
from workbench.two_layers import small_workload


@pytest.mark.parametrize("workload", list(bench.WORKLOADS))
def test_the_grid_has_48_recipes_of_16_stems(workload: str) -> None:
    """Eight structures, two trainings, three forms, by names that differ."""
    recipes = Recipe.loads_all(bench.SPACE.format(epochs=9, **bench.STRUCTURES[workload]))
    assert len({recipe.name for recipe in recipes}) == 48
    assert len({each.stem for each in candidates_of(recipes)}) == 16


@pytest.mark.usefixtures("fake_runs")
@pytest.mark.slow
def test_shares_of_volume_and_work(tmp_path) -> None:
    """On runs that take no time: nine stages of nine epochs against fewer, and a volume that is most of the grid's."""
    text = """
    name: grid
    stages:
      - prune_channels: {remove: {sweep: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}}
      - distill: {epochs: 9, tail_epochs: 0}
      - sweep: [null, quantize]
    """
    found = bench.measured(small_workload(), Recipe.loads_all(text), tmp_path, etas=(3, 4))
    three, four = found["searches"]
    # Nine stems for an epoch, three for three, one for nine, of nine for nine; then three for two.
    assert three["epochs_of_training"] == pytest.approx((9 * 1 + 3 * 3 + 1 * 9) / 81, abs=1e-4)
    assert four["epochs_of_training"] == pytest.approx((9 * 1 + 3 * 2 + 1 * 9) / 81, abs=1e-4)
    assert three["work"] == pytest.approx(27 / 81, abs=1e-4)
    assert three["trials"] > 9
    assert 0.5 < three["random_volume"] <= 1
    assert 0.5 < three["volume"] <= 1
    assert "of the volume of 18 recipes" in bench.line(found)
    # What has ended is on disk: the same again, without a run that is new.
    again = bench.measured(small_workload(), Recipe.loads_all(text), tmp_path, etas=(3, 4))
    assert again["searches"][0]["volume"] == three["volume"]


def test_the_page_tells_shares() -> None:
    """Of every search, of random recipes at its cost, and of the shipped ones, by hand."""
    row = {
        "recipe": "int8",
        "volume": 0.2,
        "work": 0.01,
        "beaten_by_the_search": True,
        "beats_all_of_the_search": False,
    }
    search = {"eta": 3, "trials": 60, "volume": 0.981, "work": 0.21, "epochs_of_training": 0.2, "random_volume": 0.8}
    result = {
        "workload": "digits", "recipes": 48, "grid_minutes": 20.4, "searches": [search], "goals": bench.GOALS,
        "shipped": [row], "shipped_volume": 0.2, "shipped_work": 0.01,
    }  # fmt: skip
    page = searching_page.page("before\n<!-- results -->\nformer\n<!-- /results -->\nafter", result)
    assert "former" not in page
    assert "| `eta=3`, 60 trials | 98.1 % | 21.0 % | 20.0 % | 80.0 % |" in page
    assert "the best of them, `int8`, to 20.0 % for 1.0 %." in page
    assert "`make bench-search`: 48 recipes for digits, each run whole" in page
    other = {**result, "workload": "resnet20", "images": 6000}
    assert "48 recipes for resnet20, trained on 6,000 images, each" in searching_page.page(page, result, other)
    assert len(searching_page.section({key: result[key] for key in result if "shipped" not in key})) == 7
