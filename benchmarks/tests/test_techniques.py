"""Every technique's files are made once, judged and timed in one pass, and stand in the table."""

import pytest

from benchmarks import techniques
from benchmarks.documents import techniques_page
from compressor.stages import ClusterWeights, FineTune, SparsifyWeights


@pytest.mark.slow
def test_a_row_per_file(trained_workload, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros and shared values change the size after zstd alone, but for codebooks; rows that fail are told."""
    rows = {
        "zeros": (SparsifyWeights(sparsity=0.8),),
        "values": (ClusterWeights(clusters=8),),
        "none": (ClusterWeights(clusters=8, ignore=("nothing",)),),
    }
    monkeypatch.setattr(techniques, "ROWS", rows)
    techniques.made(techniques.DENSE, (), None, trained_workload, tmp_path)
    for label, stages in rows.items():
        techniques.made(label, stages, FineTune(epochs=1), trained_workload, tmp_path)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")}
    techniques.made("zeros", rows["zeros"], FineTune(epochs=1), trained_workload, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")} == first
    found = techniques.judged(trained_workload, tmp_path, seconds=0.2)
    by_label = {row["label"]: row for row in found["rows"]}
    dense, zeros, values = (by_label[label]["float32"] for label in ("dense", "zeros", "values"))
    assert dense["drop"]["value"] == 0
    assert zeros["macs"] == values["macs"] == dense["macs"]
    assert zeros["nonzero_parameters"] < 0.3 * dense["nonzero_parameters"]
    assert zeros["size_bytes"] == dense["size_bytes"]
    assert max(zeros["compressed_bytes"], values["compressed_bytes"]) < 0.5 * dense["compressed_bytes"]
    codebooks = by_label["values"]["codebooks"]
    assert codebooks["accuracy"] == values["accuracy"]
    assert codebooks["size_bytes"] < 0.5 * values["size_bytes"]
    assert "'nothing' matches no module" in by_label["none"]["error"]
    result = {"clock": "wall", "epochs": 1, "images": 256, **found}
    techniques_page.draw(result, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    page = techniques_page.page(result)
    assert page.count("\n| zeros | ") + page.count("\n| values | ") == 3 + 3 + 2
    assert "| none | failed: StageError: ignore: 'nothing' matches no module" in page
    techniques.print_table(result)
    assert capsys.readouterr().out.count("after zstd") == 2 + 3 + 3
