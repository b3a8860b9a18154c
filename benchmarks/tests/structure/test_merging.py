"""Merging is set beside removal on the same images, and what part of the loss is left is told with its interval."""

import pytest
import torch

from benchmarks.documents import structure_page
from benchmarks.structure import merging


def test_the_part_of_the_loss() -> None:
    """Of 100 images all were right; ours is wrong on 10, theirs on 50: a fifth of the loss."""
    dense, ours, theirs = torch.ones(100), torch.ones(100), torch.ones(100)
    ours[:10], theirs[:50] = 0, 0
    found = merging.part_of_loss(dense, ours, theirs)
    assert found["value"] == pytest.approx(0.2)
    assert 0.05 < found["low"] < 0.2 < found["high"] < 0.4


@pytest.mark.slow
def test_every_arm_stands_in_the_table(trained_workload, capsys) -> None:
    """Five arms lose what they lose on one network, all of them with about the same part of the channels gone."""
    entry = merging.compared(trained_workload, 0.25)
    assert len(entry["arms"]) == 5
    assert all(0.15 < row["removed"] <= 0.26 for row in entry["arms"].values())
    assert entry["removal"] in entry["arms"]
    page = structure_page.page({"merging": {"remove": 0.25, "networks": {"tiny": entry}}})
    assert "| tiny | MergeSimilar, noise |" in page
    merging.print_table("tiny", entry)
    assert "fewer channels" in capsys.readouterr().out
