"""A recipe: an ordered list of stages with a seed and a budget, as data. It names no model and no dataset.

```yaml
# Small and fast on CPUs, for residual CNNs.
name: drop_blocks_distill_int8
budget: {max_drop: 0.02}
stages:
  - drop_blocks: {remove: 0.5}
  - distill: {epochs: 8, temperature: 4}
  - quantize
```
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, create_model

from compressor.budget import Budget
from compressor.checks import as_path, did_you_mean
from compressor.errors import LONGEST_REASON, RecipeError, bounded
from compressor.evaluations.catalogue import EVALUATIONS
from compressor.evaluations.evaluation import Evaluation
from compressor.plugins import STAGES, reasons, usable
from compressor.recipe import open_values, sweeps
from compressor.recipe.models import (
    SETTINGS_CONFIG,
    check_writable,
    data_of,
    fields_of,
    installed,
    list_of,
    model_of,
    named,
    reachable,
)
from compressor.recipe.overrides import override_
from compressor.recipe.problems import dotted, explain
from compressor.recipe.shipped import shipped_recipes
from compressor.recipe.text import LARGEST_BYTES, Document, Place, leading_comment, parse, to_yaml
from compressor.stage import Stage, stage_name
from compressor.stages import catalogue
from compressor.target import Target

__all__ = ["Recipe", "RecipeError", "shipped_recipes"]

# Characters of a wrong name that an error repeats.
_LONGEST_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a pipeline is made of. `name` is one word, as runs are filed under it.

    `description` says what the recipe is for: the comment that the file begins with, unless it has the key.
    `batch_size` and `threads`, where given, are the load to measure under; None leaves it to the caller. `choices` are
    the values that sweeps of its file were given here, as `--set` takes them. `evaluations` are asked of every stage's
    file, for the report.
    """

    stages: tuple[Stage, ...]
    name: str = "recipe"
    description: str = ""
    budget: Budget | None = None
    seed: int = 0
    batch_size: int | None = None
    threads: int | None = None
    choices: tuple[str, ...] = field(default=(), compare=False)
    evaluations: tuple[Evaluation, ...] = ()

    @classmethod
    def load(cls, source: str | Path, *, overrides: Iterable[str] = (), student: str | None = None) -> Self:
        """The recipe in a YAML file, or the shipped one of that name (`prune_distill_int8`).

        `overrides` are `path=value` as in `with_overrides`, applied before anything is checked. `student`,
        "package.module:function", goes where the recipe leaves one open, `student: <my_models:small>`, else into its
        first `distill`. Raises RecipeError with every reason and its line, also for what is left open.
        """
        text, named = _text_of(source)
        return cls._one(parse(text, named), named, overrides, student)

    @classmethod
    def loads(cls, text: str, *, source: str = "recipe.yaml", overrides: Iterable[str] = ()) -> Self:
        """The recipe in YAML text; `source` names it in errors. Raises RecipeError."""
        return cls._one(parse(text, source), source, overrides)

    @classmethod
    def load_all(cls, source: str | Path, *, overrides: Iterable[str] = (), student: str | None = None) -> list[Self]:
        """All recipes of a file or a shipped name: several where values are sweeps, `remove: {sweep: [0.3, 0.5]}`.

        Each has a name of its own and its `choices`. Raises RecipeError as `load`, and for more than 500.
        """
        text, named = _text_of(source)
        return cls._all(parse(text, named), named, overrides, student)

    @classmethod
    def asks_for_student(cls, source: str | Path) -> bool:
        """Whether the recipe in a file or of a shipped name leaves a student open. Raises RecipeError if it is none."""
        text, named = _text_of(source)
        places = (place for place, _ in open_values.open_values(parse(text, named).data))
        return any(place[-1] == "student" for place in places)

    @classmethod
    def loads_all(cls, text: str, *, source: str = "recipe.yaml", overrides: Iterable[str] = ()) -> list[Self]:
        """All recipes in YAML text, as `load_all`; `source` names it in errors."""
        return cls._all(parse(text, source), source, overrides)

    @classmethod
    def from_pipeline(cls, pipeline: Any, *, name: str = "recipe", description: str = "") -> Self:
        """The recipe of a pipeline: its stages and its budget."""
        return cls(
            name=name,
            description=description,
            stages=tuple(pipeline.stages),
            budget=pipeline.budget,
            evaluations=tuple(pipeline.evaluations),
        )

    def with_overrides(self, overrides: Iterable[str]) -> Self:
        """The recipe with values replaced: `seed=3`, `budget.max_drop=0.01`, `stages.0.remove=0.3` (counted from 0).

        The stage's name may be in the path or left out. Raises RecipeError naming the override.
        """
        return type(self).loads(self.dump(), source=self.name, overrides=overrides)

    def dump(self) -> str:
        """The YAML text of the recipe, without what is at its default; `loads` gives an equal recipe back.

        Raises ValueError where a stage holds what YAML cannot (a teacher module) or is not in the catalogue.
        """
        known = catalogue()
        for stage in self.stages:
            if known.get(stage_name(stage)) is not type(stage):
                raise ValueError(
                    f"{type(stage).__name__} is not in the catalogue, so no recipe can name it; "
                    + reasons().get(stage_name(stage), f'join with an entry point in the group "{STAGES}"')
                )
        data: dict[str, Any] = {"name": self.name}
        data |= {"seed": self.seed} if self.seed else {}
        data |= {key: value for key in ("batch_size", "threads") if (value := getattr(self, key)) is not None}
        if self.budget is not None:
            data["budget"] = fields_of(self.budget)
        if self.evaluations:
            data["evaluations"] = [data_of(evaluation) for evaluation in self.evaluations]
        comment = "".join(f"# {line}".rstrip() + "\n" for line in self.description.splitlines())
        if leading_comment(comment) != self.description or not all(map(str.isprintable, comment.splitlines())):
            data["description"], comment = self.description, ""
        return comment + to_yaml({**data, "stages": [data_of(stage) for stage in self.stages]})

    def target(self, *, batch_size: int | None = None, threads: int | None = None) -> Target:
        """The target to measure on: the arguments first, then the recipe's own load, then one sample and one thread."""
        return Target(batch_size=batch_size or self.batch_size or 1, threads=threads or self.threads or 1)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON schema of recipes, with the stages that are installed here: editors complete and check with it."""
        schema: dict[str, Any] = _model().model_json_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @classmethod
    def _all(cls, document: Document, source: str, overrides: Iterable[str], student: str | None = None) -> list[Self]:
        """The recipes in `document`: one, or as many as its sweeps make."""
        data = {} if document.data is None else document.data
        errors = [(line, f"{source}:{line}: {message}") for line, message in document.problems]
        refused = {line for line, _ in document.problems}
        if not isinstance(data, dict):
            raise RecipeError([f"{source}:1: a recipe is a mapping with the key 'stages', got {type(data).__name__}"])
        if document.data is None:
            raise RecipeError([f"{source}:1: the recipe is empty; it needs at least `stages:` with one stage"])
        origins: dict[Place, str] = {}
        for override in overrides:
            try:
                origins[override_(data, override)] = f"--set {override}"
            except ValueError as error:
                errors.append((0, f"--set {bounded(override, LONGEST_REASON)}: {error}"))
        if student is not None:
            try:
                place = open_values.teach_(data, student, name=str(data.get("name", _name_of(source))))
                origins[place] = f"--student {student}"
            except ValueError as error:
                errors.append((0, str(error)))
        wrong = [*sweeps.problems(data), *open_values.problems(data)]
        errors += [_located(place, message, document, source, origins) for place, message in wrong]
        recipes = []
        for variant in [] if wrong else sweeps.variants(document):
            try:
                recipes.append(cls._of(variant, source))
            except ValidationError as error:
                kinds = {**reachable({**catalogue(), **EVALUATIONS, "budget": Budget})}
                known = _moved(origins, variant)
                for place, message in explain(error, variant.document.data, kinds, _top_keys()):
                    told = message.replace(dotted(place), dotted(variant.place_before(place)))
                    found = _located(place, told, variant.document, source, known)
                    # What was refused reads as nothing: that it is missing says no more.
                    if found[0] not in refused or not message.endswith("got nothing"):
                        errors.append(found)
        if errors:
            raise RecipeError([text for _, text in sorted(set(errors))])
        return recipes

    @classmethod
    def _one(cls, document: Document, source: str, overrides: Iterable[str], student: str | None = None) -> Self:
        found = cls._all(document, source, overrides, student)
        swept = [(place, values) for place, values in sweeps.sweeps_in(document.data) if sweeps.SWEEP not in place]
        if swept:
            raise RecipeError(
                [
                    f"{source}:{document.lines.get(place, 1)}: {dotted(place)} is a sweep of {len(values)} values, and "
                    f"one recipe is wanted here, not {len(found)}: `compressor compare {source}` runs them all, "
                    f"--set {dotted(place)}=... chooses one"
                    for place, values in swept
                ]
            )
        return found[0]

    @classmethod
    def _of(cls, variant: sweeps.Variant, source: str) -> Self:
        model = _model().model_validate(variant.document.data)
        given = {name: getattr(model, name) for name in model.model_fields_set}
        given["name"] = sweeps.name_of(given.get("name", _name_of(source)), variant.suffix)
        given.setdefault("description", variant.document.comment)
        given["evaluations"] = tuple(given.get("evaluations") or ())
        return cls(**{**given, "stages": tuple(given["stages"]), "choices": variant.choices})


def _moved(origins: dict[Place, str], variant: sweeps.Variant) -> dict[Place, str]:
    """Which override brought what, by places in `variant`."""
    return {
        place: override
        for place, old in variant.before.items()
        for changed, override in origins.items()
        if old[: len(changed)] == changed
    }


def _text_of(source: str | Path) -> tuple[str, str]:
    """The text of a recipe's file, and the file's name for errors."""
    path = _find(source)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            size = max(len(raw), path.stat().st_size)
            raise RecipeError([f"{path}:1: a recipe has at most {LARGEST_BYTES} bytes, this file has {size}"])
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}:1: not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except OSError as error:
        raise RecipeError([f"{path}:1: cannot be read: {error.strerror}"]) from error
    return text, str(path)


def _find(source: str | Path) -> Path:
    path, shipped = as_path(source, "a recipe is loaded by its name or its file"), shipped_recipes()
    shown = str(source) if len(str(source)) <= _LONGEST_SHOWN else f"{str(source)[:_LONGEST_SHOWN]}..."
    try:
        mode = path.stat().st_mode if str(source) else None
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:  # a name too long, with a null character, or below a file
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError([f"no recipe {shown!r}: {reason} (shipped: {', '.join(shipped)})"]) from error
    if mode is not None and stat.S_ISREG(mode):
        return path
    if isinstance(source, str) and source in shipped:
        return shipped[source]
    if mode is not None:
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise RecipeError([f"{shown} is {what}; a recipe is a YAML file, or a shipped one: {', '.join(shipped)}"])
    if path.suffix or os.sep in str(source):
        raise RecipeError([f"{shown}:1: no such file; shipped recipes: {', '.join(shipped)}"])
    raise RecipeError([f"no recipe {shown!r}{did_you_mean(source, shipped)} (shipped: {', '.join(shipped)})"])


def _name_of(source: str) -> str:
    word = "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in Path(source).stem)
    return word.lstrip("_.-") or "recipe"


def _model() -> type[BaseModel]:
    # What recipes may hold changes with what is installed.
    return _model_of(tuple(usable(catalogue(), STAGES, check_writable).items()), installed())


@lru_cache(maxsize=4)
def _model_of(kinds: tuple[tuple[str, type[Any]], ...], _: tuple[tuple[type[Any], ...], ...]) -> type[BaseModel]:
    count = Annotated[int, Field(ge=1)]
    one_word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    stages: Any = Annotated[list_of(named(dict(kinds))), Field(min_length=1)]
    model: type[BaseModel] = create_model(
        "Recipe",
        __config__=SETTINGS_CONFIG,
        __doc__="An ordered list of stages with a seed and a budget.",
        name=(one_word, "recipe"),
        description=(str, ""),
        seed=(Annotated[int, Field(ge=0)], 0),
        batch_size=(count | None, None),
        threads=(count | None, None),
        budget=(model_of(Budget) | None, None),
        evaluations=(list_of(named(EVALUATIONS)) | None, None),
        stages=(stages, ...),
    )
    return model


def _top_keys() -> Sequence[str]:
    return list(_model().model_fields)


def _located(place: Place, message: str, document: Document, source: str, origins: dict[Place, str]) -> tuple[int, str]:
    """(line, text) of an error: the override that brought the value, or the line it stands in."""
    for changed, override in origins.items():
        inside, above = place[: len(changed)] == changed, changed[: len(place)] == place
        if inside or (above and place not in document.lines):
            return 0, f"{override}: {message}"
    while place not in document.lines:
        place = place[:-1]
    line = document.lines[place]
    return line, f"{source}:{line}: {message}"
