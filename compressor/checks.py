"""The checks that settings share, so that each is worded once: what was wanted, what was got, and the way out.

`says` begins the sentence and names the setting, as in "epochs counts the passes over the training data"; the check
adds the range and what was got, and `way_out` ends it. They raise ValueError, for booleans too: True is no count,
though Python takes it for 1. Settings that may be None are checked where they are not.
"""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from compressor.errors import StageError

Kind = TypeVar("Kind")
# What others call the rate of an optimizer.
RATES = ("learning_rate", "lr", "rate")
# Units of sizes, in small letters.
BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
Within = Literal["[0, 1)", "[0, 1]", "(0, 1)", "(0, 1]"]


def check_fraction(
    value: float, says: str, *, within: Within = "[0, 1)", way_out: str = "", least_meant: float = 0.0
) -> None:
    """`value` lies in the interval `within`; without another way out, of 50 it is asked whether 0.5 was meant.

    Nobody is asked for less than `least_meant`: a setting that is always near 1 was not meant to be 0.02.
    """
    if _is_number(value) and _lies(value, within):
        return
    meant = _percent(value)
    hint = f"; did you mean {meant:g}?" if _lies(meant, within) and meant >= least_meant else ""
    raise ValueError(f"{says}, in {within}; got {value!r}{_end(way_out) or hint}")


def check_max_drop(value: float | None) -> None:
    """`value`, how much of the score may be lost, is None (anything) or lies in [0, 1)."""
    if value is not None:
        # Who writes 1 means a point: that the whole score may be lost is said by None.
        hint = "did you mean 0.01?" if _is_number(value) and value == 1 else ""
        check_fraction(value, "max_drop is a fraction (0.01 is one point of accuracy)", way_out=hint)


def check_count(value: int, says: str, *, least: int = 1, way_out: str = "") -> None:
    """`value` is a whole number of at least `least`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:
        kind = "" if whole else "a whole number, "
        raise ValueError(f"{says}, {kind}at least {least}; got {value!r}{_end(way_out)}")


def check_positive(value: float, says: str, *, way_out: str = "") -> None:
    """`value` is a finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{says}, above 0; got {value!r}{_end(way_out)}")


def check_not_negative(value: float, says: str, *, way_out: str = "") -> None:
    """`value` is a finite number, 0 or more."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{says}, at least 0; got {value!r}{_end(way_out)}")


def check_one_of(value: str, says: str, choices: Collection[str]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{says}, one of {', '.join(choices)}; got {value!r}")


def as_path(value: Any, says: str) -> Path:
    """`value`, a str or a path, as a Path."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{says}, a str or a pathlib.Path; got {type(value).__name__}")
    return Path(os.fsdecode(value))


def as_folder(value: Any, says: str) -> Path:
    """The same of a folder to write in; an empty text, which Python takes for the current folder, names none."""
    if value == "":
        raise ValueError(f"{says}, and '' names nothing; for the current folder write '.'")
    return as_path(value, says)


def check_tuple(value: Collection[Any], says: str, *, least: int = 0) -> None:
    """`value` is no bare string, which Python would read letter by letter, and has at least `least` entries."""
    if isinstance(value, str):
        raise ValueError(f"{says}, got the string {value!r}; write ({value!r},)")
    if not isinstance(value, Collection):
        raise ValueError(f"{says}, got {value!r}; write ({value!r},)")
    if len(value) < least:
        raise ValueError(f"{says}, at least {least}; got {value!r}")


def check_globs(value: Collection[str], name: str, *, least: int = 0) -> None:
    """The same for the patterns of module names that the setting `name` holds."""
    check_tuple(value, f"{name} is a tuple of globs such as ('layer1.*',)", least=least)


def check_kinds(settings: Any, *, of: Any = None) -> None:
    """Each field of the dataclass `settings` that takes value objects holds one: no name, number or class for it.

    Those are the fields whose type is a choice of dataclasses, such as `Energy | Rank`, or of them and None. `of` is
    the base whose fields are looked at (None: all fields).
    """
    for name, kinds in _kinds(of or type(settings)).items():
        value = getattr(settings, name)
        if not isinstance(value, kinds):
            known = [f"{kind.__name__}()" for kind in kinds if kind is not NoneType]
            got = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
            raise ValueError(f"{name} is one of {', '.join(known)}, of compressor.stages; got {got}")


