"""Learned grids: their gradients by hand, and the placed graph in torch against ONNX Runtime."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.files.export import export_onnx
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.grids.schemes import Asymmetric, Symmetric, dequantize, quantize
from compressor.quantization.grids.weights import nearest_grid
from compressor.quantization.learning.fake_quantization import FakeQuantizedGraph
from compressor.quantization.learning.learned_grids import (
    LearnedGrid,
    LearnedWeight,
    fake_quantize,
    with_scaled_gradient,
)
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.torch_graph.graph import TorchGraph
from compressor.stage import Context
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.workload import Workload, first_batches
from workbench.cpu import exact_output


def test_fake_quantize_is_the_round_trip_of_affine() -> None:
    """The numbers are those of quantize and dequantize, bit for bit."""
    values, scale, zero_point = torch.randn(100_000) * 3, torch.tensor(0.037), torch.tensor(-5)
    integers = quantize(values, scale, zero_point, bits=8, signed=True)
    expected = dequantize(integers, scale, zero_point)
    assert fake_quantize(values, scale, zero_point.float(), low=-128, high=127).equal(expected)


def test_step_gradient_is_equation_3_of_lsq() -> None:
    """Inside the range the step's gradient is round(x / s) - x / s, at the ends the integer itself."""
    scale = torch.tensor(0.5, requires_grad=True)
    values = torch.tensor([-9.0, -0.6, 0.2, 0.8, 9.0], requires_grad=True)
    for index, expected in enumerate([-8.0, -1 + 1.2, 0 - 0.4, 2 - 1.6, 7.0]):
        scale.grad = None
        fake_quantize(values, scale, torch.zeros(()), low=-8, high=7)[index].backward()
        assert scale.grad is not None
        assert scale.grad.tolist() == pytest.approx(expected, abs=1e-6)
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (300_000,)])
def test_pairs_in_a_graph_have_the_same_gradients(shape: tuple[int, ...]) -> None:
    """QuantizeLinear and DequantizeLinear as one give values, step and zero point the gradients of the formula."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "d"),
    ]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(9), "zero")]
    graph = helper.make_graph(pair, "g", info[:1], info[1:], constants)
    network = TorchGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    start = (torch.randn(shape) * 8, torch.tensor(0.07), torch.tensor(11.0))
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    upstream = torch.randn(shape)
    got = network.run(dict(zip(("x", "scale", "zero"), ours, strict=True)), ["y"])[0]
    expected = fake_quantize(*theirs, low=0, high=255)
    assert got.equal(expected)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for mine, formula in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, formula.grad, rtol=1e-3, atol=1e-3)


def test_gradient_scale_multiplies_the_gradient_alone() -> None:
    """LSQ's gradscale hands on the value and a multiple of the gradient."""
    value = torch.tensor(3.0, requires_grad=True)
    result = with_scaled_gradient(value, 0.25)
    (2 * result).backward()
    assert result.tolist() == 3
    assert value.grad is not None
    assert value.grad.tolist() == 0.5


def test_learned_weight_starts_on_its_grid_and_ends_on_the_exported_one() -> None:
    """A learned weight is at first the nearest rounding, and what is exported is what was computed."""
    weight = torch.randn(6, 4, 3, 3)
    grid = nearest_grid(weight, Symmetric(bits=4), axis=0)
    learned = LearnedWeight(weight, grid)
    assert learned().equal(grid.values())
    # N is the number of weights that share a step, Q_p = 7 the highest integer of 4 bits.
    assert learned.gradient_factor == pytest.approx(1 / math.sqrt(36 * 7))
    with torch.no_grad():
        learned.log_step += torch.randn(6) * 0.2
        learned.weight.values += torch.randn_like(weight) * 0.1
    exported = learned.learned()
    assert exported.bits == 4
    assert exported.values().equal(learned().detach())
    assert not exported.scale.allclose(grid.scale)


def test_zero_point_moves_between_the_ends_alone() -> None:
    """A zero point at an end stands for a ReLU, one in the middle for symmetry: the others learn, in whole numbers."""
    step = torch.tensor(0.1)
    fixed = LearnedGrid(ActivationGrid(scale=step, zero_point=torch.tensor(0)), features=10, ceiling=False)
    assert [name for name, _ in fixed.named_parameters()] == ["log_step"]
    centred = LearnedGrid(ActivationGrid(scale=step, zero_point=torch.tensor(128)), features=10, ceiling=False)
    assert [name for name, _ in centred.named_parameters()] == ["log_step"]
    free = LearnedGrid(ActivationGrid(scale=step, zero_point=torch.tensor(100)), features=10, ceiling=False)
    with torch.no_grad():
        free.offset += 3.4 / 256
    assert free.learned().zero_point.tolist() == 103
    with torch.no_grad():
        free.offset += 10
    assert free.learned().zero_point.tolist() == 255


