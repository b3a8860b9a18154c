"""A training that was killed goes on to the bits of one that was not, whatever its loader keeps; or it says so."""

import copy
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compressor.metrics import Metric
from compressor.notes.training import Trainings
from compressor.stage import Context
from compressor.stages import FineTune
from compressor.training.progress import Progress
from compressor.training.snapshots import capture
from compressor.workload import Workload
from workbench import ROOT
from workbench.comparison import same_weights
from workbench.loaders import INPUTS, NOT_REPLAYED, PAIRS, REPLAYED, WITH_WORKERS

TOLD = {
    "plain": None,
    "a generator of the loader": "random generators of its own (generator) are seeded for every pass",
    "a NumPy generator of the dataset": "random generators of its own (dataset.source) are seeded for every pass",
    "a distributed sampler": "told the number of the epoch (sampler)",
    "workers that persist": "worker processes that persist (the loader itself) start anew in every pass",
}


class KilledError(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def workload(loader) -> Workload:
    data = [PAIRS[:]]
    return Workload(
        name="small",
        model=network(),
        example_inputs=INPUTS[:2],
        train=loader,
        calibration=data,
        validation=data,
        test=data,
        loss=nn.functional.cross_entropy,
        metric=Metric.accuracy(),
    )


def trained(loader, folder: Path | None = None, **settings) -> tuple[nn.Module, str | None]:
    context = Context(progress=False, folder=folder)
    model = FineTune(**settings or {"epochs": 3}).apply(copy.deepcopy(network()), workload(loader), context)
    note = Trainings.from_json(context.details)
    assert note is not None
    return model, note.trainings[-1].data


def killed(loader, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings) -> None:
    """A training that ends after its second epoch was saved."""
    save, saved = Progress.save, []

    def dying(*args, **kwargs) -> None:
        save(*args, **kwargs)
        saved.append(1)
        if len(saved) == 2:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "save", dying)
        with pytest.raises(KilledError):
            trained(loader, folder, **settings)


@pytest.mark.parametrize("kind", [*REPLAYED, *WITH_WORKERS])
def test_a_killed_training_goes_on_to_the_same_bits(kind: str, tmp_path: Path, monkeypatch) -> None:
    """Killed after two of three epochs, then with a loader that is made anew: the weights of one that ran through."""
    make = (REPLAYED | WITH_WORKERS)[kind]
    whole, told = trained(make())
    killed(make(), tmp_path, monkeypatch)
    resumed, _ = trained(make(), tmp_path)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, network())
    if kind in TOLD:
        assert told == TOLD[kind]


class Drawn:
    """Batches drawn at random, for ever or for a few, by a stream that says no length."""

    def __init__(self, last: int | None) -> None:
        self.last, self.rng = last, np.random.default_rng()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in itertools.count() if self.last is None else range(self.last):
            rows = torch.from_numpy(self.rng.integers(0, len(INPUTS), 16))
            random.shuffle(order := rows.tolist())
            yield PAIRS[order]


@pytest.mark.parametrize("last", [None, 7])
def test_a_killed_training_on_a_stream_goes_on_where_it_was(last: int | None, tmp_path: Path, monkeypatch) -> None:
    """Twenty steps of a stream without an end, or of a short one that begins again: the same bits, no batch anew."""
    whole, _ = trained(Drawn(last), steps=20)
    killed(Drawn(last), tmp_path, monkeypatch, steps=20)
    resumed, _ = trained(Drawn(last), tmp_path, steps=20)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, network())


@pytest.mark.parametrize("kind", REPLAYED)
def test_a_training_leaves_the_loader_as_it_was(kind: str) -> None:
    """Two trainings with one loader give the same bits: the second does not find what the first one left."""
    loader = REPLAYED[kind]()
    assert same_weights(trained(loader)[0], trained(loader)[0])


@pytest.mark.parametrize("kind", NOT_REPLAYED)
def test_what_cannot_be_replayed_is_said(kind: str, tmp_path: Path, monkeypatch) -> None:
    """The report says that a resumed training has other bits; it goes on all the same."""
    loader = NOT_REPLAYED[kind]()
    killed(loader, tmp_path, monkeypatch)
    model, told = trained(loader, tmp_path)
    assert told is not None
    assert told.startswith("two passes under one random seed differ, so a training that is killed")
    assert all(bool(value.isfinite().all()) for value in capture(model).values())


PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import torch
from safetensors.torch import save_file
from compressor.training.progress import Progress
from test_resumes import REPLAYED, WITH_WORKERS, capture, trained

if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder, dies = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "dies"
    save, saved = Progress.save, []
    def dying(*args, **kwargs):
        save(*args, **kwargs)
        saved.append(1)
        if dies and len(saved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    Progress.save = dying
    save_file(capture(trained((REPLAYED | WITH_WORKERS)[kind](), folder)[0]), folder / "trained.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*REPLAYED, *WITH_WORKERS])
def test_a_process_that_is_killed_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    """SIGKILL after the second of three epochs, then the same program again: the weights of one that ran through."""
    program, cut, whole = tmp_path / "program.py", tmp_path / "cut", tmp_path / "whole"
    program.write_text(PROGRAM, encoding="utf-8")
    for folder, dies, ends in ((cut, "dies", -9), (cut, "lives", 0), (whole, "lives", 0)):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(program), kind, str(folder), dies]
        assert subprocess.run(command, check=False, timeout=300).returncode == ends
    found, wanted = (load_file(folder / "trained.safetensors") for folder in (cut, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
