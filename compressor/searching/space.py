"""The space of a search: recipes, what they share, and each of them with less training."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from compressor.comparing.arms import arms_of, named
from compressor.errors import RecipeError, WrongUseError
from compressor.inspection.inspection import Inspection, inspect
from compressor.inspection.recommendation import recommend
from compressor.progress.bars import say
from compressor.recipe.models import data_of
from compressor.recipe.recipe import Recipe
from compressor.recipe.sweeps import name_of
from compressor.recipe.text import to_yaml
from compressor.stage import Effect, Stage
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.distillation import Distill
from compressor.stages.layer_dropping import DropBlocks, drop_count
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.storage import sha256, write_atomic
from compressor.target import Target
from compressor.workload import Workload

# How long trainings are, by the names of their fields.
_LENGTHS = ("epochs", "tail_epochs", "steps")
_SPACES = ("space.yaml", "space-encodings.yaml")
_INT4 = {"quantize": {"weights": {"symmetric": {"bits": 4}}, "rounding": "gptq"}}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One recipe of a space, as it would ship: whole trainings, no budget, for a search judges by its own limits.

    Candidates of one `stem` are the same up to the last stage that is no encoding: they share all training. `epochs`
    is the longest of its trainings, 0 where nothing trains.
    """

    recipe: Recipe
    stem: str
    epochs: int

    def at(self, fraction: float) -> Recipe:
        """The recipe with trainings of about this fraction of their length, at least an epoch, by a name that says so.

        Itself for 1, and where nothing trains.
        """
        stages = tuple(_shortened(stage, fraction) for stage in self.recipe.stages)
        if stages == self.recipe.stages:
            return self.recipe
        longest = max(map(_epochs, stages))
        return replace(self.recipe, name=name_of(self.recipe.name, f"epochs_{longest}"), stages=stages)


def candidates_of(recipes: Sequence[Recipe]) -> list[Candidate]:
    """The recipes as candidates. Raises RecipeError that names those that cannot work, or that no file can hold."""
    plans = named([replace(recipe, budget=None) for recipe in recipes])
    arms_of(plans, seed=None, seeds=1)  # an order of stages that cannot work is refused before any work
    found: dict[str, Candidate] = {}
    for name, plan in plans.items():
        assert isinstance(plan, Recipe)
        recipe = replace(plan, name=name)
        whole = replace(recipe, name="recipe", description="")
        found.setdefault(
            whole.dump(), Candidate(recipe=recipe, stem=_stem(recipe), epochs=max(map(_epochs, recipe.stages)))
        )
    return list(found.values())


def recipes_of(space: Recipe | str | Path | Sequence[Recipe | str | Path]) -> list[Recipe]:
    """All recipes of a space: of files with sweeps, shipped names, or objects."""
    several = isinstance(space, Iterable) and not isinstance(space, str)
    given: list[Any] = list(space) if isinstance(space, Iterable) and several else [space]
    for entry in given:
        if not isinstance(entry, Recipe | str | Path):
            raise TypeError(
                "the space of a search is recipes: names, files or Recipe objects with sweeps, one or several; got a "
                f"{type(entry).__name__}; of a Pipeline, write Recipe.from_pipeline(...)"
            )
    found = [each for entry in given for each in ([entry] if isinstance(entry, Recipe) else Recipe.load_all(entry))]
    if not found:
        raise RecipeError(["a search needs a space: a recipe with sweeps, several recipes, or none for the usual one"])
    return found


def prefixes(recipe: Recipe) -> list[str]:
    """Digests of what each stage of a recipe is and comes after: equal ones are one piece of work."""
    told = [json.dumps(data_of(stage), sort_keys=True) for stage in recipe.stages]
    every = ["\n".join([str(recipe.seed), *told[: number + 1]]) for number in range(len(told))]
    return [sha256(text.encode()) for text in every]


def usual_recipes(folder: Path, workload: Workload, target: Target, *, progress: bool) -> list[Recipe]:
    """The usual space, as it was found when the search began: two files of recipes with sweeps in its folder.

    Raises WrongUseError where nothing of the model can be made smaller.
    """
    first, *others = (folder / name for name in _SPACES)
    if not first.is_file():
        say("looking at the model, for a space of recipes", shown=progress)
        texts = usual_space(workload, target)
        # The first one is written last: where it is, the others are.
        for path, text in reversed(list(zip([first, *others], texts, strict=False))):
            write_atomic(path, text)
    return [recipe for path in (first, *others) if path.is_file() for recipe in Recipe.load_all(path)]


