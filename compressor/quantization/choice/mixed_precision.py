"""How many bits the weights of every layer get, or float, for the least noise within a budget: a knapsack of choices.

What a layer causes at each width is measured (`sensitivity`), not modelled by a Hessian as in HAWQ-V3 (Yao et al. 2021,
arXiv:2011.10680, equation 9), whose integer programme this is otherwise. Sums over layers only predict: what was chosen
is measured as a whole, and chosen again where the prediction was too hopeful.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from compressor.checks import check_count, check_fraction, check_max_drop, check_positive
from compressor.errors import BudgetError, NothingToImproveError, StageError
from compressor.knapsack import Option, choose
from compressor.notes.quantization import MixedWidths, TriedWidths
from compressor.quantization.choice.sensitivity import (
    FLOAT_BITS,
    SQNR,
    Biased,
    Sensitivity,
    TaskMetric,
    first_inputs,
    noise_db,
    output_values,
    predicted_db,
    sensitivities,
    sensitivities_note,
    with_biases_for,
)
from compressor.quantization.choice.width_search import (
    Found,
    assigned,
    fewest_bytes,
    float_share,
    timed,
    within_time,
)
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.post_training import Prepared
from compressor.stage import Context
from compressor.workload import Workload

# How often the widths are chosen again where the sum over layers promised too much, and by how much more.
_ROUNDS = 6
_STEP_DB = 0.1
_GOALS = ("size", "sqnr_db", "latency", "max_drop")


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Weights of different widths, exactly one of four goals given.

    `size` in (0, 1]: the least noise with at most this fraction of the bytes that weights of the widest `bits` take.
    `sqnr_db` (> 0): the fewest bytes whose noises together leave this many decibels. `latency` in (0, 1]: the least
    noise in at most this fraction of the float file's time on the target, timed in turns. `max_drop`: the fewest bytes
    that lose no more than this on the validation data, as in `Budget`. Weights are rounded to nearest where a goal is
    looked at, before anything is learned.

    `bits` are the widths to choose from, ascending: 2 to 8, 16 and 32. Of 32 bits a layer stays in float, and of 16 it
    does with weights stored as float16, since ONNX Runtime has no kernels for integers of 16 bits: half the bytes, the
    same time, hardly any noise. All widths up to 8 run as fast as 8, so `latency` chooses between these and float.
    `samples` (>= 1) of the calibration data judge single layers, by `criterion`.
    """

    bits: tuple[int, ...] = (3, 4, 6, 8)
    size: float | None = None
    sqnr_db: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    criterion: SQNR | TaskMetric = field(default_factory=SQNR)
    samples: int = 64

    def __post_init__(self) -> None:
        integers = [width for width in self.bits if width not in FLOAT_BITS]
        ascending = list(self.bits) == sorted(set(self.bits))
        if not integers or not ascending or not 2 <= integers[0] <= integers[-1] <= 8:
            raise ValueError(
                "bits are different widths from 2 to 8, ascending, and after at least one of these 16 or 32 for layers "
                f"in float; got {self.bits}"
            )
        goals = {name: getattr(self, name) for name in _GOALS}
        if sum(goal is not None for goal in goals.values()) != 1:
            got = ", ".join(f"{name}={goal}" for name, goal in goals.items())
            raise ValueError(
                f"exactly one of {', '.join(_GOALS[:-1])} and {_GOALS[-1]} is the goal, got {got}; try "
                "MixedPrecision(size=0.6)"
            )
        if self.size is not None:
            check_fraction(self.size, f"size is a fraction of the bytes at {self.bits[-1]} bits", within="(0, 1]")
        if self.sqnr_db is not None:
            check_positive(self.sqnr_db, "sqnr_db is a ratio in decibels")
        if self.latency is not None:
            check_fraction(self.latency, "latency is a fraction of the float file's time", within="(0, 1]")
        if self.latency is not None and not set(FLOAT_BITS).intersection(self.bits):
            raise ValueError(
                f"all widths up to 8 bits take the same time, so latency has nothing to choose among bits={self.bits}; "
                f"add 32 for layers in float: bits={(*self.bits, 32)}"
            )
        check_max_drop(self.max_drop)
        if self.sqnr_db is not None and isinstance(self.criterion, TaskMetric):
            raise ValueError(
                "sqnr_db adds up decibels, which criterion=TaskMetric() does not rank by; use criterion=SQNR(), or "
                "another goal"
            )
        check_count(self.samples, "samples counts calibration samples")

    def apply(
        self, prepared: Prepared, workload: Workload, context: Context, *, biased: Biased | None = None
    ) -> Prepared:
        """`prepared` with grids of the chosen widths, some layers in float, and the sensitivities in its details.

        With `biased` noise is what is left once biases make up for what rounding shifts in the mean. Raises StageError
        where the goal cannot be met, and NothingToImproveError where no layer's width can be chosen.
        """
        found: Found = sensitivities(
            prepared, self.bits, workload, context, samples=self.samples, criterion=self.criterion, biased=biased
        )
        if not found:
            raise NothingToImproveError(
                "mixed", "no static layer has constant weights, so there are no widths to choose"
            )
        batches = first_inputs(workload.calibration, self.samples)
        reference = output_values(serialize(prepared.graph), batches)

        def measured_db(candidate: Prepared) -> float:
            file = serialize(with_biases_for(candidate.weights, candidate, biased).place())
            return noise_db(reference, output_values(file, batches))

        tried: list[TriedWidths] | None = None
        if self.max_drop is not None:
            chosen, mixed, tried = fewest_bytes(prepared, found, self.max_drop, workload, context)
        elif self.latency is not None:
            found = timed(found, prepared, workload, context)
            chosen, mixed, tried = within_time(prepared, found, self.latency, workload, context)
        else:
            missing = 0.0
            for _ in range(_ROUNDS):
                chosen = self.chosen(tuple(found.values()), more_db=missing)
                mixed = assigned(prepared, found, chosen)
                left_db = measured_db(mixed)
                if self.sqnr_db is None or left_db >= self.sqnr_db:
                    break
                missing += self.sqnr_db - left_db + _STEP_DB
            else:
                raise StageError(
                    f"widths of {self.bits} bits leave {left_db:.1f} dB together, wanted are {self.sqnr_db:g}; ask for "
                    "less or allow more bits"
                )
        told = MixedWidths(
            goal={name: getattr(self, name) for name in _GOALS},
            tried=None if tried is None else tuple(tried),
            weight_bytes=sum(entry.size_bytes for entry in chosen),
            float_share=float_share(chosen, found),
            predicted_sqnr_db=round(predicted_db(chosen), 2),
            measured_sqnr_db=measured_db(mixed),
        )
        layers = sensitivities_note(found, {entry.node: entry.bits for entry in chosen})
        return mixed.noting(told).noting(layers)

    def chosen(self, layers: Sequence[Sequence[Sensitivity]], *, more_db: float = 0.0) -> tuple[Sensitivity, ...]:
        """One entry of every layer for the goal `size`, or `sqnr_db` and `more_db` on top.

        Raises StageError where the goal cannot be met.
        """
        if self.size is not None:
            limit = self.size * sum(max(entry.size_bytes for entry in layer) for layer in layers)
            options = [[Option(loss=entry.loss, cost=entry.size_bytes) for entry in layer] for layer in layers]
            wanted = f"{limit:.0f} bytes"
        else:
            assert self.sqnr_db is not None
            limit = 10 ** (-(self.sqnr_db + more_db) / 10)
            options = [[Option(loss=entry.size_bytes, cost=entry.noise) for entry in layer] for layer in layers]
            lacking = f" and the {more_db:.1f} that the prediction lacks" if more_db else ""
            wanted = f"{self.sqnr_db:g} dB{lacking}"
        try:
            picks = choose(options, limit)
        except BudgetError as error:
            best = predicted_db(max(layer, key=lambda entry: entry.sqnr_db) for layer in layers)
            least = sum(min(entry.size_bytes for entry in layer) for layer in layers)
            raise StageError(
                f"no choice of {self.bits} bits meets {wanted}: the best has {best:.1f} dB, the smallest {least} "
                "bytes; ask for less or allow other widths"
            ) from error
        return tuple(layer[pick] for layer, pick in zip(layers, picks, strict=True))
