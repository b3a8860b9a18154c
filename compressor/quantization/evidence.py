"""The fastest integer form whose outputs hold, tried in an order in which most networks need the first alone.

What is tried next depends on how the form before it failed: one that loses too much is tried again with what does harm
in float, one that is no faster makes room for others. Every attempt stands in the report with its numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.files.opening import given_size
from compressor.intervals import paired_drop
from compressor.measuring.fidelity import Fidelity
from compressor.measuring.scores import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.notes.quantization import Coverage, FormChosen, KeptOutput, TriedForm
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.choice.spare import Spare
from compressor.quantization.choice.spare_layers import SpareLayers
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.placement.forms import ByEvidence, ByFamily, Dynamic, WeightOnly
from compressor.quantization.post_training import Prepared
from compressor.quantization.quantizer import QuantizationSettings, Sparing, calibrated, quantized_file, why_failed
from compressor.stage import Context
from compressor.workload import Workload, first_batches, resize_batch

# Batches of validation data on which outputs are compared: ranges were made on others.
_COMPARED_BATCHES = 4
# Of the decibels that an output must keep, those that each of its channels must.
_CHANNEL_SHARE = 0.5
# How much faster a file has to be that is larger than the float file.
_WORTH_BYTES = 1.1
# Of one timing; slow files take longer.
_SECONDS = 1.0
_REPEATS = 5

Make = Callable[[Context], bytes]


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    told: TriedForm
    onnx_bytes: bytes = b""
    details: dict[str, Any] | None = None

    @property
    def holds(self) -> bool:
        return self.details is not None

    @property
    def is_faster(self) -> bool:
        return self.told.speedup is not None and round(self.told.speedup.low, 2) > 1


def by_evidence(exported: bytes, settings: QuantizationSettings, workload: Workload, context: Context) -> bytes:
    """The file of the first form of `settings.form` (ByEvidence) that holds and is faster, else of the best that holds.

    All that was tried stands in the details under "candidates". Raises StageError where nothing holds, or nothing that
    holds is faster or smaller than the float file, with the reason for each form.
    """
    form = settings.form
    if not isinstance(form, ByEvidence):
        raise StageError(f"by_evidence tries the forms of ByEvidence, got form={form}; use ByEvidence()")
    trial = _Trial(exported, form, workload, context)
    made: list[_Attempt] = []
    for attempt in _attempts(trial, settings):
        made.append(attempt)
        if attempt.holds and attempt.is_faster and _pays(attempt, exported):
            break
    standing = [attempt for attempt in made if attempt.holds and _pays(attempt, exported)]
    if not standing:
        reasons = "; ".join(
            f"{attempt.told.form}: {attempt.told.why or _unpaid(attempt, exported)}" for attempt in made
        )
        raise StageError(f"no integer form holds and pays, the float file is the best there is: {reasons}")
    best = _best(standing)
    told = tuple(_told(attempt, best, exported) for attempt in made)
    context.details.update(best.details or {})
    context.tell(FormChosen(candidates=told, chosen_form=best.told.form))
    return best.onnx_bytes


def _attempts(trial: "_Trial", settings: QuantizationSettings) -> Iterator[_Attempt]:
    """What is tried, in turn, each where those before it leave a reason to."""
    usual = replace(settings, form=ByFamily())
    label = "static"
    spare: Sparing | None = None
    last = trial(label, usual)
    yield last
    if not last.holds:
        for label, way in trial.ways_to_spare():
            spare = _once(way)
            last = trial(label, usual, spare)
            yield last
            if last.holds:
                break
    if last.holds:
        # Conversions between integers and float can cost more than the integers win.
        yield trial(f"{label}, slow layers in float", replace(usual, give_back=GiveBack(max_drop=None)), spare)
    yield trial("dynamic products, float convolutions", replace(settings, form=Dynamic()))
    yield trial("weights alone", replace(settings, form=WeightOnly()))


def _once(spare: Sparing) -> Sparing:
    """`spare`, whose search takes most of the time of an attempt, with what it found for the next one."""
    found: list[Prepared] = []

    def again(prepared: Prepared, scheme: Scheme, workload: Workload) -> Prepared:
        if not found:
            found.append(spare(prepared, scheme, workload))
        return found[0]

    return again


class _Trial:
    """Makes, judges and times the file of one form after the other."""

    def __init__(self, exported: bytes, form: ByEvidence, workload: Workload, context: Context) -> None:
        self.exported, self.form, self.workload, self.context = exported, form, workload, context
        self.rows: Tensor | None = None
        if form.max_drop is not None:
            self.rows = score_rows(exported, workload.validation, workload.metric)
        self.fidelity = Fidelity(exported)
        self.fidelity.hold(inputs for inputs, _ in first_batches(workload.validation, _COMPARED_BATCHES))
        self.files: dict[bytes, str] = {}
        self.latest: tuple[QuantizationSettings, Prepared] | None = None

    def __call__(self, label: str, settings: QuantizationSettings, spare: Sparing | None = None) -> _Attempt:
        """The attempt of these settings; without details where it does not hold, without a file where there is none.

        What nobody foresaw in it is why it does not hold, and the next form has its turn.
        """
        told = TriedForm(form=label, kept=False)
        own = replace(self.context, details={}, folder=None)

        def check(placed: bytes) -> None:
            nonlocal told
            if placed in self.files:
                raise StageError(f"the same file as {self.files[placed]}")
            self.files[placed] = label
            told = self._judged(told, placed)
            if told.why is not None:
                raise StageError(told.why)

        try:
            file = quantized_file(
                self.exported, settings, self.workload, own, spare=spare, calibrating=self._calibrated, check=check
            )
            speedup = self._timed(file)
        except Exception as error:  # noqa: BLE001 - the next form may do without what failed
            return _Attempt(told=replace(told, why=why_failed(error)))
        covered = Coverage.from_json(own.details)
        told = replace(
            told,
            size_bytes=len(file),
            integer_kernels=covered.integer_kernels if covered else None,
            speedup=speedup,
        )
        return _Attempt(told=told, onnx_bytes=file, details=own.details)

    def _calibrated(
        self, exported: bytes, settings: QuantizationSettings, workload: Workload, context: Context
    ) -> Prepared:
        """What `calibrated` gives, once for forms in a row that begin alike."""
        same = replace(settings, give_back=None)
        if self.latest is None or self.latest[0] != same:
            self.latest = same, calibrated(exported, same, workload, context)
        return self.latest[1]

    def ways_to_spare(self) -> Iterator[tuple[str, Sparing]]:
        """How what does harm may stay in float, by what is on integers: calibrated signals, layers that are not."""
        placement = None if self.latest is None else self.latest[1].placement
        if placement is None or placement.static:
            yield "static, harmful signals spared", Spare(missed=self.missed).apply
        if placement is not None and placement.dynamic:
            yield "harmful layers in float", SpareLayers(missed=self.missed).apply

    def missed(self, file: bytes) -> str:
        """What outputs and score of `file` lose beyond the limits, in words; "" for nothing."""
        return self._judged(TriedForm(form="", kept=False), file).why or ""

    def _judged(self, told: TriedForm, file: bytes) -> TriedForm:
        """`told` with what outputs and score keep, and why the file does not hold."""
        allowed, metric = self.form.max_drop, self.workload.metric
        kept = self.fidelity.kept(file)
        told = replace(told, sqnr_db=min((each.db for each in kept if each.db is not None), default=None))
        broken = [each.says() for each in kept if self._loses(each)]
        if broken:
            return replace(told, why=f"{'; '.join(broken)}: too little, wanted are {self.form.min_sqnr_db:g} dB")
        if allowed is None or self.rows is None:
            return told
        rows = score_rows(file, self.workload.validation, metric)
        drop = paired_drop(rows, self.rows, metric, seed=self.context.seed)
        lost = f"loses {drop.value:.4f} of {metric.name}, at most {allowed:g} is allowed"
        return replace(told, drop=drop, why=lost if drop.value > allowed else None)

    def _loses(self, kept: KeptOutput) -> bool:
        least, allowed = self.form.min_sqnr_db, self.form.max_drop
        if kept.equal is not None:
            return allowed is not None and kept.equal < 1 - allowed
        limits = ((kept.db, least), (kept.channel_db, least * _CHANNEL_SHARE))
        return any(value is not None and value < limit for value, limit in limits)

    def _timed(self, file: bytes) -> Estimate:
        target = self.context.target
        inputs = resize_batch(self.workload.example_inputs, target.batch_size)
        return time_interleaved(
            file,
            self.exported,
            inputs,
            threads=target.threads,
            seed=self.context.seed,
            repeats=_REPEATS,
            seconds=_SECONDS,
        ).speedup


def _pays(attempt: _Attempt, exported: bytes) -> bool:
    """Whether it is faster than the float file or as fast and smaller; a larger one has to be a good deal faster."""
    speedup = attempt.told.speedup
    if speedup is None:
        return False
    if len(attempt.onnx_bytes) > len(exported):
        return speedup.low >= _WORTH_BYTES
    return attempt.is_faster or (speedup.high >= 1 and len(attempt.onnx_bytes) < len(exported))


def _unpaid(attempt: _Attempt, exported: bytes) -> str:
    speedup = attempt.told.speedup
    if speedup is None:
        return "not timed"
    size = len(attempt.onnx_bytes) / len(exported)
    return f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] the speed of float, {size:.2f} of its size"


def _best(standing: Sequence[_Attempt]) -> _Attempt:
    """The fastest; the smallest of those whose intervals it does not leave."""

    def speed(attempt: _Attempt) -> Estimate:
        assert attempt.told.speedup is not None  # `_pays` asks for it
        return attempt.told.speedup

    leader = max(standing, key=lambda attempt: speed(attempt).value)
    tied = [attempt for attempt in standing if speed(attempt).high >= speed(leader).low]
    return min(tied, key=lambda attempt: len(attempt.onnx_bytes))


def _told(attempt: _Attempt, best: _Attempt, exported: bytes) -> TriedForm:
    if attempt is best:
        return replace(attempt.told, kept=True, why=_remark(attempt, exported))
    return (
        attempt.told
        if attempt.told.why
        else replace(attempt.told, why=f"{_unpaid(attempt, exported)}; {best.told.form} is better")
    )


def _remark(best: _Attempt, exported: bytes) -> str | None:
    """What is said of a file that ships and is no faster."""
    if best.is_faster:
        return None
    given = given_size(exported)
    # Reading a file writes sparse weights out, and half precision in single.
    smaller = given is None or len(best.onnx_bytes) <= given[1]
    told = "smaller" if smaller else "smaller than the given file as it was read, not than it is"
    return f"{told}, and not proved faster: {_unpaid(best, exported)}"
