"""The axes that tensor dimensions are made of: joined, refined into products and sums, and narrowed.

A dimension is one axis. An axis is atomic, a row-major product of axes (768 features that a view takes as 12 heads of
64), or a sum of axes laid end to end (a concatenation). Two dimensions that meet in an operator are the same axis:
joining them refines both until their atoms agree. What is left atomic at the end is what can be narrowed: removing
index i of an atom removes, in every dimension made of it, each position that contains i.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Positions = NDArray[np.int64]

# A concatenation that meets a product is laid out row by row up to so many rows.
_MOST_ROWS = 16


class IrreconcilableError(ValueError):
    """Two dimensions that meet are cut up so differently that no narrowing fits both."""


class Axis:
    """One dimension, or a part of one, of `size` >= 0 positions; which others it is the same as is found by `root`.

    `reason` says why it must keep its size, if it must; `role` is "heads" or "units" where that is known.
    """

    __slots__ = ("_same", "form", "parts", "reason", "role", "size")

    def __init__(self, size: int, reason: str | None = None) -> None:
        self.size = size
        self.reason = reason
        self.role: str | None = None
        self.form: Literal["product", "sum"] = "product"
        self.parts: tuple[Axis, ...] = ()
        self._same: Axis | None = None

    @property
    def root(self) -> "Axis":
        """The axis that stands for all that were joined with this one."""
        top = self
        while top._same is not None:
            top = top._same
        node = self
        while node._same is not None:
            node._same, node = top, node._same
        return top

    def become(self, other: "Axis") -> None:
        """Makes this root the same as the root `other`; its lock and role go over."""
        self._same = other
        if self.reason is not None:
            lock(other, self.reason)
        if self.role is not None:
            name_role(other, self.role)

    def define(self, form: Literal["product", "sum"], parts: Sequence["Axis"]) -> None:
        """Refines this atomic root; its lock and role go down to `parts`."""
        self.form, self.parts = form, tuple(parts)
        for part in parts:
            if self.reason is not None:
                lock(part, self.reason)
            if self.role is not None:
                name_role(part, self.role)


def lock(axis: Axis, reason: str, *, override: bool = False) -> None:
    """Makes `axis`, with everything it consists of, keep its size; the first reason stays unless told to `override`."""
    top = axis.root
    if top.reason is None or override:
        top.reason = reason
    for part in top.parts:
        lock(part, reason, override=override)


def is_locked(axis: Axis) -> bool:
    """Whether nothing of `axis` may go."""
    top = axis.root
    if top.reason is not None or top.size <= 1:
        return True
    return bool(top.parts) and all(is_locked(part) for part in top.parts)


def name_role(axis: Axis, role: str) -> None:
    """Says what the unlocked atoms of `axis` are."""
    top = axis.root
    if top.parts:
        for part in top.parts:
            name_role(part, role)
    elif top.reason is None:
        top.role = role


def product(axes: Iterable[Axis]) -> Axis:
    """The row-major product of `axes`, the first outermost; those of size 1 fall away."""
    parts = [axis.root for axis in axes if axis.size != 1]
    if len(parts) == 1:
        return parts[0]
    whole = Axis(math.prod(part.size for part in parts))
    if parts:
        whole.define("product", parts)
    return whole


def chain(axes: Iterable[Axis]) -> Axis:
    """The sum of `axes`, laid end to end; those of size 0 fall away."""
    parts = [axis.root for axis in axes if axis.size]
    if len(parts) == 1:
        return parts[0]
    whole = Axis(sum(part.size for part in parts))
    if parts:
        whole.define("sum", parts)
    return whole


def factors(axis: Axis) -> list[Axis]:
    """What `axis` is the product of, outermost first: atoms and sums, none of size 1."""
    top = axis.root
    if top.parts and top.form == "product":
        return [factor for part in top.parts for factor in factors(part)]
    return [top] if top.size != 1 else []


def segments(axis: Axis) -> list[Axis]:
    """What `axis` is the sum of, in order: atoms and products."""
    top = axis.root
    if top.parts and top.form == "sum":
        return [segment for part in top.parts for segment in segments(part)]
    return [top]


def join(first: Axis, second: Axis) -> None:
    """Makes two axes of equal size the same. Raises IrreconcilableError where they are cut up too differently."""
    one, two = first.root, second.root
    if one is two:
        return
    if one.size != two.size:
        raise IrreconcilableError(f"{one.size} positions meet {two.size}")
    if one.size <= 1:
        return
    if not one.parts:
        one.become(two)
    elif not two.parts:
        two.become(one)
    else:
        if one.form == two.form == "product":
            _join_products(factors(one), factors(two))
        elif one.form == two.form == "sum":
            _join_sums(segments(one), segments(two))
        elif one.form == "sum":
            _join_sum_with_product(one, two)
        else:
            _join_sum_with_product(two, one)
        one, two = one.root, two.root
        if one is not two:
            one.become(two)


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The axes of `sizes` that a row-major view makes of `axes`. Raises IrreconcilableError if they do not fit."""
    rest = [factor for axis in axes for factor in factors(axis)]
    grouped = []
    for size in sizes:
        needed, taken = size, list[Axis]()
        while needed > 1:
            if not rest:
                raise IrreconcilableError(f"a view as {tuple(sizes)} has no axis left for {size}")
            factor = rest.pop(0).root
            if needed % factor.size == 0:
                taken.append(factor)
                needed //= factor.size
            else:
                outer, inner = _split(factor, needed)
                taken += factors(outer)
                rest[:0] = factors(inner)
                needed = 1
        grouped.append(product(taken))
    return grouped


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """The axis of positions `start` to `stop` of `axis`; a position that it divides has to stay."""
    top = axis.root
    if start == 0 and stop == top.size:
        return top
    if top.reason is not None:
        return Axis(stop - start, top.reason)
    if not top.parts:
        pieces = [Axis(start), Axis(stop - start), Axis(top.size - stop)]
        top.define("sum", [piece for piece in pieces if piece.size])
        return pieces[1]
    if top.form == "sum":
        taken, offset = [], 0
        for segment in segments(top):
            low, high = max(start - offset, 0), min(stop - offset, segment.size)
            if low < high:
                taken.append(cut(segment, low, high))
            offset += segment.size
        return chain(taken)
    outer, *rest = factors(top)
    inner = product(rest)
    if start // inner.size == (stop - 1) // inner.size and stop - start < inner.size:
        cut(outer, start // inner.size, start // inner.size + 1)
        return cut(inner, start % inner.size, (stop - 1) % inner.size + 1)
    # Whole inner groups, and at both ends parts of one, whose place in the outer factor then has to stay.
    first, last = -(-start // inner.size), stop // inner.size
    taken = []
    if start < first * inner.size:
        cut(outer, first - 1, first)
        taken.append(cut(inner, start % inner.size, inner.size))
    if first < last:
        taken.append(product([cut(outer, first, last), inner]))
    if last * inner.size < stop:
        cut(outer, last, last + 1)
        taken.append(cut(inner, 0, stop % inner.size))
    return chain(taken)


def _split(factor: Axis, outer_size: int) -> tuple[Axis, Axis]:
    if factor.size % outer_size:
        raise IrreconcilableError(f"{factor.size} positions cannot be taken as {outer_size} equal groups")
    outer, inner = Axis(outer_size), Axis(factor.size // outer_size)
    join(factor, product([outer, inner]))
    return outer.root, inner.root


def _join_products(left: list[Axis], right: list[Axis]) -> None:
    left, right = list(left), list(right)
    while left and right:
        one, two = left.pop(0).root, right.pop(0).root
        if len(factors(one)) > 1 or len(factors(two)) > 1:  # refined meanwhile
            left[:0], right[:0] = factors(one), factors(two)
        elif one.size > two.size:
            outer, inner = _split(one, two.size)
            join(outer, two)
            left[:0] = factors(inner)
        elif one.size < two.size:
            outer, inner = _split(two, one.size)
            join(one, outer)
            right[:0] = factors(inner)
        else:
            join(one, two)


def _join_sums(left: list[Axis], right: list[Axis]) -> None:
    left, right = list(left), list(right)
    while left and right:
        one, two = left.pop(0), right.pop(0)
        if one.size > two.size:
            rest = cut(one, two.size, one.size)
            one = cut(one, 0, two.size)
            left.insert(0, rest)
        elif one.size < two.size:
            rest = cut(two, one.size, two.size)
            two = cut(two, 0, one.size)
            right.insert(0, rest)
        join(one, two)


def _join_sum_with_product(total: Axis, whole: Axis) -> None:
    # The distributive law: where every segment is a whole number of inner groups, the outer factor is a sum.
    parts, pieces = factors(whole), segments(total)
    for depth in range(1, len(parts)):
        inner = product(parts[depth:])
        if all(piece.size % inner.size == 0 for piece in pieces):
            outer = [Axis(piece.size // inner.size) for piece in pieces]
            join(product(parts[:depth]), chain(outer))
            for piece, part in zip(pieces, outer, strict=True):
                join(piece, product([part, inner]))
            return
    # Row by row, where every row loses the same and none goes as a whole.
    rows, row = parts[0], product(parts[1:])
    if rows.size <= _MOST_ROWS:
        lock(rows, "its rows are put together from different parts")
        for number in range(rows.size):
            join(row, cut(total, number * row.size, (number + 1) * row.size))
        return
    raise IrreconcilableError(f"a concatenation of {[piece.size for piece in pieces]} meets equal groups")


def leaves(axis: Axis) -> set[Axis]:
    """The atoms that `axis` is made of."""
    top = axis.root
    return {leaf for part in top.parts for leaf in leaves(part)} if top.parts else {top}


def atoms(axis: Axis) -> list[tuple[Axis, Positions, Positions]]:
    """Each atom in `axis`, once per place: the positions of `axis` that lie in it, and the atom's index of each."""
    top = axis.root
    if not top.parts:
        line = np.arange(top.size)
        return [(top, line, line)] if top.size > 1 else []
    found = []
    if top.form == "sum":
        offset = 0
        for part in top.parts:
            found += [(atom, where + offset, index) for atom, where, index in atoms(part)]
            offset += part.size
        return found
    outer, inner = 1, top.size
    for part in top.parts:
        inner //= part.size
        for atom, where, index in atoms(part):
            shape = (outer, len(where), inner)
            above = np.arange(outer)[:, None, None] * part.size + where[None, :, None]
            flat = above * inner + np.arange(inner)[None, None, :]
            found.append((atom, flat.reshape(-1), np.broadcast_to(index[None, :, None], shape).reshape(-1)))
        outer *= part.size
    return found


def free_atoms(axis: Axis) -> list[Axis]:
    """The atoms in `axis` that are not locked, each once."""
    top = axis.root
    if not top.parts:
        return [top] if top.reason is None and top.size > 1 else []
    return list(dict.fromkeys(atom for part in top.parts for atom in free_atoms(part)))


def rival_atoms(axis: Axis) -> Iterator[tuple[Axis, Axis]]:
    """Every two atoms that different factors of a product in `axis` are made of."""
    parts = axis.root.parts
    for part in parts:
        yield from rival_atoms(part)
    if axis.root.form == "product":
        inside = [dict.fromkeys(atom for atom, _, _ in atoms(part)) for part in parts]
        for first, second in combinations(inside, 2):
            yield from ((one, two) for one in first for two in second if one is not two)


def signature(axis: Axis) -> tuple[object, ...]:
    """The same for axes that are made of the same unlocked atoms in the same way."""
    top = axis.root
    if not top.parts:
        return ("kept", top.size) if top.reason is not None else ("atom", top)
    parts: Iterable[Axis] = factors(top) if top.form == "product" else segments(top)
    return (top.form, *(signature(part) for part in parts))


def kept(axis: Axis, gone: dict[Axis, Mask]) -> Mask:
    """Which positions of `axis` are left, (size,), once `gone[atom]`, (size of the atom,), went of some atoms."""
    top = axis.root
    if not top.parts:
        removed = gone.get(top)
        return np.ones(top.size, dtype=np.bool_) if removed is None else ~removed
    if top.form == "sum":
        return np.concatenate([kept(part, gone) for part in top.parts])
    left = np.ones(1, dtype=np.bool_)
    for part in top.parts:
        left = (left[:, None] & kept(part, gone)[None, :]).reshape(-1)
    return left
