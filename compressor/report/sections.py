"""The sections on what stages tell of themselves: what each shows on the page and in Markdown, and their order.

A new section is a kind of note, its `Section` here, and its template.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.notes.quantization import Coverage, MixedWidths, OutputNoise
from compressor.notes.training import SharedValues
from compressor.report.asked import asked_and_got, ranking_of_blocks
from compressor.report.details import (
    block_strips,
    channel_groups,
    factorized_layers,
    given_back,
    has_records,
    kept_outputs,
    left_in_float,
    left_out,
    locked_layers,
    missed_before,
    noted,
    shared_values,
    trainings,
    unreached_layers,
    zero_channels,
    zero_weights,
)
from compressor.report.evaluations.besides import besides_card, besides_text
from compressor.report.figures import training_curves
from compressor.report.markdown import code, escape
from compressor.report.numbers import ScoreScale
from compressor.report.record import Step
from compressor.report.scores import criteria, removals, score_plots
from compressor.report.sensitivity import sensitivity_plot, width_rows, widths_summary, widths_tried

# What reports say wherever zeros are counted.
NO_SPEED = "that makes the file smaller once it is compressed, and makes nothing faster in ONNX Runtime"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the report.

    On the page it has a `title` and for each step a card, whose inside `template` draws from what `card` gives; a step
    for which that is nothing has none. In Markdown it has a `heading` and for each step the lines of `text`.
    The entries `shows` of a step's details are not repeated among those without a section where they are lists of
    records, nor those of `says`, whatever they are, nor those of `counts` where they are empty lists.
    """

    title: str = ""
    template: str = ""
    card: Callable[[Step, ScoreScale], Mapping[str, Any]] = lambda _step, _scale: {}
    heading: str = ""
    text: Callable[[Step, ScoreScale], list[str]] = lambda _step, _scale: []
    shows: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    def covers(self, key: str, value: Any) -> bool:
        """Whether the entry `key` of a step's details is shown here."""
        return key in self.says or (key in self.shows and has_records(value)) or (key in self.counts and value == [])


def other_details(step: Step) -> dict[str, Any]:
    """The details that no section shows."""
    return {
        key: value
        for key, value in step.details.items()
        if not any(section.covers(key, value) for section in ON_THE_PAGE)
    }


def _removed_card(step: Step, _scale: ScoreScale) -> dict[str, Any]:
    groups, strips, locked = channel_groups(step), block_strips(step), locked_layers(step)
    unreached = unreached_layers(step)
    plots, zeros, single = score_plots(step), zero_channels(step), zero_weights(step)
    blocks = [block for strip in strips.values() for block in strip]
    if not (groups or blocks or locked or unreached or plots or zeros or single):
        return {}
    return {
        "asked": asked_and_got(step),
        "ranking": ranking_of_blocks(step),
        "groups": groups,
        "narrowed": [group for group in groups if group.before != group.after],
        "widest": max((group.before for group in groups), default=1),
        "channels_before": sum(group.before for group in groups),
        "channels_after": sum(group.after for group in groups),
        "locked": locked,
        "unreached": unreached,
        "strips": strips,
        "blocks": blocks,
        "dropped": [block for block in blocks if not block.kept],
        "plots": plots,
        "criteria": criteria(step),
        "zeros": zeros,
        "zero_channels": sum(group.zero for group in zeros),
        "single": single,
        "no_speed": NO_SPEED,
        "zero_weights": sum(layer.zero for layer in single),
        "sparse_weights": sum(layer.of for layer in single),
        "penalised_channels": sum(group.of for group in zeros),
    }


