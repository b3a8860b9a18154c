"""Tensors remembered for later: in main memory as far as a share of what is free goes, then in a file without a name.

The file is one that the system removes with the process, however that ends. What is read back has the bits that were
written, or is as good as forgotten. Nothing is kept on a GPU.
"""

import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from compressor.machine import free_memory_bytes
from compressor.tensor_files import raw_bytes

# Of what would be free without them.
MEMORY_SHARE = 0.25
DISK_SHARE = 0.25
# File systems that are main memory.
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Where in the file tensors stand, one after the other, and the checksum of all their bytes."""

    start: int
    length: int
    checksum: int
    forms: tuple[tuple[torch.dtype, torch.Size], ...]


class Remembered:
    """Tensors by key. `memory_bytes` and `disk_bytes` are taken; what fits in neither is not kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.memory_bytes = self.disk_bytes = 0
        self._folder = folder or Path(tempfile.gettempdir())
        self._near: dict[Hashable, tuple[Tensor, ...]] = {}
        self._far: dict[Hashable, _Written] = {}
        self._file: IO[bytes] | None = None
        self._disk = not in_memory(self._folder)

    def keep(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Remembers copies of `tensors`, which must be contiguous, under a new `key`, where there is room."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.memory_bytes + size <= MEMORY_SHARE * (free_memory_bytes() + self.memory_bytes):
            # A copy: a view would keep the whole of what it is cut from, and a model may write into its output again.
            self._near[key] = tuple(tensor.to("cpu", copy=True) for tensor in tensors)
            self.memory_bytes += size
        elif self._disk and self.disk_bytes + size <= DISK_SHARE * (free_disk_bytes(self._folder) + self.disk_bytes):
            self._write(key, tensors)

    def recall(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors of `key`, in main memory; None where they are not kept, or are not as they were written."""
        if key in self._near:
            return self._near[key]
        return self._read(self._far[key]) if key in self._far else None

    def forget(self) -> None:
        """Gives back memory and file."""
        self._near.clear()
        self._far.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        self.memory_bytes = self.disk_bytes = 0

    def _write(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        data = [raw_bytes(tensor.cpu()) for tensor in tensors]
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix="compressor-")  # noqa: SIM115 - see below
                weakref.finalize(self, self._file.close)
            start = self._file.seek(0, os.SEEK_END)
            for part in data:
                self._file.write(part)
            self._file.flush()
        except OSError:  # full, read-only, gone: what is not kept is computed again
            self._disk = False
            return
        self._far[key] = _Written(
            start=start,
            length=sum(map(len, data)),
            checksum=_checksum(data),
            forms=tuple((tensor.dtype, tensor.shape) for tensor in tensors),
        )
        self.disk_bytes += self._far[key].length

    def _read(self, written: _Written) -> tuple[Tensor, ...] | None:
        assert self._file is not None  # it was written to
        try:
            self._file.seek(written.start)
            data = self._file.read(written.length)
        except OSError:
            return None
        if len(data) != written.length or _checksum([data]) != written.checksum:
            return None
        tensors, start = [], 0
        for dtype, shape in written.forms:
            length = shape.numel() * dtype.itemsize
            part = bytearray(data[start : start + length])
            tensors.append(
                torch.frombuffer(part, dtype=dtype).reshape(shape) if length else torch.empty(shape, dtype=dtype)
            )
            start += length
        return tuple(tensors)


def free_disk_bytes(folder: Path) -> int:
    """What is free on the disk of `folder`; 0 where the system does not tell."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def in_memory(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether `folder` is on a file system that is main memory, as Linux tells it; False where nothing is told."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    path = folder.resolve()
    kinds = {Path(fields[1]): fields[2] for line in lines if len(fields := line.split()) > 2}
    nearest = next((place for place in (path, *path.parents) if place in kinds), None)
    return nearest is not None and kinds[nearest] in _IN_MEMORY


def _checksum(parts: Sequence[bytes | memoryview]) -> int:
    state = 0
    for part in parts:
        state = zlib.crc32(part, state)
    return state
