"""Files that were changed at random are read, or refused with a typed error, in seconds and within two gigabytes."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import CompressorError
from compressor.files import opening
from compressor.files.opening import open_file
from compressor.runtime import OnnxModule
from compressor.workloads import load
from workbench import ROOT
from workbench.fixtures import Told
from workbench.mutated_files import SAMPLE, mutated_npz, mutated_onnx, onnx_files, outcomes

QUICK_ONNX, QUICK_NPZ = 70, 30
MANY_ONNX, MANY_NPZ = 700, 300
# Seeds are sorted into tests of this many files, so that processes can share them.
TOGETHER = 50


@pytest.fixture
def _opened_here() -> None:
    """Files are opened in a process of their own, which they may bring down."""


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_known", {})


def read(path: Path) -> None:
    """What a user does with a file: opens and runs it."""
    module = OnnxModule(open_file(path, [SAMPLE]).onnx_bytes)
    for node in module.session.get_inputs():
        assert node.name


def npz_outcomes(folder: Path, seeds: range) -> list[tuple[int, str, str]]:
    """(seed, what was done, the untyped error) of those that are no workload and not refused either."""
    (folder / "model.onnx").write_bytes(onnx_files()["convolution"])
    found = []
    for seed in seeds:
        done, content = mutated_npz(seed)
        (folder / "data.npz").write_bytes(content)
        try:
            load(f"{folder / 'model.onnx'}:{folder / 'data.npz'}")
        except CompressorError:
            continue
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            found.append((seed, done, f"{type(error).__name__}: {error}"))
    return found


def test_the_files_that_are_changed_are_sound(tmp_path: Path) -> None:
    """Unchanged, each of them is read: what is refused afterwards is refused for the change."""
    for name, content in onnx_files().items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        assert open_file(tmp_path / f"{name}.onnx", [SAMPLE]).dtypes == {"x": "float32"}, name
    np.savez(tmp_path / "data.npz", inputs=np.tile(SAMPLE, (4, 1)), targets=np.arange(32) % 3)
    assert load(f"{tmp_path / 'convolution.onnx'}:{tmp_path / 'data.npz'}").name == "convolution"


def test_mutated_onnx_files_are_read_or_refused(tmp_path: Path) -> None:
    """A sample, prepared in one process with limited memory; what brings it down has to be caught by one of its own."""
    first = 0
    while first < QUICK_ONNX:
        command = [sys.executable, "-m", "workbench.mutated_files", str(tmp_path), str(first), str(QUICK_ONNX)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        untyped = [line for line in lines if line[0] == "ends" and not line[2].endswith(" ''")]
        assert not untyped
        first = int(lines[-1][1]) + 1
        if lines[-1][0] == "begins":
            assert [error for *_, error in outcomes(tmp_path, range(first - 1, first), read)] == [""]


def test_mutated_arrays_are_read_or_refused(tmp_path: Path) -> None:
    """A sample of damaged arrays beside a sound model, all the way to a workload."""
    assert npz_outcomes(tmp_path, range(QUICK_NPZ)) == []


@pytest.mark.mutations
@pytest.mark.parametrize("first", range(0, MANY_ONNX, TOGETHER))
def test_every_mutated_onnx_file_is_read_or_refused(first: int, tmp_path: Path, told_damage: Told) -> None:
    """Each in a process of its own, as for a user: no untyped error, none above ten seconds or two gigabytes."""
    told_damage("onnx", TOGETHER)
    slow, wrong, started = [], [], 0.0

    def timed(path: Path) -> None:
        nonlocal started
        started = seconds_of_computing()
        read(path)

    for seed, done, error in outcomes(tmp_path, range(first, first + TOGETHER), timed):
        wrong += [(seed, done, error)] if error else []
        slow += [(seed, done)] if seconds_of_computing() - started > 10 else []
    assert (wrong, slow) == ([], [])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


@pytest.mark.mutations
def test_every_mutated_file_of_arrays_is_read_or_refused(tmp_path: Path, told_damage: Told) -> None:
    """The same for arrays: no untyped error, none above ten seconds or two gigabytes."""
    told_damage("npz", MANY_NPZ)
    started = time.process_time()
    assert npz_outcomes(tmp_path, range(1000, 1000 + MANY_NPZ)) == []
    assert time.process_time() - started < 10 * MANY_NPZ
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


def seconds_of_computing() -> float:
    """Of this process and of those that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def test_mutations_are_the_same_everywhere() -> None:
    """A seed names one file: what fails elsewhere can be looked at here."""
    assert mutated_onnx(5) == mutated_onnx(5)
    assert mutated_npz(5) == mutated_npz(5)
