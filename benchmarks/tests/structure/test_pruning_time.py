"""Pruning is timed in processes that may die."""

import copy

import torch
from torch import nn

from benchmarks.documents import structure_page
from benchmarks.structure import pruning_time


def test_pruning_time_survives_what_fails(monkeypatch):
    """A tool that dies is reported by its last line, one that takes too long by the limit."""
    gone = pruning_time.in_own_process("no such tool", "no such model", timeout=120)
    assert "no such model" in gone["error"]
    late = pruning_time.in_own_process("compressor", "tiny_resnet", timeout=0.01)
    assert late == {"error": "took more than 0.01 s"}
    row = {"graph": 1.0, "prune": 2.0, "running": 0.5, "peak_mib": 3.0, "parameters_left": 0.25, "error": None}
    result = {"environment": {}, "models": {"tiny": {"compressor": [row, row], "torch-pruning": [gone]}}}
    page = structure_page.page({"pruning-time": result})
    assert "| tiny | compressor | 1.00 | 2.00 | 0.50 | 3 | 0.25 |  |" in page


def test_forward_passes_are_timed_on_copies_too():
    """A run of the model and one of its copy are two entries."""
    model = nn.Linear(2, 2)
    seconds = pruning_time.timed_forwards(model)
    model(torch.zeros(1, 2))
    copy.deepcopy(model)(torch.zeros(1, 2))
    assert len(seconds) == 2
