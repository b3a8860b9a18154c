"""Which layers become which chains: by each layer's own error, or by the loss of all within a goal, in a knapsack.

Errors of layers do not compare: what half of the squares of one costs the model, another loses unseen. So for a goal
the growth of the calibration loss is measured, one layer at a time, at a few errors, and read off between them.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from compressor.batches import Batch
from compressor.errors import StageError
from compressor.knapsack import Option, choose
from compressor.low_rank.candidates import Candidate, candidate, rank_options
from compressor.low_rank.decompositions import Decomposition, Whitening, decomposed
from compressor.low_rank.layers import Layer
from compressor.low_rank.settings import Energy, Rank
from compressor.progress.bars import progress_bar
from compressor.pruning.choice.loss_probe import batch_statistics, loss_of
from compressor.structure.factored.chains import CP, SVD, chain_of, full_ranks, put_, ways, weight_of
from compressor.training.passes.threads import ranking
from compressor.workload import Loss

# The chain that each layer becomes, by name; what is left out stays whole.
Chosen = Mapping[str, Candidate]
# What each candidate of each layer adds to the cost of the model, negative where it saves.
Savings = Callable[[Sequence[tuple[Layer, Sequence[Candidate]]]], list[list[float]]]

# So many candidates of a layer are enough to see its staircase; each is up to three operators to be timed.
_MOST = 12
# At so many of their errors the loss is measured.
_PROBES = 4
# What errors that are none come to in float64.
_ROUNDING = 1e-12
# What a layer loses at least: this part of the mean loss of all candidates, times its error. Alone many lose nothing.
_LEAST_LOSS = 0.1


@dataclass(kw_only=True)
class Decomposed:
    """A layer with what it is taken apart by, and its candidates; none where `whole` says why it stays as it is."""

    layer: Layer
    by: Mapping[str, Decomposition]
    candidates: list[Candidate] = field(default_factory=list)
    whole: str = ""

    def chain(self, module: nn.Module, chosen: Candidate) -> nn.Module:
        """`module` as the chain that was chosen, with the weights that lose least."""
        weight = weight_of(module)
        values = self.by[chosen.by].values(chosen.ranks)
        return chain_of(module, chosen.by, [value.to(weight.device, weight.dtype) for value in values])


def take_apart(model: nn.Module, layer: Layer, allowed: Sequence[str], whitening: Whitening | None) -> Decomposed:
    """`layer` of `model` taken apart by each of the `allowed` ways that its weight has; a matrix has one."""
    weight = weight_of(model.get_submodule(layer.name))
    return Decomposed(layer=layer, by={by: decomposed(weight, by, whitening) for by in _ways_of(layer, allowed)})


def _ways_of(layer: Layer, allowed: Sequence[str]) -> list[str]:
    return [by for by in ways(layer.shape) if by in allowed] or [SVD]


def by_energy(found: Decomposed, target: Energy, align: int) -> Candidate | None:
    """The candidate of least work that keeps the energy; None, and why, where the layer itself has less."""
    most = 1 - target.kept + _ROUNDING
    every = _aligned(found, align, skip=(CP,))
    keeping = [one for one in every if one.error <= most]
    # A sum of outer products is a search for each rank: where one loses too much, lower ranks do.
    for ranks in reversed(list(rank_options(found.layer.shape, CP, align)) if CP in found.by else []):
        every.append(candidate(found.layer, CP, ranks, found.by[CP]))
        if every[-1].error > most:
            break
        keeping.append(every[-1])
    best = min(keeping, key=lambda one: (one.macs, one.error), default=None)
    if best is None:
        found.whole = _too_narrow(found, align) if not every else f"no rank below the full one keeps {target.kept:.4g}"
        return None
    return _if_cheaper(found, best)


def too_low(layers: Sequence[Layer], allowed: Sequence[str], target: Rank) -> dict[str, str]:
    """Why layers stay whole that have no such rank by any way of those `allowed`, by name.

    Raises StageError where that is so of every layer.
    """
    highest = {layer.name: max(max(full_ranks(layer.shape, by)) for by in _ways_of(layer, allowed)) for layer in layers}
    if target.rank > max(highest.values()):
        name = max(highest, key=lambda name: highest[name])
        raise StageError(
            f"no layer has rank {target.rank}: the highest is that of {name!r}, in [1, {highest[name]}]; lower rank"
        )
    return {
        name: f"its rank is at most {limit}, below the {target.rank} that is asked for"
        for name, limit in highest.items()
        if limit < target.rank
    }


def by_rank(found: Decomposed, target: Rank) -> Candidate | None:
    """The candidate of that rank with least work; None, and why, where the layer itself has less."""
    every = []
    for by, taken in found.by.items():
        limits = full_ranks(found.layer.shape, by)
        if target.rank <= max(limits):
            every.append(candidate(found.layer, by, tuple(min(target.rank, limit) for limit in limits), taken))
    return _if_cheaper(found, min(every, key=lambda one: (one.macs, one.error)))


def _if_cheaper(found: Decomposed, best: Candidate) -> Candidate | None:
    if best.macs < found.layer.macs:
        return best
    found.whole = (
        f"by {best.by} at rank {' and '.join(map(str, best.ranks))} it would compute "
        f"{best.macs / found.layer.macs:.2f} times as much"
    )
    return None


def find_candidates_(
    found: Sequence[Decomposed], align: Callable[[Layer], int], savings: Savings, unit: str
) -> dict[str, list[float]]:
    """Gives each layer its candidates that save some of the `unit`, thinned out; where none does, why.

    What each candidate changes comes back by the layer's name, for layers that have some.
    """
    for one in progress_bar(found, desc="ranks", unit="layer"):
        every = [each for each in _aligned(one, align(one.layer)) if each.macs < one.layer.macs]
        one.candidates = _undominated(every)
        if not one.candidates:
            one.whole = _too_narrow(one, align(one.layer))
    standing = [one for one in found if one.candidates]
    changes: dict[str, list[float]] = {}
    for one, prices in zip(standing, savings([(one.layer, one.candidates) for one in standing]), strict=True):
        pairs = list(zip(one.candidates, prices, strict=True))
        saving = [pair for pair in pairs if pair[1] < 0]
        one.candidates = [each for each, _ in saving]
        if saving:
            changes[one.layer.name] = [price for _, price in saving]
            continue
        nearest, price = min(pairs, key=lambda pair: pair[1])
        one.whole = (
            f"no chain saves {unit}: by {nearest.by} at rank {' and '.join(map(str, nearest.ranks))} it would take "
            f"{price:.3g} {unit} more"
        )
    return changes


def _aligned(found: Decomposed, align: int, skip: Collection[str] = ()) -> list[Candidate]:
    return [
        candidate(found.layer, by, ranks, taken)
        for by, taken in found.by.items()
        if by not in skip
        for ranks in rank_options(found.layer.shape, by, align)
    ]


def _too_narrow(found: Decomposed, align: int) -> str:
    highest = max(max(full_ranks(found.layer.shape, by)) for by in found.by)
    if highest <= align:
        return f"its full rank {highest} is not above the aligned minimum {align}"
    return f"at no multiple of {align} a chain computes less"


def _undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of each way those that no other of it undercuts in both work and error, at most _MOST, evenly spread."""
    kept: list[Candidate] = []
    for by in dict.fromkeys(one.by for one in candidates):
        front: list[Candidate] = []
        for one in sorted((one for one in candidates if one.by == by), key=lambda one: (one.macs, one.error)):
            if not front or one.error < front[-1].error:
                front.append(one)
        places = np.linspace(0, len(front) - 1, min(_MOST, len(front))).round().astype(int)
        kept += [front[place] for place in dict.fromkeys(places.tolist())]
    return kept


