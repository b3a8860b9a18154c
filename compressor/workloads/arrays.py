"""Arrays in files of numpy from elsewhere: looked at before anything is unpacked, for a few bytes can become many."""

import math
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from compressor.errors import WorkloadError, first_said
from compressor.files.limits import regular_size

# An array for every input and for targets, twice: some dozen are many.
_MOST_ARRAYS = 1000
_MOST_DIRECTORY_BYTES = 1 << 20
# Images and texts shrink to a tenth, masks and one-hot targets to a hundredth.
_MOST_RATIO = 100
_ALWAYS_BYTES = 256 << 20
# What is written by hand or by numpy: booleans, integers, floats, complex numbers, dates, texts of fixed length.
_KINDS = "biufcmMSU"
# What numpy calls an array that was given no name.
_UNNAMED, _INPUTS = "arr_0", "inputs"
_WAY_OUT = "write it with numpy.savez(path, inputs=..., targets=...)"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """{name: array} of the file at `path`, an .npz or .npy one; nothing is unpickled.

    A lone array without a name, as numpy.save(path, array) and numpy.savez(path, array) write it, is called "inputs".
    Raises FileNotFoundError, and WorkloadError for what is no such file, is damaged, holds objects or two arrays of one
    name, or grows to more than a hundred times its size.
    """
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            begun = file.read(len(npy.MAGIC_PREFIX))
            file.seek(0)
            if begun == npy.MAGIC_PREFIX:
                return {_INPUTS: _array(lambda: path.open("rb"), size, str(path))}
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                found = _unpacked(archive, path, size)
                return {_INPUTS: found[_UNNAMED]} if found.keys() == {_UNNAMED} else found
    except (WorkloadError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise WorkloadError(f"{path} holds more than fits into memory; write fewer samples into it") from error
    except Exception as error:  # zip files, their methods of compression and arrays fail in many ways
        raise WorkloadError(f"{path} is no .npz file of arrays: {first_said(error)}; {_WAY_OUT}") from error


def _unpacked(archive: zipfile.ZipFile, path: Path, size: int) -> dict[str, NDArray[Any]]:
    members = archive.infolist()
    if len(members) > _MOST_ARRAYS:
        raise WorkloadError(f"{path} has {len(members):,} arrays, and at most {_MOST_ARRAYS:,} are read; {_WAY_OUT}")
    grown = sum(member.file_size for member in members)
    if grown > max(_ALWAYS_BYTES, _MOST_RATIO * size):
        raise WorkloadError(
            f"{path} has {size:,} bytes and grows to {grown:,}, more than {_MOST_RATIO} times as many; if it is to be "
            "trusted, write it uncompressed, with numpy.savez"
        )
    found: dict[str, NDArray[Any]] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise WorkloadError(f"{path} has two arrays called {name!r}; {_WAY_OUT}")
        opened = partial(archive.open, member)
        found[name] = _array(opened, member.file_size, f"the array {name[:100]!r} of {path}")
    return found


def _array(opened: Callable[[], AbstractContextManager[IO[bytes]]], size: int, what: str) -> NDArray[Any]:
    """The array in `size` bytes that are read as `opened` gives them, `what` it is in errors."""
    with opened() as file:
        version = npy.read_magic(file)
        if version not in {(1, 0), (2, 0)}:
            raise WorkloadError(f"{what} has the format {version}, and arrays of plain numbers have (1, 0); {_WAY_OUT}")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, _, dtype = read_header(file)
        except Exception as error:  # numpy quotes it whole, and Python's parser fails in many ways
            raise WorkloadError(f"{what} has no readable header; {_WAY_OUT}") from error
        begun = file.tell()
    if dtype.kind not in _KINDS or dtype.names or dtype.subdtype:
        raise WorkloadError(f"{what} holds values of type {str(dtype)[:100]}, and numbers are wanted; {_WAY_OUT}")
    wanted, held = math.prod(map(int, shape)) * dtype.itemsize, size - begun
    if min(shape, default=0) < 0 or wanted != held:
        raise WorkloadError(
            f"{what} has {held:,} bytes, and its shape {str(shape)[:80]} of {dtype} takes {wanted:,}; {_WAY_OUT}"
        )
    with opened() as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def _check_directory(file: IO[bytes], size: int) -> None:
    """The list of members, which is read as a whole, is short. The last 22 bytes and a comment say how long it is."""
    tail = min(size, (1 << 16) + 22 + 20)
    file.seek(size - tail)
    end = file.read(tail)
    place = end.rfind(b"PK\x05\x06")
    if place >= 0 and len(end) >= place + 20:
        (length,) = struct.unpack_from("<L", end, place + 12)
        wide = end.find(b"PK\x06\x07", max(0, place - 20), place)
        if wide >= 0:
            # A directory of more entries or bytes than 32 bits count has its facts elsewhere.
            (where,) = struct.unpack_from("<Q", end, wide + 8)
            file.seek(min(where, size))
            record = file.read(56)
            length = max(length, struct.unpack_from("<Q", record, 40)[0]) if len(record) == 56 else length
        if length > _MOST_DIRECTORY_BYTES:
            raise WorkloadError(
                f"{os.fspath(file.name)} lists {length:,} bytes of members, which no arrays have; {_WAY_OUT}"
            )
    file.seek(0)
