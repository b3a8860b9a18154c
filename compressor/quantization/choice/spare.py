"""Signals whose rounding does most harm get better ranges, or stay in float with the operators that touch them.

A few tensors can cost a network what all others do not: the cube inside a GELU, powers before a logarithm, the input of
a Sigmoid. They are found by what their rounding alone does to the outputs, all outputs counted, not by the
names of operators. Each is first tried with the ranges of other methods, which cost no time; then those that still do
most harm stay float, as few as leave the noise of the others within the limit, measured on the whole.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from compressor.checks import check_count
from compressor.errors import StageError
from compressor.files.graphs import copy_of, initializers, output_names, readers
from compressor.files.operators import Fact, facts_of, operator_of
from compressor.notes.quantization import Calibrated, FloatAgain, GivenBack
from compressor.progress.bars import progress_bar
from compressor.quantization.choice.harm import Rounded, worst_share
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.activations import ActivationGrid, activation_grids
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.grids.weights import weight_axis
from compressor.quantization.placement.policy import followers
from compressor.quantization.placement.static import tensors_to_observe, with_shared
from compressor.quantization.post_training import Prepared
from compressor.quantization.ranges.calibration import observe_tensors, sample_slices
from compressor.quantization.ranges.methods import MSE, Entropy, Percentile
from compressor.runtime import Feeds, open_session
from compressor.scoring.decibels import decibels, reported_db
from compressor.workload import Workload

# A signal whose harm is this share of what is allowed is not worth a range of its own.
_WORTH = 0.02
# Signals that get other ranges at most, and those of which the noise is told.
_RANGED = 16
# What a search may cost, in samples that are run: a few times those that calibrate, as a quantization itself does.
_EFFORT = 6
_COUNTED_SAMPLES = 128
_RUNS_A_SIGNAL = 2
_FEWEST_SAMPLES = 2
# Runs of the search at least, and the share of them that is for better ranges.
_FEWEST_RUNS = 36
_RANGES_SHARE = 0.25
# Decibels by which one attempt is better than the one before it, at least.
_BETTER_DB = 3.0
# Of what is allowed, the part that the session may show: what is left covers what kernels round besides.
_PREDICTED = 0.8
_TIGHTER = 3.0
# Below this what is left is not the noise of signals.
_NO_NOISE = 1e-12
# The share of the work that a signal costs at least: conversions, and operators that are not counted.
_LEAST_COST = 0.01
_METHODS = (Percentile(percent=99.999), Percentile(), Entropy(), MSE())


# What a file misses, in words; "" where it is good enough.
Missed = Callable[[bytes], str]


@dataclass(frozen=True, kw_only=True)
class Spare:
    """The least in float with which the outputs hold.

    `levels` are the decibels of signal around its mean that every output must keep, rising, each at least 3 above what
    the one before it kept: the first whose file `missed` has nothing to say of is taken. `samples` (>= 2) of the
    calibration data measure them, fewer for many signals. A search takes about as long as a quantization, and what it
    has not examined by then counts by the noise of its neighbours.
    """

    missed: Missed
    levels: tuple[float, ...] = (20.0, 26.0, 32.0)
    samples: int = 32

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts calibration samples", least=2)

    def apply(self, prepared: Prepared, scheme: Scheme, workload: Workload) -> Prepared:
        """`prepared` with other ranges and fewer integers; its details say which signals did harm.

        `scheme` is that of the activations. Raises StageError where no level is met, or none at which the file holds.
        """
        if not prepared.placement.static:
            raise StageError("no layer has calibrated activations, whose signals could be spared")
        with progress_bar(desc="what does harm", unit="run", total=_FEWEST_RUNS) as bar:
            return self._spared(prepared, scheme, workload, bar)

    def _spared(self, prepared: Prepared, scheme: Scheme, workload: Workload, bar: Any) -> Prepared:
        rounded, runs = self._rounded(prepared, workload, lambda: bar.update(bar.n < bar.total))
        bar.total = runs
        whole = rounded.noise(rounded.order)
        worth = _WORTH * 10 ** (-min(self.levels) / 10)
        ranging = math.ceil(_RANGES_SHARE * runs)
        harms = rounded.harms(worth, whole, runs=runs - ranging)
        worst = [name for name, harm in harms.items() if harm > worth and name in rounded.grids]
        worst = worst[: min(_RANGED, ranging // len(_METHODS))]
        better = _better_ranges(prepared, rounded, {name: harms[name] for name in worst}, scheme, workload)
        harms |= {name: noise for name, (noise, _) in better.items()}
        prepared = _with_grids(prepared, {name: grid for name, (_, grid) in better.items()})
        search = _Search(prepared, rounded, harms, _costs(prepared, list(harms), rounded.slices[0]))
        tried: list[str] = []
        reached = 0.0
        for level in self.levels:
            # What was judged may keep more than was asked for: the next one keeps more than it.
            try:
                spared, candidate, placed, noise = search.least(max(level, reached + _BETTER_DB))
            except StageError as error:
                tried.append(str(error))
                break
            reached = _db(noise)
            missed = self.missed(candidate.shipped(placed))
            if not missed:
                return candidate.noting(GivenBack(given_back=_told(harms, spared, whole, noise)))
            tried.append(f"{reached:.1f} dB with {len(spared)} of {len(harms)} signals in float, {missed}")
        raise StageError("; ".join(tried))

    def _rounded(self, prepared: Prepared, workload: Workload, told: Callable[[], object]) -> tuple[Rounded, int]:
        """(the graph with signals to round, the runs that a search may take), the same on every machine."""
        calibrated = Calibrated.from_json(prepared.details)
        known = _COUNTED_SAMPLES if calibrated is None else min(calibrated.samples, _COUNTED_SAMPLES)
        total = max(_FEWEST_RUNS * _FEWEST_SAMPLES, _EFFORT * known)
        wanted = max(_FEWEST_RUNS, _RUNS_A_SIGNAL * (len(prepared.activations) + len(prepared.weights)))
        count = max(_FEWEST_SAMPLES, min(self.samples, total // wanted))
        slices = sample_slices(prepared.graph, workload.calibration, size=count, samples=count)
        return Rounded(prepared, slices, told=told), max(_FEWEST_RUNS, total // count)


class _Search:
    """The cheapest signals to spare for a level, known by their `harms` alone and measured together."""

    def __init__(
        self, prepared: Prepared, rounded: Rounded, harms: Mapping[str, float], costs: Mapping[str, float]
    ) -> None:
        self.prepared, self.rounded, self.harms = prepared, rounded, harms
        # Those first that do much harm for little work.
        self.order = sorted(harms, key=lambda name: -harms[name] / (costs[name] + _LEAST_COST))

    def least(self, level: float) -> tuple[list[str], Prepared, onnx.ModelProto, float]:
        """(the signals, the graph without them, what it places, its noise).

        Raises StageError where `level` is out of reach.
        """
        allowed = 10 ** (-level / 10)
        predicted = _PREDICTED * allowed
        while True:
            spared = self.order[: self._fewest(predicted) if predicted > _NO_NOISE else None]
            candidate = _without(self.prepared, spared)
            placed = candidate.place()
            noise = self._noise(placed)
            if noise <= allowed:
                return spared, candidate, placed, noise
            if len(spared) == len(self.order):
                raise StageError(
                    f"with all {len(spared)} signals of calibrated layers in float the outputs keep {_db(noise):.1f} "
                    f"dB, wanted are {level:g}"
                )
            # Kernels may round what the session does not.
            predicted /= _TIGHTER

    def _fewest(self, allowed: float) -> int:
        """How many of the first in order have to go for the noise of the others together to be `allowed` at most.

        An eighth more than that at most: every look at it is a run.
        """
        failing, passing = -1, len(self.order)
        count = self._expected(allowed)
        while passing - failing > max(1, passing // 8):
            if self._rest(count) <= allowed:
                passing = count
            else:
                failing = count
            # Few do most of the harm: doubled until enough went, then the gap is halved.
            count = max(1, 2 * failing) if passing == len(self.order) else (failing + passing) // 2
            count = min(count, passing - 1)
        return passing

    def _expected(self, allowed: float) -> int:
        """The same if noises of single signals added up."""
        left = sum(self.harms.values())
        for count, name in enumerate(self.order):
            if left <= allowed:
                return count
            left -= self.harms[name]
        return max(0, len(self.order) - 1)

    def _rest(self, count: int) -> float:
        gone = set(self.order[:count])
        left = [name for name in self.rounded.order if name not in gone]
        return self.rounded.noise(left, grids=self.prepared.activations)

    def _noise(self, placed: onnx.ModelProto) -> float:
        session = open_session(serialize(placed), threads=1)
        return worst_share(self.rounded.expected, [session.run(None, feeds) for feeds in self.rounded.slices])


def _told(harms: Mapping[str, float], spared: Sequence[str], whole: float, noise: float) -> tuple[FloatAgain, ...]:
    return tuple(
        FloatAgain(
            node=name,
            why=(
                f"costs accuracy: rounded alone it leaves {_db(harms[name]):.1f} dB; with all on integers it were "
                f"{_db(whole):.1f}, with {len(spared)} signals in float it is {_db(noise):.1f}"
            ),
            numbers={"sqnr_db": _db(whole), "sqnr_db_alone": _db(harms[name]), "sqnr_db_without": _db(noise)},
        )
        for name in spared
    )


def _better_ranges(
    prepared: Prepared, rounded: Rounded, harms: Mapping[str, float], scheme: Scheme, workload: Workload
) -> dict[str, tuple[float, ActivationGrid]]:
    """{signal: (its noise, its grid) by the method with least noise}, of those for which that is not the one it has."""
    if not harms:
        return {}
    observed, _ = observe_tensors(prepared.graph, list(harms), workload.calibration, binned=True)
    found: dict[str, tuple[float, ActivationGrid]] = {}
    for name, harm in harms.items():
        least = harm
        for method in _METHODS if not observed[name].empty else ():
            signed = prepared.activations[name].signed
            span = method.range_of(observed[name], scheme, signed=signed)
            (grid,) = activation_grids({name: span}, scheme, signed=signed).values()
            noise = rounded.noise([name], grids={name: grid})
            if noise < least:
                least = noise
                found[name] = (noise, grid)
    return found


def _with_grids(prepared: Prepared, grids: Mapping[str, ActivationGrid]) -> Prepared:
    """`prepared` with these grids, and for tensors that take their range from others these others' grids."""
    _, same = tensors_to_observe(prepared.graph, set(prepared.static))
    known = {name: grid for name, grid in with_shared(grids, same).items() if name in prepared.activations}
    return replace(prepared, activations={**prepared.activations, **known})


