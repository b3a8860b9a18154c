"""Signals that do harm get better ranges or stay float; what does none stays on integers."""

import numpy as np
import pytest
import torch
from onnx import helper

from compressor.errors import StageError
from compressor.quantization.choice.harm import Rounded
from compressor.quantization.choice.spare import Spare
from compressor.quantization.grids.schemes import Asymmetric
from compressor.quantization.other_cpus.portability import Portable, made_portable
from compressor.quantization.placement.forms import Dynamic, Static
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.ranges.calibration import sample_slices
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import calibrated_on, graph_of


def accepts(file: bytes) -> str:
    """Nothing to say of any file."""
    return "" if file else "no file"


def _loud_front() -> tuple[bytes, Workload]:
    """A sum of powers before a logarithm, as spectral front ends have it, and two plain layers behind it.

    No range of eight bits holds powers of six decades: the front has to stay float.
    """
    random = np.random.default_rng(0)
    weights = {
        "waves": random.normal(size=(32, 32)),
        "floor": np.float32(1e-4),
        "middle": random.normal(size=(32, 32)) / 6,
        "last": random.normal(size=(32, 8)) / 6,
    }
    nodes = [
        helper.make_node("MatMul", ["input", "waves"], ["spectrum"], "front"),
        helper.make_node("Mul", ["spectrum", "spectrum"], ["power"], "powers"),
        helper.make_node("Add", ["power", "floor"], ["lifted"], "lifts"),
        helper.make_node("Log", ["lifted"], ["loudness"], "logarithm"),
        helper.make_node("MatMul", ["loudness", "middle"], ["hidden"], "layer"),
        helper.make_node("Relu", ["hidden"], ["kept"], "cut"),
        helper.make_node("MatMul", ["kept", "last"], ["output"], "head"),
    ]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 32, generator=generator) * 10 ** torch.empty(128, 1).uniform_(
        -2.5, 0.5, generator=generator
    )
    return graph_of(nodes, weights, ["batch", 32], ["batch", 8]).SerializeToString(), calibrated_on(inputs)


def _prepared(exported: bytes, workload: Workload, form: Static | Dynamic | None = None) -> Prepared:
    context = Context(progress=False)
    prepared = prepare(exported, Quantize(form=form or Static()), workload, context)
    # As `quantized_file` searches: on a CPU without VNNI other weights are others.
    return made_portable(prepared, Portable(), workload, context)


def _noise(prepared: Prepared, workload: Workload) -> float:
    slices = sample_slices(prepared.graph, workload.calibration, size=64, samples=64)
    rounded = Rounded(prepared, slices)
    return rounded.noise(rounded.order)


def test_a_front_end_stays_float_and_the_layers_behind_it_do_not() -> None:
    """At 20 dB the layer before the logarithm is float, those behind it are integers, and the noise is measured."""
    exported, workload = _loud_front()
    prepared = _prepared(exported, workload)
    assert _noise(prepared, workload) > 0.1
    spared = Spare(missed=accepts).apply(prepared, Asymmetric(), workload)
    assert "front" not in spared.placement.static
    assert {"layer", "head"} <= set(spared.placement.static)
    assert spared.placement.left["front"].startswith("spared")
    assert _noise(spared, workload) <= 0.01
    told = spared.details["given_back"]
    assert {"spectrum", "input"} & {entry["node"] for entry in told}
    assert all(entry["numbers"]["sqnr_db_without"] >= 20 > entry["numbers"]["sqnr_db"] for entry in told)


def test_what_does_not_hold_goes_to_the_next_level() -> None:
    """A judge that refuses once gets another file, with less noise; one that refuses all gets the reasons."""
    exported, workload = _loud_front()
    seen: list[bytes] = []

    def second(file: bytes) -> str:
        seen.append(file)
        return "" if len(seen) == 2 else "too loud"

    Spare(missed=second, levels=(6.0, 30.0)).apply(_prepared(exported, workload), Asymmetric(), workload)
    assert len({*seen}) == 2
    with pytest.raises(StageError, match=r"\d+\.\d dB with \d+ of \d+ signals in float, too loud; \d+\.\d dB with"):
        Spare(missed=lambda _: "too loud", levels=(6.0, 30.0)).apply(
            _prepared(exported, workload), Asymmetric(), workload
        )


def test_levels_out_of_reach_and_forms_without_ranges_are_told() -> None:
    """Nothing on integers has 190 dB; what finds its ranges at run time has no signals to spare."""
    exported, workload = _loud_front()
    with pytest.raises(StageError, match="nothing would be left to quantize"):
        Spare(missed=accepts, levels=(190.0,)).apply(_prepared(exported, workload), Asymmetric(), workload)
    with pytest.raises(StageError, match="no layer has calibrated activations"):
        Spare(missed=accepts).apply(_prepared(exported, workload, Dynamic()), Asymmetric(), workload)
