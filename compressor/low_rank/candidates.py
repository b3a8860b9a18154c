"""The chains that a layer can become: their ranks, what they lose of its outputs, and what they compute instead."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from compressor.latency.operators import RECURRENT, Operator, linear
from compressor.low_rank.decompositions import Decomposition
from compressor.low_rank.layers import Layer
from compressor.structure.factored.chains import CP, SPATIAL, SVD, TUCKER, full_ranks

# Ranks of sums of outer products that are looked at: each is a search of its own.
_MOST_TERMS = 8
# Multiply-accumulates that such a search may take for each sweep.
_MOST_WORK = 2.5e9


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One chain in the place of a layer: `error` is the part of its squared outputs that is lost, in [0, 1]."""

    by: str
    ranks: tuple[int, ...]
    error: float
    operators: tuple[Operator, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """The multiply-accumulates of all calls, of the whole batch."""
        return sum(operator.macs for operator in self.operators)


def candidate(layer: Layer, by: str, ranks: tuple[int, ...], taken: Decomposition) -> Candidate:
    """`layer` taken apart `by` that at `ranks`, from its decomposition."""
    operators = [
        part for operator in layer.operators for part in chain_operators(operator, layer.shape, by=by, ranks=ranks)
    ]
    return Candidate(
        by=by,
        ranks=ranks,
        error=taken.error(ranks),
        operators=tuple(operators),
        parameters=chain_parameters(layer.shape, by, ranks),
    )


def rank_options(shape: Sequence[int], by: str, align: int) -> Iterator[tuple[int, ...]]:
    """The ranks below full ones that are multiples of `align`; on one side of a Tucker kernel the full one, too.

    By CP a few of those at which the chain holds less than the layer, in even ratios.
    """
    limits = full_ranks(shape, by)
    if by == CP:
        outputs, inputs, *kernel = shape
        size = outputs * inputs * prod(kernel)
        highest = min(limits[0], -(-size // chain_parameters(shape, CP, (1,))), int(_MOST_WORK / (2 * size)) + 1)
        every = range(align, highest, align)
        if every:
            spread = np.geomspace(every[0], every[-1], min(_MOST_TERMS, len(every))) / align
            yield from ((align * int(step),) for step in dict.fromkeys(spread.round().astype(int).tolist()))
        return
    sides = [list(range(align, limit, align)) for limit in limits]
    if by != TUCKER:
        yield from itertools.product(*sides)
        return
    whole = [[*side, limit] for side, limit in zip(sides, limits, strict=True)]
    yield from (ranks for ranks in itertools.product(*whole) if ranks != limits)


def chain_parameters(shape: Sequence[int], by: str, ranks: Sequence[int]) -> int:
    """The weights of a chain in the place of a weight of `shape`, (outputs, inputs, *kernel)."""
    outputs, inputs, *kernel = shape
    if by == SVD:
        return ranks[0] * (inputs * prod(kernel) + outputs)
    if by == SPATIAL:
        return ranks[0] * (inputs * kernel[0] + outputs * kernel[1])
    if by == CP:
        return ranks[0] * (inputs + prod(kernel) + outputs)
    made, taken = ranks
    return inputs * taken + made * taken * prod(kernel) + outputs * made


def chain_operators(operator: Operator, shape: Sequence[int], *, by: str, ranks: Sequence[int]) -> list[Operator]:
    """What the chain computes where the layer computed `operator`, whose weight is of `shape`."""
    outputs, inputs, *_ = shape
    bare = tuple(flag for flag in operator.flags if flag != "bias")
    if operator.kind in RECURRENT:
        steps = operator.batch * prod(operator.size)
        return [linear(inputs, ranks[0], steps, flags=()), replace(operator, inputs=ranks[0])]
    if operator.kind == "linear":
        return [replace(operator, outputs=ranks[0], flags=bare), replace(operator, inputs=ranks[0])]
    if by == SVD:
        first = replace(operator, outputs=ranks[0], flags=bare)
        return [first, _point(operator, ranks[0], outputs, size=operator.output_size, flags=operator.flags)]
    if by == SPATIAL:
        rows = replace(_along(operator, 0), outputs=ranks[0], flags=bare)
        return [rows, replace(_along(operator, 1), inputs=ranks[0], size=rows.output_size)]
    if by == CP:
        (rank,) = ranks
        return [
            _point(operator, inputs, rank, size=operator.size, flags=bare),
            replace(operator, inputs=rank, outputs=rank, groups=rank, flags=bare),
            _point(operator, rank, outputs, size=operator.output_size, flags=operator.flags),
        ]
    made, taken = ranks
    return [
        _point(operator, inputs, taken, size=operator.size, flags=bare),
        replace(operator, inputs=taken, outputs=made, flags=bare),
        _point(operator, made, outputs, size=operator.output_size, flags=operator.flags),
    ]


def _point(operator: Operator, inputs: int, outputs: int, *, size: tuple[int, ...], flags: tuple[str, ...]) -> Operator:
    ones = (1,) * len(size)
    return replace(
        operator,
        inputs=inputs,
        outputs=outputs,
        size=size,
        kernel=ones,
        stride=ones,
        padding=(0,) * 2 * len(size),
        dilation=ones,
        flags=flags,
    )


def _along(operator: Operator, number: int) -> Operator:
    """`operator` with its kernel, step, dilation and padding along the dimension `number` alone."""
    count = len(operator.size)
    return replace(
        operator,
        kernel=tuple(size if at == number else 1 for at, size in enumerate(operator.kernel)),
        stride=tuple(step if at == number else 1 for at, step in enumerate(operator.stride)),
        dilation=tuple(step if at == number else 1 for at, step in enumerate(operator.dilation)),
        padding=tuple(pad if at % count == number else 0 for at, pad in enumerate(operator.padding)),
    )
