"""Layers that lose more than they bring go back to float, each with its reason.

An integer kernel can be slower than its float one (depthwise or tiny layers, conversions around a lone layer), and one
layer can cost most of the accuracy. Which layers are slower, or islands of them between conversions, is read from ONNX
Runtime's profile of both files, the greatest loss first; that it helps to give them back is proved by timing the whole
files in turns, since new conversions appear at their borders.
Which layers cost accuracy is read from the output's noise without each of them, with the grids as they are placed; how
many go back is decided by the score on validation data, or by a bound on the noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.budget import describe_drop, judge_drop
from compressor.checks import check_count, check_max_drop, check_positive
from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.measuring.scores import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.notes.quantization import FloatAgain, GiveBackTried, GivenBack, Judged, TriedInFloat
from compressor.quantization.choice.layer_times import islands, layer_ms, slower_groups
from compressor.quantization.choice.sensitivity import first_inputs, noise_db, output_values, reliefs
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.post_training import Prepared
from compressor.stage import Context
from compressor.workload import Workload, resize_batch

# What is done to a candidate before it is judged: its biases are corrected for the layers that it rounds.
Correct = Callable[[Prepared], Prepared]
# Layers that are given back together.
Group = tuple[str, ...]
_SLOWER = "given back: its integer form is slower"
_HARMFUL = "given back: it costs too much accuracy"
# A gain in time that is less than this share of the file's by its profile is less than a timing can prove.
_LEAST_GAIN = 0.005
_WAY_OUT = "train with QuantizationAwareTraining, use more bits, or allow more"


@dataclass(frozen=True, kw_only=True)
class GiveBack:
    """Float again: what is slower in integers, and what costs more accuracy than allowed.

    `max_drop` is as in `Budget`, judged on the validation data, and `min_sqnr_db` (> 0) the signal to quantization
    noise that the output must keep on calibration data; None does not look. `slower` says whether time is looked at.
    `samples` (>= 1) of the calibration data measure noise.

    Learned rounding is not learned again for the layers that stay. On ResNet-20 with weights of 4 bits by GPTQ and 1,
    2, 4, 8 or 12 of 22 layers back, that would change the validation accuracy by +0.14, +0.18, -0.14, -0.02 and -0.06
    points, with 3 bits and 2, 4 or 8 back by +0.14, -0.10 and +0.20: less than its interval of 0.35 on either side.
    """

    max_drop: float | None = 0.01
    min_sqnr_db: float | None = None
    slower: bool = True
    samples: int = 64

    def __post_init__(self) -> None:
        check_max_drop(self.max_drop)
        if self.min_sqnr_db is not None:
            check_positive(self.min_sqnr_db, "min_sqnr_db is a ratio in decibels")
        if not self.slower and not self._judges:
            raise ValueError(
                "max_drop=None, min_sqnr_db=None and slower=False look at nothing; set one, or leave GiveBack out"
            )
        check_count(self.samples, "samples counts calibration samples")

    @property
    def _judges(self) -> bool:
        return self.max_drop is not None or self.min_sqnr_db is not None

    def apply(
        self, prepared: Prepared, workload: Workload, context: Context, *, correct: Correct = lambda prepared: prepared
    ) -> Prepared:
        """`prepared` as `correct` leaves it, without the layers that went back.

        Its details say which did under "given_back", and what was tried under "give_back". Raises StageError where the
        goal is missed even with one layer left.
        """
        told = _Told()
        if self.slower:
            prepared = _faster(prepared, workload, context, told)
        prepared = self._close_enough(prepared, workload, context, correct, told) if self._judges else correct(prepared)
        before = GivenBack.from_json(prepared.details)
        gone = GivenBack(given_back=(*(before.given_back if before else ()), *told.layers))
        return prepared.noting(gone).noting(GiveBackTried(tried=tuple(told.tried), before=told.before))

    def _close_enough(
        self, prepared: Prepared, workload: Workload, context: Context, correct: Correct, told: "_Told"
    ) -> Prepared:
        judge = _Judge(self, prepared.exported, workload, context)
        whole = correct(prepared)
        told.before = judge(whole)
        missed = told.before.missed
        if not missed:
            return whole
        kept_db, ranked = reliefs(prepared, workload, context, samples=self.samples)
        order = list(ranked)
        passing: dict[int, Prepared] = {}
        failing, count = 0, 1
        # Double until enough have gone back, then halve the gap: few files are scored, and few layers too many go.
        while count < len(order):
            candidate = correct(prepared.without(dict.fromkeys(order[:count], _HARMFUL)))
            judged = judge(candidate)
            told.tried.append(
                TriedInFloat(
                    nodes=tuple(order[:count]),
                    why="accuracy",
                    kept=not judged.missed,
                    drop=judged.drop,
                    sqnr_db=judged.sqnr_db,
                    missed=judged.missed,
                )
            )
            if judged.missed:
                failing, missed = count, judged.missed
            else:
                passing[count] = candidate
            least = min(passing, default=None)
            if least is not None and least - failing <= 1:
                break
            count = min(2 * count, max(count + 1, len(order) - 1)) if least is None else (failing + least) // 2
        if not passing:
            tried = "one quantized layer is all there is" if len(order) < 2 else "so it does with one layer left"
            raise StageError(f"{missed}, and {tried}; {_WAY_OUT}")
        least = min(passing)
        for name in order[:least]:
            why = f"costs accuracy: with it in float the outputs keep {ranked[name]:.2f} dB instead of {kept_db:.2f}"
            told.add(name, why, sqnr_db=kept_db, sqnr_db_without=ranked[name])
        return passing[least]


@dataclass(kw_only=True)
class _Told:
    """What the report is told."""

    layers: list[FloatAgain] = field(default_factory=list)
    tried: list[TriedInFloat] = field(default_factory=list)
    before: Judged | None = None

    def add(self, node: str, why: str, **numbers: float) -> None:
        self.layers.append(FloatAgain(node=node, why=why, numbers=numbers))


class _Judge:
    """Whether a candidate is close enough to the float file."""

    def __init__(self, goal: GiveBack, exported: bytes, workload: Workload, context: Context) -> None:
        self.goal, self.workload, self.seed = goal, workload, context.seed
        if goal.max_drop is not None:
            self.rows = score_rows(exported, workload.validation, workload.metric)
        if goal.min_sqnr_db is not None:
            self.batches = first_inputs(workload.calibration, goal.samples)
            self.outputs = output_values(exported, self.batches)

    def __call__(self, candidate: Prepared) -> Judged:
        """What is missed, in words, and the numbers."""
        file = candidate.shipped()
        missed: list[str] = []
        drop, kept_db = None, None
        if self.goal.max_drop is not None:
            metric = self.workload.metric
            rows = score_rows(file, self.workload.validation, metric)
            drop = paired_drop(rows, self.rows, metric, seed=self.seed)
            if not judge_drop(drop, self.goal.max_drop, metric).keep:
                missed.append(f"validation {describe_drop(drop, metric)}, max_drop is {self.goal.max_drop:g}")
        if self.goal.min_sqnr_db is not None:
            kept_db = noise_db(self.outputs, output_values(file, self.batches))
            if kept_db < self.goal.min_sqnr_db:
                missed.append(f"the outputs keep {kept_db:.1f} dB, wanted are {self.goal.min_sqnr_db:g}")
        return Judged(drop=drop, sqnr_db=kept_db, missed="; ".join(missed))


def _faster(prepared: Prepared, workload: Workload, context: Context, told: _Told) -> Prepared:
    """`prepared` without the layers whose integer form is slower, as far as the whole file gets faster by it."""
    inputs = resize_batch(workload.example_inputs, context.target.batch_size)
    threads = context.target.threads
    float_ms = layer_ms(serialize(prepared.graph), prepared.graph, inputs, threads=threads)
    # What went back leaves other layers alone among conversions: looked at again, until nothing gains any more.
    while True:
        current = prepared.shipped()
        integer_ms = layer_ms(current, prepared.graph, inputs, threads=threads)
        least = _LEAST_GAIN * sum(integer_ms.values())
        for groups in _time_trials(prepared, float_ms, integer_ms):
            names = [name for group in groups for name in group]
            if sum(integer_ms[name] - float_ms[name] for name in names) < least:
                continue
            try:
                candidate = prepared.without(dict.fromkeys(names, _SLOWER))
            except StageError:
                continue  # nothing would be left: the pipeline's own gate judges the whole
            file = candidate.shipped()
            gain = time_interleaved(file, current, inputs, threads=threads, seed=context.seed).speedup
            told.tried.append(TriedInFloat(nodes=tuple(names), why="time", speedup=gain, kept=gain.low > 1))
            if gain.low > 1:
                break
        else:
            return prepared
        for group in groups:
            before, after = (sum(times[name] for name in group) for times in (integer_ms, float_ms))
            together = f" for {len(group)} layers between conversions" if len(group) > 1 else ""
            for name in group:
                told.add(
                    name,
                    f"slower: {before:.4f} ms in integers with its conversions, {after:.4f} ms in float{together}; the "
                    f"file is {gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}] faster with {len(names)} back",
                    float_ms=round(float_ms[name], 5),
                    integer_ms=round(integer_ms[name], 5),
                )
        prepared = candidate


def _time_trials(
    prepared: Prepared, float_ms: Mapping[str, float], integer_ms: Mapping[str, float]
) -> list[list[Group]]:
    """What to time in float: islands that are slower as a whole and single layers elsewhere, then single layers alone.

    A lone layer of an island may gain nothing, since its conversions only move to the next one.
    """
    placement = prepared.placement
    alone = [(name,) for name in (*placement.static, *placement.dynamic)]
    whole = slower_groups(float_ms, integer_ms, islands(prepared.graph, prepared.static, placement.static))
    covered = {name for names in whole for name in names}
    mixed = slower_groups(float_ms, integer_ms, [*whole, *(names for names in alone if names[0] not in covered)])
    found = trials(list(mixed))
    singles = trials(list(slower_groups(float_ms, integer_ms, alone)))
    return [*found, *(trial for trial in singles if trial not in found)]


def trials(slower: Sequence[Group]) -> list[list[Group]]:
    """All of them, then again and again the half that loses most, down to the one that does."""
    found = [list(slower)] if slower else []
    while found and len(found[-1]) > 1:
        found.append(found[-1][: (len(found[-1]) + 1) // 2])
    return found
