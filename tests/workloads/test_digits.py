"""The digits come with the same weights, whatever else the machine does."""

import pytest
import torch

import compressor.workloads.digits
from compressor.workloads.digits import digits


def test_they_are_trained_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers of threads round otherwise, and a second run beside the first would be refused its folder."""
    used: list[int] = []
    monkeypatch.setattr(compressor.workloads.digits, "train", lambda *_, **__: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        workload = digits(progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert used == [1]
    assert not workload.model.training
