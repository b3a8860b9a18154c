"""Notes become JSON and are read back, whatever reports of other versions hold."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import compressor
from compressor import Context
from compressor.estimate import Estimate
from compressor.notes import evaluations, quantization, running, structure, training
from compressor.notes.evaluations import (
    ClassChanges,
    Evaluated,
    Evaluations,
    Flip,
    OneClass,
    RemovedPart,
    RemovedParts,
)
from compressor.notes.note import Note
from compressor.notes.quantization import (
    Agreement,
    BiasesCorrected,
    Calibrated,
    CheckedCpus,
    Coverage,
    Equalized,
    FloatAgain,
    FloatOperator,
    FormChosen,
    GiveBackTried,
    GivenBack,
    IntegerForm,
    Judged,
    KeptOutput,
    LayerSensitivity,
    LeftOut,
    MadePortable,
    MixedWidths,
    OutputNoise,
    RoundingLearned,
    Sensitivities,
    Smoothed,
    TriedForm,
    TriedInFloat,
    TriedWidths,
)
from compressor.notes.running import (
    Exported,
    GivenFile,
    JudgedAfter,
    Loaders,
    RankingThreads,
    Reused,
    SameStructure,
    VersusBase,
)
from compressor.notes.structure import (
    Block,
    Blocks,
    BuiltChoice,
    ChannelsRemoved,
    FactorizedLayer,
    FactorizedLayers,
    FirstChoice,
    FoldedConstants,
    FoldedWeight,
    FoldedWeights,
    FormEfficiency,
    Group,
    Groups,
    LockedLayer,
    LockedLayers,
    Round,
    Rounds,
    Scores,
    SecondChoice,
    TakenChoice,
    UnitScores,
    UnreachedLayer,
    UnreachedLayers,
)
from compressor.notes.training import (
    Adapters,
    ChannelOrder,
    ChannelOrders,
    CodebooksStored,
    Epoch,
    Epochs,
    Forgotten,
    Learnt,
    NormsReestimated,
    OtherOutputs,
    OutputChange,
    SharedValues,
    Sparsified,
    SparsityRound,
    SparsityRounds,
    StoredCodebook,
    Teaching,
    Training,
    Trainings,
    ValueCount,
    ZeroChannels,
    ZeroCount,
    ZeroWeights,
)

CHOICE = BuiltChoice(
    target="Macs(0.5)",
    unit="MACs",
    reference=100.0,
    start=100.0,
    limit=50.0,
    predicted=49.0,
    measured=49.5,
    measured_low=49.5,
    measured_high=49.5,
    fraction_of_reference=0.495,
)
CHOICE_JSON = (
    '{"target": "Macs(0.5)", "unit": "MACs", "reference": 100.0, "start": 100.0, "limit": 50.0, "predicted": 49.0, '
    '"measured": 49.5, "measured_low": 49.5, "measured_high": 49.5, "fraction_of_reference": 0.495}'
)

# Every kind of note with the JSON that reports have of it, written by hand.
NOTES: tuple[tuple[Note, str], ...] = (
    (
        Groups(align=16, groups=(Group(layer="conv1", before=16, after=12),)),
        '{"align": 16, "groups": [{"layer": "conv1", "before": 16, "after": 12}]}',
    ),
    (Groups(groups=()), '{"groups": []}'),
    (
        Evaluations(evaluations=(Evaluated(evaluation="calibration", what="error", value=Estimate(0.1, 0.0, 0.2)),)),
        (
            '{"evaluations": [{"evaluation": "calibration", "what": "error", "unit": "points", '
            '"value": {"value": 0.1, "low": 0.0, "high": 0.2}, "why": ""}]}'
        ),
    ),
    (
        ClassChanges(
            classes=(OneClass(label="3", samples=9, before=1.0, after=0.5, p=0.03, lost=True),),
            lost=5,
            won=1,
            other=0,
            flips=(Flip(index=7, label="3", before="3", after="8", picture="iVBO"),),
        ),
        (
            '{"class_changes": {"classes": [{"label": "3", "samples": 9, "before": 1.0, "after": 0.5, "p": 0.03, '
            '"lost": true}], "lost": 5, "won": 1, "other": 0, "flips": [{"index": 7, "label": "3", "before": "3", '
            '"after": "8", "picture": "iVBO"}]}}'
        ),
    ),
    (
        RemovedParts(removed_parts=(RemovedPart(part="layer1.1", removed=1, of=1, moved=0.2),)),
        '{"removed_parts": [{"part": "layer1.1", "removed": 1, "of": 1, "moved": 0.2}]}',
    ),
    (
        LockedLayers(locked=(LockedLayer(layer="fc", reason="it makes the output"),)),
        '{"locked": [{"layer": "fc", "reason": "it makes the output"}]}',
    ),
    (
        Blocks(
            blocks=(
                Block(block="layer1.0", group="layer1", score=0.31, kept=True),
                Block(block="layer1.1", group=None, score=None, kept=False),
            ),
            dropped_in_order=("layer1.1",),
        ),
        (
            '{"blocks": [{"block": "layer1.0", "group": "layer1", "score": 0.31, "kept": true}, '
            '{"block": "layer1.1", "group": null, "score": null, "kept": false}], "dropped_in_order": ["layer1.1"]}'
        ),
    ),
    (
        FoldedWeights(parametrizations_folded=(FoldedWeight(layer="conv", tensor="weight", by="WeightNorm"),)),
        '{"parametrizations_folded": [{"layer": "conv", "tensor": "weight", "by": "WeightNorm"}]}',
    ),
    (
        UnreachedLayers(unreached_layers=(UnreachedLayer(layer="long", danger="danger: it is reached by no example"),)),
        '{"unreached_layers": [{"layer": "long", "danger": "danger: it is reached by no example"}]}',
    ),
    (
        FactorizedLayers(
            factorized=(
                FactorizedLayer(
                    layer="fc", by="svd", ranks=(16,), full_ranks=(64,), error=0.02, before=8192, after=3072
                ),
            )
        ),
        (
            '{"factorized": [{"layer": "fc", "by": "svd", "ranks": [16], "full_ranks": [64], "error": 0.02, '
            '"before": 8192, "after": 3072}]}'
        ),
    ),
    (ChannelsRemoved(channel_fraction_removed=0.25), '{"channel_fraction_removed": 0.25}'),
    (
        Rounds(rounds=(Round(limit=3.0, predicted=2.5, loss=0.1),)),
        '{"rounds": [{"limit": 3.0, "predicted": 2.5, "loss": 0.1}]}',
    ),
    (
        FoldedConstants(constants_folded_into=("conv2",), largest_output_change=0.0),
        '{"constants_folded_into": ["conv2"], "largest_output_change": 0.0}',
    ),
    (
        Scores(
            scores=(
                UnitScores(
                    group="a", criterion="L1()", layers=("a", "b"), kept_scores=(2.0, 1.0), removed_scores=(0.5,)
                ),
            )
        ),
        (
            '{"scores": [{"group": "a", "criterion": "L1()", "layers": ["a", "b"], "kept_scores": [2.0, 1.0], '
            '"removed_scores": [0.5]}]}'
        ),
    ),
    (TakenChoice(target=CHOICE), '{"target": ' + CHOICE_JSON + "}"),
    (FirstChoice(first_choice=CHOICE), '{"first_choice": ' + CHOICE_JSON + "}"),
    (SecondChoice(second_choice="Macs(0.5) cannot be reached"), '{"second_choice": "Macs(0.5) cannot be reached"}'),
    (
        SecondChoice(
            second_choice=replace(
                CHOICE, efficiency={"asked": 0.9, "int8": FormEfficiency(predicted=0.8, measured=0.75)}
            )
        ),
        (
            '{"second_choice": '
            + CHOICE_JSON[:-1]
            + ', "efficiency": {"asked": 0.9, "int8": {"predicted": 0.8, "measured": 0.75}}}}'
        ),
    ),
    (
        Epochs(epochs=(Epoch(epoch=1, loss=0.9, score=0.8, learning_rate=0.1, seconds=2.5),), best_epoch=1),
        '{"epochs": [{"epoch": 1, "loss": 0.9, "score": 0.8, "learning_rate": 0.1, "seconds": 2.5}], "best_epoch": 1}',
    ),
    (
        Trainings(trainings=(Training(training="fine_tune", inner_layers="float32", why="asked for", before=0.5),)),
        (
            '{"trainings": [{"training": "fine_tune", "inner_layers": "float32", "why": "asked for", "before": 0.5, '
            '"failed": false, "says": "", "frozen": []}]}'
        ),
    ),
    (
        Learnt(metric="accuracy", replay=0.5, new_before=0.25, new_after=0.75),
        '{"metric": "accuracy", "replay": 0.5, "new_before": 0.25, "new_after": 0.75}',
    ),
    (
        Forgotten(forgotten=Estimate(0.5, 0.25, 0.75), forgotten_says="accuracy fell"),
        '{"forgotten": {"value": 0.5, "low": 0.25, "high": 0.75}, "forgotten_says": "accuracy fell"}',
    ),
    (Teaching(teacher_cache="not used"), '{"teacher_cache": "not used"}'),
    (Teaching(teacher="ResNet", teacher_cache="not used"), '{"teacher": "ResNet", "teacher_cache": "not used"}'),
    (
        Teaching(teacher="ResNet", teacher_cache="not used", student="Small", student_from="mine:small"),
        '{"teacher": "ResNet", "teacher_cache": "not used", "student": "Small", "student_from": "mine:small"}',
    ),
    (
        Teaching(teacher_cache="not used", taught="classes in dimension 1"),
        '{"teacher_cache": "not used", "taught": "classes in dimension 1"}',
    ),
    (
        OtherOutputs(other_outputs=(OutputChange(output="1", treated="held", before=0.1, after=0.05),)),
        '{"other_outputs": [{"output": "1", "treated": "held", "before": 0.1, "after": 0.05}]}',
    ),
    (Adapters(adapters={"layer1": "Conv2d"}), '{"adapters": {"layer1": "Conv2d"}}'),
    (
        ZeroChannels(zero_channels_fraction=0.25, zero_channels=(ZeroCount(layer="a", zero=4, of=16),)),
        '{"zero_channels_fraction": 0.25, "zero_channels": [{"layer": "a", "zero": 4, "of": 16}]}',
    ),
    (
        SparsityRounds(
            sparsity_rounds=(SparsityRound(sparsity=0.4, kept=True, says="fell 0.1"),), layer_sparsity={"a": 0.5}
        ),
        ('{"sparsity_rounds": [{"sparsity": 0.4, "kept": true, "says": "fell 0.1"}], "layer_sparsity": {"a": 0.5}}'),
    ),
    (
        ChannelOrders(reordered=(ChannelOrder(group="a", before=2.0, kept=2.5),)),
        '{"reordered": [{"group": "a", "before": 2.0, "kept": 2.5, "reason": ""}]}',
    ),
    (
        CodebooksStored(codebooks_stored=(StoredCodebook(tensor="w", values=16, of=64),)),
        '{"codebooks_stored": [{"tensor": "w", "values": 16, "of": 64}]}',
    ),
    (
        SharedValues(shared_by="ClusterWeights()", shared_values=(ValueCount(layer="a", values=16, of=64, error=0.1),)),
        '{"shared_by": "ClusterWeights()", "shared_values": [{"layer": "a", "values": 16, "of": 64, "error": 0.1}]}',
    ),
    (
        Sparsified(zeros_by="Magnitude(norm='l1')", zeros_in="Rows()"),
        '{"zeros_by": "Magnitude(norm=\'l1\')", "zeros_in": "Rows()"}',
    ),
    (
        ZeroWeights(zero_weights_fraction=0.5, zero_weights=(ZeroCount(layer="a", zero=8, of=16),)),
        '{"zero_weights_fraction": 0.5, "zero_weights": [{"layer": "a", "zero": 8, "of": 16}]}',
    ),
    (NormsReestimated(layers=3, batches=50, unreached=("bn4",)), '{"layers": 3, "batches": 50, "unreached": ["bn4"]}'),
    (
        Agreement(torch_to_file=0.002, unfused_to_fused=0.001),
        '{"agreement": {"torch_to_file": 0.002, "unfused_to_fused": 0.001}}',
    ),
    (
        RankingThreads(ranking_threads="threads by timing: 2, 1 from batch 3 on"),
        '{"ranking_threads": "threads by timing: 2, 1 from batch 3 on"}',
    ),
    (
        Loaders(loaders={"train": "random generators of its own (rng) are seeded for every pass"}),
        '{"loaders": {"train": "random generators of its own (rng) are seeded for every pass"}}',
    ),
    (
        Exported(exporter="dynamo", opset=18, notes=("a", "b")),
        '{"export": {"exporter": "dynamo", "opset": 18, "notes": ["a", "b"]}}',
    ),
    (
        Reused(made="2026-11-28T01:00:00+00:00", spared=12.5),
        '{"reused": {"made": "2026-11-28T01:00:00+00:00", "spared": 12.5}}',
    ),
    (
        GivenFile(file="tiny.onnx", size_bytes=19320),
        '{"given_file": {"file": "tiny.onnx", "size_bytes": 19320}}',
    ),
    (SameStructure(same_structure=True), '{"same_structure": true}'),
    (JudgedAfter(judged_after="distill"), '{"judged_after": "distill"}'),
    (VersusBase(versus_base=Estimate(1.5, 1.4, 1.6)), '{"versus_base": {"value": 1.5, "low": 1.4, "high": 1.6}}'),
    (
        Smoothed(smoothed=("a",), smoothed_by_mul=(), float_sqnr_db=120.5),
        '{"smoothing": {"smoothed": ["a"], "smoothed_by_mul": [], "float_sqnr_db": 120.5}}',
    ),
    (LeftOut(left_out={"smoothing": "no norms"}), '{"left_out": {"smoothing": "no norms"}}'),
    (
        Equalized(layers=2, spread_before=4.5, spread_after=1.5, float_sqnr_db=90.0),
        '{"equalization": {"layers": 2, "spread_before": 4.5, "spread_after": 1.5, "float_sqnr_db": 90.0}}',
    ),
    (
        Equalized(
            unclipped=("clip",),
            layers=2,
            spread_before=4.5,
            spread_after=1.5,
            absorbed_channels=0,
            float_sqnr_db=90.0,
            sqnr_db={"without": 20.0, "with": 25.0},
            kept=True,
        ),
        (
            '{"equalization": {"unclipped": ["clip"], "layers": 2, "spread_before": 4.5, "spread_after": 1.5, '
            '"absorbed_channels": 0, "float_sqnr_db": 90.0, "sqnr_db": {"without": 20.0, "with": 25.0}, "kept": true}}'
        ),
    ),
    (
        Calibrated(method="MinMax()", samples=64, tensors=9),
        '{"calibration": {"method": "MinMax()", "samples": 64, "tensors": 9}}',
    ),
    (
        Calibrated(method="MinMax()", samples=64, tensors=9, without_range={"x": "it holds NaN"}),
        '{"calibration": {"method": "MinMax()", "samples": 64, "tensors": 9, "without_range": {"x": "it holds NaN"}}}',
    ),
    (
        Calibrated(method="Auto()", samples=64, tensors=9, chosen="MSE()", output_error={"MSE()": 0.01}),
        (
            '{"calibration": {"method": "Auto()", "samples": 64, "tensors": 9, "chosen": "MSE()", '
            '"output_error": {"MSE()": 0.01}}}'
        ),
    ),
    (
        RoundingLearned(method="GPTQ()", samples=128, layers=3, changed_fraction=0.1234, to_nearest=("w",)),
        (
            '{"rounding": {"method": "GPTQ()", "samples": 128, "layers": 3, "changed_fraction": 0.1234, '
            '"to_nearest": ["w"]}}'
        ),
    ),
    (
        BiasesCorrected(method="analytic", layers=3, missing=(), sqnr_db_before=20.0, sqnr_db_after=21.0, kept=True),
        (
            '{"bias_correction": {"method": "analytic", "layers": 3, "missing": [], "sqnr_db_before": 20.0, '
            '"sqnr_db_after": 21.0, "kept": true}}'
        ),
    ),
    (
        MixedWidths(
            goal={"size": 0.6, "sqnr_db": None},
            weight_bytes=9000,
            float_share=0.0,
            predicted_sqnr_db=24.1,
            measured_sqnr_db=23.2,
        ),
        (
            '{"mixed_precision": {"goal": {"size": 0.6, "sqnr_db": null}, "weight_bytes": 9000, "float_share": 0.0, '
            '"predicted_sqnr_db": 24.1, "measured_sqnr_db": 23.2}}'
        ),
    ),
    (
        MixedWidths(
            goal={"latency": 0.5},
            tried=(
                TriedWidths(in_float=("a",), latency=0.45, kept=True),
                TriedWidths(weight_bytes=800, drop=Estimate(0.01, 0.0, 0.02), kept=False),
            ),
            weight_bytes=9000,
            float_share=0.25,
            predicted_sqnr_db=24.1,
            measured_sqnr_db=23.2,
        ),
        (
            '{"mixed_precision": {"goal": {"latency": 0.5}, "tried": ['
            '{"in_float": ["a"], "latency": 0.45, "kept": true}, '
            '{"weight_bytes": 800, "drop": {"value": 0.01, "low": 0.0, "high": 0.02}, "kept": false}], '
            '"weight_bytes": 9000, "float_share": 0.25, "predicted_sqnr_db": 24.1, "measured_sqnr_db": 23.2}}'
        ),
    ),
    (
        Sensitivities(
            sensitivity=(
                LayerSensitivity(node="a", bits=4, reason="cheap", sqnr_db={4: 20.0, 8: 40.0}, size_bytes={8: 16}),
                LayerSensitivity(
                    node="b", bits=8, reason="dear", sqnr_db={8: 30.0}, size_bytes={8: 16}, drop={8: 0.1}, ms={8: 0.02}
                ),
            )
        ),
        (
            '{"sensitivity": [{"node": "a", "bits": 4, "reason": "cheap", "sqnr_db": {"4": 20.0, "8": 40.0}, '
            '"size_bytes": {"8": 16}}, {"node": "b", "bits": 8, "reason": "dear", "sqnr_db": {"8": 30.0}, '
            '"size_bytes": {"8": 16}, "drop": {"8": 0.1}, "ms": {"8": 0.02}}]}'
        ),
    ),
    (
        GivenBack(given_back=(FloatAgain(node="a", why="slower", numbers={"float_ms": 0.02, "integer_ms": 0.03}),)),
        '{"given_back": [{"node": "a", "why": "slower", "numbers": {"float_ms": 0.02, "integer_ms": 0.03}}]}',
    ),
    (
        GiveBackTried(
            tried=(
                TriedInFloat(nodes=("a",), why="time", speedup=Estimate(1.1, 1.05, 1.2), kept=True),
                TriedInFloat(
                    nodes=("a", "b"), why="accuracy", kept=False, drop=Estimate(0.1, 0.0, 0.2), sqnr_db=9.0, missed="x"
                ),
            ),
            before=Judged(sqnr_db=9.0, missed=""),
        ),
        (
            '{"give_back": {"tried": [{"nodes": ["a"], "why": "time", '
            '"speedup": {"value": 1.1, "low": 1.05, "high": 1.2}, '
            '"kept": true}, {"nodes": ["a", "b"], "why": "accuracy", "kept": false, "drop": {"value": 0.1, "low": 0.0, '
            '"high": 0.2}, "sqnr_db": 9.0, "missed": "x"}], "before": {"sqnr_db": 9.0, "missed": ""}}}'
        ),
    ),
    (
        MadePortable(cure="SafePairs()", scales_grown=3, scales=40),
        '{"portable": {"cure": "SafePairs()", "scales_grown": 3, "scales": 40}}',
    ),
    (
        MadePortable(cure="SevenBits()", seven_bits=("conv1",)),
        '{"portable": {"cure": "SevenBits()", "seven_bits": ["conv1"]}}',
    ),
    (
        IntegerForm(static=3, dynamic=1, weight_only=0, float16=0, activations="uint8", weight_bits=8),
        (
            '{"form": {"static": 3, "dynamic": 1, "weight_only": 0, "float16": 0, "activations": "uint8", '
            '"weight_bits": 8}}'
        ),
    ),
    (
        Coverage(
            quantized=3,
            integer_kernels={"QLinearConv": 3},
            integer_followers={},
            left_in_float=(FloatOperator(node="/a/Add", op="Add", reason="skipped"),),
            float_islands=(),
            conversions=2,
            kernels_seen_on="x86_64",
        ),
        (
            '{"quantized": 3, "integer_kernels": {"QLinearConv": 3}, "integer_followers": {}, '
            '"left_in_float": [{"node": "/a/Add", "op": "Add", "reason": "skipped"}], "float_islands": [], '
            '"conversions": 2, "kernels_seen_on": "x86_64"}'
        ),
    ),
    (OutputNoise(sqnr_db=23.4), '{"sqnr_db": 23.4}'),
    (
        OutputNoise(sqnr_db=9.0, outputs=(KeptOutput(output="m", judged=True, db=9.0, channel_db=4.5),)),
        '{"sqnr_db": 9.0, "outputs": [{"output": "m", "judged": true, "db": 9.0, "channel_db": 4.5, "why": ""}]}',
    ),
    (
        CheckedCpus(products=4, products_that_may_saturate=(), cpus={"x86_vnni": "exact"}),
        '{"checked_cpus": {"products": 4, "products_that_may_saturate": [], "cpus": {"x86_vnni": "exact"}}}',
    ),
    (
        CheckedCpus(
            products=4,
            products_that_may_saturate=("a",),
            samples=256,
            score_exact=0.9,
            score_saturated=0.8,
            drop=0.1,
            drop_interval=(0.05, 0.15),
            wrong_sums={"a": 0.01},
            cpus={},
        ),
        (
            '{"checked_cpus": {"products": 4, "products_that_may_saturate": ["a"], "samples": 256, "score_exact": 0.9, '
            '"score_saturated": 0.8, "drop": 0.1, "drop_interval": [0.05, 0.15], "wrong_sums": {"a": 0.01}, '
            '"cpus": {}}}'
        ),
    ),
    (
        FormChosen(
            candidates=(
                TriedForm(
                    form="Static()",
                    kept=True,
                    size_bytes=900,
                    sqnr_db=30.0,
                    integer_kernels={"QGemm": 1},
                    drop=Estimate(0.0, 0.0, 0.0),
                    speedup=Estimate(2.0, 1.9, 2.1),
                ),
                TriedForm(form="Dynamic()", kept=False, why="nothing to quantize"),
            ),
            chosen_form="Static()",
        ),
        (
            '{"candidates": [{"form": "Static()", "kept": true, "size_bytes": 900, "sqnr_db": 30.0, '
            '"integer_kernels": {"QGemm": 1}, "drop": {"value": 0.0, "low": 0.0, "high": 0.0}, '
            '"speedup": {"value": 2.0, "low": 1.9, "high": 2.1}}, {"form": "Dynamic()", "kept": false, '
            '"why": "nothing to quantize"}], "chosen_form": "Static()"}'
        ),
    ),
)


@pytest.mark.parametrize(("note", "text"), NOTES, ids=lambda value: type(value).__name__)
def test_json_is_as_reports_have_it_and_reads_back(note: Note, text: str) -> None:
    """Keys, their order and values are those of the text, and what is read from it is the same note."""
    assert json.dumps(note.to_json()) == text
    assert type(note).from_json(json.loads(text)) == note


def test_every_kind_has_its_json_here() -> None:
    """A kind of note that is added without its JSON above fails."""
    kinds = {
        value
        for module in (evaluations, quantization, running, structure, training)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Note) and value is not Note
    }
    assert kinds == {type(note) for note, _ in NOTES}


@pytest.mark.parametrize(
    "kind", sorted({type(note) for note, _ in NOTES}, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("odd", [None, 3, "text", [], {}, [1, "a", None, {}], {"a": 1}, [[[]]], True])
def test_odd_entries_are_no_error(kind: type[Note], odd: object) -> None:
    """Entries of any other type than they should have are left out, as are details without the kind's own."""
    found = kind.from_json(dict.fromkeys(kind.entries(), odd))
    assert found is None or isinstance(found, kind)
    assert kind.from_json({"something": "else"}) is None


