"""A network rounded layer by layer, each layer on what it reads once the layers before it are rounded.

The order is that of Nagel et al. 2020, arXiv:2004.10568, section 3.3; how one layer is rounded is the method's. On the
same way biases can be corrected: what the mean of a layer's output lacks once it is rounded goes into its bias, before
anything behind it is looked at (Nagel et al. 2019, arXiv:1906.04721, appendix D). One walk does both, however many
layers there are.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import onnx
import torch
from torch import Tensor

from compressor.notes.quantization import RoundingLearned
from compressor.progress.bars import progress_bar
from compressor.quantization.accuracy.layer_data import Crossing, Layer, Place, Twins, Walk
from compressor.quantization.accuracy.linear_layers import LinearLayer
from compressor.quantization.grids.weights import WeightGrid
from compressor.stage import Context
from compressor.workload import Workload


class LayerRounding(Protocol):
    """A way to round one layer so that its output stays; `samples` is how many samples it looks at."""

    @property
    def samples(self) -> int: ...

    def rounded(self, layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator) -> WeightGrid:
        """The layer's grid of `twins` with other integers; random choices come from `generator`."""
        ...


def round_layers(
    method: LayerRounding,
    graph: onnx.ModelProto,
    grids: Mapping[str, WeightGrid],
    *,
    place: Place,
    workload: Workload,
    context: Context,
    corrected: Iterable[LinearLayer] = (),
    repaired: Callable[[Mapping[str, WeightGrid]], dict[str, WeightGrid]] = dict,
) -> tuple[dict[str, WeightGrid], dict[str, Tensor], RoundingLearned]:
    """(`grids` with other integers for the Conv, Gemm and MatMul nodes of `graph`, biases, what the report is told).

    `place` gives the integer graph of any such grids. Every layer of `corrected` gets a bias that keeps the means of
    its outputs, before the layers behind it are rounded; {initializer: bias} has those that others take the place of.
    `repaired` gives the grids that may stand where the method's must not.
    Raises StageError where calibration data is empty.
    """
    twins = Twins(graph, grids, place, corrected=corrected)
    walk = Walk(twins, workload, samples=method.samples, seed=context.seed)
    generator = torch.Generator().manual_seed(context.seed)
    name = type(method).__name__
    with progress_bar(total=len(twins.layers), desc=name, unit="layer", shown=context.progress) as bar:
        for segment, crossing in walk:
            for layer in segment.layers:
                found = method.rounded(layer, crossing, twins, generator)
                twins.grids |= repaired({layer.weight: found})
                twins.correct_mean_(layer, crossing)
                bar.update()
    return twins.grids, twins.biases, _told(method, twins, grids, walk.samples)


def _told(method: LayerRounding, twins: Twins, before: Mapping[str, WeightGrid], samples: int) -> RoundingLearned:
    total = sum(weight.numel() for weight in twins.weights.values())
    changed = sum(int((twins.grids[name].integers != before[name].integers).sum()) for name in twins.weights)
    return RoundingLearned(
        method=repr(method),
        samples=samples,
        layers=len(twins.layers),
        changed_fraction=round(changed / max(1, total), 4),
        to_nearest=tuple(sorted(before.keys() - twins.weights.keys())),
    )
