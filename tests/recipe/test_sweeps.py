"""Sweeps: one file, several recipes, with names, lines and limits."""

from itertools import islice
from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.recipe.recipe import Recipe
from compressor.recipe.text import parse

TREE = """\
# Twelve of them.
name: tree
stages:
  - sweep:
      - prune_channels: {remove: 0.4}
      - drop_blocks: {remove: 0.5}
  - sweep: [distill, {fine_tune: {epochs: 2}}]
  - sweep:
      - null
      - quantize
      - quantize: {weights: {symmetric: {bits: 4}}}
"""


def names(text: str, **options) -> list[str]:
    return [recipe.name for recipe in Recipe.loads_all(text, **options)]


def test_every_combination_has_a_name() -> None:
    """Two structures, two trainings and three forms are twelve recipes; null leaves the stage out."""
    found = Recipe.loads_all(TREE)
    assert len(found) == len({recipe.name for recipe in found}) == 12
    assert [recipe.name for recipe in found[:3]] == [
        "tree-prune_channels_remove_0.4-distill-without",
        "tree-prune_channels_remove_0.4-distill-quantize",
        "tree-prune_channels_remove_0.4-distill-quantize_bits_4",
    ]
    assert [len(recipe.stages) for recipe in found] == [2, 3, 3] * 4
    assert found[-1].choices == (
        "stages.0={drop_blocks: {remove: 0.5}}",
        "stages.1={fine_tune: {epochs: 2}}",
        "stages.2={quantize: {weights: {symmetric: {bits: 4}}}}",
    )
    assert {recipe.description for recipe in found} == {"Twelve of them."}
    for recipe in found:
        assert Recipe.loads(recipe.dump()) == recipe


def test_values_of_stages_budget_and_seed() -> None:
    """Keys say which value it is; where two sweeps share a key, the stage stands before it."""
    stages = "stages: [drop_blocks: {remove: {sweep: [0.3, 0.5]}}]"
    text = f"budget: {{max_drop: {{sweep: [0.01, null]}}}}\nseed: {{sweep: [0, 1]}}\n{stages}"
    found = Recipe.loads_all(text)
    assert len(found) == 8
    assert found[0].name == "recipe-max_drop_0.01-seed_0-remove_0.3"
    assert (found[-1].budget.max_drop, found[-1].seed, found[-1].stages[0].remove) == (None, 1, 0.5)
    two = "stages: [prune_channels: {remove: {sweep: [0.3]}}, drop_blocks: {remove: {sweep: [0.2, 0.5]}}]"
    assert names(two)[0] == "recipe-prune_channels.remove_0.3-drop_blocks.remove_0.2"


def test_a_sweep_in_a_sweep_is_a_tree() -> None:
    """A stage that is one of several may have a sweep of its own."""
    text = "stages: [{sweep: [distill, {fine_tune: {epochs: {sweep: [1, 2]}}}]}, quantize]"
    found = Recipe.loads_all(text)
    assert [type(recipe.stages[0]).__name__ for recipe in found] == ["Distill", "FineTune", "FineTune"]
    assert [recipe.stages[0].epochs for recipe in found[1:]] == [1, 2]
    assert len({recipe.name for recipe in found}) == 3
    # A stage's name is not followed by the values that its own sweep goes through.
    assert [recipe.name for recipe in found] == [
        "recipe-distill",
        "recipe-fine_tune-epochs_1",
        "recipe-fine_tune-epochs_2",
    ]
    beside = (
        "stages: [{sweep: [{prune_channels: {remove: {sweep: [0.2, 0.4]}, align: 8}}, {drop_blocks: {remove: 0.5}}]}]"
    )
    assert names(beside)[1:] == ["recipe-prune_channels_align_8-remove_0.4", "recipe-drop_blocks_remove_0.5"]


def test_a_recipe_without_sweeps_is_one() -> None:
    """Nothing changes for it: its name, its choices, a shipped one."""
    (found,) = Recipe.loads_all("name: one\nstages: [quantize]")
    assert (found.name, found.choices) == ("one", ())
    assert [recipe.name for recipe in Recipe.load_all("int8")] == ["int8"]


