"""What the rounding of every signal does by itself to the outputs: activations and weights, measured in one session.

A graph whose tensors are rounded by numbers that are fed to it, and whose weights are fed too, answers for any of them
without being built anew. Harms are noise powers, which add up where each is small (Lin et al. 2016,
arXiv:1511.06393, section 3.2). Signals are tried in groups of neighbours, and only a group that does harm is halved,
the one that does most first: of hundreds of signals a few do nearly all of it.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from compressor.files.graphs import copy_of, initializers, producers
from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.grids.schemes import integer_bounds
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.names import quantized
from compressor.quantization.post_training import Prepared
from compressor.quantization.ranges.choice import grid_numbers, rounding_graph
from compressor.runtime import Feeds, open_session

# What varies by less than this share of its largest value varies by float32's rounding: a constant has no signal.
_ROUNDING = 1e-6


class Rounded:
    """The outputs of a float graph on `slices` of inputs with any of its signals on their grids, and their noise.

    Signals are the activations that the integer graph of `prepared` rounds, and the weights that it stores as integers;
    `order` has them in the order of the graph. `told` is called at every run.
    """

    def __init__(
        self,
        prepared: Prepared,
        slices: Sequence[Feeds],
        *,
        threads: int = 1,
        told: Callable[[], object] = lambda: None,
    ) -> None:
        graph, placed = prepared.graph, prepared.place()
        made = producers(placed.graph.node)
        stored = set(initializers(graph.graph))
        self.grids: dict[str, ActivationGrid] = {
            name: grid for name, grid in prepared.activations.items() if quantized(name) in made and name not in stored
        }
        self.weights: dict[str, WeightGrid] = {name: grid for name, grid in prepared.weights.items() if name in stored}
        self.order = _in_order(graph, {*self.grids, *self.weights})
        self.slices, self._told = slices, told
        self.runs = 0
        plain = open_session(graph.SerializeToString(), threads=threads)
        self.expected = [plain.run(None, feeds) for feeds in slices]
        self._names = {name: f"rounded_{number}" for number, name in enumerate(self.grids)}
        self._off = {name: grid_numbers(given) for name, given in self._names.items()}
        constants = initializers(graph.graph)
        self._values = {name: onnx.numpy_helper.to_array(constants[name]) for name in self.weights}
        self._rounded = {name: stored.values().numpy() for name, stored in self.weights.items()}
        self._session = open_session(_fed(graph, self._names, self.weights).SerializeToString(), threads=threads)

    def noise(self, signals: Sequence[str], *, grids: Mapping[str, ActivationGrid] | None = None) -> float:
        """The noise of the output that loses most with `signals` rounded, as a share of its power around its mean.

        `grids` stand in for those of the signals that they name.
        """
        chosen, others = set(signals), grids or {}
        numbers: Feeds = {}
        for name, given in self._names.items():
            numbers |= (
                grid_numbers(given, _steps(others.get(name, self.grids[name]))) if name in chosen else self._off[name]
            )
        for name in self.weights:
            numbers[name] = (self._rounded if name in chosen else self._values)[name]
        self.runs += 1
        self._told()
        found = [self._session.run(None, {**feeds, **numbers}) for feeds in self.slices]
        return worst_share(self.expected, found)

    def harms(self, floor: float, whole: float, *, runs: int | None = None) -> dict[str, float]:
        """{signal: its noise alone}, the greatest first; groups below `floor` (> 0) share theirs evenly, unexamined.

        So do those that are left after so many `runs`. `whole` is the noise of all signals together.
        """
        found: dict[str, float] = {}
        last = None if runs is None else self.runs + runs
        # A group that no other is as loud as comes first; of equals the one that was met first.
        left = [(-whole, 0, self.order)] if self.order else []
        met = 0
        while left:
            loss, _, group = heapq.heappop(left)
            if len(group) == 1 or -loss < floor or (last is not None and self.runs + 2 > last):
                found |= dict.fromkeys(group, -loss / len(group))
                continue
            for half in (group[: len(group) // 2], group[len(group) // 2 :]):
                met += 1
                heapq.heappush(left, (-self.noise(half), met, half))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def worst_share(
    expected: Sequence[Sequence[npt.NDArray[np.generic]]], found: Sequence[Sequence[npt.NDArray[np.generic]]]
) -> float:
    """The largest noise of any output of real numbers as a share of its power around its mean, over all slices.

    Infinite where an output is not finite that was. An output that is constant has its own power for a signal.
    """
    worst = 0.0
    for wanted, got in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        if wanted[0].dtype.kind != "f":
            continue
        before, after = (np.concatenate([part.astype(np.float64).ravel() for part in parts]) for parts in (wanted, got))
        if before.shape != after.shape:
            continue  # boxes that are selected by their scores: how many there are is no noise
        alive = np.isfinite(before)
        if not np.isfinite(after[alive]).all():
            return float("inf")
        before, after = before[alive], after[alive]
        if not before.size:
            continue
        signal = float(np.square(before - before.mean()).sum())
        if signal <= before.size * float(np.square(_ROUNDING * np.abs(before).max())):
            signal = float(np.square(before).sum())
        noise = float(np.square(before - after).sum())
        if noise:
            worst = max(worst, noise / max(signal, float(np.finfo(np.float64).tiny)))
    return worst


def _steps(grid: ActivationGrid) -> tuple[float, float, float]:
    low, high = (bound - int(grid.zero_point) for bound in integer_bounds(grid.bits, signed=grid.signed))
    return float(grid.scale), low, high


def _fed(graph: onnx.ModelProto, names: Mapping[str, str], weights: Mapping[str, WeightGrid]) -> onnx.ModelProto:
    """The graph with rounded tensors, whose weights are inputs."""
    result = rounding_graph(graph, names)
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            result.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [tensor for tensor in copy_of(result).graph.initializer if tensor.name not in weights]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def _in_order(graph: onnx.ModelProto, names: set[str]) -> list[str]:
    """`names` as the graph's nodes come to them."""
    seen = [value.name for value in graph.graph.input]
    seen += [name for node in graph.graph.node for name in (*node.input, *node.output)]
    return list(dict.fromkeys(name for name in seen if name in names))
