"""A trained tiny network, made ready to be quantized, once for each module of tests."""

import copy

import pytest

from compressor.files.export import export_onnx
from compressor.quantization.post_training import Prepared, prepare
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload
from workbench.tiny import TinyResNet, make_workload


@pytest.fixture(scope="module")
def workload(_trained_model: TinyResNet) -> Workload:
    return make_workload(copy.deepcopy(_trained_model))


@pytest.fixture(scope="module")
def prepared(workload: Workload) -> Prepared:
    return prepare(export_onnx(workload.model, workload).onnx_bytes, Quantize(), workload, Context(progress=False))
