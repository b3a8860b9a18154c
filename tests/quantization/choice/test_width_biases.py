"""Widths are judged beside the biases that will be corrected: what a bias takes out is no reason for more bits."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.quantizer import quantized_file
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from workbench.onnx_graphs import calibrated_on, graph_of


def _told(correction: BiasCorrection | None) -> dict[str, Any]:
    """What the report says of two layers: a matrix that reads inputs far from zero, one that reads its ReLU."""
    generator = torch.Generator().manual_seed(0)
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["a"], "far", transB=1),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "v", "c"], ["output"], "near", transB=1),
    ]
    weights = {
        "w": torch.randn(16, 16, generator=generator).numpy(),
        "b": np.zeros(16),
        "v": torch.randn(8, 16, generator=generator).numpy(),
        "c": np.zeros(8),
    }
    inputs = 5 + torch.randn(64, 16, generator=generator)
    context = Context(progress=False)
    stage = Quantize(
        weights=Symmetric(bits=4),
        mixed=MixedPrecision(bits=(3, 4, 8), size=0.5, samples=64),
        bias_correction=correction,
        portable=None,
    )
    model = graph_of(nodes, weights, ["n", 16], ["n", 8])
    quantized_file(model.SerializeToString(), stage, calibrated_on(inputs), context)
    return context.details


def test_noise_that_a_bias_takes_out_does_not_count() -> None:
    """Inputs of mean 5 and deviation 1 turn most of the error of the weights into a shift of the mean."""
    with_bias, without = _told(BiasCorrection()), _told(None)
    for ours, theirs in zip(with_bias["sensitivity"], without["sensitivity"], strict=True):
        assert ours["sqnr_db"]["4"] > theirs["sqnr_db"]["4"] + 3
    mixed = with_bias["mixed_precision"]
    assert mixed["measured_sqnr_db"] > without["mixed_precision"]["measured_sqnr_db"] + 3
    assert mixed["measured_sqnr_db"] == pytest.approx(mixed["predicted_sqnr_db"], abs=3)
    assert mixed["measured_sqnr_db"] == pytest.approx(with_bias["bias_correction"]["sqnr_db_after"], abs=3)
