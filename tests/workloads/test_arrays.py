"""Arrays from elsewhere: what a .npz file may hold and how large it may grow, and what is said of everything else."""

import io
import os
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import WorkloadError
from compressor.workloads.arrays import read_arrays


def npy(array: np.ndarray, *, header: bytes | None = None) -> bytes:
    """The bytes of a .npy file; with `header`, that one in the place of its own."""
    held = io.BytesIO()
    np.save(held, array, allow_pickle=True)
    if header is None:
        return held.getvalue()
    length = struct.unpack("<H", held.getvalue()[8:10])[0]
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + held.getvalue()[10 + length :]


def archive(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


HEADER = b"{'descr':'|u1','fortran_order':False,'shape':(48,),}".ljust(117) + b"\n"
ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save, tmp_path: Path) -> None:
    """Every type of number, any order in memory, empty arrays and single values come back as they were."""
    arrays = {
        "a": ROWS,
        "b": np.asfortranarray(ROWS.astype(">f8")),
        "c": np.array([True, False]),
        "d": np.arange(3, dtype=np.uint8),
        "e": np.zeros((0, 4), dtype=np.int64),
        "f": np.float16(2.5),
        "with.dots and spaces": np.array(["text"]),
    }
    save(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("says", "told"), [(4_000_000_000, "grows to 4,000,000,000, more than 100 times"), (176, "a.npz")]
)
def test_a_few_bytes_that_grow_to_gigabytes_are_not_unpacked(says: int, told: str, tmp_path: Path) -> None:
    """A bomb is refused by what it says of itself, and one that says less is unpacked no further than it says."""
    path = archive(tmp_path / "a.npz", ("inputs.npy", npy(np.zeros(40 << 20, dtype=np.uint8), header=HEADER)))
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, says)
    path.write_bytes(content)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(WorkloadError, match=told):
        read_arrays(path)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_many_small_copies_of_one_bomb_count_together(tmp_path: Path) -> None:
    """The limit is for the archive, not for each array."""
    part = npy(np.zeros(40 << 20, dtype=np.uint8))
    path = archive(tmp_path / "parts.npz", *((f"a{number}.npy", part) for number in range(8)))
    with pytest.raises(WorkloadError, match="grows to"):
        read_arrays(path)


def _header(shape: str, descr: str = "'<f4'") -> bytes:
    return f"{{'descr':{descr},'fortran_order':False,'shape':{shape},}}\n".encode()


