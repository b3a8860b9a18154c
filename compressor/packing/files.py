"""Packed models as files: packed, unpacked to the very bytes they were, and checked to be whole."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compressor.checks import as_path
from compressor.errors import PackError
from compressor.packing import reader
from compressor.packing.writer import packed
from compressor.progress.bars import progress_bar
from compressor.storage import read_bytes, sha256, write_atomic, written_whole

# What is told of the work: bytes done since the last time, and bytes in all.
Told = Callable[[int, int], None]
READER = Path(reader.__file__)


@dataclass(frozen=True)
class Packed:
    """A packed model: where it is, its bytes, those of the file in it, and that file's SHA-256 in hexadecimal."""

    path: Path
    packed_bytes: int
    size_bytes: int
    sha256: str

    @property
    def times_smaller(self) -> float:
        """The file's bytes over the packed ones."""
        return self.size_bytes / self.packed_bytes


def pack(path: str | Path, out: str | Path | None = None, *, told: Told | None = None) -> Packed:
    """Packs the ONNX file at `path` into `out`, by default beside it with the ending .pack, and says what came of it.

    `unpack` gives its very bytes back. `told` hears of the progress. Raises PackError where it is no ONNX file, or
    keeps its weights in other files, or `out` is that very file, and StorageError where it cannot be read or the other
    not be written.
    """
    path = as_path(path, "path names the file")
    out = path.with_suffix(".pack") if out is None else as_path(out, "out names the packed file")
    data = read_bytes(path, way_out="give the path of an ONNX file", most=reader.MOST_TOTAL)
    if data.startswith(reader.MAGIC):
        raise PackError(f"{path} cannot be packed: it is a packed model already; compressor unpack {path} unpacks it")
    _check_apart(path, out, "packed")
    try:
        parts = b"".join(packed(data, told=None if told is None else lambda done: told(done, len(data))))
    except PackError as error:
        raise PackError(f"{path} cannot be packed: {error.sentence}") from error
    write_atomic(out, parts)
    return Packed(out, len(parts), len(data), parts[len(reader.MAGIC) + 9 : len(reader.MAGIC) + 41].hex())


# Of the last files by their digests: stages that change nothing, and runs beside each other, ask again.
_sizes: dict[str, int | None] = {}
_REMEMBERED = 100


def packed_size(onnx_bytes: bytes, *, most: int) -> int | None:
    """The bytes of the packed file; None for what cannot be packed, and for files of more than `most` bytes."""
    if len(onnx_bytes) > most:
        return None
    digest = sha256(onnx_bytes)
    if digest not in _sizes:
        try:
            with progress_bar(desc="packing", total=len(onnx_bytes)) as bar:
                size: int | None = sum(map(len, packed(onnx_bytes, told=bar.update)))
        except PackError:
            size = None
        while len(_sizes) >= _REMEMBERED:
            _sizes.pop(next(iter(_sizes)), None)
        _sizes[digest] = size
    return _sizes[digest]


def unpack(
    path: str | Path, out: str | Path | None = None, *, most_bytes: int = reader.MOST_TOTAL, told: Told | None = None
) -> Packed:
    """Writes the file that `path` holds to `out`, by default beside it with the ending .onnx, and says what it is.

    The file appears when it is whole and its SHA-256 is the one of the file that was packed; a file that is there
    already is replaced where `out` names it, and refused where it does not. Raises PackError where `path` is no packed
    model, is damaged, of another version, holds more than `most_bytes`, or is `out` itself, and StorageError where
    either cannot be read or written.
    """
    path = as_path(path, "path names the file")
    if out is None and path.with_suffix(".onnx").exists():
        raise PackError(f"{path.with_suffix('.onnx')} is there already; name it, or another file, to write to")
    out = path.with_suffix(".onnx") if out is None else as_path(out, "out names the unpacked file")
    _check_apart(path, out, "unpacked")
    with _opened(path, most_bytes) as (source, header), written_whole(out, header.size) as target:
        _copy(source, header, target, told)
    return Packed(path, path.stat().st_size, header.size, header.sha256.hex())


def check(
    path: str | Path,
    original: str | Path | None = None,
    *,
    most_bytes: int = reader.MOST_TOTAL,
    told: Told | None = None,
) -> Packed:
    """What the packed model at `path` is, once all of it is unpacked and found to be what was packed.

    Nothing is kept of it. With `original`, the file itself is compared byte by byte as well. Raises as `unpack` does,
    and PackError where the two differ.
    """
    path = as_path(path, "path names the file")
    with _opened(path, most_bytes) as (source, header), tempfile.TemporaryFile() as target:
        _copy(source, header, target, told)
        if original is not None:
            target.seek(0)
            wanted = read_bytes(
                as_path(original, "original names the file that was packed"),
                way_out="give the file that was packed",
                most=reader.MOST_TOTAL,
            )
            if target.read() != wanted:
                raise PackError(f"{path} holds another file than {original}; pack it again")
    return Packed(path, path.stat().st_size, header.size, header.sha256.hex())


def copy_reader(out: str | Path) -> Path:
    """The reader as one file at `out`, which needs Python and NumPy alone: `python out model.pack model.onnx`."""
    out = as_path(out, "out names the reader's file")
    write_atomic(out, READER.read_bytes())
    return out


def _check_apart(path: Path, out: Path, made: str) -> None:
    """Raises PackError where what is written to `out` would take the place of what is read from `path`."""
    if out.exists() and path.exists() and out.samefile(path):
        raise PackError(f"{path} cannot be {made} onto itself: {out} is the same file; name another to write to")


@contextmanager
def _opened(path: Path, most_bytes: int) -> Iterator[tuple[BinaryIO, reader.Header]]:
    if not path.is_file():
        why = "it is a folder, or a device" if path.exists() else "there is no such file"
        raise PackError(f"{path} cannot be unpacked: {why}; give the path of a packed model")
    try:
        with path.open("rb") as source:
            yield source, reader.read_header(source, most=most_bytes)
    except reader.UnpackError as error:
        raise PackError(f"{path} cannot be unpacked: {error}; get it again from where it was packed") from error


def _copy(source: BinaryIO, header: reader.Header, target: BinaryIO, told: Told | None) -> None:
    def fetch(offset: int, length: int) -> bytes:
        target.seek(offset)
        found = target.read(length)
        target.seek(0, os.SEEK_END)
        return found

    for part in reader.chunks(source, header, fetch):
        target.write(part)
        if told is not None:
            told(len(part), header.size)
