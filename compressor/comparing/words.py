"""What a comparison says of scores that cannot be told apart, and of its controls, in sentences."""

from collections.abc import Mapping, Sequence

from compressor.comparing.controls import RANDOM, TRAINING_ONLY
from compressor.comparing.significance import LEVEL
from compressor.report.comparison import ComparisonRow
from compressor.report.numbers import printable, signed
from compressor.report.view import change_decimals

_SHOWN = 6
_Pairs = Mapping[tuple[str, str], float]


def alike_sentences(rows: Sequence[ComparisonRow], p_values: _Pairs, *, seeds: int) -> list[str]:
    """Who scores best, and who of the front cannot be told apart from it; nothing where nothing was tested."""
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
    more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
    names = f"{', '.join(map(printable, near[:_SHOWN]))}{more}"
    return [f"Best {what}: {printable(best.name)}; {names} cannot be told apart from it ({about})."]


def control_sentences(rows: Sequence[ComparisonRow], p_values: _Pairs, *, of: str) -> list[str]:
    """What the controls say of the recipe `of`: whether its choice beats chance, and what its training does alone."""
    by_name = {row.name: row for row in rows}
    judged = by_name.get(of)
    if judged is None or not judged.scale.scored:
        return []
    found = []
    for row in rows:
        pair = _told(p_values, judged.name, row.name)
        if not row.control or pair is None:
            continue
        gap = _gap(judged, row)
        p = f"p = {pair:.2g}"
        if row.control == RANDOM:
            found.append(
                f"Control: the structure that {printable(of)} chose scores {gap} against a random one of the same size "
                f"({p}): " + _verdict(pair, judged, row)
            )
        elif row.control == TRAINING_ONLY:
            found.append(
                f"Control: {printable(of)} scores {gap} against the same training of the model as it was ({p}): what "
                "its structure and form cost is this, not the drop from the untrained reference."
            )
    return found


def _verdict(p: float, judged: ComparisonRow, control: ComparisonRow) -> str:
    if p >= LEVEL:
        return "its choice cannot be told apart from chance."
    higher = judged.score.value > control.score.value
    return "its choice pays." if higher == judged.scale.higher_is_better else "chance chose better."


def _gap(one: ComparisonRow, other: ComparisonRow) -> str:
    """How much better or worse `one` scores than `other`: "+0.8 points"."""
    factor, unit = (100.0, " points") if one.scale.bounded else (1.0, "")
    value = factor * (one.score.value - other.score.value)
    places = max(1, change_decimals(one.scale.change(one.drop))) if one.drop is not None else 2
    return f"{signed(value, places)}{unit}"


def _told(p_values: _Pairs, one: str, other: str) -> float | None:
    return p_values.get((one, other), p_values.get((other, one)))


def _p(p_values: _Pairs, one: str, other: str) -> float:
    found = _told(p_values, one, other)
    return 1.0 if found is None else found
