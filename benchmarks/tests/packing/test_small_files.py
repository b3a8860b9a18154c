"""The benchmarks of small files: chains of every arm, and which file is named."""

import pytest

from benchmarks.documents import packing_page
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


def test_the_page_tells_of_what_there_is() -> None:
    """Tables of small files behind that of coders, each where its result is stored."""
    coder = {
        "files": {
            "int8": {
                "size_bytes": 1000,
                "packed_bytes": 800,
                "others": {"zstd -19": 900},
                "of_order_0": 0.99,
                "decode": {"weights_per_second": 25e6},
            }
        }
    }
    drop = {"value": 0.001, "low": -0.001, "high": 0.003}
    lenet = {
        "images": 10_000,
        "weights_left": 13_530,
        "packed_bytes": 14_244,
        "times_smaller": 74.9,
        "bits_a_weight_left": 8.2,
        "packed": {"value": 0.981},
        "dense": {"value": 0.982},
        "drop": drop,
        "right_in_one_alone": {"dense": 30, "packed": 20, "p": 0.2},
        "seconds": 90.0,
    }
    arm = {
        "size_bytes": 160_000,
        "packed_bytes": 80_000,
        "times_smaller": 42.7,
        "bits_a_weight": 2.2,
        "speedup": {"value": 7.1, "low": 7.0, "high": 7.2},
        "drop": drop,
        "seconds": 60.0,
    }
    residual = {"epochs": 36, "images": 50_000, "test_images": 5000, "chosen": {"0.5": None}, "rows": {"an arm": arm}}
    empty = "<!-- results -->\n<!-- /results -->\n"
    alone = packing_page.page(empty, coder)
    assert "| int8 | 1,000 | **800** | 900 | 99.0 | 25 |" in alone
    assert "LeNets" not in alone
    told = packing_page.page(empty, coder, {"networks": {"lenet-5": lenet}}, residual)
    assert "| lenet-5 | 13,530 | 14,244 | **75** | 8.2 | 1.90 | 1.80 | 0.10 [-0.10, 0.30] | 0.20 | 2 |" in told
    assert "| an arm | 160,000 | 80,000 | **42.7** | 2.20 | 7.10x [7.00, 7.20] | 0.10 [-0.10, 0.30] | 1 |" in told
    assert "at most 0.5 points: none." in told