def _costs(prepared: Prepared, signals: Sequence[str], feeds: Feeds) -> dict[str, float]:
    """{signal: the share of the layers' multiply-accumulates that becomes float with it}, run on `feeds`."""
    constants = initializers(prepared.graph.graph)
    layers = {node.name: node for node in prepared.graph.graph.node if operator_of(node.op_type).linear}
    probe = copy_of(prepared.graph)
    known = output_names(probe.graph)
    outputs = [node.output[0] for node in layers.values()]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    found = open_session(probe.SerializeToString(), threads=1).run(outputs, feeds)
    work = {}
    for (name, node), output in zip(layers.items(), found, strict=True):
        weight = constants.get(node.input[1])
        if weight is not None:
            axis = weight_axis(node, len(weight.dims))
            channels = 1 if axis is None else max(1, weight.dims[axis])
            work[name] = output.size * math.prod(weight.dims) // channels
    total = max(1, sum(work.values()))
    costs = dict.fromkeys(signals, 0)
    for name, touched in _touched(prepared, set(signals)).items():
        for signal in touched:
            costs[signal] += work.get(name, 0)
    return {signal: cost / total for signal, cost in costs.items()}


def _without(prepared: Prepared, signals: Collection[str]) -> Prepared:
    """`prepared` with these signals in float. Raises StageError where nothing is left on integers."""
    if not signals:
        return prepared
    nodes = set(_touched(prepared, set(signals)))
    placement = prepared.placement
    layers = {name for name in (*placement.static, *placement.dynamic, *placement.weight_only) if name in nodes}
    why = dict.fromkeys(layers, "spared: rounding what it reads or gives costs too much accuracy")
    rest = prepared.without(why) if layers else prepared
    kept = {*rest.placement.static, *followers(rest.graph, set(rest.placement.static), apart=nodes)}
    return replace(rest, static=frozenset(kept) & rest.static)


def _touched(prepared: Prepared, signals: set[str]) -> dict[str, set[str]]:
    """{node: those of `signals` that its integers round}, of the nodes that round any."""
    read = readers(prepared.graph.graph.node)
    found = {}
    for node in prepared.graph.graph.node:
        reads = signals.intersection(node.input)
        makes = signals.intersection(node.output)
        if makes and Fact.FLOAT_OUTPUT in facts_of(node.op_type) and operator_of(node.op_type).heavy:
            # It has a kernel with float output, where its readers are float.
            makes = {name for name in makes if not read[name]}
        if reads or makes:
            found[node.name] = reads | makes
    return found


def _db(share: float) -> float:
    return reported_db(decibels(1.0, share))
