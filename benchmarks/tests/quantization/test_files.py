"""What counts as a decision that was kept, and how a file's row is told."""

import json

import numpy as np
import pytest
import torch

from benchmarks.quantization.files import texts
from benchmarks.quantization.files.cases import CASES, Above, Equal, Largest, kept, metric_of
from benchmarks.quantization.files.page import section


def test_decisions_by_hand() -> None:
    """Two of three largest classes, three of four numbers, and F1 of what both find above a half."""
    reference = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]])
    outputs = torch.tensor([[[0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]])
    assert Largest().counts(reference, outputs).tolist() == [[2, 3]]
    assert kept(Largest().counts(reference, outputs)) == pytest.approx(2 / 3)
    assert kept(Equal().counts(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 5]]))) == 0.75
    # Float finds two, ours three, both two: F1 is 2 * 2 / (2 + 3).
    found = Above(threshold=0.5).counts(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0.7, 0.6, 0.6]]))
    assert kept(found) == pytest.approx(0.8)
    assert kept(Above(threshold=0.5).counts(torch.zeros(2, 3), torch.zeros(2, 3))) == 1.0


def test_the_metric_is_the_share_over_all_samples() -> None:
    """Samples with more decisions count more: 1 of 1 and 1 of 3 is 2 of 4."""
    rows = metric_of(Above(threshold=0.5))
    targets = torch.tensor([[0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.1]])
    outputs = torch.tensor([[0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]])
    assert rows.score(outputs, targets) == pytest.approx((2 + 2) / (2 + 4))


def test_files_are_read_as_magika_reads_them() -> None:
    """Both ends of real files, bytes and padding alone; a short file stands at both ends."""
    rows = texts.file_bytes(30)
    assert rows.shape == (30, 2048)
    assert rows.dtype == np.int32
    assert rows.min() >= 0
    assert rows.max() == 256
    padded = rows[rows[:, 1023] == 256]
    assert len(padded)
    assert (padded[:, 1024] == 256).all()


def test_every_file_has_decisions_and_a_row() -> None:
    """Names are those of one file each; kept, float and failed rows are told without more than they have."""
    assert len({case.name for case in CASES}) == len(CASES) == 8
    base = {"name": "a", "package": "p", "file": "a.onnx", "bytes": 400}
    good = {
        "outcome": "kept",
        "form": "static",
        "tried": [{"form": "static", "kept": True, "why": None}],
        "in_float": [],
        "size_bytes": 100,
        "cpu_seconds": 3.0,
        "decisions": {"y": 0.995},
        "outputs": {"y": {"db": 30.0, "channel_db": None}},
        "speedup": {"value": 1.5, "low": 1.4, "high": 1.6},
    }
    bad = {**good, "name": "b", "outcome": "float", "reason": "no form", "form": "float"}
    failed = {**base, "name": "c", "outcome": "failed", "reason": "why"}
    result = {"environment": {"cpu": "CPU"}, "how_timed": "so", "files": [base | good, base | bad, failed]}
    text = "\n".join(section(json.loads(json.dumps(result))))
    assert "**Of 3 files 1 ship in integers, 1 of them with 99 % of their decisions or more, 1 of these at 1.3x" in text
    assert "| a | static | 1.50x [1.40, 1.60] | 4.00x | 99.5 % | 30.0 |  | 3 |" in text
    assert "**b** (`a.onnx`): no form" in text