def _removed_text(step: Step, _scale: ScoreScale) -> list[str]:
    groups, blocks = channel_groups(step), [block for strip in block_strips(step).values() for block in strip]
    rows = removals(step)
    scored = any(row.kept_from or row.removed_to for row in rows)
    asked = [f"- {escape(line)}" for line in (*asked_and_got(step), *filter(None, [ranking_of_blocks(step)]))]
    lines = [] if scored else [f"- {code(row.layer)}: {row.before} to {row.after} channels" for row in rows]
    unchanged = sum(group.after == group.before for group in groups)
    if unchanged:
        lines.append(f"- {unchanged} other group{'s'[: unchanged > 1]} of channels kept the width")
    zeros = zero_channels(step)
    if zeros:
        count, total = sum(group.zero for group in zeros), sum(group.of for group in zeros)
        lines.append(f"- {count} of {total} channels in {len(zeros)} groups were driven to zero")
    single = zero_weights(step)
    if single:
        count, total = sum(layer.zero for layer in single), sum(layer.of for layer in single)
        lines.append(f"- {count} of {total} weights in {len(single)} layers are zero for good; {NO_SPEED}")
    gone = [code(block.block) for block in blocks if not block.kept]
    if gone:
        lines.append(f"- dropped {len(gone)} of {len(blocks)} blocks: {', '.join(gone)}")
    lines += [f"- {code(layer.layer)}: {escape(layer.danger)}" for layer in unreached_layers(step)]
    lines += [
        f"- left alone, {escape(lock.reason)}: {', '.join(map(code, lock.names))}" for lock in locked_layers(step)
    ]
    if not scored:
        return [*asked, *lines]
    return [
        *asked,
        *([""] if asked else []),
        f"| group ({escape(criteria(step) or 'score')}) | before | after | lowest kept | highest removed |",
        "|---|--:|--:|--:|--:|",
        *(f"| {code(row.layer)} | {row.before} | {row.after} | {row.kept_from} | {row.removed_to} |" for row in rows),
        "",
        *lines,
    ]


def _thinner_card(step: Step, _scale: ScoreScale) -> dict[str, Any]:
    layers = factorized_layers(step)
    if not layers:
        return {}
    return {
        "thinner": layers,
        "before": sum(layer.before for layer in layers),
        "after": sum(layer.after for layer in layers),
    }


def _thinner_text(step: Step, _scale: ScoreScale) -> list[str]:
    layers = factorized_layers(step)
    if not layers:
        return []
    return [
        "| layer | by | rank | full rank | squares lost, % | weights before | after |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(
            f"| {code(layer.layer)} | {escape(layer.by)} | {_ranks(layer.ranks)} | {_ranks(layer.full_ranks)} "
            f"| {100 * layer.error:.2f} | {layer.before:,} | {layer.after:,} |"
            for layer in layers
        ),
    ]


def _ranks(ranks: tuple[int, ...]) -> str:
    return " x ".join(map(str, ranks))


def _shared_card(step: Step, _scale: ScoreScale) -> dict[str, Any]:
    layers = shared_values(step)
    if not layers:
        return {}
    note = noted(step, SharedValues)
    return {
        "shared": layers,
        "different": sum(layer.values for layer in layers),
        "weights": sum(layer.of for layer in layers),
        "by": note.shared_by if note else "",
        "no_speed": NO_SPEED,
    }


def _shared_text(step: Step, _scale: ScoreScale) -> list[str]:
    layers = shared_values(step)
    if not layers:
        return []
    return [
        "| layer | values | weights | squares lost, % |",
        "|---|--:|--:|--:|",
        *(f"| {code(one.layer)} | {one.values:,} | {one.of:,} | {100 * one.error:.2f} |" for one in layers),
        "",
        f"Equal for good: {NO_SPEED}.",
    ]


def _float_card(step: Step, _scale: ScoreScale) -> dict[str, Any]:
    coverage, noise, floats = noted(step, Coverage), noted(step, OutputNoise), left_in_float(step)
    count = coverage.quantized if coverage else None
    left = sum(len(entry.names) for entry in floats)
    missed = left_out(step)
    if count is None and not floats and not missed:
        return {}
    return {
        "floats": floats,
        "quantized": count,
        "left": left,
        "coverage": count / (count + left) if count and count + left else None,
        "sqnr_db": noise.sqnr_db if noise else None,
        "outputs": kept_outputs(step),
        "left_out": missed,
    }