def test_overrides_make_and_settle_sweeps() -> None:
    """`--set` may bring a sweep, and may choose from one; what it brings wrong is told by the override."""
    plain = "stages: [drop_blocks: {remove: 0.5}]"
    assert names(plain, overrides=["stages.0.remove={sweep: [0.3, 0.4]}"]) == ["recipe-remove_0.3", "recipe-remove_0.4"]
    swept = "stages: [drop_blocks: {remove: {sweep: [0.3, 0.5]}}]"
    assert Recipe.loads(swept, overrides=["stages.0.remove=0.3"]).stages[0].remove == 0.3
    with pytest.raises(RecipeError, match=r"^--set stages\.0\.remove=\{sweep: \[0\.3, yes\]\}: .*number"):
        names(plain, overrides=["stages.0.remove={sweep: [0.3, yes]}"])


def test_one_recipe_is_wanted_where_one_is_run(tmp_path: Path) -> None:
    """`load` refuses a sweep with its line, its place, and both ways out."""
    path = tmp_path / "swept.yaml"
    path.write_text("stages:\n  - drop_blocks:\n      remove: {sweep: [0.3, 0.5]}\n  - quantize\n")
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    (told,) = error.value.errors
    assert told == (
        f"{path}:3: stages.0.drop_blocks.remove is a sweep of 2 values, and one recipe is wanted here, not 2: "
        f"`compressor compare {path}` runs them all, --set stages.0.drop_blocks.remove=... chooses one"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stages: [drop_blocks: {remove: {sweep: 0.3}}]", "1: stages.0.drop_blocks.remove is a sweep without a list"),
        ("stages: [drop_blocks: {remove: {sweep: []}}]", "a sweep without a list of values"),
        ("stages: [drop_blocks: {remove: {sweep: [0.3, 0.3]}}]", "names a value twice"),
        ("stages: {sweep: [[quantize]]}", "stages cannot be a sweep"),
        ("name: {sweep: [a, b]}\nstages: [quantize]", "1: name cannot be a sweep"),
        ("threads: {sweep: [1, 2]}\nstages: [quantize]", "threads cannot be a sweep"),
        ("sweep: [1]", "the recipe cannot be a sweep"),
        (
            f"seed: {{sweep: {[*range(200)]}}}\nstages: [drop_blocks: {{remove: {{sweep: [0.1, 0.2, 0.3]}}}}]",
            "1: the sweeps make 600 recipes, and at most 500 are compared",
        ),
        ("stages:\n- drop_blocks:\n    remove:\n      sweep:\n      - 0.3\n      - half\n", "recipe.yaml:6: "),
        ("stages:\n- quantize\n- sweep:\n  - quantise\n  - distill\n", "recipe.yaml:4: unknown stage 'quantise'"),
        ("stages:\n- sweep: [null, distill]\n- fine_tune: {epochs: x}\n", "recipe.yaml:3: "),
        ("stages:\n- sweep: [null, distill]\n", "give at least 1"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text: str, told: str) -> None:
    """Sweeps without values, in wrong places, too many; and wrong values in them, by the line they stand in, once."""
    with pytest.raises(RecipeError) as error:
        Recipe.loads_all(text)
    assert len(error.value.errors) == 1
    assert told in error.value.errors[0]


def test_long_names_end_in_a_digest() -> None:
    """Names stay words of at most 100 characters, and differ."""
    dropped = "drop_blocks: {remove: {sweep: [0.301, 0.302]}, batches: {sweep: [11, 12]}}"
    text = f"name: {'n' * 70}\nstages: [{dropped}, prune_channels: {{remove: {{sweep: [0.1, 0.2]}}}}]"
    found = names(text)
    assert len(set(found)) == 8
    assert max(map(len, found)) == 100
    for name in islice(found, 2):
        Recipe.loads(f"name: {name}\nstages: [quantize]")


def test_a_million_combinations_are_counted_not_made() -> None:
    """The limit is found before anything is built."""
    values = ", ".join(str(number / 100) for number in range(1, 60))
    text = "\n".join(["stages:", *[f"- drop_blocks: {{remove: {{sweep: [{values}]}}}}" for _ in range(6)]])
    assert parse(text, "x").data["stages"]
    with pytest.raises(RecipeError, match=f"make {59**6} recipes"):
        Recipe.loads_all(text)
