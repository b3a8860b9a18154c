"""Whether two models are the same, and what a file computes with and without fusion."""

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from compressor.batches import Inputs
from compressor.runtime import feeds_of, load_session, session_options
from compressor.training.snapshots import capture

PLAIN, FUSED = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    """Whether every parameter and buffer has the same name and the same bits in both."""
    ours, theirs = capture(left), capture(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def outputs_at(onnx_bytes: bytes, inputs: Inputs, level: ort.GraphOptimizationLevel) -> np.ndarray:
    """The first output of the file for `inputs`, with its operators as they stand (PLAIN) or fused (FUSED)."""
    options = session_options()
    options.graph_optimization_level = level
    session = load_session(onnx_bytes, options)
    result: np.ndarray = session.run(None, feeds_of(session, inputs))[0]
    return result
