"""Constants as files have them, listed as inputs or stored as their values other than zero, made plain ones."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.files.declarations import given_inputs
from compressor.files.graphs import all_graphs, copy_of


def with_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without inputs that are weights, and whose constants are all written out.

    Only constants are folded, fused and quantized, and operators are given whole ones.
    """
    whole, inputs = copy_of(model), given_inputs(model)
    del whole.graph.input[:]
    whole.graph.input.extend(inputs)
    # Weights that are no inputs came with the fourth version of the format.
    whole.ir_version = max(whole.ir_version, 4)
    for graph in all_graphs(whole.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(numpy_helper.from_array(_values(sparse), sparse.values.name))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for entry in node.attribute if node.op_type == "Constant" else ():
                if entry.name == "sparse_value":
                    tensor = numpy_helper.from_array(_values(entry.sparse_tensor))
                    entry.CopyFrom(helper.make_attribute("value", tensor))
    return whole


def _values(sparse: onnx.SparseTensorProto) -> NDArray[np.generic]:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    found = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    # Places are counted through the whole tensor, or in each of its dimensions.
    found[tuple(places.T) if places.ndim > 1 else np.unravel_index(places, found.shape)] = values
    return found