def test_records_that_miss_a_number_are_left_out() -> None:
    """Of four groups the first alone has both widths as numbers; a name that is missing is a question mark."""
    told = {"groups": [{"before": 4.0, "after": 2}, {"layer": "b", "before": "many", "after": 2}, {"layer": "c"}, 7]}
    assert Groups.from_json(told) == Groups(groups=(Group(layer="?", before=4, after=2),))


def test_keys_that_are_no_widths_are_left_out() -> None:
    """Widths are counted in digits, decibels are finite, and an odd chosen width is none."""
    row = {"node": "a", "bits": "four", "sqnr_db": {"8": 3.0, "x": 2.0, "4": None, "٣": 1.0, "3": float("inf")}}
    (layer,) = Sensitivities.from_json({"sensitivity": [row]}).sensitivity
    assert layer == LayerSensitivity(node="a", bits=None, reason="", sqnr_db={8: 3.0}, size_bytes={})


def test_operators_may_be_listed_instead_of_counted() -> None:
    """A report that lists what was quantized has quantized as many."""
    assert Coverage.from_json({"quantized": ["a", "b"]}).quantized == 2


def test_intervals_that_are_none_are_left_out() -> None:
    """A speed-up whose bounds are exchanged is none."""
    assert VersusBase.from_json({"versus_base": {"value": 1.0, "low": 2.0, "high": 1.0}}) is None