@dataclass(kw_only=True)
class Choice:
    """What can be chosen, each layer's candidates with their losses and savings."""

    found: Sequence[Decomposed]
    losses: Mapping[str, list[float]]
    changes: Mapping[str, list[float]]

    def within(self, saved: float) -> tuple[dict[str, Candidate], float]:
        """The chains of the least loss that save at least `saved`, and what they save. Raises BudgetError."""
        items = [
            [Option(loss=0.0, cost=0.0)]
            + [
                Option(loss=loss, cost=change)
                for loss, change in zip(self.losses[one.layer.name], self.changes[one.layer.name], strict=True)
            ]
            for one in self.found
        ]
        picks = choose(items, -saved)
        chosen = {one.layer.name: one.candidates[pick - 1] for one, pick in zip(self.found, picks, strict=True) if pick}
        return chosen, -sum(items[number][pick].cost for number, pick in enumerate(picks))


def measured_losses(
    model: nn.Module, found: Sequence[Decomposed], data: Sequence[Batch], loss: Loss, *, progress: bool
) -> dict[str, list[float]]:
    """By how much the mean loss of `model`, in eval mode, over `data` grows with each candidate alone.

    That is never less than 0. A larger error never loses less. What is not a number loses more than anything.
    """
    measured: dict[str, list[float]] = {}
    probes = {one.layer.name: _probes(one) for one in found}
    total = sum(map(len, probes.values()))
    with (
        batch_statistics(model),
        ranking() as threads,
        progress_bar(total=total, desc="measuring losses", unit="probe", shown=progress) as bar,
    ):
        batches = threads.timed(data)
        base = loss_of(model, batches, loss)
        for one in found:
            points = [(0.0, 0.0)]
            for probe in probes[one.layer.name]:
                with replaced(model, one, probe):
                    grown = loss_of(model, batches, loss) - base
                points.append((probe.error, grown if math.isfinite(grown) else 1e9))
                bar.update()
            errors, losses = zip(*points, strict=True)
            rising = np.maximum.accumulate(np.maximum(losses, 0.0))
            measured[one.layer.name] = np.interp([each.error for each in one.candidates], errors, rising).tolist()
    mean = float(np.mean([value for values in measured.values() for value in values])) if measured else 0.0
    least = _LEAST_LOSS * mean + 1e-9
    return {
        one.layer.name: [
            value + least * each.error for value, each in zip(measured[one.layer.name], one.candidates, strict=True)
        ]
        for one in found
    }


def _probes(found: Decomposed) -> list[Candidate]:
    rising = sorted(found.candidates, key=lambda one: one.error)
    places = np.linspace(0, len(rising) - 1, min(_PROBES, len(rising))).round().astype(int)
    return [rising[place] for place in dict.fromkeys(places.tolist())]


@contextmanager
def replaced(model: nn.Module, found: Decomposed, chosen: Candidate) -> Iterator[None]:
    """`model` with the chain in the place of its layer, and whole again afterwards."""
    layer = model.get_submodule(found.layer.name)
    chain = found.chain(layer, chosen)
    put_(model, layer, chain)
    try:
        yield
    finally:
        put_(model, chain, layer)
