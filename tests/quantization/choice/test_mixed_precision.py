"""Weights of different widths, or float: the least noise within bytes or time, or the fewest bytes that keep enough."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from compressor.errors import NothingToImproveError, StageError
from compressor.estimate import Estimate
from compressor.files.export import export_onnx
from compressor.measuring.scores import score_rows
from compressor.notes.quantization import Sensitivities
from compressor.quantization.choice import width_search
from compressor.quantization.choice.chosen_widths import ChosenWidths
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.choice.sensitivity import SQNR, Sensitivity, TaskMetric, predicted_db
from compressor.quantization.choice.width_search import fewest_bytes, quantized_choices, with_times, within_time
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.placement.forms import Dynamic
from compressor.quantization.post_training import Prepared, finish, prepare
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
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
def short(prepared: Prepared) -> Prepared:
    """The same with three layers left: the first, one of a residual block, the last."""
    left = {"conv1", "layer2.1.conv1", "linear"}
    return prepared.without(dict.fromkeys(set(prepared.placement.static) - left, "not looked at"))


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
        ({}, "exactly one of size, sqnr_db, latency and max_drop is the goal, got size=None, sqnr_db=None, latency="),
        ({"size": 0.5, "max_drop": 0.1}, "is the goal, got size=0.5, sqnr_db=None, latency=None, max_drop=0.1; try"),
        ({"size": 1.5}, "size is a fraction of the bytes at 8 bits, in (0, 1]; got 1.5"),
        ({"sqnr_db": -1.0}, "sqnr_db is a ratio in decibels, above 0; got -1.0"),
        ({"latency": 1.5, "bits": (8, 32)}, "latency is a fraction of the float file's time, in (0, 1]; got 1.5"),
        ({"latency": 0.5, "bits": (4, 8)}, "add 32 for layers in float: bits=(4, 8, 32)"),
        ({"max_drop": 1.0}, "max_drop is a fraction (0.01 is one point of accuracy), in [0, 1); got 1.0"),
        ({"sqnr_db": 20.0, "criterion": TaskMetric()}, "which criterion=TaskMetric() does not rank by"),
        ({"size": 0.5, "bits": (4, 3)}, "16 or 32 for layers in float; got (4, 3)"),
        ({"size": 0.5, "bits": ()}, "bits are different widths from 2 to 8, ascending, and after at least one"),
        ({"size": 0.5, "bits": (16, 32)}, "after at least one of these 16 or 32 for layers in float; got (16, 32)"),
        ({"size": 0.5, "bits": (4, 12)}, "16 or 32 for layers in float; got (4, 12)"),
        ({"size": 0.5, "samples": 0}, "samples counts calibration samples, at least 1; got 0"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    """What makes no sense is refused with the value that was given."""
    with pytest.raises(ValueError, match=re.escape(message)):
        MixedPrecision(**settings)


def test_the_settings_are_written_as_they_are_read() -> None:
    """eval(repr(x)) == x."""
    mixed = MixedPrecision(bits=(4, 8, 32), latency=0.6, criterion=TaskMetric(), samples=32)
    assert mixed.criterion != MixedPrecision(size=0.6).criterion == SQNR()
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


def test_models_without_static_layers_have_nothing_to_choose(workload: Workload) -> None:
    """Dynamic layers have no width of their own here, which is said and lets `Quantize` go on."""
    exported = export_onnx(workload.model, workload).onnx_bytes
    dynamic = prepare(exported, Quantize(form=Dynamic()), workload, QUIET)
    with pytest.raises(NothingToImproveError, match="no static layer has constant weights"):
        MixedPrecision(size=0.5).apply(dynamic, workload, QUIET)


WITH_FLOAT = (
    layer("first", 8, {4: 20.0, 8: 40.0, 32: 200.0}),
    layer("second", 80, {4: 30.0, 8: 45.0, 32: 200.0}),
    layer("third", 400, {4: 35.0, 8: 50.0, 32: 200.0}),
)
# Milliseconds in integers and in float: the third layer is slower in integers.
TIMES = {"first": (0.5, 1.0), "second": (0.5, 2.0), "third": (1.5, 1.0)}
TIMED = tuple(
    tuple(replace(entry, ms=TIMES[entry.node][entry.in_float]) for entry in entries if entry.bits != 4)
    for entries in WITH_FLOAT
)


def test_float_by_hand() -> None:
    """Of 1952 bytes in float 26.3 % are 513: 32 + 80 + 400 fit, so the small layer at 40 dB stays in float: 43.8 dB."""
    chosen = MixedPrecision(bits=(4, 8, 32), size=0.263).chosen(WITH_FLOAT)
    assert [entry.bits for entry in chosen] == [32, 8, 8]
    assert predicted_db(chosen) == pytest.approx(43.81, abs=0.01)


def test_time_by_hand(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers take 2.5 ms of 4 in float, the file 0.2 more for each layer in float, which no sum knows.

    The third layer is faster in float even so; the first one follows, with its 0.5 ms more, once 2.9 ms fit.
    """

    def time_interleaved(chosen: tuple[Sensitivity, ...], *_: object, **__: object) -> SimpleNamespace:
        taken = sum((entry.ms or 0.0) + 0.2 * entry.in_float for entry in chosen)
        return SimpleNamespace(speedup=Estimate(4 / taken, 4 / taken, 4 / taken))

    monkeypatch.setattr(width_search, "assigned", lambda _, __, chosen: SimpleNamespace(shipped=lambda: chosen))
    monkeypatch.setattr(width_search, "serialize", lambda graph: graph)
    monkeypatch.setattr(width_search, "time_interleaved", time_interleaved)
    found = {entries[0].node: entries for entries in TIMED}

    def widths(latency: float) -> list[int]:
        chosen, _, tried = within_time(SimpleNamespace(graph=None), found, latency, workload, QUIET)
        assert len({tuple(entry.in_float) for entry in tried}) == len(tried)
        return [entry.bits for entry in chosen]

    assert widths(0.55) == [8, 8, 32]  # 2.2 ms
    assert widths(0.72) == [8, 8, 32]  # with the first in float too it is 2.9 ms, 0.725 of the time
    assert widths(0.73) == [32, 8, 32]
    with pytest.raises(StageError, match=r"the fastest choice of widths takes 0\.55 .*, wanted are 0\.5 at most; ask"):
        widths(0.5)


