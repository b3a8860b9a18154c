"""The table of files beside those of other quantizers."""

from benchmarks.documents import quantization_page
from benchmarks.quantization import quantizers
from compressor.stages import Quantize


def test_a_quantization_table_has_a_row_for_success_and_for_failure(small_workload, tmp_path, time_briefly, capsys):
    """A file has its drop, speed and seconds; a tool that is missing or fails says so, and is not asked again."""
    calls = []

    def failing(_workload, _fp32, _folder):
        calls.append("failing")
        raise RuntimeError("no kernel\nfor this | network")

    time_briefly(quantizers)
    arms = {"ours: int8": quantizers.by_stage(Quantize()), "peer": failing, "nncf": quantizers.by_tool("absent")}
    for _ in range(2):
        result = quantizers.run(small_workload, arms, tmp_path, seconds=0.1)
    assert calls == ["failing"]
    fp32, ours, peer, missing = result["rows"]
    assert fp32["drop"]["value"] == 0
    assert ours["size_bytes"] < fp32["size_bytes"]
    assert ours["speedup"]["low"] <= ours["speedup"]["value"] <= ours["speedup"]["high"]
    assert ours["details"]["form"]["static"] > 0
    assert peer["failed"] == "RuntimeError: no kernel"
    assert missing["failed"] == "FileNotFoundError: not installed: make .venv-absent"
    quantizers.print_table("tiny", result)
    assert "no kernel" in capsys.readouterr().out
    result["environment"] = {"cpu": "a CPU", "versions": {"onnxruntime": "1"}}
    page = quantization_page.page({"quantization": {"networks": {"tiny": result}}})
    assert "| peer | failed: RuntimeError: no kernel |" in page
    assert page.count("| ours: int8 |") == 1
    quantization_page.draw({"tiny": result}, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000
