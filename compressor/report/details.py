"""What the stages tell about themselves, read out of a step's `details`: every key may be missing or odd."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from compressor.report.numbers import printable
from compressor.report.record import Step

# The keys that the sections below show; all others appear as they are.
_SHOWN = {
    "groups": "layer",
    "locked": "layer",
    "blocks": "block",
    "left_in_float": "node",
    "epochs": "epoch",
    "scores": "group",
    "zero_channels": "layer",
    "sensitivity": "node",
    "given_back": "node",
}


@dataclass(frozen=True)
class Group:
    """The channels of one layer before and after pruning."""

    layer: str
    before: int
    after: int

    @property
    def fraction_removed(self) -> float:
        return (self.before - self.after) / self.before


@dataclass(frozen=True)
class Block:
    """A block that could go: its score (None where it has none) and whether it stayed."""

    name: str
    score: float | None
    kept: bool


@dataclass(frozen=True)
class Scores:
    """What the units of one group were worth to a criterion, those that stayed and those that went, each ascending.

    A unit is a channel, a head, a neuron or a recurrent unit. `layers` make it; `turn` counts the decisions on the same
    group from 1, for a schedule prunes in several.
    """

    group: str
    criterion: str
    layers: tuple[str, ...]
    kept: tuple[float, ...]
    removed: tuple[float, ...]
    turn: int = 1

    @property
    def before(self) -> int:
        return len(self.kept) + len(self.removed)


@dataclass(frozen=True)
class Zeros:
    """How many channels of one group a penalty drove to zero."""

    layer: str
    zero: int
    of: int


@dataclass(frozen=True)
class Reasoned:
    """The names that share one reason, with what they are (an operator's type, may be empty)."""

    reason: str
    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """One series of a training over its epochs."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Widths:
    """What the network's output keeps, in decibels, when one layer alone has weights of so many bits.

    `bits` is the width that was chosen, None where that is not told; `points` are (bits, decibels) by rising bits.
    """

    layer: str
    bits: int | None
    reason: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class GivenBack:
    """A layer that went back to float, and why."""

    layer: str
    reason: str


def channel_groups(step: Step) -> list[Group]:
    """The layers whose channels were looked at, as the stage lists them."""
    found = []
    for entry in _dicts(step.details.get("groups")):
        before, after = _number(entry.get("before")), _number(entry.get("after"))
        if before is not None and after is not None and before > 0:
            found.append(Group(_name(entry.get("layer")), round(before), round(after)))
    return found


def locked_layers(step: Step) -> list[Reasoned]:
    """The layers that were left alone, by reason."""
    return _by_reason((_name(entry.get("layer")), "", entry) for entry in _dicts(step.details.get("locked")))


def block_strips(step: Step) -> dict[str, list[Block]]:
    """The blocks of each group, in the order of the model; blocks without a group share one called ""."""
    strips: dict[str, list[Block]] = {}
    for entry in _dicts(step.details.get("blocks")):
        group = entry.get("group")
        block = Block(_name(entry.get("block")), _number(entry.get("score")), bool(entry.get("kept")))
        strips.setdefault("" if group is None else printable(str(group)), []).append(block)
    return strips


def unit_scores(step: Step) -> list[Scores]:
    """The scores by which units were kept or removed, in the order of the plan, without what is no number."""
    found: list[Scores] = []
    for entry in _dicts(step.details.get("scores")):
        kept, removed = _numbers(entry.get("kept_scores")), _numbers(entry.get("removed_scores"))
        if kept or removed:
            name = _name(entry.get("group"))
            layers = entry.get("layers")
            found.append(
                Scores(
                    group=name,
                    criterion=printable(str(entry.get("criterion") or "")),
                    layers=tuple(map(_name, layers)) if isinstance(layers, list | tuple) else (),
                    kept=kept,
                    removed=removed,
                    turn=1 + sum(earlier.group == name for earlier in found),
                )
            )
    return found


def zero_channels(step: Step) -> list[Zeros]:
    """The groups in which a penalty drives channels to zero, with how many are."""
    found = []
    for entry in _dicts(step.details.get("zero_channels")):
        zero, count = _number(entry.get("zero")), _number(entry.get("of"))
        if zero is not None and count is not None and count > 0:
            found.append(Zeros(_name(entry.get("layer")), round(zero), round(count)))
    return found


def sensitivity(step: Step) -> list[Widths]:
    """The noise of every layer at every width that was tried, in the order of the model."""
    found = []
    for entry in _dicts(step.details.get("sensitivity")):
        given = entry.get("sqnr_db")
        pairs = [(_number_of(key), _number(value)) for key, value in given.items()] if isinstance(given, dict) else []
        points = tuple(sorted((bits, db) for bits, db in pairs if bits is not None and db is not None))
        chosen = _number(entry.get("bits"))
        if points:
            reason = printable(str(entry.get("reason") or ""))
            found.append(Widths(_name(entry.get("node")), None if chosen is None else round(chosen), reason, points))
    return found


def float_share(step: Step) -> float | None:
    """The fraction of the weights that widths were chosen for and that stay in float; None where it is not told."""
    told = step.details.get("mixed_precision")
    return _number(told.get("float_share")) if isinstance(told, dict) else None


def given_back(step: Step) -> list[GivenBack]:
    """The layers that were tried in integers and went back to float."""
    return [
        GivenBack(_name(entry.get("node")), printable(str(entry.get("why") or "no reason given")))
        for entry in _dicts(step.details.get("given_back"))
    ]


def missed_before(step: Step) -> str:
    """What was wrong before layers were given back, in words; "" where nothing was."""
    told = step.details.get("give_back")
    before = told.get("before") if isinstance(told, dict) else None
    missed = before.get("missed") if isinstance(before, dict) else None
    return printable(missed) if isinstance(missed, str) else ""


def left_in_float(step: Step) -> list[Reasoned]:
    """The operators that were not quantized, by reason and type."""
    return _by_reason(
        (_name(entry.get("node")), printable(str(entry.get("op", ""))), entry)
        for entry in _dicts(step.details.get("left_in_float"))
    )


def quantized_count(step: Step) -> int | None:
    """How many operators were quantized, where the stage says so."""
    given = step.details.get("quantized")
    count = len(given) if isinstance(given, list) else _number(given)
    return None if count is None else round(count)


def curves(step: Step) -> list[Curve]:
    """The loss and the validation score of a training, epoch by epoch; curves of fewer than two points are left out."""
    epochs = _dicts(step.details.get("epochs"))
    found = []
    for key in ("loss", "score"):
        pairs = [(_number(entry.get("epoch")), _number(entry.get(key))) for entry in epochs]
        points = tuple((x, y) for x, y in pairs if x is not None and y is not None)
        if len(points) >= 2:
            found.append(Curve(key, points))
    return found


def other_details(step: Step) -> dict[str, Any]:
    """The details that no section shows."""
    return {
        key: value
        for key, value in step.details.items()
        if not (key in _SHOWN and _dicts(value)) and not (key in {"left_in_float", "given_back"} and value == [])
    }


def _by_reason(entries: Iterable[tuple[str, str, dict[str, Any]]]) -> list[Reasoned]:
    found: dict[tuple[str, str], list[str]] = {}
    for name, kind, entry in entries:
        reason = printable(str(entry.get("reason") or "no reason given"))
        found.setdefault((reason, kind), []).append(name)
    return [Reasoned(reason, kind, tuple(names)) for (reason, kind), names in found.items()]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list | tuple) else []


def _number(value: Any) -> float | None:
    """`value` as a float where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _number_of(key: Any) -> int | None:
    """A key of a JSON object that counts something."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 4 else None


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = map(_number, value) if isinstance(value, list | tuple) else ()
    return tuple(sorted(number for number in numbers if number is not None))


def _name(value: Any) -> str:
    return printable("?" if value is None else str(value))
