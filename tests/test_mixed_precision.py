"""Weights of different widths: the least noise within a size, or the smallest size that leaves enough."""

import copy
import itertools
import re

import pytest
from conftest import TinyResNet, make_workload

from compressor.export import export_onnx
from compressor.quantization.mixed_precision import MixedPrecision
from compressor.quantization.policy import Dynamic
from compressor.quantization.post_training import Prepared, finish, prepare
from compressor.quantization.sensitivity import Sensitivity, predicted_db
from compressor.stage import Context, StageError
from compressor.stages.quantization import Quantize
from compressor.workload import Workload

QUIET = Context(progress=False)


def layer(node: str, weights: int, decibels: dict[int, float]) -> tuple[Sensitivity, ...]:
    return tuple(
        Sensitivity(node=node, bits=bits, sqnr_db=db, size_bytes=weights * bits // 8) for bits, db in decibels.items()
    )


LAYERS = (
    layer("first", 8, {2: 10.0, 4: 20.0, 8: 40.0}),
    layer("second", 80, {2: 15.0, 4: 30.0, 8: 45.0}),
    layer("third", 400, {2: 25.0, 4: 35.0, 8: 50.0}),
)


@pytest.fixture(scope="module")
def workload(_trained_model: TinyResNet) -> Workload:
    return make_workload(copy.deepcopy(_trained_model))


@pytest.fixture(scope="module")
def prepared(workload: Workload) -> Prepared:
    return prepare(export_onnx(workload.model, workload).onnx_bytes, Quantize(), workload, QUIET)


def test_a_size_by_hand() -> None:
    """Of 488 bytes 55 % are 268: 8 + 40 + 200 fit and leave 28.5 dB; 8 + 80 + 200 would not."""
    chosen = MixedPrecision(bits=(2, 4, 8), size=0.55).chosen(LAYERS)
    assert [entry.bits for entry in chosen] == [8, 4, 4]
    assert predicted_db(chosen) == pytest.approx(28.49, abs=0.01)


@pytest.mark.parametrize("size", [0.26, 0.3, 0.4, 0.55, 0.7, 0.9, 1.0])
def test_the_least_noise_of_all_choices_within_the_size(size: float) -> None:
    """As good as trying all 27 choices."""
    chosen = MixedPrecision(bits=(2, 4, 8), size=size).chosen(LAYERS)
    fitting = [one for one in itertools.product(*LAYERS) if sum(entry.size_bytes for entry in one) <= size * 488]
    assert sum(entry.size_bytes for entry in chosen) <= size * 488
    assert sum(entry.noise for entry in chosen) == pytest.approx(
        min(sum(entry.noise for entry in one) for one in fitting)
    )


@pytest.mark.parametrize("sqnr_db", [9.0, 15.0, 24.0, 28.0, 33.0, 38.0])
def test_the_fewest_bytes_of_all_choices_that_leave_enough(sqnr_db: float) -> None:
    """As good as trying all 27 choices."""
    chosen = MixedPrecision(bits=(2, 4, 8), sqnr_db=sqnr_db).chosen(LAYERS)
    enough = [one for one in itertools.product(*LAYERS) if predicted_db(one) >= sqnr_db]
    assert predicted_db(chosen) >= sqnr_db
    assert sum(entry.size_bytes for entry in chosen) == min(sum(entry.size_bytes for entry in one) for one in enough)


def test_goals_out_of_reach_are_refused() -> None:
    """Neither a tenth of the bytes at 2 bits nor 60 dB at 8 can be had; the message says what can."""
    with pytest.raises(
        StageError, match=r"meets 49 bytes: the best has 38\.5 dB, the smallest 122 bytes; ask for less"
    ):
        MixedPrecision(bits=(2, 4, 8), size=0.1).chosen(LAYERS)
    with pytest.raises(StageError, match=r"meets 60 dB: the best has 38\.5 dB"):
        MixedPrecision(bits=(2, 4, 8), sqnr_db=60.0).chosen(LAYERS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of size and sqnr_db is the goal, got size=None, sqnr_db=None"),
        ({"size": 0.5, "sqnr_db": 20.0}, "exactly one of size and sqnr_db is the goal"),
        ({"size": 1.5}, "size is a fraction of the bytes at 8 bits, in (0, 1]; got 1.5"),
        ({"sqnr_db": -1.0}, "sqnr_db is in decibels, above 0; got -1.0"),
        ({"size": 0.5, "bits": (4, 3)}, "bits are different widths from 2 to 8, ascending; got (4, 3)"),
        ({"size": 0.5, "bits": ()}, "bits are different widths from 2 to 8, ascending; got ()"),
        ({"size": 0.5, "bits": (4, 16)}, "bits are different widths from 2 to 8, ascending; got (4, 16)"),
        ({"size": 0.5, "samples": 0}, "samples counts calibration samples, at least 1; got 0"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    """What makes no sense is refused with the value that was given."""
    with pytest.raises(ValueError, match=re.escape(message)):
        MixedPrecision(**settings)


def test_the_settings_are_written_as_they_are_read() -> None:
    """eval(repr(x)) == x."""
    mixed = MixedPrecision(bits=(4, 8), size=0.6, samples=32)
    assert eval(repr(mixed)) == mixed  # noqa: S307 - our own text


def test_every_layer_gets_the_width_that_the_report_names(workload: Workload, prepared: Prepared) -> None:
    """The grids have the chosen widths, their bytes keep the size, and a mix is less noisy than 3 bits."""
    mixed = MixedPrecision(bits=(3, 8), size=0.6, samples=32).apply(prepared, workload, QUIET)
    rows = {row["node"]: row for row in mixed.details["sensitivity"]}
    nodes = {node.name: node for node in mixed.graph.graph.node}
    widths = {name: mixed.weights[nodes[name].input[1]].bits for name in rows}
    assert widths == {name: row["bits"] for name, row in rows.items()}
    assert set(widths.values()) == {3, 8}
    told = mixed.details["mixed_precision"]
    whole = sum(row["size_bytes"]["8"] for row in rows.values())
    assert told["weight_bytes"] == sum(row["size_bytes"][str(row["bits"])] for row in rows.values()) <= 0.6 * whole
    narrow = MixedPrecision(bits=(3,), size=1.0, samples=32).apply(prepared, workload, QUIET)
    assert told["measured_sqnr_db"] > narrow.details["mixed_precision"]["measured_sqnr_db"] + 2
    assert len(finish(mixed, workload, Context(progress=False))) < len(finish(prepared, workload, QUIET))


def test_what_was_asked_in_decibels_is_measured(workload: Workload, prepared: Prepared) -> None:
    """The sum of the noises promises too much at few bits: widths are chosen again until they truly leave 20 dB."""
    mixed = MixedPrecision(bits=(2, 3, 4, 6, 8), sqnr_db=20.0).apply(prepared, workload, QUIET)
    assert mixed.details["mixed_precision"]["measured_sqnr_db"] >= 20.0
    assert min(row["bits"] for row in mixed.details["sensitivity"]) < 8
    with pytest.raises(StageError, match="meets 60 dB"):
        MixedPrecision(bits=(4, 8), sqnr_db=60.0, samples=32).apply(prepared, workload, QUIET)


def test_models_without_static_layers_are_refused(workload: Workload) -> None:
    """Dynamic layers have no width of their own here, which is said instead of ignored."""
    exported = export_onnx(workload.model, workload).onnx_bytes
    dynamic = prepare(exported, Quantize(form=Dynamic()), workload, QUIET)
    with pytest.raises(StageError, match="no static layer has constant weights"):
        MixedPrecision(size=0.5).apply(dynamic, workload, QUIET)
