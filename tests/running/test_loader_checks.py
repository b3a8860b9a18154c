"""What is looked at of loaders before any work, and what a run tells of them."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from compressor import Pipeline
from compressor.batches import Batches
from compressor.errors import WorkloadError
from compressor.measuring.scores import score_rows
from compressor.metrics import Metric
from compressor.notes.running import Loaders
from compressor.running.preflight import check_workload
from compressor.stages import Distill, FineTune, Quantize
from compressor.streams.passes import Made
from compressor.training import streams
from compressor.workload import Workload
from workbench.loaders import INPUTS, PAIRS, REPLAYED, TARGETS, Noisy

BATCHES = [(INPUTS[start : start + 16], TARGETS[start : start + 16]) for start in range(0, 96, 16)]


class Unending:
    """A stream without a length or an end."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(BATCHES)


class Counting:
    """A training that counts steps, of somebody else."""

    trains, steps = True, 5


def workload(**changes: Any) -> Workload:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "name": "small",
        "model": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval(),
        "example_inputs": INPUTS[:2],
        "train": BATCHES,
        "calibration": BATCHES,
        "validation": BATCHES,
        "test": BATCHES,
        "loss": F.cross_entropy,
        "metric": Metric.accuracy(),
    }
    return Workload(**given | changes)


@pytest.mark.parametrize("name", ["train", "calibration", "validation", "test"])
def test_streams_without_an_end_are_refused_where_a_pass_is_needed(name: str, monkeypatch) -> None:
    """Within a limit, by the set's name, with the way out; trainings that count steps need no pass over train."""
    monkeypatch.setattr(streams, "LONGEST", 100)
    endless = workload(**{name: Unending()})
    with pytest.raises(WorkloadError, match=rf"{name} says no length, and did not end within .* give it a __len__"):
        check_workload(endless, [FineTune()])
    if name == "train":
        check_workload(endless)
        check_workload(endless, [Counting()])
        with pytest.raises(WorkloadError, match=r"an epoch of distill is a pass over it: set steps= there"):
            check_workload(endless, [Counting(), Distill()])


def test_a_function_that_makes_batches_is_shown_the_way() -> None:
    """It is no iterable; `Made` calls it anew for every pass."""

    def read() -> Iterator[Any]:
        yield from BATCHES

    with pytest.raises(WorkloadError, match=r"got function; for a function that makes batches, train=Made\(function\)"):
        check_workload(workload(train=read))
    check_workload(workload(train=Made(read)), [FineTune()])


def test_looking_at_a_loader_leaves_what_it_keeps() -> None:
    """Generators and counters are where they were."""
    loaders = {kind: REPLAYED[kind]() for kind in ("a NumPy generator of the dataset", "a counter of the dataset")}
    for loader in loaders.values():
        state = repr([getattr(loader.dataset.source, "bit_generator", None), vars(loader.dataset).get("read")])
        check_workload(workload(train=loader, calibration=loader), [FineTune()])
        assert state == repr([getattr(loader.dataset.source, "bit_generator", None), vars(loader.dataset).get("read")])


def test_shuffled_data_are_scored_in_one_order() -> None:
    """Rows of two files that are compared belong to the same samples, with own generators and torch's."""
    onnx_bytes = exported(workload())
    for data in (
        DataLoader(PAIRS, batch_size=16, shuffle=True),
        DataLoader(PAIRS, batch_size=16, shuffle=True, generator=torch.Generator()),
        DataLoader(Noisy(np.random), batch_size=16, shuffle=True),
        DataLoader(Noisy(np.random.default_rng()), batch_size=16, shuffle=True),
    ):
        labels = Metric(name="label", per_sample=lambda outputs, targets: outputs[:, 0] + 100 * targets)
        first, second = (score_rows(onnx_bytes, data, labels) for _ in range(2))
        assert torch.equal(first, second)
        assert len(first.unique()) > 90


def exported(given: Workload) -> bytes:
    from compressor.files.export import export_onnx

    return export_onnx(given.model, given).onnx_bytes


def test_a_run_tells_what_loaders_keep_and_gives_the_same_file_twice(tmp_path) -> None:
    """Calibration, validation and training data with generators of their own: named in the report, the same bits."""
    files = []
    for number in range(2):
        noisy = DataLoader(Noisy(np.random.default_rng()), batch_size=16, shuffle=True)
        given = workload(train=noisy, calibration=noisy, validation=noisy)
        stages = [FineTune(epochs=1, tail_epochs=0), Quantize()]
        result = Pipeline(stages).run(given, out=tmp_path / str(number), progress=False)
        note = Loaders.from_json(result.report.steps[0].details)
        assert note is not None
        said = "random generators of its own (dataset.source) are seeded for every pass"
        assert note.loaders == dict.fromkeys(("train", "calibration", "validation"), said)
        assert not [text for text in result.report.warnings if "never taken from disk" in text]
        assert f"training data: {said}" in (tmp_path / str(number) / "report.md").read_text(encoding="utf-8")
        files.append((tmp_path / str(number) / "model.onnx").read_bytes())
    assert files[0] == files[1]


def test_plain_data_are_told_nothing_of(tmp_path) -> None:
    """No entry where there is nothing to say."""
    given = workload(train=Batches((INPUTS, TARGETS), batch_size=16, shuffle=True))
    result = Pipeline([FineTune(epochs=1, tail_epochs=0)]).run(given, out=tmp_path, progress=False)
    assert "loaders" not in result.report.steps[0].details
