"""Optuna's order of trials: asked and told, and its study made anew from the files. Run where Optuna is installed."""

from importlib.util import find_spec

import pytest

from compressor.errors import WrongUseError
from compressor.recipe.recipe import Recipe
from compressor.searching.sampler import Optuna, choices_of
from compressor.searching.search import search
from compressor.searching.space import candidates_of
from workbench.searches import FakeRuns
from workbench.two_layers import small_workload

NEEDED = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed: the extra `search`")
SPACE = """
name: space
stages:
  - sweep:
      - prune_channels: {remove: {sweep: [0.1, 0.3, 0.5, 0.7, 0.9]}}
      - drop_blocks: {remove: 0.5}
  - distill: {epochs: {sweep: [3, 9]}, tail_epochs: 0}
  - sweep: [null, quantize]
"""


def found(out, **changes):
    recipes = Recipe.loads_all(SPACE)
    return search(small_workload(), recipes, out=out, progress=False, max_drop=0.1, rungs=1, trials=16, **changes)


def names(result) -> list[str]:
    return [trial.recipe_name for trial in result.trials]


def test_choices_are_told_by_place() -> None:
    """What each sweep chose; the name alone where nothing was swept."""
    candidates = candidates_of(Recipe.loads_all(SPACE))
    assert choices_of(candidates[0]) == {
        "stages.0": "{prune_channels: {remove: {sweep: [0.1, 0.3, 0.5, 0.7, 0.9]}}}",
        "stages.0.prune_channels.remove": "0.1",
        "stages.1.distill.epochs": "3",
        "stages.2": "null",
    }
    assert choices_of(candidates_of([Recipe.loads("name: int8\nstages: [quantize]")])[0]) == {"recipe": "int8"}


@pytest.mark.skipif(find_spec("optuna") is not None, reason="optuna is installed")
def test_without_optuna_the_way_out_is_told() -> None:
    with pytest.raises(WrongUseError, match=r"torch-compressor\[search\]"):
        Optuna()


@NEEDED
@pytest.mark.filterwarnings("ignore")
def test_a_study_is_made_anew_after_a_kill(tmp_path, fake_runs: FakeRuns) -> None:
    """Stopped after ten trials, eight of them by chance: the same sixteen in the same order, by what was told."""
    whole = found(tmp_path / "whole", sampler=Optuna(3))
    fake_runs.asked, fake_runs.stop_after = [], 10
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "cut", sampler=Optuna(3))
    fake_runs.stop_after = None
    again = found(tmp_path / "cut", sampler=Optuna(3))
    assert names(again) == names(whole)
    assert len(set(names(whole))) == 16
    assert names(found(tmp_path / "other", sampler=Optuna(4))) != names(whole)