def check_calibrated(seen: object) -> None:
    """Something was `seen` of the calibration data. Raises StageError where it is empty."""
    if not seen:
        raise StageError("calibration data is empty; give the workload at least one batch of it")


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """What to add to an error about `word`: a question with the nearest of `known`, or nothing where none is near."""
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def as_imported(module: str, function: str) -> str:
    """How `function` of the Python file whose path `module` is gets named, as a question; "" where it is no path."""
    if not (module.endswith(".py") or ("/" in module and Path(f"{module}.py").is_file())):
        return ""
    whole = Path(module).absolute().with_suffix("")
    try:
        parts = Path(os.path.normpath(whole)).relative_to(Path.cwd()).parts
    except ValueError:
        return f"run it in the folder {whole.parent}, as {whole.name}:{function}"
    return f"did you mean {'.'.join(parts) + ':' + function!r}?"


def unknown_setting(owner: str, name: str, known: Sequence[str]) -> str:
    """The refusal of a setting that `owner` has not, which has those that are `known`."""
    return f"{owner} has no {name!r}{did_you_mean(name, known)} (it has {', '.join(known) or 'no parameters'})"


def explains_settings(kind: type[Kind]) -> type[Kind]:
    """The dataclass `kind`, whose refusal of settings that it has not names those that it has, and the nearest.

    It stays a TypeError, as Python has it.
    """
    plain = kind.__init__

    @functools.wraps(plain)
    def explained(self: Any, *values: Any, **settings: Any) -> None:
        try:
            plain(self, *values, **settings)
        except TypeError:
            known = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
            unknown = next((name for name in settings if name not in known), None)
            if unknown in RATES and "optimizer" in known:
                rate = settings[unknown] if _is_number(settings[unknown]) else 0.01
                raise TypeError(
                    f"{kind.__name__} has no {unknown!r}: the rate is the optimizer's; write "
                    f"optimizer=SGD(rate={rate}) or optimizer=AdamW(rate={rate / 50:g}), of compressor.stages, or "
                    "leave it out to have it found"
                ) from None
            if unknown is not None:
                raise TypeError(unknown_setting(kind.__name__, unknown, known)) from None
            if values and known and all(field.kw_only for field in dataclasses.fields(kind)):  # type: ignore[arg-type]
                raise TypeError(
                    f"{kind.__name__} takes its settings by name; write {kind.__name__}({known[0]}={values[0]!r})"
                ) from None
            raise

    kind.__init__ = explained  # type: ignore[method-assign] # that is what it is for
    return kind


def one_of(ways: Mapping[str, bool]) -> str:
    """The ways out that help in the case at hand, as a phrase: "raise remove, set align=1 or quantize instead"."""
    helpful = [way for way, helps in ways.items() if helps]
    return " or ".join([", ".join(helpful[:-1]), helpful[-1]] if len(helpful) > 1 else helpful)


def told_reasons(reasons: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """Each reason once, after those it holds for, in their order: "a, b: it is frozen; c: softmax runs over it".

    Of more than five the first four are named and the others counted.
    """
    pairs = reasons.items() if isinstance(reasons, Mapping) else reasons
    held: dict[str, list[str]] = {}
    for name, reason in pairs:
        held.setdefault(reason, []).append(name)
    return "; ".join(
        f"{', '.join(names) if len(names) <= 5 else ', '.join(names[:4]) + f' and {len(names) - 4} others'}: {reason}"
        for reason, names in held.items()
    )


def _kinds(settings: Any) -> dict[str, tuple[type, ...]]:
    """What the fields of a dataclass that take value objects alone may hold."""
    hints = get_type_hints(settings)
    found = {field.name: get_args(hints[field.name]) for field in dataclasses.fields(settings)}
    return {
        name: kinds
        for name, kinds in found.items()
        if any(map(dataclasses.is_dataclass, kinds))
        and all(kind is NoneType or dataclasses.is_dataclass(kind) for kind in kinds)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _percent(value: Any) -> float:
    """The fraction that is meant by 30 or "30 %"; NaN where nothing is."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            return float(value.rstrip().removesuffix("%")) / 100
        except ValueError:
            return math.nan
    return value / 100 if _is_number(value) and value > 1 else math.nan


def _lies(value: float, within: Within) -> bool:
    above = value >= 0 if within.startswith("[") else value > 0
    return above and (value <= 1 if within.endswith("]") else value < 1)


def _end(way_out: str) -> str:
    return f"; {way_out}" if way_out else ""
