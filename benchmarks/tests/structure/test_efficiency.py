"""The table of speed-ups for every MAC saved."""

import pytest

from benchmarks.documents import structure_page
from benchmarks.structure import efficiency
from compressor import Target
from compressor.errors import StageError
from compressor.stages import DropBlocks


def test_a_structure_table_has_a_row_for_success_and_for_failure(small_workload, tmp_path, time_briefly, capsys):
    """Success has speed-ups, ratios and efficiency, a pruner that raises its error; nothing is done twice."""
    calls = []

    def failing(_workload, _context):
        calls.append("failing")
        raise StageError("no channel\nof this | network")

    time_briefly(efficiency)
    arms = {"DropBlocks, Latency(0.5)": efficiency.by_stage(DropBlocks(remove=0.5)), "Torch-Pruning": failing}
    for _ in range(2):
        rows = efficiency.run(small_workload, arms, tmp_path, target=Target(), seconds=0.1)
    assert calls == ["failing"]
    row = rows["DropBlocks, Latency(0.5)"]
    assert row["macs_ratio"] == rows["dense"]["macs"] / row["macs"] > 1
    for form in ("float32", "int8"):
        assert row[form]["efficiency"] == row[form]["speedup"]["value"] / row["macs_ratio"]
    assert rows["Torch-Pruning"]["error"] == "StageError: no channel"
    (asked,) = efficiency.asked_and_achieved("tiny", rows)
    assert asked["achieved"]["value"] == 1 / row["float32"]["speedup"]["value"]
    efficiency.print_table("tiny", rows)
    assert "of the time, asked 0.5" in capsys.readouterr().out
    where = {"cpu": "a CPU", "versions": {"onnxruntime": "1"}}
    page = structure_page.page({"structure": {"networks": {"tiny": {"environment": where, "rows": rows}}}})
    assert "failed: StageError: no channel" in page
    assert "### Asked for half of the time" in page
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures of the documents: pip install .[bench]")
    structure_page.draw({"tiny": {"environment": where, "rows": rows}}, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
