"""The digits come with their weights, which travel with the package; those of other seeds are trained."""

import tomllib

import pytest
import torch

import compressor.workloads.digits
from compressor.workloads.digits import WEIGHTS, digits
from workbench import ROOT


def test_the_file_is_small_and_travels_with_the_package() -> None:
    """In the repository and in the wheel, at most 1 MiB."""
    assert WEIGHTS.stat().st_size <= 1 << 20
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert WEIGHTS.name in settings["package-data"]["compressor.workloads"]


def test_other_seeds_are_trained_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers of threads round otherwise, and a second run beside the first would be refused its folder."""
    used: list[int] = []
    monkeypatch.setattr(compressor.workloads.digits, "train", lambda *_, **__: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        workload = digits(seed=1, progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert used == [1]
    assert not workload.model.training
    # As a file of half precision would hold them.
    assert all(torch.equal(each, each.half().float()) for each in workload.model.parameters())


def test_the_images_are_those_of_scikit_learn() -> None:
    """Read from its file, all of them are there once, three fifths of every digit to train on."""
    from sklearn.datasets import load_digits

    workload = digits()
    parts = [getattr(workload, part).samples for part in ("train", "validation", "test")]
    labels = [targets.bincount() for _, targets in parts]
    known = load_digits()
    assert sum(labels).tolist() == torch.from_numpy(known.target).bincount().tolist()
    assert all(bool((3 * label - counts).abs().max() <= 3) for label in labels[1:] for counts in labels[:1])
    pixels = torch.cat([images.flatten(1) for images, _ in parts]) * 16
    rows = {tuple(row) for row in known.data.tolist()}
    assert all(tuple(row) in rows for row in pixels.tolist())
