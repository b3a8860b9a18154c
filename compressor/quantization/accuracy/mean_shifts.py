"""What rounding the weights of any layer shifts in the mean of its outputs, and biases that take it out.

With weights W~ in place of W and inputs of mean E[x] the outputs are (W - W~) E[x] short, which the bias can hold
(Nagel et al. 2019, arXiv:1906.04721, equation 16). Whoever compares grids that biases will be corrected for has to look
at what such a bias leaves: of the layers of a mobile network it takes out up to nine tenths of the noise.
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from compressor.quantization.accuracy.channel_scaling import read_weights, with_weights
from compressor.quantization.accuracy.channel_statistics import channel_statistics
from compressor.quantization.accuracy.linear_layers import linear_layers, with_biases
from compressor.quantization.grids.weights import WeightGrid
from compressor.workload import Workload


class MeanShifts:
    """Biases of the layers `nodes` of `graph` for any grids of their weights, by the means of their inputs.

    The means are those of the float graph over `samples` (>= 1) calibration samples; padding counts as if it held them.
    Layers that are no Conv, Gemm or MatMul with a place for a bias are left alone.
    """

    def __init__(self, graph: onnx.ModelProto, nodes: Collection[str], workload: Workload, *, samples: int) -> None:
        self.graph, self.layers = with_biases(graph, [layer for layer in linear_layers(graph) if layer.name in nodes])
        axes = {layer.input: layer.input_axis for layer in self.layers}
        seen = channel_statistics(graph, axes, workload.calibration, samples=samples) if axes else {}
        self.means = {name: statistics.mean for name, statistics in seen.items()}
        self.weights = read_weights(self.graph)

    def biased(self, grids: Mapping[str, WeightGrid]) -> onnx.ModelProto:
        """The graph with biases that make up for the `grids` of weights (initializer: grid); itself without any."""
        changed = {}
        for layer in self.layers:
            if layer.weight in grids:
                lost = self.weights[layer.weight].astype(np.float64) - grids[layer.weight].values().numpy()
                bias = self.weights[layer.bias]
                shift = layer.applied(lost, self.means[layer.input])
                changed[layer.bias] = (bias.astype(np.float64) + shift.reshape(bias.shape)).astype(np.float32)
        return with_weights(self.graph, changed) if changed else self.graph
