"""The table of what saturation takes."""

from benchmarks.quantization import saturation


def test_the_table_says_what_each_file_loses_where() -> None:
    """A row gives the score of both kinds of CPU, the paired drop, and whether any product can saturate."""
    row = {"sqnr_db": 31.5, "sqnr_db_saturated": 16.4, "score": 0.8945, "score_saturated": 0.8799, "wrong_sums": 0.2208}
    row |= {"drop_saturated": [0.0146, 0.0039, 0.0254], "kernel_difference": 0.0}
    rows = [
        {"file": "float", "samples": 1024, "score": 0.8945},
        {**row, "file": "8 bits", "risky_pairs": 36},
        {**row, "file": "safe", "risky_pairs": 0},
    ]
    lines = saturation.section({"part": "test", "networks": {"resnet20": rows}})
    assert "### resnet20, 1024 samples, float score 89.45 %" in lines
    assert "| 8 bits | 89.45 % | 87.99 % | 1.46 (0.39 to 2.54) | 31.5 | 16.4 | up to 22.080 % |" in lines
    assert any(line.startswith("| safe |") and line.endswith("| none possible |") for line in lines)
