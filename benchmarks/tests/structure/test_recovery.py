"""Recovery is the same for every arm, and compared image by image."""

import pytest
import torch

from benchmarks.documents import structure_page
from benchmarks.structure import recovery
from compressor import Target
from compressor.stages import Distill, DropBlocks


def test_recovery_keeps_the_last_epoch(small_workload):
    """Every epoch scores the same, so that training ends with the last, and decides nothing on validation."""
    blind = recovery.to_the_last_epoch(small_workload)
    assert blind.metric.score(torch.randn(4, 10), torch.arange(4)) == 0.0
    assert blind.metric.classes
    assert len(blind.validation) == 1


def test_recovery_compares_the_means_of_the_seeds(small_workload):
    """Ours right on (3 + 4) / 2 of 4 images, theirs on (2 + 3) / 2: a gain of a quarter."""
    ours = [torch.tensor([1.0, 1, 1, 0]), torch.tensor([1.0, 1, 1, 1])]
    theirs = [torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 1, 1, 0])]
    better = recovery.gain(ours, theirs, small_workload.metric)
    assert better["value"] == 0.25
    assert better["low"] <= 0.25 <= better["high"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Torch-Pruning warns of the parameters that it cannot name
def test_recovery_runs_to_its_table_and_goes_on(small_workload, tmp_path, monkeypatch, time_briefly, capsys):
    """A peer and ours are pruned past the ratio, ours no slower than allowed, recovered, and put into one table."""
    time_briefly(recovery)
    # How fast files of microseconds are is chance: here the structures count.
    monkeypatch.setattr(recovery, "time_fraction", lambda *_: 0.5)
    monkeypatch.setattr(recovery, "RATIO", 1.3)
    monkeypatch.setitem(recovery.OURS, "ours", lambda _keep: DropBlocks(remove=0.5))
    target, recover = Target(), Distill(epochs=1, tail_epochs=1, views=1)
    dense = recovery.dense_file(small_workload, tmp_path / "dense.onnx")
    arms = ["taylor", "ours"]
    for _ in range(2):
        for arm in arms:
            recovery.prune(arm, small_workload, dense, tmp_path, seed=0, target=target)
            recovery.recovered(arm, small_workload, recover, tmp_path, "short", seed=0)
    result = recovery.summary(
        arms, [0], small_workload, dense, out=tmp_path, setting="short", target=target, seconds=0.1
    )
    assert set(result["gains"]) == {"taylor"}
    assert all(row["runs"][0]["macs_ratio"] >= 1.3 for row in result["arms"].values())
    result |= {"ratio": 1.3, "train_images": 256, "epochs": 2}
    assert "| taylor |" in structure_page.page({"recovery": result})
    recovery.print_table(result)
    assert "256 images" in capsys.readouterr().out
