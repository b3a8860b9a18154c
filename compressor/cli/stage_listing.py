"""The catalogue of stages for people and programs: what each does, its parameters, their types and defaults."""

import dataclasses
import inspect
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from compressor.plugins import STAGES, usable
from compressor.recipe.models import data_of, default_of, options, reachable, settings, type_text
from compressor.stage import stage_name
from compressor.stages import catalogue

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a stage; `default` is as a recipe writes it, and means nothing where it is `required`.

    `choices` are the parameters of the value objects that it takes, by their names. `about` is what the stage's own
    text says of it.
    """

    name: str
    type: str
    default: Any
    required: bool
    about: str
    choices: dict[str, tuple["Parameter", ...]]


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One stage of the catalogue; `about` is its whole text, `summary` the first line of it."""

    name: str
    effect: str
    summary: str
    about: str
    parameters: tuple[Parameter, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return asdict(self)


def listing() -> dict[str, StageEntry]:
    """Every stage of the catalogue by name."""
    entries: dict[str, StageEntry] = {}
    usable(catalogue(), STAGES, lambda kind: entries.update({stage_name(kind): _entry(stage_name(kind), kind)}))
    return entries


@dataclass(frozen=True, kw_only=True)
class ValueObject:
    """A value that stages take; `taken_by` are the settings that do, such as quantize.form."""

    name: str
    about: str
    taken_by: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return asdict(self)


def value_objects() -> dict[str, ValueObject]:
    """Every value object that a setting of a stage, or of another one, takes, by name."""
    kinds = reachable(catalogue())
    taken: dict[str, list[str]] = {}
    found: dict[str, type[Any]] = {}
    for owner, kind in kinds.items():
        for name, hint in settings(kind).items():
            for choice, member in options(hint).items():
                found[choice] = member
                taken.setdefault(choice, []).append(f"{owner}.{name}")
    return {
        name: ValueObject(
            name=name, about=_text(kind), taken_by=tuple(sorted(taken[name])), parameters=_parameters(kind)
        )
        for name, kind in sorted(found.items())
    }


def print_value_object(entry: ValueObject, *, console: "Console | None" = None) -> None:
    """Prints a value object: its text, what takes it, its parameters, and how it is written."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text.assemble((entry.name, "bold"), "  (a value)"))
    console.print(Text(entry.about or "It has no text of its own."))
    console.print(Text(f"taken by: {', '.join(entry.taken_by)}"))
    for parameter in entry.parameters:
        console.print(Text(f"  {parameter.name}: {parameter.type} = {_default_text(parameter)}"))
        if parameter.about:
            console.print(Text(f"    {parameter.about}"))


def print_listing(entries: list[StageEntry], *, whole: bool = False, console: "Console | None" = None) -> None:
    """Prints the stages with their parameters; `whole` adds their full texts and what their value objects take."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for entry in entries:
        console.print(Text.assemble((entry.name, "bold"), f"  ({entry.effect})"))
        console.print(Text(entry.about if whole else entry.summary))
        table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=bool(entry.parameters))
        for title in ("parameter", "type", "default"):
            table.add_column(title, overflow="fold")
        if whole:
            table.add_column("about", overflow="fold")
        for parameter in entry.parameters:
            cells = [parameter.name, parameter.type, _default_text(parameter), *([parameter.about] if whole else [])]
            table.add_row(*map(Text, cells))
        console.print(table)
        for parameter in entry.parameters if whole else ():
            for name, fields in parameter.choices.items():
                inner = ", ".join(f"{field.name}: {field.type} = {_default_text(field)}" for field in fields)
                console.print(Text(f"  {parameter.name}: {name}" + (f" {{{inner}}}" if inner else "")))
        console.print()


def _entry(name: str, kind: type[Any]) -> StageEntry:
    about = _text(kind)
    return StageEntry(
        name=name,
        effect=kind.effect.value,
        summary=about.partition("\n")[0],
        about=about,
        parameters=_parameters(kind),
    )


def _parameters(kind: type[Any]) -> tuple[Parameter, ...]:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    return tuple(
        Parameter(
            name=name,
            type=type_text(hint),
            default=None if _required(fields[name]) else data_of(default_of(fields[name])),
            required=_required(fields[name]),
            about=_about(name, kind),
            choices={choice: _parameters(member) for choice, member in options(hint).items()},
        )
        for name, hint in settings(kind).items()
    )


def _required(field: "dataclasses.Field[Any]") -> bool:
    return default_of(field) is dataclasses.MISSING


def _text(kind: type[Any]) -> str:
    text = inspect.getdoc(kind) or ""
    # Without a docstring, dataclasses write the signature there.
    return "" if text.startswith(f"{kind.__name__}(") else text


def _about(name: str, kind: type[Any]) -> str:
    """What the text of `kind` says of the parameter `name`, or that of the class from which it has it."""
    found = (_sentences_on(name, _text(owner)) for owner in kind.__mro__ if dataclasses.is_dataclass(owner))
    return next(filter(None, found), "")


def _sentences_on(name: str, text: str) -> str:
    """The whole sentences of `text` that speak of `name` in backticks."""
    sentences = re.split(r"(?<=[.])\s+(?=[A-Z`])", " ".join(text.split()))
    return " ".join(sentence for sentence in sentences if f"`{name}" in sentence)


def _default_text(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    return default if isinstance(default, str) and default else json.dumps(default)