def _float_text(step: Step, _scale: ScoreScale) -> list[str]:
    coverage = noted(step, Coverage)
    count = coverage.quantized if coverage else None
    lines = [] if count is None else [f"- {count} operators quantized"]
    lines += [f"- output {escape(text)}" for text in kept_outputs(step)]
    lines += [f"- {escape(text)}" for text in left_out(step)]
    return lines + [
        f"- {len(left.names)} {escape(left.kind)}, {escape(left.reason)}: {', '.join(map(code, left.names))}"
        for left in left_in_float(step)
    ]


def _sensitivity_card(step: Step, _scale: ScoreScale) -> dict[str, Any]:
    plot, gone = sensitivity_plot(step), given_back(step)
    if not (plot or gone):
        return {}
    return {
        "sensitivity": plot,
        "widths": widths_tried(step),
        "width_rows": width_rows(step),
        "widths_summary": widths_summary(step),
        "mixed": noted(step, MixedWidths),
        "given_back": gone,
        "missed": missed_before(step),
    }


def _sensitivity_text(step: Step, _scale: ScoreScale) -> list[str]:
    rows, widths = width_rows(step), widths_tried(step)
    lines = []
    if rows:
        lines = [
            f"Signal to noise at the output when one layer alone is rounded. Weights: {widths_summary(step)}.",
            "",
            "| layer | bits | " + " | ".join(f"{bits} bits, dB" for bits in widths) + " | why |",
            "|---|--:|" + "--:|" * len(widths) + "---|",
            *(
                f"| {code(row.layer)} | {row.bits} | {' | '.join(row.decibels)} | {escape(row.reason)} |"
                for row in rows
            ),
            "",
        ]
    if missed_before(step):
        lines.append(f"- with all in integers {escape(missed_before(step))}")
    return lines + [f"- given back to float: {code(layer.node)}: {escape(layer.why)}" for layer in given_back(step)]


def _training_card(step: Step, scale: ScoreScale) -> dict[str, Any]:
    curves, told = training_curves(step, scale), trainings(step)
    return {"curves": curves, "trainings": told} if curves or told else {}


def _training_text(step: Step, _scale: ScoreScale) -> list[str]:
    return [f"- {escape(line)}" for line in trainings(step)]


_REMOVED = Section(
    title="What was removed, and why",
    template="removed.html.j2",
    card=_removed_card,
    heading="What was removed",
    text=_removed_text,
    shows=("groups", "locked", "unreached_layers", "blocks", "scores", "zero_channels", "zero_weights"),
)
_THINNER = Section(
    title="Layers in which thinner ones took the place of one",
    template="thinner.html.j2",
    card=_thinner_card,
    heading="Layers made thinner",
    text=_thinner_text,
    shows=("factorized",),
)
_SHARED = Section(
    title="Weights that share few values",
    template="shared.html.j2",
    card=_shared_card,
    heading="Weights that share values",
    text=_shared_text,
    shows=("shared_values",),
    says=("shared_by",),
)
_FLOAT = Section(
    title="What was left in float, and why",
    template="float.html.j2",
    card=_float_card,
    heading="What stayed in float",
    text=_float_text,
    shows=("left_in_float",),
    says=("quantized", "sqnr_db", "outputs", "left_out"),
    counts=("left_in_float",),
)
_SENSITIVITY = Section(
    title="Sensitivity: how much each layer's rounding costs",
    template="sensitivity.html.j2",
    card=_sensitivity_card,
    heading="Sensitivity",
    text=_sensitivity_text,
    shows=("sensitivity", "given_back"),
    counts=("given_back",),
)
_TRAINING = Section(
    title="Training",
    template="training.html.j2",
    card=_training_card,
    heading="Training",
    text=_training_text,
    shows=("epochs", "trainings", "other_outputs"),
    says=("best_epoch", "taught"),
)

_BESIDES = Section(
    title="Besides the score",
    template="besides.html.j2",
    card=besides_card,
    heading="Besides the score",
    text=besides_text,
    shows=("evaluations", "removed_parts"),
    says=("class_changes",),
)

ON_THE_PAGE = (_BESIDES, _REMOVED, _THINNER, _SHARED, _FLOAT, _SENSITIVITY, _TRAINING)
IN_MARKDOWN = (_BESIDES, _REMOVED, _THINNER, _SHARED, _SENSITIVITY, _FLOAT, _TRAINING)
