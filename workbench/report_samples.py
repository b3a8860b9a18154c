"""Reports as runs would leave them, for the tests of what is shown."""

from dataclasses import replace

from compressor.estimate import Estimate
from compressor.measuring.measure import Measurement
from compressor.report.record import Step
from compressor.report.report import Report

WORKLOAD = {"name": "tiny", "model": "TinyResNet", "metric": "accuracy", "higher_is_better": True, "bounded": True}
ENVIRONMENT = {
    "cpu": "Testium 1",
    "isa": "x86_vnni",
    "machine_isa": "x86_vnni",
    "flags": ["avx2", "avx512_vnni"],
    "cores": 2,
    "load_average": [0.5, 0.4, 0.3],
    "busy": False,
    "os": "Linux 6",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "torch-pruning": None},
}
SCRIPT = "<script>alert(1)</script>"
ATTACK = "\"'><img src=x onerror=alert(2)>\x1b[31m|`" + "very_long_module_name." * 6


def measurement(score: float, ms: float, kib: int, speedup: tuple[float, float, float]) -> Measurement:
    """A measurement with the score's interval half a point, and the latency's 2 %, on both sides."""
    return Measurement(
        score=Estimate(score, score - 0.005, score + 0.005),
        parameters=853_018,
        nonzero_parameters=853_018,
        macs=125_486_720,
        size_bytes=kib * 1024,
        compressed_bytes=kib * 900,
        latency_ms=Estimate(ms, 0.98 * ms, 1.02 * ms),
        speedup=Estimate(*speedup),
    )


USE = {
    "file": "model.onnx",
    "inputs": [
        {"name": "pixels", "dtype": "float32", "shape": ["batch", 3, "height", 32], "example": [1, 3, 32, 32]}
        | {"low": -1.5, "high": 2.0},
        {"name": "attention.mask", "dtype": "int64", "shape": ["batch", 7], "example": [1, 7], "low": 0, "high": 1},
    ],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
    "opset": 20,
    "preprocessing": "mine:normalize, the workload's transform, which the file does not hold",
}
REFERENCE = Step(stage="reference", kept=True, seconds=3.0, measurement=measurement(0.899, 3.28, 3342, (1, 1, 1)))
DROP = Step(
    stage="drop_blocks",
    parameters={"remove": 0.5},
    kept=True,
    reason="2.41x [2.36, 2.47] faster",
    seconds=21.0,
    measurement=measurement(0.25, 1.36, 1434, (2.41, 2.36, 2.47)),
    pays=True,
    details={
        "blocks": [
            {"block": "layer1.0", "score": 0.31, "kept": True, "group": "layer1"},
            {"block": "layer1.1", "score": 0.02, "kept": False, "group": "layer1"},
        ],
        "versus_base": {"value": 2.41, "low": 2.36, "high": 2.47},
        "judged_after": "distill",
    },
)
PRUNE = Step(
    stage="prune_channels",
    parameters={"remove": 0.4, "align": None},
    kept=False,
    reason="rolled back: slower: 0.94x [0.91, 0.97] the speed of the model before it, though the file is 1.19x "
    "smaller; `not_slower: false` in the budget would keep it",
    seconds=15.0,
    measurement=measurement(0.22, 1.45, 1202, (2.26, 2.21, 2.31)),
    pays=False,
    details={
        "align": 4,
        "groups": [{"layer": "conv1", "before": 16, "after": 12}, {"layer": "conv2", "before": 16, "after": 16}],
        "locked": [{"layer": "linear", "reason": "the output keeps its shape"}],
        "channel_fraction_removed": 0.125,
    },
)
THINNER = Step(
    stage="factorize_layers",
    parameters={"target": {"energy": {"kept": 0.95}}},
    kept=True,
    reason="1.21x [1.18, 1.24] faster",
    seconds=15.0,
    measurement=measurement(0.89, 2.71, 2400, (1.21, 1.18, 1.24)),
    pays=True,
    details={
        "factorized": [
            {"layer": "conv1", "by": "tucker", "ranks": [32, 16], "full_ranks": [64, 64], "error": 0.021}
            | {"before": 36864, "after": 7680},
            {"layer": "fc", "by": "svd", "ranks": [16], "full_ranks": [64], "error": 0.048}
            | {"before": 8192, "after": 3072},
        ],
        "locked": [{"layer": "linear", "reason": "its full rank 10 is not above the aligned minimum 16"}],
    },
)
SHARED = Step(
    stage="cluster_weights",
    parameters={"clusters": 16},
    kept=True,
    seconds=4.0,
    measurement=measurement(0.871, 3.28, 3342, (1, 0.99, 1.01)),
    details={
        "shared_by": "ClusterWeights(clusters=16)",
        "shared_values": [
            {"layer": "conv1", "values": 16, "of": 432, "error": 0.0123},
            {"layer": "encoder.layer.11.attention.self.query.with_a_long_name", "values": 16, "of": 589824}
            | {"error": 0.0251},
        ],
        "locked": [{"layer": "linear", "reason": "16 values are too many for 12 different weights: none is shared"}],
    },
)
SPARSE = Step(
    stage="sparse_training",
    kept=True,
    seconds=60.0,
    measurement=measurement(0.893, 3.28, 3342, (1, 0.99, 1.01)),
    details={
        "epochs": [{"epoch": 0, "loss": 0.9, "score": 0.8}, {"epoch": 1, "loss": 0.5, "score": 0.89}],
        "zero_channels_fraction": 0.25,
        "zero_channels": [{"layer": "conv1", "zero": 4, "of": 16}, {"layer": "conv2", "zero": 0, "of": 16}],
    },
)


