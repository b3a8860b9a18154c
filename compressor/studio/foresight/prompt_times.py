"""Milliseconds that are there at once: by the latency table, and by a layer's whole width where the table lacks one."""

import math
from collections.abc import Sequence
from typing import Final

from compressor.latency.operators import Operator
from compressor.latency.table import LatencyTable, in_one_model
from compressor.pruning.choice.costs import StructureCosts
from compressor.pruning.choice.knapsack_choice import State

# Multiply-accumulates that an operator without any counts for.
_LEAST_MACS: Final = 1


class PromptTimes:
    """What `table` says of the states of `costs` in `form`, "float32" or "int8", without measuring anything.

    Operators of the whole model are measured when this is made; a narrower one that the table does not know counts with
    the whole one's time by the share of the multiply-accumulates that are left, and is `wanted`.
    """

    def __init__(self, table: LatencyTable, costs: StructureCosts, form: str) -> None:
        self._table, self._costs, self._form = table, costs, form
        whole = costs.operators({})
        times = table.milliseconds(in_one_model(whole, form), form)
        self._whole = dict(zip(whole, times, strict=True))
        self._origins: dict[Operator, Operator] = {}
        self.wanted: dict[Operator, None] = {}
        # The operators that `lacks` was asked about last, and what the table has of each.
        self._latest: tuple[Sequence[Operator], list[float | None]] = (), []

    def lacks(self, state: State) -> bool:
        """Whether something of `state` is not measured yet; it is `wanted` from now on."""
        operators = self._costs.operators(state)
        row = in_one_model(operators, self._form)
        known = self._table.known(row, self._form)
        missing = [each for each, ms in zip(row, known, strict=True) if ms is None]
        self._latest = operators, known
        if missing:
            self._origins.update(zip(operators, self._costs.origins(state), strict=True))
            self.wanted.update(dict.fromkeys(missing))
        return bool(missing)

    def measure(self, most: int) -> bool:
        """Measures at most so many of what is wanted, the latest first; whether there was anything."""
        chosen = list(self.wanted)[: -most - 1 : -1]
        if chosen:
            self._table.milliseconds(chosen, self._form)
        for each in chosen:
            self.wanted.pop(each, None)
        return bool(chosen)

    def __call__(self, models: Sequence[Sequence[Operator]]) -> list[float]:
        """The milliseconds of each model; its operators are those of a state that `lacks` was asked about."""
        return [self._of(operators) for operators in models]

    def _of(self, operators: Sequence[Operator]) -> float:
        latest, known = self._latest
        if latest is not operators:
            known = self._table.known(in_one_model(operators, self._form), self._form)
        return math.fsum(
            self._stand_in(operator) if ms is None else ms for operator, ms in zip(operators, known, strict=True)
        )

    def _stand_in(self, operator: Operator) -> float:
        whole = self._origins[operator]
        return self._whole[whole] * max(_LEAST_MACS, operator.macs) / max(_LEAST_MACS, whole.macs)