WRONG = {
    "objects": (npy(np.array([{}, 1], dtype=object)), "holds values of type object, and numbers are wanted"),
    "fields": (npy(np.zeros(2, dtype=[("a", "f4")])), "numbers are wanted"),
    "a shape of exabytes": (npy(ROWS, header=_header("(1099511627776, 1048576)")), "has 48 bytes, and its shape"),
    "a shape beyond 64 bits": (npy(ROWS, header=_header("(99999999999999999999, 9)")), "has 48 bytes, and its shape"),
    "a shape below zero": (npy(ROWS, header=_header("(-6, -2)")), "has 48 bytes, and its shape"),
    "a shape of texts": (npy(ROWS, header=_header("('a',)")), "has no readable header"),
    "a shape that is none": (npy(ROWS, header=_header("6")), "has no readable header"),
    "too few values": (npy(ROWS)[:-1], "has 47 bytes, and its shape"),
    "too many values": (npy(ROWS) + b"1", "has 49 bytes, and its shape"),
    "another type": (npy(ROWS, header=_header("(6, 2)", "'<f8'")), "has 48 bytes, and its shape"),
    "a type of objects": (npy(ROWS, header=_header("(6,)", "'|O'")), "numbers are wanted"),
    "a type that is none": (npy(ROWS, header=_header("(6, 2)", "'colour'")), "has no readable header"),
    "a type as deep as the parser": (npy(ROWS, header=_header("(6, 2)", "[" * 3000 + "]" * 3000)), "no"),
    "code": (npy(ROWS, header=b"__import__('os').system('touch trace')\n"), "has no readable header"),
    "a header without end": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{", "has no readable header"),
    "another version": (b"\x93NUMPY\x09\x00" + bytes(100), r"the format \(9, 0\)"),
    "no array": (b"text", "is no .npz file of arrays"),
    "nothing": (b"", "is no .npz file of arrays"),
}


@pytest.mark.parametrize(("content", "told"), WRONG.values(), ids=WRONG)
def test_arrays_that_are_none_are_named(content: bytes, told: str, tmp_path: Path, monkeypatch) -> None:
    """Objects, shapes that the bytes do not fill, headers that are code or a bomb: one typed error, nothing is run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkloadError, match=told):
        read_arrays(archive(tmp_path / "a.npz", ("inputs.npy", content)))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [case[0] for case in WRONG.values() if case[0].startswith(b"\x93NUMPY")])
def test_a_lone_array_is_looked_at_alike(content: bytes, tmp_path: Path) -> None:
    """What is wrong in an archive is wrong in a .npy file, by the same words but for the name."""
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(WorkloadError, match=r"a\.npy h(as|olds)"):
        read_arrays(tmp_path / "a.npy")


def test_an_array_without_a_name_is_the_inputs(tmp_path: Path) -> None:
    """As numpy.save and numpy.savez(path, array) write it; of two nobody knows which is which."""
    np.save(tmp_path / "a.npy", np.asfortranarray(ROWS))
    np.savez(tmp_path / "a.npz", ROWS)
    for name in ("a.npy", "a.npz"):
        found = read_arrays(tmp_path / name)
        assert found.keys() == {"inputs"}
        np.testing.assert_array_equal(found["inputs"], ROWS)
    np.savez(tmp_path / "b.npz", ROWS, ROWS)
    assert read_arrays(tmp_path / "b.npz").keys() == {"arr_0", "arr_1"}


@pytest.mark.parametrize("header", ["(" * 5000, "[" * 3000 + "]" * 3000, "x" * 9000, "((6, 2), " * 2000])
def test_a_header_is_not_quoted(header: str, tmp_path: Path) -> None:
    """The message of numpy holds all of it."""
    content = npy(ROWS, header=_header("(6, 2)", header))
    with pytest.raises(
        WorkloadError, match=r"the array 'inputs' of .* has no readable header; write it with"
    ) as caught:
        read_arrays(archive(tmp_path / "a.npz", ("inputs.npy", content)))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_archives_that_are_damaged_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, changed anywhere, two arrays of one name, thousands of members, a password, no archive at all."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, inputs=ROWS, targets=ROWS)
    whole = path.read_bytes()
    for count in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:count])
        with pytest.raises(WorkloadError, match=r"a\.npz is no \.npz file of arrays: .*write it with numpy\.savez"):
            read_arrays(path)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    with pytest.raises(WorkloadError, match=r"a\.npz"):
        read_arrays(path)
    locked = bytearray(whole)
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(WorkloadError, match=r"a\.npz is no \.npz file"):
        read_arrays(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, ("inputs.npy", npy(ROWS)), ("inputs.npy", npy(ROWS)))
    with pytest.raises(WorkloadError, match="two arrays called 'inputs'"):
        read_arrays(path)
    archive(path, *((f"{number}.npy", npy(ROWS)) for number in range(1001)))
    with pytest.raises(WorkloadError, match=r"1,001 arrays, and at most 1,000"):
        read_arrays(path)
    archive(path, *(("x" * 200 + str(number), b"") for number in range(6000)))
    with pytest.raises(WorkloadError, match="bytes of members, which no arrays have"):
        read_arrays(path)
    path.write_bytes(b"N" + npy(ROWS))
    with pytest.raises(WorkloadError, match=r"no \.npz file"):
        read_arrays(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """A folder, a pipe, a name that is too long; what is not there is FileNotFoundError."""
    os.mkfifo(tmp_path / "pipe.npz")
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "pipe.npz", "a pipe"), (Path("x" * 5000), "too long")):
        with pytest.raises(WorkloadError, match=told):
            read_arrays(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_arrays(tmp_path / "nothing.npz")