def _why(group: str, width: int, gone: int) -> dict[str, object]:
    scores = [round(0.02 + (index / width) ** 2, 4) for index in range(width)]
    return {
        "group": group,
        "criterion": "Taylor(batches=8)",
        "layers": [group, f"{group}.shortcut"],
        "kept_scores": scores[gone:],
        "removed_scores": scores[:gone],
    }


NARROW = Step(
    stage="prune_channels",
    parameters={"remove": 0.5},
    kept=True,
    reason="1.44x [1.40, 1.48] faster",
    seconds=15.0,
    measurement=measurement(0.88, 2.27, 1900, (1.44, 1.40, 1.48)),
    pays=True,
    details={
        "groups": [
            *({"layer": f"layer1.{index}.conv1", "before": 16, "after": 8} for index in range(14)),
            {"layer": "encoder.layer.11.attention.self.query.with_a_long_name", "before": 12, "after": 9},
            {"layer": "encoder.intermediate", "before": 768, "after": 512},
            {"layer": "conv1", "before": 16, "after": 16},
        ],
        "locked": [{"layer": "linear", "reason": "it makes the model's output"}],
        "unreached_layers": [{"layer": "long", "danger": "danger: it (net.py:14) is reached by no example"}],
        "scores": [
            *(_why(f"layer1.{index}.conv1", 16, 8) for index in range(14)),
            _why("encoder.layer.11.attention.self.query.with_a_long_name", 12, 3),
            _why("encoder.intermediate", 768, 256),
        ],
    },
)
DISTILL = Step(
    stage="distill",
    parameters={"epochs": 2},
    kept=True,
    reason="validation accuracy fell 0.3 points [-0.1, 0.7]",
    seconds=1311.0,
    measurement=measurement(0.895, 1.34, 1434, (2.44, 2.38, 2.50)),
    drop=Estimate(0.004, 0.0, 0.008),
    details={
        "epochs": [
            {"epoch": 1, "loss": 0.9, "score": 0.8, "learning_rate": 0.1, "seconds": 600.0},
            {"epoch": 2, "loss": 0.5, "score": 0.89, "learning_rate": 0.01, "seconds": 600.0},
        ],
        "best_epoch": 2,
        "teacher": {"views": 4, "cached": True},
        "versus_base": {"value": 1.01, "low": 0.98, "high": 1.04},
        "same_structure": True,
    },
)
QUANTIZE = Step(
    stage="quantize",
    kept=True,
    reason="2.53x [2.45, 2.61] faster",
    seconds=18.0,
    measurement=measurement(0.894, 0.538, 283, (6.10, 5.91, 6.31)),
    drop=Estimate(0.005, 0.0, 0.009),
    pays=True,
    details={
        "quantized": 48,
        "left_in_float": [
            {"node": "/a/Add", "op": "Add", "reason": "SQNR of 9.1 dB is below 10 dB"},
            {"node": "/b/Add", "op": "Add", "reason": "SQNR of 9.1 dB is below 10 dB"},
        ],
        "sqnr_db": 23.4,
    },
)

MIXED = replace(
    QUANTIZE,
    details={
        **QUANTIZE.details,
        "mixed_precision": {"weight_bytes": 9000, "predicted_sqnr_db": 24.1, "measured_sqnr_db": 23.2},
        "sensitivity": [
            {
                "node": "encoder.layer.11.attention.self.query.with_a_long_name" if index == 3 else f"layer{index}",
                "bits": (3, 4, 8)[index % 3],
                "reason": "31.0 dB in 576 bytes; 3 bits: 22.0 dB for 144 bytes less",
                "sqnr_db": {"3": 12.0 + index % 5, "4": 18.5 + index % 4, "8": 40.0 - index % 3},
                "size_bytes": {"3": 432, "4": 576, "8": 1152},
            }
            for index in range(20)
        ],
        "given_back": [{"node": "layer7", "why": "slower: 0.0312 ms in integers, 0.0213 ms in float", "numbers": {}}],
        "give_back": {"tried": [], "before": {"missed": "validation accuracy fell 2.1 points, max_drop is 0.01"}},
    },
)


