"""Layers with ranges of every call that do most harm stay in float, as few as keep the outputs.

Recurrent and linear layers on dynamic grids have no calibrated signals that could be spared one by one. What each layer
alone costs the outputs, all of them counted, says which go first; what they do together is measured on the file.
Noise powers of layers add up where each is small (Lin et al. 2016, arXiv:1511.06393, section 3.2).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compressor.checks import check_count
from compressor.errors import StageError
from compressor.files.graphs import all_nodes, initializers
from compressor.notes.quantization import FloatAgain, GivenBack
from compressor.progress.bars import progress_bar
from compressor.quantization.choice.harm import worst_share
from compressor.quantization.choice.spare import Missed
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.post_training import Prepared
from compressor.quantization.ranges.calibration import sample_slices
from compressor.runtime import open_session
from compressor.scoring.decibels import decibels, reported_db
from compressor.workload import Workload

# Every group is a file that is made and run: layers of deep networks go by neighbours.
_MOST_GROUPS = 24
# The share of the work that a layer costs at least.
_LEAST_COST = 0.01


@dataclass(frozen=True, kw_only=True)
class SpareLayers:
    """The fewest layers in float, of those with ranges of every call, whose file `missed` has nothing to say of.

    `samples` (>= 1) of the calibration data measure what each does alone.
    """

    missed: Missed
    samples: int = 16

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts calibration samples")

    def apply(self, prepared: Prepared, _scheme: Scheme, workload: Workload) -> Prepared:
        """`prepared` with layers in float, which its details name. Raises StageError where that does not help."""
        groups = _groups(prepared)
        most = len(groups) - (not prepared.placement.static)
        if most < 1:
            raise StageError("no layer could stay in float beside others with ranges of every call")
        with progress_bar(desc="what does harm", unit="layer", total=len(groups)) as bar:
            harms = _harms(prepared, groups, workload, samples=self.samples, told=bar.update)
        order = sorted(groups, key=lambda group: -harms[group] / (_work(prepared, group) + _LEAST_COST))
        kept: dict[int, Prepared] = {}
        why = ""

        def holds(count: int) -> bool:
            nonlocal why
            candidate = prepared.without(_reasons(order[:count], harms))
            why = self.missed(candidate.shipped())
            if not why:
                kept[count] = candidate
            return not why

        failing, count = 0, 1
        while not holds(count):
            if count == most:
                raise StageError(f"with {count} of {len(groups)} in float, {why}")
            failing, count = count, min(2 * count, most)
        while count - failing > 1:
            middle = (failing + count) // 2
            if holds(middle):
                count = middle
            else:
                failing = middle
        told = [_told(name, harms[group]) for group in order[:count] for name in group]
        return kept[count].noting(GivenBack(given_back=tuple(told)))


def _groups(prepared: Prepared) -> list[tuple[str, ...]]:
    """The layers with ranges of every call in the graph's order, neighbours together where they are many."""
    dynamic = set(prepared.placement.dynamic)
    names = [node.name for node in all_nodes(prepared.graph.graph) if node.name in dynamic]
    size = math.ceil(len(names) / _MOST_GROUPS)
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)] if names else []


def _harms(
    prepared: Prepared,
    groups: Sequence[tuple[str, ...]],
    workload: Workload,
    *,
    samples: int,
    told: Callable[[], object],
) -> dict[tuple[str, ...], float]:
    """{group: the noise that it leaves alone, as a share of the power of the output that loses most}."""
    slices = sample_slices(prepared.graph, workload.calibration, size=samples, samples=samples)
    plain = open_session(prepared.graph.SerializeToString(), threads=1)
    expected = [plain.run(None, feeds) for feeds in slices]
    placement = prepared.placement
    every = (*placement.static, *placement.dynamic, *placement.weight_only)
    found = {}
    for group in groups:
        alone = prepared.without({name: "" for name in every if name not in group})
        session = open_session(serialize(alone.place()), threads=1)
        found[group] = worst_share(expected, [session.run(None, feeds) for feeds in slices])
        told()
    return found


def _work(prepared: Prepared, group: Sequence[str]) -> float:
    """The share of all weights that the group has, which is its share of the work where each is read once a step."""
    constants = initializers(prepared.graph.graph)
    sizes = {
        node.name: sum(math.prod(constants[name].dims) for name in node.input if name in constants)
        for node in all_nodes(prepared.graph.graph)
        if node.name in prepared.placement.dynamic
    }
    return float(sum(sizes.get(name, 0) for name in group) / max(1, sum(sizes.values())))


def _reasons(groups: Sequence[tuple[str, ...]], harms: Mapping[tuple[str, ...], float]) -> dict[str, str]:
    return {name: _told(name, harms[group]).why for group in groups for name in group}


def _told(name: str, harm: float) -> FloatAgain:
    left = reported_db(decibels(1.0, harm))
    return FloatAgain(
        node=name,
        why=f"costs accuracy: on integers alone, or with its neighbours, it leaves {left:.1f} dB of the outputs",
        numbers={"sqnr_db_alone": left},
    )
