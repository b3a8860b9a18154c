"""What a stage was asked to take out, held against what it took: in the same words wherever reports are read."""

from collections.abc import Mapping
from typing import Any

from compressor.notes.structure import BuiltChoice, ChannelsRemoved, Groups, TakenChoice
from compressor.notes.training import ZeroWeights
from compressor.report.details import block_strips, noted
from compressor.report.numbers import si
from compressor.report.record import Step

# In parts of the whole: below it asked and got read as the same percentage.
_SAME = 0.005


def asked_and_got(step: Step) -> list[str]:
    """A sentence for each amount that the parameters of `step` ask for, with what was got and why it differs."""
    return [told for told in (_channels(step), _blocks(step), _zeros(step), _target(step)) if told]


def ranking_of_blocks(step: Step) -> str:
    """Among which others blocks were ranked, a sentence; "" where there is one group, or no score."""
    strips = block_strips(step)
    scored = any(block.score is not None for strip in strips.values() for block in strip)
    if len(strips) < 2 or not scored:
        return ""
    if "global" in _names(step.parameters.get("scope")):
        return "Blocks are ranked across all groups: every score compares with every other."
    return "Blocks are ranked within a group: scores of different groups do not compare."


def _channels(step: Step) -> str:
    asked, got, groups = _fraction(step, "remove"), noted(step, ChannelsRemoved), noted(step, Groups)
    if asked is None or got is None:
        return ""
    removed = got.channel_fraction_removed
    told = f"asked for {_percent(asked)} of the channels, removed {_percent(removed)}"
    if abs(asked - removed) < _SAME or groups is None:
        return told
    if groups.align is not None and groups.align > 1:
        return f"{told}: widths stay multiples of {groups.align} (align), and `align: 1` rounds nothing"
    return f"{told}: whole channels go, and every layer keeps one"


def _blocks(step: Step) -> str:
    asked, strips = _fraction(step, "remove"), block_strips(step)
    blocks = [block for strip in strips.values() for block in strip]
    if asked is None or not blocks:
        return ""
    gone = sum(not block.kept for block in blocks)
    told = (
        f"asked for {_percent(asked)} of the blocks, dropped {gone} of {len(blocks)} ({_percent(gone / len(blocks))})"
    )
    if abs(asked - gone / len(blocks)) < _SAME:
        return told
    within = "" if len(strips) < 2 or "global" in _names(step.parameters.get("scope")) else ", within each group"
    return f"{told}: whole blocks go{within}"


def _zeros(step: Step) -> str:
    asked, got = _fraction(step, "sparsity"), noted(step, ZeroWeights)
    if asked is None or got is None or got.zero_weights_fraction is None:
        return ""
    return f"asked for {_percent(asked)} of the weights, made {_percent(got.zero_weights_fraction)} zero"


def _target(step: Step) -> str:
    note = noted(step, TakenChoice)
    if note is None:
        return ""
    choice = note.target
    return (
        f"asked for at most {_amount(choice, choice.limit)}, got {_amount(choice, choice.measured)} "
        f"({_percent(choice.fraction_of_reference)} of the reference's)"
    )


def _amount(choice: BuiltChoice, value: float) -> str:
    return f"{value:.3g} ms" if choice.unit == "ms" else f"{si(value)} {choice.unit}"


def _fraction(step: Step, name: str) -> float | None:
    value = step.parameters.get(name)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 or part == 0 else f"{100 * part:.1g} %"


def _names(value: Any) -> set[str]:
    return {str(key).lower() for key in value} if isinstance(value, Mapping) else {str(value).lower()}
