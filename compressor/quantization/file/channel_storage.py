"""Integer weights stored without the channels of zeros that fill them up; a Pad adds those when the file is loaded.

ONNX Runtime folds a Pad of constants, so that what runs is the same, and the file is smaller by the zeros.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Zeros worth the node that adds them, in bytes.
_WORTH = 64


def without_filling(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """(the same computation, {initializer: the int8 weight that it becomes with zeros behind its channels}).

    Channels lie on the first two axes; a weight that would save little stays as it is.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    graph = stored.graph
    becomes: dict[str, str] = {}
    ahead: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        places = np.argwhere(values.reshape(*values.shape[:2], -1).any(axis=-1))
        rows, columns = (int(end) + 1 for end in places.max(axis=0)) if len(places) else (1, 1)
        kept = values[:rows, :columns]
        if values.size - kept.size < _WORTH:
            continue
        name = f"{tensor.name}_stored"
        missing = [whole - part for whole, part in zip(values.shape, kept.shape, strict=True)]
        pads = numpy_helper.from_array(np.array([0] * values.ndim + missing), f"{name}_pads")
        graph.initializer.remove(tensor)
        graph.initializer.extend([numpy_helper.from_array(kept, name), pads])
        ahead.append(helper.make_node("Pad", [name, pads.name], [tensor.name]))
        becomes[name] = tensor.name
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*ahead, *nodes])
    return stored, becomes
