"""What rounding one layer alone does to the output, and what the sum over layers predicts."""

import math
from dataclasses import replace

import pytest
import torch

from compressor.metrics import Metric
from compressor.quantization.accuracy.mean_shifts import MeanShifts
from compressor.quantization.choice.layer_times import layer_of
from compressor.quantization.choice.sensitivity import (
    Sensitivity,
    TaskMetric,
    first_inputs,
    first_samples,
    noise_db,
    output_values,
    predicted_db,
    reason_of,
    reliefs,
    sensitivities,
    sensitivities_note,
)
from compressor.quantization.file.compact_graph import optimized_nodes, serialize
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.post_training import Prepared
from compressor.stage import Context
from compressor.workload import Workload

QUIET = Context(progress=False)


def _last(prepared: Prepared) -> Prepared:
    """The same with the last layer left alone, so that no other one is looked at."""
    others = {name for name in prepared.placement.static if name != "linear"}
    return prepared.without(dict.fromkeys(others, "not looked at"))


def entry(node: str, bits: int, sqnr_db: float, size_bytes: int = 100) -> Sensitivity:
    return Sensitivity(node=node, bits=bits, sqnr_db=sqnr_db, size_bytes=size_bytes)


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


@pytest.mark.parametrize("corrected", [False, True])
def test_one_layer_alone_is_rounded(workload: Workload, prepared: Prepared, *, corrected: bool) -> None:
    """What is measured for the last layer is what torch gives with its operands alone on their grids.

    Where biases are corrected, it is what torch gives with (W - W~) E[x] added to the bias: less noise.
    """
    shifts = MeanShifts(prepared.graph, {"linear"}, workload, samples=64)
    biased = shifts.biased if corrected else None
    found = sensitivities(_last(prepared), (4,), workload, QUIET, samples=64, biased=biased)["linear"][0]
    model = workload.model
    (node,) = [node for node in prepared.graph.graph.node if node.name == "linear"]
    grid = prepared.activations[node.input[0]]
    weight = nearest_grids(prepared.graph, {"linear": Symmetric(bits=4)})[node.input[1]].values()
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        hook = model.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        expected = torch.cat([model(inputs) for inputs in first_inputs(workload.calibration, 64)])
        hook.remove()
        x = torch.cat(seen)
        steps = ((x / grid.scale).round() + grid.zero_point).clamp(0, 255) - grid.zero_point
        got = (steps * grid.scale) @ weight.T + model.linear.bias
        if corrected:
            plain = (expected - got).square().sum()
            got = got + (model.linear.weight - weight) @ x.mean(dim=0)
            assert (expected - got).square().sum() < 0.9 * plain
    noise = (expected - got).square().sum() / expected.square().sum()
    assert found.sqnr_db == pytest.approx(-10 * math.log10(noise), abs=0.02)


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
    (told,) = sensitivities_note({"a": layer}, {"a": 4}).sensitivity
    assert told.bits == 4
    assert told.sqnr_db == {3: 12.0, 4: 20.0, 8: 40.0}


def test_float_has_no_noise_and_its_price_is_told() -> None:
    """The neighbours' prices are in bytes, or in milliseconds where these were measured; 32 bits have no decibels."""
    layer = [entry("a", 8, 40.0, 80), entry("a", 16, 71.0, 160), entry("a", 32, 200.0, 320)]
    assert reason_of(layer, 16) == (
        "in float, 71.0 dB in 160 bytes; 8 bits: 40.0 dB for 80 bytes less; float: no noise for 160 bytes more"
    )
    timed = [replace(layer[0], ms=0.3), replace(layer[2], ms=0.2)]
    assert reason_of(timed, 32) == "in float, no noise in 0.2000 ms; 8 bits: 40.0 dB for 0.1000 ms more"
    (told,) = sensitivities_note({"a": timed}, {"a": 32}).sensitivity
    assert told.bits == 32
    assert told.sqnr_db == {8: 40.0}
    assert told.size_bytes == {8: 80, 32: 320}
    assert told.ms == {8: 0.3, 32: 0.2}
    assert told.drop is None


def test_the_metric_counts_before_noise() -> None:
    """A layer that costs one sample of a hundred is worse than any that costs none, however noisy that one is."""
    quiet, noisy = replace(entry("a", 4, 60.0), drop=0.01), replace(entry("a", 8, 0.0), drop=0.0)
    assert noisy.loss == pytest.approx(1e-6)
    assert quiet.loss == pytest.approx(0.01, abs=1e-6)
    assert replace(noisy, drop=-0.05).loss == noisy.loss
    assert entry("a", 8, 20.0).loss == pytest.approx(0.01)


def test_drops_are_those_of_the_task(workload: Workload, prepared: Prepared) -> None:
    """At 2 bits the last layer's drop is what the mean probability of the target falls by; in float there is none."""
    sure = Metric(
        name="probability", per_sample=lambda outputs, targets: outputs.softmax(1).gather(1, targets[:, None])
    )
    few = prepared.without(dict.fromkeys(set(prepared.placement.static) - {"linear"}, "not looked at"))
    task = replace(workload, metric=sure)
    two, whole = sensitivities(few, (2, 32), task, QUIET, samples=40, criterion=TaskMetric())["linear"]
    data = first_samples(workload.calibration, 40)
    targets = torch.cat([each for _, each in data])
    alone = few.only("linear", nearest_grids(few.graph, {"linear": replace(few.scheme, bits=2)}))
    before, after = (
        torch.from_numpy(output_values(serialize(graph), [inputs for inputs, _ in data])[0]).reshape(40, -1).softmax(1)
        for graph in (few.graph, alone)
    )
    fall = float((before - after)[range(40), targets].mean())
    assert fall > 0.001
    assert two.drop == pytest.approx(fall, rel=1e-4)
    assert (whole.drop, whole.sqnr_db, whole.noise) == (0.0, 200.0, 0.0)


def test_kernels_are_told_by_the_layers_they_work_for(prepared: Prepared) -> None:
    """Every integer kernel with weights has a name that leads back to its layer, and each layer has one."""
    nodes = optimized_nodes(serialize(prepared.place()))
    found = [layer_of(node.name, prepared.graph) for node in nodes if node.op_type in {"QLinearConv", "QGemm"}]
    assert sorted(filter(None, found)) == sorted(prepared.placement.static)
    assert layer_of("input_QuantizeLinear", prepared.graph) == "conv1"
    assert layer_of("Transpose", prepared.graph) is None
    floats = [node for node in optimized_nodes(serialize(prepared.graph)) if node.op_type in {"Conv", "Gemm"}]
    assert {layer_of(node.name, prepared.graph) for node in floats} <= set(prepared.placement.static)
