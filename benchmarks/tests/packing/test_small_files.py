"""The benchmarks of small files: chains of every arm, and which file is named."""

import pytest

from benchmarks.packing import lenets
from benchmarks.packing.residual import ARMS, chosen, stages_of
from compressor.running.pipeline import Pipeline
from compressor.stage import stage_name


def test_every_arm_is_a_chain_that_can_be_run() -> None:
    """Orders are those that a pipeline takes without a warning, which would be an error here; 4 bits are trained."""
    for arm, (remove, sparsity, bits) in ARMS.items():
        stages = Pipeline(stages_of(arm, 12)).stages
        assert [stage_name(stage) for stage in stages] == [
            "drop_blocks",
            "distill",
            *(["sparsify_weights", "distill"] if sparsity else []),
            "quantize" if bits == 8 else "quantization_aware_training",
        ]
        assert stages[0].remove == remove
        assert stages[-1].weights.bits == bits
        assert [stage.epochs for stage in stages if stage_name(stage) == "distill"] == [12, 4][: 1 + bool(sparsity)]


def test_the_smallest_file_within_the_limit_on_validation_is_named() -> None:
    def row(packed: int, drop: float) -> dict:
        return {"packed_bytes": packed, "validation_drop": {"value": drop}, "drop": {"value": 1 - drop}}

    rows = {"large": row(300, 0.001), "small": row(100, 0.005), "tiny": row(50, 0.02)}
    assert [chosen(rows, limit) for limit in (0.0, 0.001, 0.005, 0.05)] == [None, "large", "small", "tiny"]


@pytest.mark.parametrize(("name", "parameters"), [("lenet-300-100", 266_610), ("lenet-5", 431_080)])
def test_networks_are_those_of_the_paper(name: str, parameters: int) -> None:
    """Han et al. 2016, table 1: 266K and 431K parameters."""
    assert sum(each.numel() for each in lenets.NETWORKS[name]().parameters()) == parameters
    assert 0.9 <= lenets.AIMS[name].sparsity < 1
