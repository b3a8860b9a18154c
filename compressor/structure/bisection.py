"""Which of many parts can go together, found by trying: one trial with everything, and halves of it where it fails."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Part = TypeVar("Part", bound=Hashable)


def bisected(parts: Sequence[Part], fault_of: Callable[[list[Part]], str | None]) -> tuple[list[Part], dict[Part, str]]:
    """Which of `parts` can go together, and why the others cannot: the reason that `fault_of` gives for a choice.

    One trial where all can go, and about 2 log2(parts) more for every part that cannot.
    """
    faults: dict[Part, str] = {}

    def settle(settled: list[Part], rest: Sequence[Part]) -> list[Part]:
        if not rest:
            return settled
        reason = fault_of([*settled, *rest])
        if reason is None:
            return [*settled, *rest]
        if len(rest) == 1:
            faults[rest[0]] = reason
            return settled
        middle = len(rest) // 2
        return settle(settle(settled, rest[:middle]), rest[middle:])

    return settle([], parts), faults
