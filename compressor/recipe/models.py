"""The plain data of recipes turned into stages and back, by pydantic models made from the stages' type hints.

Every dataclass becomes a pydantic model with the same fields; a field that holds one of several dataclasses is written
by the name of its class in snake case, `weights: symmetric` or `weights: {symmetric: {bits: 4}}`, and stages likewise.
A lone value is that of the first field: `target: {latency: 0.5}`.
A field whose type YAML has no word for (a teacher module) cannot be set in a recipe.
"""

import dataclasses
import types
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    WithJsonSchema,
    create_model,
)

from compressor.plugins import CRITERIA, usable
from compressor.pruning.ranking.criteria import criteria
from compressor.pruning.ranking.criterion import Criterion
from compressor.stage import stage_name

# The protocols whose classes other packages may add to: the group of their entry points, and all that there are.
_OPEN: dict[Any, tuple[str, Callable[[], dict[str, type[Any]]]]] = {Criterion: (CRITERIA, criteria)}
_SCALARS = (bool, int, float, str)
SETTINGS_CONFIG = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
# Marks of a union's choices; pydantic puts them into the place of an error, where no key can be mistaken for them.
_FULL, _BARE, _PLAIN = "\tfull", "\tbare", "\tplain"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def settings(kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that a recipe can set, with their types."""
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable, which mypy does not see
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    return {name: hint for name in names if (hint := _writable(_spelled_out(hints[name]))) is not None}


def named(kinds: Mapping[str, type[Any]]) -> Any:
    """The pydantic type of one of these dataclasses, written `name` or `{name: {field: value}}`."""
    return _union(kinds, plain=None)


def list_of(item: Any) -> Any:
    """The type of a list of `item`, which is only known at run time."""
    return list[item]


def model_of(kind: Any) -> Any:
    """The pydantic type of a mapping of `kind`'s fields; what comes out of validation is an instance of `kind`."""
    # What fields take changes with what is installed.
    return _model_of(kind, tuple(settings(kind).items()))


@cache
def _model_of(kind: Any, takes: tuple[tuple[str, Any], ...]) -> Any:
    fields: dict[str, Any] = {}
    defaults = {field.name: field for field in dataclasses.fields(kind)}
    for number, (name, hint) in enumerate(takes):
        field = defaults[name]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        # An alias, as fields may be called what pydantic's models have as methods (copy, json, schema).
        fields[f"field_{number}"] = (_annotation(hint), Field(alias=name, default=... if required else None))
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    model = create_model(kind.__name__, __config__=SETTINGS_CONFIG, __doc__=summary, **fields)
    return Annotated[model, AfterValidator(partial(_build, kind))]


def data_of(value: Any) -> Any:
    """`value`, a field's value or a value object, as plain data: what is left at its default is left out.

    Raises ValueError where a value cannot be written in a recipe.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name, fields = stage_name(type(value)), fields_of(value)
        return {name: fields} if fields else name
    if isinstance(value, tuple | list):
        return [data_of(item) for item in value]
    if value is None or isinstance(value, _SCALARS):
        return value
    raise ValueError(f"{type(value).__name__} cannot be written in a recipe; use the Python API for it")


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as plain data. Raises ValueError as `data_of`."""
    found = {}
    known = settings(type(value))
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        current = getattr(value, field.name)
        default = default_of(field)
        if type(current) is type(default) and current == default:
            continue
        if field.name not in known:
            raise ValueError(
                f"{stage_name(type(value))}.{field.name} holds a {type(current).__name__}, which a recipe cannot "
                "hold; leave it at its default or use the Python API"
            )
        choices = options(known[field.name])
        if dataclasses.is_dataclass(current) and type(current) not in choices.values():
            raise ValueError(
                f"{stage_name(type(value))}.{field.name} holds a {type(current).__name__}, which no recipe can name, "
                f"only {type_text(known[field.name])}{_how_to_join(type(value), field.name)}"
            )
        found[field.name] = data_of(current)
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass field, dataclasses.MISSING where it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def check_writable(kind: type[Any]) -> None:
    """A recipe can hold the dataclass `kind`. Raises whatever its fields and their defaults raise."""
    model_of(kind)
    for field in dataclasses.fields(kind):
        default_of(field)


def is_mark(item: str | int) -> bool:
    """Whether an item of a pydantic error's place is a choice of a union rather than a key."""
    return isinstance(item, str) and item.endswith((_FULL, _BARE, _PLAIN))


def reachable(kinds: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """These dataclasses and all that their fields can hold, by name."""
    found: dict[str, type[Any]] = {}
    rest = dict(kinds)
    while rest:
        name, kind = rest.popitem()
        if name not in found:
            found[name] = kind
            for hint in settings(kind).values():
                rest.update(options(hint))
    return found


def options(hint: Any) -> dict[str, type[Any]]:
    """The dataclasses among the members of a field's type, by the name that a recipe gives them."""
    kinds: list[Any] = [*filter(dataclasses.is_dataclass, _members(hint))]
    return {stage_name(kind): kind for kind in kinds}


def type_text(hint: Any) -> str:
    """A field's type in a recipe's words: `int`, `list of float`, `minmax | percentile`, `null`."""
    texts = []
    for member in _members(hint):
        if dataclasses.is_dataclass(member):
            texts.append(stage_name(member))  # type: ignore[arg-type]  # a class: fields hold no instances as types
        elif get_origin(member) is tuple:
            inner = [item for item in get_args(member) if item is not ...]
            texts.append("list of " + " and ".join(dict.fromkeys(map(type_text, inner))))
        elif get_origin(member) is Literal:
            texts += [repr(choice) for choice in get_args(member)]
        else:
            texts.append("null" if member is type(None) else member.__name__)
    return " | ".join(texts)


def _build(kind: type[Any], model: BaseModel) -> Any:
    names = {attribute: str(info.alias) for attribute, info in type(model).model_fields.items()}
    given = {names[attribute]: getattr(model, attribute) for attribute in model.model_fields_set}
    try:
        return kind(**given)
    except (ValueError, AssertionError):
        raise
    except Exception as error:
        # pydantic collects only those; a class that refuses in another way means the same.
        kind_of_error = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
        raise ValueError(f"{kind_of_error}{error}") from error


def _spelled_out(hint: Any) -> Any:
    """`hint` with all classes that recipes can name in the place of their protocol."""
    members = [kind for member in _members(hint) for kind in (_joined(member) if member in _OPEN else (member,))]
    return Union[tuple(members)]  # noqa: UP007  # the members are only known at run time


def installed() -> tuple[tuple[type[Any], ...], ...]:
    """All classes that recipes can name in the place of a protocol: what stages take changes with them alone."""
    return tuple(tuple(_joined(protocol)) for protocol in _OPEN)


def _joined(protocol: Any) -> Iterable[type[Any]]:
    group, kinds = _OPEN[protocol]
    return usable(kinds(), group, check_writable).values()


def _how_to_join(kind: type[Any], field: str) -> str:
    """The end of a sentence about a class that the field does not take: how others join, where that is possible."""
    groups = [_OPEN[member][0] for member in _members(get_type_hints(kind)[field]) if member in _OPEN]
    return "".join(f'; join with an entry point in the group "{group}"' for group in groups)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _writable(hint: Any) -> Any:
    """`hint` without the members that YAML cannot hold; None where nothing but null is left."""
    kept = []
    for member in _members(hint):
        if get_origin(member) is tuple:
            inner = [item for item in get_args(member) if item is not ...]
            if inner and all(_writable(item) == item for item in inner):
                kept.append(member)
        elif (
            member in _SCALARS
            or get_origin(member) is Literal
            or dataclasses.is_dataclass(member)
            or member is type(None)
        ):
            kept.append(member)
    if not kept or kept == [type(None)]:
        return None
    return Union[tuple(kept)]  # noqa: UP007  # the members are only known at run time


def _annotation(hint: Any) -> Any:
    """The pydantic type of a field's type."""
    members = _members(hint)
    plain = [member for member in members if not dataclasses.is_dataclass(member)]
    plain_type = _any_of(list(map(_plain, plain))) if plain else None
    if len(plain) == len(members):
        return plain_type
    return _union(options(hint), plain=plain_type)


def _any_of(kinds: list[Any]) -> Any:
    # typing hashes the members of a union, which lists of value objects do not survive: one alone needs no union.
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007  # known at run time only


def _plain(member: Any) -> Any:
    if get_origin(member) is tuple:
        items = tuple(item if item is ... else _annotation(item) for item in get_args(member))
        return Annotated[tuple[items], Strict(strict=False)]  # type: ignore[valid-type]  # YAML has lists, not tuples
    if member is float:
        return Annotated[float, Strict(), AllowInfNan(allow_inf_nan=False)]
    return member


def _union(kinds: Mapping[str, Any], *, plain: Any) -> Any:
    choices: list[Any] = []
    for name, kind in kinds.items():
        form: Any = create_model(
            f"{kind.__name__}Setting", __config__=SETTINGS_CONFIG, value=(model_of(kind), Field(alias=name))
        )
        full = Annotated[form, AfterValidator(_unwrap), BeforeValidator(partial(_expand, name, kind))]
        choices.append(Annotated[full, Tag(name + _FULL)])
        choices.append(Annotated[full, WithJsonSchema({"const": name}), Tag(name + _BARE)])
    if plain is not None:
        choices.append(Annotated[plain, Tag(_PLAIN)])
    return Annotated[
        Union[tuple(choices)],  # noqa: UP007  # the members are only known at run time
        Discriminator(
            lambda value: _choose(kinds, value, has_plain=plain is not None),
            custom_error_type="unknown_name",
            custom_error_message="unknown name",
            custom_error_context={"names": "\n".join(kinds)},
        ),
    ]


def _unwrap(setting: Any) -> Any:
    return setting.value


def _expand(name: str, kind: type[Any], value: Any) -> Any:
    if isinstance(value, str) or value == {name: None}:
        return {name: {}}
    if isinstance(value, Mapping) and not isinstance(value.get(name, {}), Mapping):
        first = next(iter(settings(kind).items()), None)
        # `latency: 0.5` is short for `latency: {fraction: 0.5}`; what chooses between value objects is spelled out.
        if first is not None and not options(first[1]):
            return {name: {first[0]: value[name]}}
    return value


def _choose(names: Container[Any], value: Any, *, has_plain: bool) -> str | None:
    if isinstance(value, str) and value in names:
        return value + _BARE
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in names:
        return str(next(iter(value))) + _FULL
    return _PLAIN if has_plain and not isinstance(value, Mapping) else None
