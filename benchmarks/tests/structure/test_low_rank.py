"""Low rank by milliseconds is set beside low rank by energy: every arm is kept, and pairs are taken by validation."""

import pytest

from benchmarks.documents import structure_page
from benchmarks.structure import low_rank
from compressor.pruning.choice import goals
from compressor.stages import Energy, FactorizeLayers, Latency
from workbench import structure_clock


@pytest.fixture
def brief(monkeypatch):
    clock = structure_clock.install(monkeypatch)
    monkeypatch.setattr(low_rank.timing, "time_interleaved", clock.time)
    assert goals.time_interleaved == clock.time


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_arms_and_pairs_stand_in_the_table(trained_workload, tmp_path, capsys):
    """By a clock that counts products: what was measured is told, what was refused too, and a second run reads both."""
    stages = {
        low_rank.ENERGY: {"Energy(0.9)": FactorizeLayers(target=Energy(0.9), align=4)},
        low_rank.LATENCY: {
            "Latency(0.7)": FactorizeLayers(target=Latency(0.7), align=4),
            "Latency(0.01)": FactorizeLayers(target=Latency(0.01), align=4),
        },
    }
    result = low_rank.run(trained_workload, tmp_path, stages)
    rows = result["arms"]
    found = rows["latency"]["Latency(0.7)"]
    assert found["speedup"]["value"] == pytest.approx(result["macs"] / found["macs"])
    assert "cannot be reached" in rows["latency"]["Latency(0.01)"]["error"]
    assert low_rank.run(trained_workload, tmp_path, stages)["arms"] == rows
    result |= {
        "clock": "thread",
        "pairs": [
            {
                "drop": 0.01,
                "taken": {"energy": "Energy(0.9)", "latency": "Latency(0.7)"},
                "latency_over_energy": found["speedup"],
            }
        ],
    }
    low_rank.print_table("tiny", result)
    assert "Latency(0.7) over Energy(0.9)" in capsys.readouterr().out
    page = structure_page.page({"low-rank": {"networks": {"tiny": result}}})
    assert "| tiny | 1.0 | Latency(0.7) | Energy(0.9) |" in page
    assert "busy with other work" in page


def test_a_pair_is_the_fastest_of_each_kind_within_the_drop(tmp_path, monkeypatch, trained_workload):
    """Two of three arms keep the drop on validation; the faster one is taken, whatever the test data say."""

    def row(speed, validation):
        return {"error": None, "speedup": {"value": speed}, "drops": {"validation": {"value": validation}}}

    rows = {
        "energy": {"a": row(1.1, 0.0), "b": row(1.3, 0.005), "c": row(2.0, 0.02)},
        "latency": {"d": row(1.5, 0.01), "e": {"error": "refused"}},
    }
    for label in "bd":
        (tmp_path / f"{label}.onnx").write_bytes(b"")
    ratio = structure_clock.Estimate(1.2, 1.1, 1.3)
    monkeypatch.setattr(low_rank, "_speedup", lambda *_: ratio)
    pair = low_rank._pair(rows, 0.01, tmp_path, trained_workload, None)
    assert pair["taken"] == {"energy": "b", "latency": "d"}
    assert pair["latency_over_energy"]["value"] == 1.2
    assert low_rank._pair(rows, 0.001, tmp_path, trained_workload, None) is None
