"""How many bits the weights of every layer get, for the least noise within a size: a multiple-choice knapsack.

The noise that a layer causes at each width is measured (`sensitivity`), not modelled by a Hessian as in HAWQ-V3 (Yao et
al. 2021, arXiv:2011.10680, equation 9), whose integer programme this is otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressor.knapsack import BudgetError, Option, choose
from compressor.quantization.compact_graph import serialize
from compressor.quantization.post_training import Prepared
from compressor.quantization.sensitivity import (
    Sensitivity,
    first_inputs,
    noise_db,
    output_values,
    predicted_db,
    scheme_of_width,
    sensitivities,
    sensitivity_rows,
)
from compressor.quantization.weight_grids import WeightGrid, nearest_grids
from compressor.stage import Context, StageError
from compressor.workload import Workload

# How often the widths are chosen again where the noises add up to less than they are together, and by how much more.
_ROUNDS = 6
_STEP_DB = 0.1


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Weights of different widths, exactly one of two goals given.

    `size` in (0, 1]: the least noise with at most this fraction of the bytes that weights of the widest `bits` take.
    `sqnr_db` (> 0): the fewest bytes whose noises together leave this many decibels. `bits` are the widths to choose
    from, 2 to 8, ascending; `samples` (>= 1) of the calibration data judge them.
    """

    bits: tuple[int, ...] = (3, 4, 6, 8)
    size: float | None = None
    sqnr_db: float | None = None
    samples: int = 64

    def __post_init__(self) -> None:
        if not self.bits or list(self.bits) != sorted(set(self.bits)) or not 2 <= self.bits[0] <= self.bits[-1] <= 8:
            raise ValueError(f"bits are different widths from 2 to 8, ascending; got {self.bits}")
        if (self.size is None) == (self.sqnr_db is None):
            raise ValueError(
                f"exactly one of size and sqnr_db is the goal, got size={self.size}, sqnr_db={self.sqnr_db}; "
                "try MixedPrecision(size=0.6)"
            )
        if self.size is not None and not 0 < self.size <= 1:
            raise ValueError(f"size is a fraction of the bytes at {self.bits[-1]} bits, in (0, 1]; got {self.size}")
        if self.sqnr_db is not None and not self.sqnr_db > 0:
            raise ValueError(f"sqnr_db is in decibels, above 0; got {self.sqnr_db}")
        if self.samples < 1:
            raise ValueError(f"samples counts calibration samples, at least 1; got {self.samples}")

    def apply(self, prepared: Prepared, workload: Workload, context: Context) -> Prepared:
        """`prepared` with grids of the chosen widths, and the sensitivities in its details.

        The sum of the noises only predicts: for `sqnr_db` the chosen widths are measured together, and chosen again
        with what was missing on top. Raises StageError where the goal cannot be met.
        """
        found = sensitivities(prepared, self.bits, workload, context, samples=self.samples)
        if not found:
            raise StageError("no static layer has constant weights, so there are no widths to choose; leave mixed out")
        layers = tuple(found.values())
        batches = first_inputs(workload.calibration, self.samples)
        reference = output_values(serialize(prepared.graph), batches)
        missing = 0.0
        for _ in range(_ROUNDS):
            chosen = self.chosen(layers, more_db=missing)
            weights = {**prepared.weights, **_grids(prepared, chosen)}
            measured = noise_db(reference, output_values(serialize(prepared.place(weights=weights)), batches))
            if self.sqnr_db is None or measured >= self.sqnr_db:
                break
            missing += self.sqnr_db - measured + _STEP_DB
        else:
            raise StageError(
                f"widths of {self.bits} bits leave {measured:.1f} dB together, wanted are {self.sqnr_db:g}; ask for "
                "less or allow more bits"
            )
        told: dict[str, Any] = {
            "goal": {"size": self.size, "sqnr_db": self.sqnr_db},
            "weight_bytes": sum(entry.size_bytes for entry in chosen),
            "predicted_sqnr_db": round(predicted_db(chosen), 2),
            "measured_sqnr_db": measured,
        }
        widths = {entry.node: entry.bits for entry in chosen}
        details = {**prepared.details, "mixed_precision": told, "sensitivity": sensitivity_rows(found, widths)}
        return replace(prepared, weights=weights, details=details)

    def chosen(self, layers: Sequence[Sequence[Sensitivity]], *, more_db: float = 0.0) -> tuple[Sensitivity, ...]:
        """One entry of every layer; the sum of their noises is `more_db` below what `sqnr_db` asks.

        Raises StageError where the goal cannot be met.
        """
        if self.size is not None:
            limit = self.size * sum(max(entry.size_bytes for entry in layer) for layer in layers)
            options = [[Option(loss=entry.noise, cost=entry.size_bytes) for entry in layer] for layer in layers]
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


def _grids(prepared: Prepared, chosen: Sequence[Sensitivity]) -> dict[str, WeightGrid]:
    schemes = {entry.node: scheme_of_width(prepared.scheme, entry.bits) for entry in chosen}
    return nearest_grids(prepared.graph, schemes)
