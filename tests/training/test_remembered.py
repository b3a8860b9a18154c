"""What is remembered comes back bit for bit, from memory or from a file that nobody has to clean up."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor.training import remembered
from compressor.training.remembered import Remembered, free_disk_bytes, in_memory
from workbench import ROOT

KINDS = [
    torch.randn(3, 4),
    torch.randn(2, 3, 4, 5).to(torch.bfloat16),
    torch.tensor([float("nan"), float("-inf"), -0.0, 1e-42]),
    torch.arange(5),
    torch.tensor([True, False]),
    torch.tensor(2.5, dtype=torch.float64),
    torch.empty(0, 3),
]


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Remembered:
    """One that has no memory and a disk of a megabyte."""
    kept = Remembered(tmp_path)
    monkeypatch.setattr(remembered, "free_memory_bytes", lambda: -1)
    monkeypatch.setattr(remembered, "free_disk_bytes", lambda _: 2**20 - kept.disk_bytes)
    monkeypatch.setattr(kept, "_disk", True)
    return kept


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_every_type_comes_back_from_disk_with_its_bits(on_disk: Remembered, tmp_path: Path) -> None:
    """NaN, negative zero, subnormal numbers, short floats, nothing at all; in any order; and no file has a name."""
    for number, tensor in enumerate(KINDS):
        on_disk.keep(number, (tensor, tensor.flatten()[:1]))
    on_disk.keep("all", tuple(KINDS))
    for number in (3, 0, 6, 1, 5, 2, 4):
        found, first = on_disk.recall(number) or (None, None)
        assert found is not None
        assert (found.dtype, found.shape, bits(found)) == (
            KINDS[number].dtype,
            KINDS[number].shape,
            bits(KINDS[number]),
        )
        assert first is not None
    assert [bits(tensor) for tensor in on_disk.recall("all") or ()] == [bits(tensor) for tensor in KINDS]
    assert on_disk.memory_bytes == 0
    assert on_disk.disk_bytes > 2 * sum(tensor.nbytes for tensor in KINDS)
    assert list(tmp_path.iterdir()) == []


def test_only_a_share_of_the_disk_is_taken(on_disk: Remembered) -> None:
    """A quarter of a megabyte: eight of eleven tensors of 32 KiB."""
    for number in range(11):
        on_disk.keep(number, (torch.full((8192,), float(number)),))
    assert [number for number in range(11) if on_disk.recall(number) is not None] == list(range(8))
    assert on_disk.disk_bytes == 8 * 32768


def test_what_was_damaged_is_forgotten(on_disk: Remembered) -> None:
    """A bit that turned over on disk is no answer."""
    on_disk.keep("a", (torch.ones(8),))
    on_disk.keep("b", (torch.ones(8),))
    assert on_disk._file is not None
    on_disk._file.seek(3)
    on_disk._file.write(b"\x01")
    on_disk._file.flush()
    assert on_disk.recall("a") is None
    assert on_disk.recall("b") is not None


def test_a_disk_that_is_full_all_the_same_ends_the_writing(on_disk: Remembered, monkeypatch) -> None:
    """Somebody else took what was free: nothing is raised, nothing half-written is answered."""

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remembered.tempfile, "TemporaryFile", full)
    on_disk.keep("a", (torch.ones(8),))
    on_disk.keep("b", (torch.ones(8),))
    assert on_disk.recall("a") is on_disk.recall("b") is None
    assert on_disk.disk_bytes == 0


def test_forgetting_gives_back_memory_and_file(on_disk: Remembered) -> None:
    """All of it, and new things may be remembered."""
    on_disk.keep("a", (torch.ones(8),))
    on_disk.forget()
    assert on_disk.recall("a") is None
    assert on_disk.disk_bytes == 0
    on_disk.keep("a", (torch.zeros(8),))
    found = on_disk.recall("a")
    assert found is not None
    assert torch.equal(found[0], torch.zeros(8))


def test_folders_that_are_memory_are_left_alone(tmp_path: Path) -> None:
    """A file on tmpfs would take the memory that it is to spare: the nearest mount decides."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/vda / ext4 rw 0 0\ntmpfs {tmp_path}/shm tmpfs rw 0 0\n/dev/b {tmp_path}/shm/d ext4 rw 0 0\n"
    )
    (tmp_path / "shm" / "d").mkdir(parents=True)
    assert in_memory(tmp_path / "shm", mounts)
    assert not in_memory(tmp_path / "shm" / "d", mounts)
    assert not in_memory(tmp_path, mounts)
    assert not in_memory(tmp_path, tmp_path / "none")
    assert free_disk_bytes(tmp_path / "none") == 0


PROGRAM = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import torch
from compressor.training import remembered
remembered.free_memory_bytes = lambda: -1
kept = remembered.Remembered(Path(sys.argv[1]))
kept._disk = True
kept.keep("a", (torch.ones(1000),))
assert kept.disk_bytes == 4000
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills by a signal")
def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    """The file has no name while it is used, so that there is nothing to clean up."""
    assert subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=False, timeout=200).returncode == -9
    assert list(tmp_path.iterdir()) == []