def rollback() -> Report:
    """Five steps of which one was rolled back; the numbers of the summary in the documentation."""
    return Report(
        workload=WORKLOAD,
        environment=ENVIRONMENT,
        target={"batch_size": 1, "threads": 1, "isa": "x86_vnni"},
        budget={"max_drop": 0.01, "not_slower": True, "min_speedup": None},
        steps=(REFERENCE, DROP, PRUNE, DISTILL, QUANTIZE),
        final=4,
        warnings=("prune_channels is followed by quantize",),
        use=USE,
    )


def nothing_kept() -> Report:
    """A run that ships its reference: one stage rolled back, one that found nothing to do."""
    skipped = Step(stage="reestimate_batch_norm", kept=False, reason="TinyMLP has no BatchNorm", seconds=0.0)
    return Report(
        workload={"name": "tiny", "metric": "accuracy"},
        environment=ENVIRONMENT,
        budget={"min_speedup": 5.0},
        budget_met=False,
        steps=(REFERENCE, PRUNE, skipped),
        final=0,
    )


def regression() -> Report:
    """A metric where lower is better, and a file that is smaller but not measurably faster."""
    error = Estimate(0.0123, 0.012, 0.0126)
    before = replace(measurement(0.5, 0.081, 210, (1, 1, 1)), score=error)
    after = replace(
        before, size_bytes=60 * 1024, speedup=Estimate(1.02, 0.97, 1.06), score=Estimate(0.0125, 0.012, 0.013)
    )
    return Report(
        workload={"name": "denoise", "metric": "mse", "higher_is_better": False, "bounded": False},
        environment=ENVIRONMENT,
        steps=(
            replace(REFERENCE, measurement=before),
            replace(QUANTIZE, measurement=after, drop=Estimate(0.0163, 0.008, 0.02), details={}),
        ),
        final=1,
    )


def hostile() -> Report:
    """A run whose names are markup and whose details are not what any stage writes."""
    odd_groups = [{"layer": SCRIPT, "before": "many"}, {"layer": ATTACK, "before": 64, "after": 48}, {"x": 1}, 3]
    return Report(
        workload={"name": SCRIPT, "model": ATTACK, "metric": SCRIPT, "odd": {"k": [SCRIPT]}},
        environment={SCRIPT: ATTACK, "versions": {SCRIPT: None}},
        target={SCRIPT: ATTACK},
        budget={SCRIPT: ATTACK, "max_drop": "a lot"},
        recipe={SCRIPT: [ATTACK]},
        steps=(
            REFERENCE,
            replace(PRUNE, stage=SCRIPT, reason=ATTACK, details={"groups": odd_groups, "locked": [SCRIPT], SCRIPT: {}}),
            replace(DISTILL, stage=ATTACK, details={"epochs": [{"epoch": SCRIPT}, {"loss": "bad"}], "best_epoch": "x"}),
            replace(
                DROP, details={"blocks": [{"block": SCRIPT, "score": SCRIPT, "group": ATTACK}, {"kept": False}, 7]}
            ),
            replace(QUANTIZE, details={"left_in_float": [{"node": SCRIPT, "op": ATTACK, "reason": SCRIPT}, {}]}),
            replace(
                PRUNE,
                kept=True,
                details={
                    "scores": [
                        {"group": SCRIPT, "criterion": ATTACK, "layers": [SCRIPT], "kept_scores": [1.0, SCRIPT, None]},
                        {"group": ATTACK, "criterion": SCRIPT, "layers": 3, "removed_scores": [float("nan"), -0.5, 0]},
                        {"group": "empty", "kept_scores": [], "removed_scores": "none"},
                    ],
                    "sensitivity": [
                        {
                            "node": SCRIPT,
                            "bits": ATTACK,
                            "reason": SCRIPT,
                            "sqnr_db": {"8": 3.0, SCRIPT: 2, "4": ATTACK},
                        },
                        {"node": ATTACK, "bits": 4, "sqnr_db": {"4": -2.0}},
                        {"sqnr_db": [1, 2]},
                        7,
                    ],
                    "mixed_precision": {"predicted_sqnr_db": SCRIPT, "measured_sqnr_db": None},
                    "given_back": [{"node": SCRIPT, "why": ATTACK}, {"node": 3}, "x"],
                    "give_back": {"before": {"missed": SCRIPT}},
                    "zero_channels": [{"layer": SCRIPT, "zero": 1, "of": 2}, {"layer": ATTACK, "zero": "x"}, 5],
                },
            ),
        ),
        final=4,
        warnings=(SCRIPT, ATTACK),
        artifact=SCRIPT,
        use={
            "inputs": [{"name": SCRIPT, "dtype": "float32", "shape": [ATTACK, 3], "example": [1, 3]}],
            "outputs": [{"name": ATTACK, "dtype": SCRIPT, "shape": []}],
            "opset": 20,
            "preprocessing": SCRIPT,
        },
    )


def narrowed() -> Report:
    """A run that trains for zeros and narrows layers, with the scores that decided."""
    return Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, SPARSE, NARROW), final=2)


def mixed() -> Report:
    """A run whose layers got widths of their own, one of them float again."""
    return Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, MIXED), final=1)


ALL = (rollback, nothing_kept, regression, hostile, narrowed, mixed)