def test_a_layer_in_float_takes_what_the_file_takes_more() -> None:
    """0.7 ms more make 1.2 of 0.5; a file that is faster by chance makes no time; what no profile tells is 0."""
    found = {entries[0].node: entries for entries in WITH_FLOAT}
    known = with_times(found, {"first": 0.5, "third": 1.5}, {"first": 0.7, "second": 0.3, "third": -0.2})
    assert [(entry.bits, entry.ms) for entry in known["first"]] == [(4, 0.5), (8, 0.5), (32, 1.2)]
    assert [(entry.bits, entry.ms) for entry in known["second"]] == [(4, 0.0), (8, 0.0), (32, 0.3)]
    assert [(entry.bits, entry.ms) for entry in known["third"]] == [(4, 1.5), (8, 1.5), (32, 1.5)]


@pytest.mark.parametrize("least", [130, 300, 512, 752])
def test_the_fewest_bytes_that_score_enough_by_bisection(
    least: int, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accuracy lost below so many bytes, the cheapest choice above it is found, and few of 27 are scored."""
    found = {entries[0].node: entries for entries in WITH_FLOAT}

    def fake_rows(file: object, data: object, metric: object) -> torch.Tensor:
        enough = not isinstance(file, tuple) or sum(entry.size_bytes for entry in file) >= least
        return torch.full((50,), float(enough))

    monkeypatch.setattr(width_search, "assigned", lambda _, __, chosen: SimpleNamespace(shipped=lambda: chosen))
    monkeypatch.setattr(width_search, "serialize", lambda graph: graph)
    monkeypatch.setattr(width_search, "score_rows", fake_rows)
    plain = SimpleNamespace(exported=b"")
    chosen, _, tried = fewest_bytes(plain, found, 0.01, workload, QUIET)
    sizes = [sum(entry.size_bytes for entry in choice) for choice in quantized_choices(WITH_FLOAT)]
    assert sum(entry.size_bytes for entry in chosen) == min(size for size in sizes if size >= least)
    assert len(tried) <= 6
    assert all(entry.kept == (entry.weight_bytes >= least) for entry in tried)


def test_accuracy_out_of_reach_is_refused(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the most bytes lose it all, the message says how much, and what helps."""
    monkeypatch.setattr(width_search, "assigned", lambda _, __, chosen: SimpleNamespace(shipped=lambda: chosen))
    monkeypatch.setattr(width_search, "serialize", lambda graph: graph)
    monkeypatch.setattr(
        width_search, "score_rows", lambda file, *_: torch.full((50,), float(not isinstance(file, tuple)))
    )
    found = {entries[0].node: entries for entries in WITH_FLOAT}
    with pytest.raises(
        StageError, match=r"validation accuracy fell 100\.0 points .* max_drop is 0\.01; allow more bits"
    ):
        fewest_bytes(SimpleNamespace(exported=b""), found, 0.01, workload, QUIET)


def test_layers_of_32_bits_run_in_float(workload: Workload, short: Prepared) -> None:
    """What was chosen to stay in float runs as float, says why, and leaves no grid that rounding could learn."""
    mixed = MixedPrecision(bits=(4, 8, 32), size=0.35, samples=16).apply(short, workload, QUIET)
    rows = {row["node"]: row for row in mixed.details["sensitivity"]}
    floats = {name for name, row in rows.items() if row["bits"] == 32}
    assert floats
    assert mixed.placement.static == tuple(name for name in short.placement.static if name not in floats)
    for name in floats:
        assert mixed.placement.left[name].startswith("chosen: in float, no noise in ")
    weights = {node.name: node.input[1] for node in mixed.graph.graph.node if node.name in rows}
    assert set(mixed.weights) == {weights[name] for name in rows if name not in floats}
    told = mixed.details["mixed_precision"]
    counts = {name: row["size_bytes"]["32"] / 4 for name, row in rows.items()}
    assert told["float_share"] == pytest.approx(sum(counts[name] for name in floats) / sum(counts.values()), abs=1e-4)
    assert told["weight_bytes"] <= 0.35 * 4 * sum(counts.values())
    context = Context(progress=False)
    finish(mixed, workload, context)
    assert floats <= {entry["node"] for entry in context.details["left_in_float"]}


def test_layers_of_16_bits_are_stored_as_float16(workload: Workload, short: Prepared) -> None:
    """Two bytes a weight, four where there are too few to be worth it; computed in float with next to no noise."""
    found = MixedPrecision(bits=(8, 16), size=0.8, samples=16).apply(short, workload, QUIET)
    rows = {row["node"]: row for row in found.details["sensitivity"]}
    assert rows["conv1"]["size_bytes"] == {"8": 432, "16": 864}  # 16 filters of 3 x 3 x 3
    assert 50 < rows["conv1"]["sqnr_db"]["16"] < 200
    halved = [name for name, row in rows.items() if row["bits"] == 16]
    assert halved == list(found.placement.float16)
    assert halved
    assert "16" in {str(row["bits"]) for row in rows.values()} - {"8", "32"}
    assert kernels(serialize(found.place()))["QLinearConv"] == sum(
        rows[name]["bits"] == 8 for name in ("conv1", "layer2.1.conv1")
    )


def test_all_in_float_is_refused(workload: Workload, short: Prepared) -> None:
    """All the bytes of float leave no noise without any integer: that is no quantization."""
    with pytest.raises(StageError, match="all 3 layers would be in float, which meets the goal without any noise; ask"):
        MixedPrecision(bits=(8, 32), size=1.0, samples=16).apply(short, workload, QUIET)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers take 1 ms each in float and 0.2 in integers by their profile; in a file, floats a quarter more."""

    def kernel_times(file: bytes, inputs, *, threads: int, seconds: float) -> dict[str, float]:
        count = kernels(file)
        return {"all": 3 - 0.8 * (count["QLinearConv"] + count["QGemm"])}

    def layer_ms(file: bytes, graph, inputs, *, threads: int) -> dict[str, float]:
        return {node.name: 0.2 for node in graph.graph.node}

    def time_interleaved(candidate: bytes, reference: bytes, inputs, **_) -> SimpleNamespace:
        count = kernels(candidate)
        integers = count["QLinearConv"] + count["QGemm"]
        taken = (0.2 * integers + 1.25 * (3 - integers)) / 3
        return SimpleNamespace(speedup=Estimate(1 / taken, 1 / taken, 1 / taken))

    monkeypatch.setattr(width_search, "kernel_times", kernel_times)
    monkeypatch.setattr(width_search, "layer_ms", layer_ms)
    monkeypatch.setattr(width_search, "time_interleaved", time_interleaved)


@pytest.mark.usefixtures("clock")
def test_a_time_is_met_by_the_file(workload: Workload, short: Prepared) -> None:
    """By their sum two layers in float take 0.73 of the time, the file takes 0.9: of 0.75, one stays in float."""
    found = MixedPrecision(bits=(8, 32), latency=0.75, samples=16).apply(short, workload, QUIET)
    told = found.details["mixed_precision"]
    assert [(len(entry["in_float"]), entry["latency"], entry["kept"]) for entry in told["tried"]] == [
        (0, 0.2, True),
        (1, 0.55, True),
        (2, 0.9, False),
    ]
    rows = {row["node"]: row for row in found.details["sensitivity"]}
    (name,) = [name for name, row in rows.items() if row["bits"] == 32]
    assert rows[name]["sqnr_db"]["8"] == min(row["sqnr_db"]["8"] for row in rows.values())
    assert rows[name]["ms"] == {"8": 0.2, "32": 1.0}
    assert "in 1.0000 ms; 8 bits" in rows[name]["reason"]


def test_an_accuracy_is_kept_on_validation_data(workload: Workload, short: Prepared) -> None:
    """The file of the chosen widths, scored anew, loses no more than asked, and is smaller than with 8 bits."""
    settings = MixedPrecision(bits=(2, 4, 8), max_drop=0.02, criterion=TaskMetric(), samples=32)
    found = settings.apply(short, workload, QUIET)
    rows = {row["node"]: row for row in found.details["sensitivity"]}
    before, after = (
        float(score_rows(file, workload.validation, workload.metric).mean())
        for file in (short.exported, serialize(found.place()))
    )
    assert before - after <= 0.02
    assert found.details["mixed_precision"]["weight_bytes"] < sum(row["size_bytes"]["8"] for row in rows.values())
    assert set(rows["conv1"]["drop"]) == {"2", "4", "8"}


def test_a_recipe_names_all_of_it() -> None:
    """The fields are read from YAML as they are written in Python, and written again."""
    recipe = Recipe.loads(
        "stages: [quantize: {mixed: {mixed_precision: {bits: [4, 8, 32], latency: 0.5, criterion: task_metric}}}]"
    )
    (stage,) = recipe.stages
    assert stage.mixed == MixedPrecision(bits=(4, 8, 32), latency=0.5, criterion=TaskMetric())
    assert Recipe.loads(recipe.dump()) == recipe


def weight_bits(prepared: Prepared) -> dict[str, int]:
    return {name: grid.bits for name, grid in prepared.weights.items()}


def test_layers_get_the_bits_that_their_names_say(prepared: Prepared) -> None:
    """A module path means all inside, the last name that fits counts, 32 is float, and the rest has the usual 8."""
    chosen = ChosenWidths(layers=("layer2=4", "layer2.1.conv1=3", "linear=32"))
    found = chosen.apply(prepared, None, QUIET)
    bits = {name: bits for name, bits in weight_bits(found).items() if name.endswith("weight")}
    assert bits["layer2.1.conv1.weight"] == 3
    assert bits["layer2.1.conv2.weight"] == 4
    assert bits["layer1.0.conv1.weight"] == 8
    assert "linear.weight" not in bits
    assert "linear" not in found.placement.static
    told = {layer.node: layer.bits for layer in Sensitivities.from_json(found.details).sensitivity}
    assert told["linear"] == 32
    assert told["layer2.1.conv1"] == 3


def test_a_name_that_fits_nothing_is_refused(prepared: Prepared) -> None:
    """With a name that is near; and fewer bits where ranges are found at run time."""
    with pytest.raises(StageError, match=r"no layer in integers is called 'layer7'"):
        ChosenWidths(layers=("layer7=4",)).apply(prepared, None, QUIET)
    moved = replace(prepared.placement, static=prepared.placement.static[:-1], dynamic=prepared.placement.static[-1:])
    name = moved.dynamic[0]
    with pytest.raises(StageError, match="found at run time have weights of 8 bits"):
        ChosenWidths(layers=(f"{name}=4",)).apply(replace(prepared, placement=moved), None, QUIET)


@pytest.mark.parametrize("layers", [(), ("linear",), ("linear=1",), ("linear=9",), ("linear=16",), ("=4",), ("a=-4",)])
def test_what_is_no_width_is_refused(layers: tuple[str, ...]) -> None:
    """When it is written, with how it is written."""
    with pytest.raises(ValueError, match="linear=4"):
        ChosenWidths(layers=layers)


def test_a_recipe_can_say_it() -> None:
    """And gives the same stage back."""
    recipe = Recipe(stages=(Quantize(mixed=ChosenWidths(layers=("linear=4",))),))
    assert Recipe.loads(recipe.dump()) == recipe
