"""The notes of a step as renderers take them: text on one line, entries gathered by reason or group."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from compressor.notes.note import Note
from compressor.notes.quantization import (
    Coverage,
    FloatAgain,
    GiveBackTried,
    GivenBack,
    LayerSensitivity,
    LeftOut,
    OutputNoise,
    Sensitivities,
)
from compressor.notes.running import RankingThreads, Reused
from compressor.notes.structure import (
    Block,
    Blocks,
    FactorizedLayer,
    FactorizedLayers,
    Group,
    Groups,
    LockedLayers,
    UnreachedLayer,
    UnreachedLayers,
)
from compressor.notes.structure import Scores as ScoresNote
from compressor.notes.training import (
    Epochs,
    Forgotten,
    Learnt,
    OtherOutputs,
    OutputChange,
    SharedValues,
    Sparsified,
    Teaching,
    Trainings,
    ValueCount,
    ZeroChannels,
    ZeroCount,
    ZeroWeights,
)
from compressor.report.numbers import printable
from compressor.report.record import Step

_NO_REASON = "no reason given"

Kind = TypeVar("Kind", bound=Note)


@dataclass(frozen=True)
class Scores:
    """What the units of one group were worth to a criterion, those that stayed and those that went, each ascending.

    A unit is a channel, a head, a neuron or a recurrent unit, and `layers` make it. A schedule that prunes in several
    steps decides on a group several times: `turn` says which of these decisions this is, the first being 1.
    """

    group: str
    criterion: str
    layers: tuple[str, ...]
    kept: tuple[float, ...]
    removed: tuple[float, ...]
    turn: int = 1

    @property
    def before(self) -> int:
        """How many units the group had."""
        return len(self.kept) + len(self.removed)


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


def noted(step: Step, kind: type[Kind]) -> Kind | None:
    """What a step tells of one kind, with all text on one line; None where it tells nothing of it."""
    return kind.from_json({key: _printable(step.details[key]) for key in kind.entries() if key in step.details})


def channel_groups(step: Step) -> list[Group]:
    """The groups whose channels were looked at, as the stage lists them."""
    note = noted(step, Groups)
    return [group for group in note.groups if group.before > 0] if note else []


def locked_layers(step: Step) -> list[Reasoned]:
    """The layers that were left alone, by reason."""
    note = noted(step, LockedLayers)
    return _by_reason((lock.layer, "", lock.reason) for lock in note.locked) if note else []


def factorized_layers(step: Step) -> tuple[FactorizedLayer, ...]:
    """The layers that became chains of thinner ones."""
    note = noted(step, FactorizedLayers)
    return note.factorized if note else ()


def unreached_layers(step: Step) -> tuple[UnreachedLayer, ...]:
    """The layers that no input reaches, each with its danger."""
    note = noted(step, UnreachedLayers)
    return note.unreached_layers if note else ()


def block_strips(step: Step) -> dict[str, list[Block]]:
    """The blocks of each group, in the order of the model; blocks without a group share one called ""."""
    note = noted(step, Blocks)
    strips: dict[str, list[Block]] = {}
    for block in note.blocks if note else ():
        strips.setdefault(block.group or "", []).append(block)
    return strips


def unit_scores(step: Step) -> list[Scores]:
    """The scores by which units were kept or removed, in the order of the plan."""
    note = noted(step, ScoresNote)
    found: list[Scores] = []
    for told in note.scores if note else ():
        if told.kept_scores or told.removed_scores:
            found.append(
                Scores(
                    group=told.group,
                    criterion=told.criterion,
                    layers=told.layers,
                    kept=tuple(sorted(told.kept_scores)),
                    removed=tuple(sorted(told.removed_scores)),
                    turn=1 + sum(earlier.group == told.group for earlier in found),
                )
            )
    return found


def zero_channels(step: Step) -> list[ZeroCount]:
    """The groups in which a penalty drives channels to zero, with how many are."""
    note = noted(step, ZeroChannels)
    return [count for count in note.zero_channels if count.of > 0] if note else []


def zero_weights(step: Step) -> list[ZeroCount]:
    """The layers in which weights were made zero for good, with how many are."""
    note = noted(step, ZeroWeights) if noted(step, Sparsified) else None
    return [count for count in note.zero_weights if count.of > 0] if note else []


def shared_values(step: Step) -> list[ValueCount]:
    """The layers whose weights share few values for good, with how many."""
    note = noted(step, SharedValues)
    return [count for count in note.shared_values if count.of > 0] if note else []


def sensitivity(step: Step) -> list[LayerSensitivity]:
    """The layers of which decibels are told, in the order of the model."""
    note = noted(step, Sensitivities)
    return [layer for layer in note.sensitivity if layer.sqnr_db] if note else []


def given_back(step: Step) -> list[FloatAgain]:
    """The layers that were tried in integers and went back to float, each with its reason."""
    note = noted(step, GivenBack)
    return [replace(layer, why=layer.why or _NO_REASON) for layer in note.given_back] if note else []


def missed_before(step: Step) -> str:
    """What was wrong before layers were given back, in words; "" where nothing was."""
    note = noted(step, GiveBackTried)
    return note.before.missed if note and note.before else ""


def left_in_float(step: Step) -> list[Reasoned]:
    """The operators that were not quantized, by reason and type."""
    note = noted(step, Coverage)
    return _by_reason((left.node, left.op, left.reason) for left in note.left_in_float) if note else []


def kept_outputs(step: Step) -> list[str]:
    """What each output of an integer file keeps, a sentence each; nothing of a lone one without channels."""
    note = noted(step, OutputNoise)
    kept = (note.outputs if note else None) or ()
    return [each.says() for each in kept] if len(kept) > 1 or any(each.channel is not None for each in kept) else []


def left_out(step: Step) -> list[str]:
    """The improvements that had nothing to work on, a sentence each."""
    note = noted(step, LeftOut)
    return [f"{setting} left out: {reason}" for setting, reason in note.left_out.items()] if note else []


def curves(step: Step) -> list[Curve]:
    """The loss and the validation score of a training, epoch by epoch; curves of fewer than two points are left out."""
    note = noted(step, Epochs)
    epochs = note.epochs if note else ()
    series = {
        "loss": tuple((float(each.epoch), each.loss) for each in epochs if each.loss is not None),
        "score": tuple((float(each.epoch), each.score) for each in epochs if each.score is not None),
    }
    return [Curve(name, points) for name, points in series.items() if len(points) >= 2]


def trainings(step: Step) -> list[str]:
    """What came of every training of a step, and in which number format it went, a sentence each."""
    note = noted(step, Trainings)
    lines = []
    for training in note.trainings if note else ():
        decibels = training.signal_to_noise_db
        agreed = "" if decibels is None else f", {decibels:.1f} dB"
        came = f"{'failed: ' if training.failed else ''}{training.says}; " if training.says else ""
        lines.append(f"{training.training}: {came}inner layers in {training.inner_layers} ({training.why}{agreed})")
        if training.rate is not None:
            rate = f"{training.optimizer}, rate at its highest {training.rate:.3g}"
            lines.append(f"{training.training}: {rate} ({training.rate_from})")
        if training.frozen:
            lines.append(f"{training.training}: frozen: {', '.join(training.frozen)}")
        if training.data:
            lines.append(f"{training.training}: training data: {training.data}")
        if training.threads:
            lines.append(f"{training.training}: {training.threads}")
    reused = noted(step, Reused)
    if reused is not None:
        lines.append(
            f"made before ({reused.made}, in {reused.spared:.1f} s), taken from the store of stages; timed again"
        )
    ranked = noted(step, RankingThreads)
    if ranked is not None and ranked.ranking_threads:
        lines.append(f"ranking: {ranked.ranking_threads}")
    teaching = noted(step, Teaching)
    if teaching is not None and teaching.student:
        made = teaching.student_from or "its class or the function that made it"
        lines.append(
            f"{teaching.student} goes on in place of the model, taught by {teaching.teacher}; load_checkpoint takes "
            f"{made} to load its weights"
        )
    if teaching is not None and teaching.taught:
        lines.append(f"the teacher's judged output: {teaching.taught}")
    lines += _new_data(step)
    others = noted(step, OtherOutputs)
    return lines + [_other_output(change) for change in (others.other_outputs if others else ())]


def _new_data(step: Step) -> list[str]:
    """What a training on new data brought, and what it forgot."""
    learnt, forgotten = noted(step, Learnt), noted(step, Forgotten)
    lines = []
    if learnt is not None:
        moves = [
            f"from {before:.4g} to {after:.4g} on {which}"
            for which, before, after in (
                ("what was held out of the new data", learnt.new_before, learnt.new_after),
                ("the old validation data", learnt.old_before, learnt.old_after),
            )
            if before is not None and after is not None
        ]
        lines.append(f"new data, {learnt.replay:.0%} of the batches old: {learnt.metric} {', '.join(moves)}")
    if forgotten is not None:
        lines.append(f"forgotten of the old test data, against the model before: {forgotten.forgotten_says}")
    return lines


def _other_output(change: OutputChange) -> str:
    said = f"output {change.output}, which is not scored: {change.treated}"
    if change.before is None or change.after is None:
        return said
    says = f"; {change.says}" if change.says else ""
    return f"{said}; from the reference's by {change.before:.1%} of its spread before, {change.after:.1%} after{says}"


def has_records(value: Any) -> bool:
    """Whether an entry of the details is a list of records, as notes have them."""
    return isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value)


def _by_reason(entries: Iterable[tuple[str, str, str]]) -> list[Reasoned]:
    found: dict[tuple[str, str], list[str]] = {}
    for name, kind, reason in entries:
        found.setdefault((reason or _NO_REASON, kind), []).append(name)
    return [Reasoned(reason, kind, tuple(names)) for (reason, kind), names in found.items()]


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _printable(entry) for key, entry in value.items()}
    return [_printable(entry) for entry in value] if isinstance(value, list | tuple) else value
