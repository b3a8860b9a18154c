"""What a comparison says of scores that cannot be told apart, and of its controls, in sentences."""

from collections.abc import Mapping, Sequence

from compressor.comparing.controls import RANDOM, TRAINING_ONLY
from compressor.comparing.significance import LEVEL
from compressor.report.comparison import ComparisonRow, best_of
from compressor.report.numbers import printable, signed
from compressor.report.view import change_decimals

_SHOWN = 6
_Pairs = Mapping[tuple[str, str], float]


def alike_sentences(rows: Sequence[ComparisonRow], p_values: _Pairs, *, seeds: int) -> list[str]:
    """Who scores best, and who cannot be told apart from it; nothing where nothing was tested."""
    tested = [row for row in rows if row.alike and not row.control]
    if len(tested) < 3 or not p_values:  # the reference and one recipe: its drop says it all
        return []
    better = tested[0].scale.higher_is_better
    best = (max if better else min)(tested, key=lambda row: row.score.value)
    near = [row.name for row in tested if row is not best and _p(p_values, best.name, row.name) >= LEVEL]
    what = printable(best.scale.name)
    about = f"over {seeds} seeds" if seeds > 1 else "of these files; --seeds tells whether of the recipes, too"
    if not near:
        return [f"Best {what}: {printable(best.name)}, and none other comes near it ({about})."]
    return [f"Best {what}: {printable(best.name)}; {_some(near)} cannot be told apart from it ({about})."]


def control_sentences(
    rows: Sequence[ComparisonRow], p_values: _Pairs, controls: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What the controls say of the best recipe that has any, then of all: whether the choice beats chance.

    `controls` are the names of the rows that are controls, by recipe and kind.
    """
    by_name = {row.name: row for row in rows}
    judged = [by_name[name] for name in controls if name in by_name and _tried(by_name, p_values, name, controls[name])]
    if not judged or not judged[0].scale.scored:
        return []
    best = best_of([row for row in rows if row in judged or row is rows[0]]) or judged[0]
    found = []
    for kind, name in _tried(by_name, p_values, best.name, controls[best.name]).items():
        p, gap = _p(p_values, best.name, name), _gap(best, by_name[name])
        if kind == RANDOM:
            found.append(
                f"Control: the structure that {printable(best.name)} chose scores {gap} against a random one of the "
                f"same size (p = {p:.2g}): its choice {_against_chance(p, best, by_name[name])}."
            )
        elif kind == TRAINING_ONLY:
            found.append(
                f"Control: {printable(best.name)} scores {gap} against the same training of the model as it was "
                f"(p = {p:.2g}): what its structure and form cost is this, not the drop from the untrained reference."
            )
    return [*found, *_of_all(judged, by_name, p_values, controls)]


def _of_all(
    judged: Sequence[ComparisonRow],
    by_name: Mapping[str, ComparisonRow],
    p_values: _Pairs,
    controls: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """For how many recipes the choice of structure beats chance, where there are several."""
    drawn = [(row, by_name[name]) for row in judged if (name := controls[row.name].get(RANDOM, "")) in by_name]
    if len(drawn) < 2:
        return []
    verdicts: dict[str, list[str]] = {}
    for row, control in drawn:
        said = _against_chance(_p(p_values, row.name, control.name), row, control)
        verdicts.setdefault(said, []).append(row.name)
    parts = [f"{said} in {len(names)} ({_some(names)})" for said, names in verdicts.items()]
    return [f"Of {len(drawn)} recipes with a random structure beside them the choice {'; '.join(parts)}."]


def _tried(
    by_name: Mapping[str, ComparisonRow], p_values: _Pairs, name: str, controls: Mapping[str, str]
) -> dict[str, str]:
    """The controls of a recipe that gave a file, and were tested against it."""
    return {
        kind: control
        for kind, control in controls.items()
        if control in by_name and _told(p_values, name, control) is not None
    }


def _against_chance(p: float, judged: ComparisonRow, control: ComparisonRow) -> str:
    if p >= LEVEL:
        return "cannot be told apart from chance"
    higher = judged.score.value > control.score.value
    return "pays" if higher == judged.scale.higher_is_better else "is worse than chance"


def _gap(one: ComparisonRow, other: ComparisonRow) -> str:
    """By how much `one` scores more or less than `other`: "+0.8 points", of an error "-0.012 (less is better)"."""
    value = one.score.value - other.score.value
    if one.scale.bounded:
        places = max(1, change_decimals(one.scale.change(one.drop))) if one.drop is not None else 2
        return f"{signed(100.0 * value, places)} points"
    better = "" if one.scale.higher_is_better else " (less is better)"
    return f"{value:+.3g}{better}" if value else f"as well{better}"


def _told(p_values: _Pairs, one: str, other: str) -> float | None:
    return p_values.get((one, other), p_values.get((other, one)))


def _p(p_values: _Pairs, one: str, other: str) -> float:
    found = _told(p_values, one, other)
    return 1.0 if found is None else found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(printable, names[:_SHOWN]))}{more}"
