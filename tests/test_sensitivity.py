"""What rounding one layer alone does to the output, and what the sum over layers predicts."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import TinyResNet, make_workload

from compressor.export import export_onnx
from compressor.quantization.compact_graph import optimized_nodes, serialize
from compressor.quantization.layer_times import layer_of
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.sensitivity import (
    Sensitivity,
    first_inputs,
    noise_db,
    output_values,
    predicted_db,
    reason_of,
    reliefs,
    sensitivities,
    sensitivity_rows,
)
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload

QUIET = Context(progress=False)


def entry(node: str, bits: int, sqnr_db: float, size_bytes: int = 100) -> Sensitivity:
    return Sensitivity(node=node, bits=bits, sqnr_db=sqnr_db, size_bytes=size_bytes)


@pytest.fixture(scope="module")
def workload(_trained_model: TinyResNet) -> Workload:
    return make_workload(copy.deepcopy(_trained_model))


@pytest.fixture(scope="module")
def prepared(workload: Workload) -> Prepared:
    return prepare(export_onnx(workload.model, workload).onnx_bytes, Quantize(), workload, QUIET)


def test_noises_add_up_by_hand() -> None:
    """20 dB is a noise of 1 %: ten such layers make 10 %, which is 10 dB; nothing at all is 200 dB."""
    assert entry("a", 8, 20.0).noise == pytest.approx(0.01)
    assert predicted_db([entry(str(index), 8, 20.0) for index in range(10)]) == pytest.approx(10.0)
    assert predicted_db([entry("a", 8, 20.0), entry("b", 8, 200.0)]) == pytest.approx(20.0)
    assert predicted_db([]) == 200.0


def test_more_bits_make_less_noise_in_more_bytes(workload: Workload, prepared: Prepared) -> None:
    """Every layer has all widths, in the order asked; each bit of a weight is counted, and noise falls with bits."""
    found = sensitivities(prepared, (3, 8), workload, QUIET, samples=32)
    assert "conv1" in found
    assert "linear" in found
    for layer in found.values():
        assert [one.bits for one in layer] == [3, 8]
        assert layer[0].sqnr_db <= layer[1].sqnr_db
        assert layer[0].size_bytes == math.ceil(layer[1].size_bytes * 3 / 8)
    assert found["conv1"][1].size_bytes == 3 * 16 * 9
    assert min(layer[0].sqnr_db for layer in found.values()) < 25


def test_one_layer_alone_is_rounded(workload: Workload, prepared: Prepared) -> None:
    """What is measured for the last layer is what torch gives with its operands alone on their grids."""
    found = sensitivities(prepared, (4,), workload, QUIET, samples=64)["linear"][0]
    model = workload.model
    (node,) = [node for node in prepared.graph.graph.node if node.name == "linear"]
    grid = prepared.activations[node.input[0]]
    weight = model.linear.weight.detach()
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        hook = model.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        expected = torch.cat([model(inputs) for inputs in first_inputs(workload.calibration, 64)])
        hook.remove()
        x = torch.cat(seen)
        steps = ((x / grid.scale).round() + grid.zero_point).clamp(0, 255) - grid.zero_point
        best = None
        # The scale of least squared error per channel, by brute force over shrunk ranges, as few bits have it.
        for factor in torch.linspace(0.2, 1.0, 81):
            scale = weight.abs().amax(dim=1, keepdim=True) * factor / 7
            rounded = (weight / scale).round().clamp(-7, 7) * scale
            error = (rounded - weight).square().sum(dim=1, keepdim=True)
            best = (error, rounded) if best is None else (
                torch.minimum(error, best[0]), torch.where(error < best[0], rounded, best[1])
            )  # fmt: skip
        got = (steps * grid.scale) @ best[1].T + model.linear.bias
    noise = (expected - got).square().sum() / expected.square().sum()
    assert found.sqnr_db == pytest.approx(-10 * math.log10(noise), abs=0.5)


def test_the_sum_predicts_the_whole(workload: Workload, prepared: Prepared) -> None:
    """At 8 bits the sum of what single layers do is within 2 dB of what all of them do together."""
    found = sensitivities(prepared, (8,), workload, QUIET, samples=64)
    batches = first_inputs(workload.calibration, 64)
    reference = output_values(serialize(prepared.graph), batches)
    whole = noise_db(reference, output_values(serialize(prepared.place()), batches))
    assert predicted_db(layer[0] for layer in found.values()) == pytest.approx(whole, abs=2.0)


def test_the_first_samples_are_counted_exactly(tiny_workload: Workload) -> None:
    """Of batches of 32, 40 samples are one and a quarter; more than there are is all there are."""
    assert [len(inputs) for inputs in first_inputs(tiny_workload.calibration, 40)] == [32, 8]
    assert sum(len(inputs) for inputs in first_inputs(tiny_workload.calibration, 10_000)) == 64


def test_reliefs_are_those_of_the_grids_as_placed(workload: Workload, prepared: Prepared) -> None:
    """A layer whose integers were spoiled is the one that helps most in float, whatever nearest rounding would say."""
    (node,) = [node for node in prepared.graph.graph.node if node.name == "layer2.1.conv1"]
    grid = prepared.weights[node.input[1]]
    spoiled = {**prepared.weights, node.input[1]: grid.with_integers(grid.integers.roll(1, 0))}
    whole, ranked = reliefs(replace(prepared, weights=spoiled), workload, QUIET, samples=32)
    assert next(iter(ranked)) == "layer2.1.conv1"
    assert ranked["layer2.1.conv1"] > whole + 10
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert set(ranked) == set(prepared.placement.static)


def test_reasons_name_the_neighbours() -> None:
    """A layer of 4 bits says what 3 would have saved and what 8 would have brought."""
    layer = [entry("a", 3, 12.0, 30), entry("a", 4, 20.0, 40), entry("a", 8, 40.0, 80)]
    assert reason_of(layer, 4) == (
        "20.0 dB in 40 bytes; 3 bits: 12.0 dB for 10 bytes less; 8 bits: 40.0 dB for 40 bytes more"
    )
    assert reason_of(layer, 8) == "40.0 dB in 80 bytes; 4 bits: 20.0 dB for 40 bytes less"
    (row,) = sensitivity_rows({"a": layer}, {"a": 4})
    assert row["bits"] == 4
    assert row["sqnr_db"] == {"3": 12.0, "4": 20.0, "8": 40.0}


def test_kernels_are_told_by_the_layers_they_work_for(prepared: Prepared) -> None:
    """Every integer kernel with weights has a name that leads back to its layer, and each layer has one."""
    nodes = optimized_nodes(serialize(prepared.place()))
    found = [layer_of(node.name, prepared.graph) for node in nodes if node.op_type in {"QLinearConv", "QGemm"}]
    assert sorted(filter(None, found)) == sorted(prepared.placement.static)
    assert layer_of("input_QuantizeLinear", prepared.graph) == "conv1"
    assert layer_of("Transpose", prepared.graph) is None
    floats = [node for node in optimized_nodes(serialize(prepared.graph)) if node.op_type in {"Conv", "Gemm"}]
    assert {layer_of(node.name, prepared.graph) for node in floats} <= set(prepared.placement.static)