def test_step_under_a_ceiling_only_shrinks() -> None:
    """Where the highest integer stands for the bound of a clip, the step does not grow beyond it."""
    grid = ActivationGrid(scale=torch.tensor(6 / 255), zero_point=torch.tensor(0))
    learned = LearnedGrid(grid, features=10, ceiling=True)
    for change, expected in ((0.5, 6 / 255), (-1.5, 6 / 255 / math.e)):
        with torch.no_grad():
            learned.log_step += change
        assert learned.scale().tolist() == pytest.approx(expected)


def prepared_of(workload: Workload, stage: QuantizationAwareTraining) -> tuple[Prepared, FakeQuantizedGraph]:
    prepared = prepare(export_onnx(workload.model, workload).onnx_bytes, stage, workload, Context())
    learner = FakeQuantizedGraph(
        prepared.graph,
        prepared.place(),
        prepared.activations,
        prepared.weights,
        static=prepared.static,
        example=workload.example_inputs,
    )
    return prepared, learner


def _disturbed(learner: FakeQuantizedGraph) -> FakeQuantizedGraph:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            size = 0.05 if "log_step" in name or "offset" in name else 0.05 * float(parameter.abs().mean())
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return learner


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activations", [Asymmetric(), Symmetric()])
def test_torch_computes_what_the_file_computes(
    trained_workload: Workload, bits: int, activations: Asymmetric | Symmetric
) -> None:
    """After learning, torch and ONNX Runtime, fused and not, agree like two orders of adding float32 numbers."""
    stage = QuantizationAwareTraining(weights=Symmetric(bits=bits), activations=activations)
    prepared, learner = prepared_of(trained_workload, stage)
    inputs = torch.cat([inputs for inputs, _ in first_batches(trained_workload.calibration, 2)])
    graph, grids, weights = _disturbed(learner).learned(prepared.graph, prepared.activations)
    placed = serialize(replace(prepared, graph=graph, activations=grids, weights=weights).place())
    with torch.no_grad():
        ours = learner(inputs).numpy()
    plain = exact_output(placed, inputs, fused=False)
    fused = exact_output(placed, inputs, fused=True)
    spread = float(plain.std())
    # A tie that falls the other way moves one value of a feature map by a step; most outputs see none.
    for theirs in (plain, fused):
        assert float(np.abs(ours - theirs).mean()) < 0.002 * spread
        assert float(np.abs(ours - theirs).max()) < 0.05 * spread
    before = prepared.place()
    assert kernels(placed) == kernels(serialize(before))
    assert Counter(node.op_type for node in before.graph.node)["QuantizeLinear"] > 5


class Pooled(nn.Module):
    """What only moves values stands between two convolutions, and a clip behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 2)
        return self.last(F.relu6(self.second(x) * 3).flatten(1))


def test_moved_values_keep_the_learned_grid_of_their_source(tiny_workload: Workload) -> None:
    """Pooling and flattening hand on the grid they read, clips stay clips, and the file agrees to float32 accuracy."""
    workload = replace(tiny_workload, model=Pooled().eval())
    prepared, learner = prepared_of(workload, QuantizationAwareTraining())
    assert learner.moved
    inputs, _ = first_batches(workload.calibration, 1)[0]
    graph, grids, weights = _disturbed(learner).learned(prepared.graph, prepared.activations)
    placed = serialize(replace(prepared, graph=graph, activations=grids, weights=weights).place())
    with torch.no_grad():
        ours = learner(inputs).numpy()
    theirs = exact_output(placed, inputs, fused=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert kernels(placed) == kernels(serialize(prepared.place()))


def test_every_weight_bias_and_grid_of_the_integer_graph_learns(trained_workload: Workload) -> None:
    """All convolutions and the linear layer have learned weights and biases, all their inputs learned steps."""
    prepared, learner = prepared_of(trained_workload, QuantizationAwareTraining())
    heavy = [node for node in prepared.graph.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert len(learner.weights) == len(heavy)
    assert len(learner.biases) == sum(len(node.input) > 2 for node in heavy)
    inputs, _ = first_batches(trained_workload.calibration, 1)[0]
    learner(inputs).square().sum().backward()
    without = [name for name, parameter in learner.named_parameters() if parameter.grad is None]
    assert without == []


def test_untrained_graph_is_the_post_training_one(trained_workload: Workload) -> None:
    """What has learned nothing writes the very graph that post-training quantization writes."""
    prepared, learner = prepared_of(trained_workload, QuantizationAwareTraining())
    graph, grids, weights = learner.learned(prepared.graph, prepared.activations)
    again = replace(prepared, graph=graph, activations=grids, weights=weights).place()
    assert serialize(again) == serialize(prepared.place())