def usual_space(workload: Workload, target: Target) -> list[str]:
    """The space where none is given, as texts of recipes with sweeps: around what `compressor doctor` recommends.

    Several amounts of the structure that the doctor would take, each trained by distillation, in float, 8 and 4 bits;
    then 8 and 4 bits of the model as it is. Nothing in it is chosen by measured times, so that every recipe gives the
    same file again. Raises WrongUseError where nothing of the model can be made smaller.
    """
    inspection = inspect(workload, target=target)
    found = recommend(inspection, target)
    if found is None:
        raise WrongUseError(
            "nothing of this model can be made smaller by the usual stages (`compressor doctor -w ...` says why); give "
            "a space of your own: a recipe with sweeps"
        )
    stages = found.recipe.stages
    training = [data_of(stage) for stage in stages if isinstance(stage, Distill)]
    encodings = ["quantize", _INT4] if any(stage.effect is Effect.ENCODING for stage in stages) else []
    structures = [each for stage in stages for each in _amounts(stage, inspection, target)]
    told: dict[str, list[Any]] = {}
    if structures:
        encoded = [{"sweep": [None, *encodings]}] if encodings else []
        told["auto"] = [{"sweep": structures}, *training, *encoded]
    if encodings:
        told["encoded"] = [{"sweep": encodings}]
    reason = f"What `compressor auto` tries without a space of yours, for {type(workload.model).__name__}."
    return [f"# {reason}\n{to_yaml({'name': name, 'stages': each})}" for name, each in told.items()]


def _amounts(stage: Stage, inspection: Inspection, target: Target) -> Iterator[dict[str, Any]]:
    """Several amounts of the structure that a recommended stage takes, as recipes have them; each takes something."""
    match stage:
        case ShrinkStructure():
            yield from ({"shrink_structure": {"target": {"macs": left}}} for left in (0.6, 0.4, 0.25))
            yield from _block_amounts(inspection)
        case DropBlocks():
            yield from _block_amounts(inspection)
        case PruneChannels():
            widths = [group.width for group in inspection.free_groups]
            for remove in (0.2, 0.4, 0.6, 0.75):
                if any(width * remove >= target.channel_multiple for width in widths):
                    yield {"prune_channels": {"remove": remove}}
        case _:
            return


def _block_amounts(inspection: Inspection) -> Iterator[dict[str, Any]]:
    groups = Counter(block.group for block in inspection.free_blocks)
    known = {(0,) * len(groups)}
    for remove in (0.25, 0.5, 0.75):
        counts = tuple(drop_count(count, remove) for count in groups.values())
        if counts not in known:
            known.add(counts)
            yield {"drop_blocks": {"remove": remove}}


def _stem(recipe: Recipe) -> str:
    kept = [number for number, stage in enumerate(recipe.stages) if stage.effect is not Effect.ENCODING]
    return prefixes(recipe)[kept[-1]] if kept else ""


def _epochs(value: Any) -> int:
    """The longest training in a stage or a value object of it."""
    own = getattr(value, "epochs", None)
    inside = (getattr(value, item.name) for item in fields(value)) if is_dataclass(value) else ()
    return max(own if isinstance(own, int) else 0, *(_epochs(each) for each in inside), 0)


def _shortened(value: Any, fraction: float) -> Any:
    """`value`, a stage or a value object of it, with shorter trainings; whole where it cannot be shorter."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed: dict[str, Any] = {}
    for item in fields(value):
        current = getattr(value, item.name)
        if item.name in _LENGTHS and isinstance(current, int) and hasattr(value, "epochs"):
            least = 0 if item.name == "tail_epochs" else 1
            new: Any = max(least, min(current, round(current * fraction)))
        else:
            new = _shortened(current, fraction)
        if item.init and new != current:
            changed[item.name] = new
    try:
        return replace(value, **changed) if changed else value
    except (TypeError, ValueError):  # other settings of it count on the length
        return value
