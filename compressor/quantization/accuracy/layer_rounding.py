"""A network rounded layer by layer, each layer on what it reads once the layers before it are rounded.

The order is that of Nagel et al. 2020, arXiv:2004.10568, section 3.3; how one layer is rounded is the method's.
"""

from collections.abc import Mapping
from typing import Protocol

import onnx
import torch
from tqdm import tqdm

from compressor.notes.quantization import RoundingLearned
from compressor.quantization.accuracy.layer_data import Crossing, Layer, Place, Twins, Walk
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
) -> tuple[dict[str, WeightGrid], RoundingLearned]:
    """(`grids` with other integers for the Conv, Gemm and MatMul nodes of `graph`, what the report is told).

    `place` gives the integer graph of any such grids. Raises StageError where calibration data is empty.
    """
    twins = Twins(graph, grids, place)
    walk = Walk(twins, workload, samples=method.samples, seed=context.seed)
    generator = torch.Generator().manual_seed(context.seed)
    name = type(method).__name__
    with tqdm(total=len(twins.layers), desc=name, unit="layer", leave=False, disable=not context.progress) as bar:
        for segment, crossing in walk:
            for layer in segment.layers:
                twins.grids[layer.weight] = method.rounded(layer, crossing, twins, generator)
                bar.update()
    return twins.grids, _told(method, twins, grids, walk.samples)


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