def test_a_context_takes_notes_and_other_entries_in_the_order_in_which_they_are_told() -> None:
    """Notes and entries written by hand stand side by side; a second note of a kind takes the place of the first."""
    context = Context(progress=False)
    context.details["mine"] = 3
    context.tell(OutputNoise(sqnr_db=20.0))
    context.tell(LockedLayers.of({"fc": "it makes the output"}))
    context.tell(OutputNoise(sqnr_db=21.0))
    assert list(context.details.items()) == [
        ("mine", 3),
        ("sqnr_db", 21.0),
        ("locked", [{"layer": "fc", "reason": "it makes the output"}]),
    ]


def test_only_notes_give_names_to_details() -> None:
    """In the package nobody indexes a step's details, or anyone's, by a name: kinds of notes write and read them."""
    package = Path(compressor.__file__).parent
    # There, details are ONNX Runtime's, of a node in its profile.
    others = {package / "measuring" / "macs.py", package / "latency" / "prediction.py"}
    found = []
    for path in sorted({*package.rglob("*.py")} - {*(package / "notes").iterdir()} - others):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            owner = None
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.JoinedStr):
                owner = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _gives_a_name(node):
                owner = node.func.value
            elif isinstance(node, ast.keyword) and node.arg == "details" and _has_names(node.value):
                owner = ast.Name("details")
            if getattr(owner, "attr", getattr(owner, "id", "")) == "details":
                found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert found == []


def _gives_a_name(call: ast.Call) -> bool:
    """Whether a method of a dict is called with a name: `get("x")`, `update(x=1)`, `update({"x": 1})`."""
    if call.func.attr in {"get", "pop", "setdefault"}:
        return True
    return call.func.attr == "update" and bool(call.keywords or any(_has_names(each) for each in call.args))


def _has_names(value: ast.expr) -> bool:
    return isinstance(value, ast.Dict) and any(isinstance(key, ast.Constant | ast.JoinedStr) for key in value.keys)
