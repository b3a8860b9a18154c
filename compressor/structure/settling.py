"""What of a model can be narrowed, with which size attributes, and which groups only together: found by trying.

Half of every group goes at once; where that fails, halves of the groups are tried, at last each by itself with the
attributes that may hold its size. Groups that fail alone are tried with those that share an attribute. What passed
with half is tried again with another number from each, so that no size that others have to match is called free.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, combinations
from math import gcd

from torch import nn

from compressor.structure.axes.axis import Axis
from compressor.structure.axes.groups import AxisStructure
from compressor.structure.axes.size_attributes import Choice, by_name, candidates, first_of_each, key_of
from compressor.structure.bisection import bisected
from compressor.structure.couplings import Coupled

# Attributes that may or may not follow are tried one by one and in pairs, at most this often for one group.
_TRIES = 32
# Groups that may have to keep their proportions are tried in pairs, at most this often for one group.
_PARTNERS = 12

Gone = dict[Coupled, list[int]]
Key = tuple[str, str, int, int]


class Settling:
    """The groups of the `structure` of `model` on their way to being free or locked."""

    _fault_of: Callable[[Gone], str | None]

    def __init__(self, model: nn.Module, structure: AxisStructure) -> None:
        self._structure = structure
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._candidates: dict[Coupled, list[Choice]] = {}
        self._accepted: list[Coupled] = []
        self._alone: dict[Coupled, str] = {}
        self._solved: dict[frozenset[Key], frozenset[Key]] = {}
        for group in structure.groups:
            if group.locked is None:
                self._candidates[group] = self._candidates_of(group)
                structure.choices[group.name] = tuple(by_name(self._candidates[group], group.kind))

    @property
    def needed(self) -> bool:
        """Whether there is anything to try."""
        return bool(self._candidates)

    def run(self, fault_of: Callable[[Gone], str | None]) -> None:
        """Finds the attributes that keep sizes and the groups that go together, and locks what cannot be narrowed.

        `fault_of` tries a cut on the model, and says why it cannot be, or None.
        """
        self._fault_of = fault_of
        self._settle(list(self._candidates))
        self._settle_sharing()
        self._lock_alone()
        self._settle_rivals()
        self._settle_uneven()

    def _lock_alone(self) -> None:
        for group, reason in self._alone.items():
            raised = re.match(r"\w+: ", reason)
            self._lock(group, f"a size is written into the program or follows others: {reason}" if raised else reason)
        self._alone.clear()

    def _settle_rivals(self) -> None:
        """Tries the groups that stay for the sake of others which turned out to be locked."""
        for axis, winners in self._structure.instead.items():
            by_axis = {other: group for group, other in self._structure.axes.items()}
            if axis in by_axis and all(winner in by_axis and by_axis[winner].locked for winner in winners):
                group = replace(by_axis[axis], locked=None)
                self._structure.replace(by_axis[axis], group)
                self._candidates[group] = self._candidates_of(group)
                self._settle([group])
                self._lock_alone()

    def _candidates_of(self, group: Coupled) -> list[Choice]:
        structure = self._structure
        axes = dict.fromkeys(structure.dims[name][dim] for name, dim in structure.places[group])
        computed = structure.computed.get(structure.axes[group], ())
        return candidates(self._modules, [part.module for part in group.parts], axes, computed, structure.axes[group])

    def _settle(self, groups: list[Coupled]) -> None:
        if not groups:
            return
        reason = self._fault_of(_halves([*self._accepted, *groups]))
        if reason is None:
            self._accepted += groups
        elif len(groups) == 1:
            self._settle_alone(groups[0], reason)
        else:
            middle = len(groups) // 2
            for group in groups:
                self._recall(group)
            self._settle(groups[:middle])
            self._settle(groups[middle:])

    def _recall(self, group: Coupled) -> None:
        # Modules of one class keep their sizes alike: what worked for one is the first guess for the next.
        keys = [key_of(choice, self._modules) for choice in self._candidates[group]]
        solved = self._solved.get(frozenset(keys))
        if solved is not None:
            self._structure.choices[group.name] = tuple(
                choice for choice, key in zip(self._candidates[group], keys, strict=True) if key in solved
            )

    def _settle_alone(self, group: Coupled, reason: str) -> None:
        if not self._finds_attributes(group, lambda: self._passes({group: _half(group)})):
            self._alone[group] = reason

    def _finds_attributes(self, group: Coupled, passes: Callable[[], bool]) -> bool:
        """Whether `group` can be accepted, with the first attributes that let the trial `passes` pass."""
        options = self._candidates[group]
        first = first_of_each(choice for choice in options if choice.likely)
        everything = (tuple(choice for choice in first if choice.place < 0), tuple(first))
        pairs = (pair for pair in combinations(options, 2) if pair[0].key != pair[1].key)
        few = chain(((choice,) for choice in options), pairs)
        for tried in list(dict.fromkeys([(), *everything, *few]))[:_TRIES]:
            self._structure.choices[group.name] = tried
            if passes():
                keys = frozenset(key_of(choice, self._modules) for choice in options)
                self._solved[keys] = frozenset(key_of(choice, self._modules) for choice in tried)
                self._accepted.append(group)
                return True
        self._structure.choices.pop(group.name)
        return False

    def _settle_sharing(self) -> None:
        """Links groups that fail alone but go together, since one attribute holds the size of all of them."""
        sharing: dict[tuple[str, str, int], list[Coupled]] = {}
        for group in self._alone:
            for key in dict.fromkeys(choice.key for choice in self._candidates[group]):
                sharing.setdefault(key, []).append(group)
        for groups in dict.fromkeys(tuple(groups) for groups in sharing.values() if len(groups) > 1):
            if all(group in self._alone for group in groups):
                self._try_sharing(groups)

    def _try_sharing(self, groups: tuple[Coupled, ...]) -> None:
        steps = gcd(*(group.width for group in groups))
        if steps < 2:
            return
        # What gives one size for all of them: of each attribute one choice, for the others follow in step.
        every = [{choice.key: choice for choice in first_of_each(self._candidates[group])} for group in groups]
        common = [key for key in every[0] if all(key in other for other in every)]
        whole = tuple(key for key in common if key[2] < 0)
        few = chain.from_iterable(combinations(common, count) for count in (1, 2))
        for keys in list(dict.fromkeys([*few, whole, tuple(common)]))[:_TRIES]:
            self._structure.choices[groups[0].name] = tuple(every[0][key] for key in keys)
            if self._passes(_in_step(groups, steps, range(0, 2 * (steps // 2), 2))):
                for group in groups:
                    self._alone.pop(group)
                self._accept_linked(groups, steps)
                return
        self._structure.choices.pop(groups[0].name, None)

    def _settle_uneven(self) -> None:
        """Links or locks groups that passed with half of everything, but whose widths are not free."""
        faults = self._wrong_guesses()
        for group in faults:
            self._accepted.remove(group)
        _, more = bisected(list(self._accepted), self._uneven_fault)
        for group in more:
            self._accepted.remove(group)
        faults |= more
        rest = {}
        for group, reason in faults.items():
            # A wrong guess of its attributes may have passed with half of everything.
            guessed = self._structure.choices.get(group.name, ())
            if not guessed or not self._finds_attributes(
                group,
                lambda: self._uneven_fault([*self._accepted, group]) is None,  # noqa: B023 - called at once
            ):
                self._structure.choices[group.name] = guessed
                rest[group] = reason
        while rest:
            group = next(iter(rest))
            reason = rest.pop(group)
            found = self._proportion(group, list(rest))
            if found is None:
                self._lock(group, f"only some of its widths are possible: {reason}")
                continue
            groups, steps = found
            for other in groups[1:]:
                rest.pop(other)
            self._accept_linked(groups, steps)
        self._accepted, faults = bisected(list(self._accepted), self._uneven_fault) if faults else (self._accepted, {})
        for group, reason in faults.items():
            self._lock(group, f"only some of its widths are possible: {reason}")

    def _wrong_guesses(self) -> dict[Coupled, str]:
        """The groups that fail alone, of those whose attributes others set from another axis."""
        setters: dict[tuple[str, str, int], dict[Axis, list[Coupled]]] = {}
        for group in self._accepted:
            for choice in self._structure.choices.get(group.name, ()):
                setters.setdefault(choice.key, {}).setdefault(choice.axis.root, []).append(group)
        doubtful = [group for axes in setters.values() if len(axes) > 1 for groups in axes.values() for group in groups]
        reasons = {group: self._fault_of({group: _half(group)}) for group in dict.fromkeys(doubtful)}
        return {group: reason for group, reason in reasons.items() if reason is not None}

    def _uneven_fault(self, groups: list[Coupled]) -> str | None:
        if not groups:
            return None
        return self._fault_of(_uneven(groups, 0)) or self._fault_of(_uneven(groups, 1))

    def _proportion(self, group: Coupled, others: list[Coupled]) -> tuple[tuple[Coupled, ...], int] | None:
        """The groups that `group` has to go with, itself first, and in how many steps; None if none is known."""
        divisors = [steps for steps in range(group.width // 2, 1, -1) if group.width % steps == 0]
        near = sorted(others, key=lambda other: -_shared_depth(group, other))
        pairs = [(group, other) for other in near[:_PARTNERS]]
        options = [
            *(((group,), steps) for steps in divisors[:_PARTNERS]),
            *((pair, gcd(*(one.width for one in pair))) for pair in pairs),
            *([((group, *others), gcd(group.width, *(other.width for other in others)))] if len(others) > 1 else []),
        ]
        for groups, steps in options:
            if steps > 1 and all(
                self._passes(_in_step(groups, steps, units)) for units in ([0], list(range(steps - 1)))
            ):
                return groups, steps
        return None

    def _accept_linked(self, groups: Sequence[Coupled], steps: int) -> None:
        # The axes of their choices hold what is linked now.
        choices = first_of_each(choice for group in groups for choice in self._structure.choices.get(group.name, ()))
        linked = self._structure.link(groups, steps)
        self._structure.choices[linked.name] = tuple(choices)
        self._accepted.append(linked)

    def _lock(self, group: Coupled, reason: str) -> None:
        self._structure.choices.pop(group.name, None)
        self._structure.replace(group, replace(group, locked=reason))

    def _passes(self, gone: Gone) -> bool:
        """Whether `gone` goes alone, and together with half of everything that is known to go."""
        return self._fault_of(gone) is None and self._fault_of({**_halves(self._accepted), **gone}) is None


def _half(group: Coupled) -> list[int]:
    # Every second unit goes, so that what still points to a fixed position is found out.
    return list(range(0, 2 * (group.width // 2), 2))


def _halves(groups: Iterable[Coupled]) -> Gone:
    return {group: _half(group) for group in groups}


def _uneven(groups: Sequence[Coupled], turn: int) -> Gone:
    """Of every second group few units go and of the others most, by `turn`; of equal widths each another number."""
    ranks: dict[tuple[int, bool], int] = {}
    gone = {}
    for number, group in enumerate(groups):
        few = number % 2 == turn
        rank = ranks[group.width, few] = ranks.get((group.width, few), -1) + 1
        count = 1 + rank % (group.width - 1)
        gone[group] = list(range(count if few else group.width - count))
    return gone


def _in_step(groups: Sequence[Coupled], steps: int, units: Iterable[int]) -> Gone:
    """What goes of `groups` with `units` out of `steps` that they have together."""
    gone = {}
    for group in groups:
        ratio = group.width // steps
        gone[group] = [unit * ratio + number for unit in units for number in range(ratio)]
    return gone


def _shared_depth(one: Coupled, two: Coupled) -> int:
    """How many levels of the model's tree the first layers of both have in common."""
    depth = 0
    for mine, yours in zip(one.name.split("."), two.name.split("."), strict=False):
        if mine != yours:
            break
        depth += 1
    return depth
