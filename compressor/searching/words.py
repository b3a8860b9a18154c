"""What a search says: which recipe and why, what did not fit, what failed, and what time there was not for."""

from collections.abc import Sequence

from compressor.report.comparison import ComparisonRow, best_of, gain_in_words
from compressor.report.numbers import counted, duration, printable
from compressor.searching.limits import Limits
from compressor.searching.trials import Trial

_SHOWN = 3


def why_of(
    rows: Sequence[ComparisonRow], trials: Sequence[Trial], limits: Limits, *, space: int, tried: int
) -> tuple[str, str | None]:
    """Which recipe to ship and why, in a sentence, and its name; what is nearest where none keeps the limits.

    `rows` are the reference and the finalists, `trials` those that gave a file.
    """
    asked = limits.words()
    among = f"of {counted(space, 'recipe')}" + (f", {tried} tried" if tried < space else "")
    within = [row for row in rows if row.budget_met]
    if not within:
        nearest = min(trials, key=limits.excess)
        missed = "; ".join(limits.missed(nearest)) or "too slow when timed again"
        loses = limits.max_drop is not None and nearest.drop.value > limits.max_drop
        told = (
            f"Nothing keeps the limits ({asked}), {among}: nearest comes {printable(nearest.recipe_name)}, with "
            f"{missed}. Ease that limit, give more minutes, or a space that takes away {'less' if loses else 'more'}."
        )
        return told, None
    best = best_of(rows)
    if best is None:
        return f"Ship the model as it is: {among}, none that keeps the limits is faster or smaller.", None
    kept = f"keeps the limits ({asked} on validation)" if asked else "was found"
    told = (
        f"Ship {printable(best.name)}: {gain_in_words(best, rows)}; {among}, none that {kept} is faster, and of those "
        "whose speed cannot be told apart it is the smallest."
    )
    return told, best.name


def told_of(
    trials: Sequence[Trial], *, minutes: float | None, set_aside: Sequence[str], not_begun: Sequence[str]
) -> list[str]:
    """What else there is to say: the cost, what was set aside before training, what failed, what was not begun."""
    found = []
    spent = sum(trial.seconds for trial in trials)
    made = sum(trial.made_seconds for trial in trials)
    rungs = sorted({trial.rung for trial in trials})
    by_rung = ", ".join(str(sum(trial.rung == rung for trial in trials)) for rung in rungs)
    found.append(
        f"{counted(len(trials), 'trial')} ({by_rung} by rung) in {duration(spent)}, {duration(made)} of it work on "
        "stages."
    )
    if set_aside:
        found.append(f"Set aside before any training, by the latency table: {_some(set_aside)}.")
    if not_begun:
        time = minutes_in_words(minutes or 0)
        found.append(f"Not begun, for it could not have ended within {time}: {_some(not_begun)}.")
    failed = [trial for trial in trials if not trial.ended]
    if failed:
        found.append(f"{len(failed)} failed, such as {printable(failed[0].recipe_name)}: {failed[0].error}")
    return found


def minutes_in_words(minutes: float) -> str:
    """So many minutes: "1 minute", "2.5 minutes"."""
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(printable, names[:_SHOWN]))}{more}"
