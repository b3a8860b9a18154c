"""Files are whole or absent, readable by whom the umask says, and a full disk is told with names and numbers."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from compressor.errors import StorageError, WriteError
from compressor.storage import is_left_over, parsed_json, read_json, temporary_name, write_atomic

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - as shutil has it


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_rights_that_the_umask_leaves(tmp_path, umask, mask, wanted) -> None:
    """Another account can read a result exactly where the user's umask lets it."""
    umask(mask)
    write_atomic(tmp_path / "model.onnx", b"1")
    assert rights(tmp_path / "model.onnx") == wanted


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path, umask, mode) -> None:
    """What somebody closed, or opened, stays so."""
    path = tmp_path / "report.md"
    path.write_text("old")
    path.chmod(mode)
    write_atomic(path, "new")
    assert (path.read_text(), rights(path)) == ("new", mode)


def test_a_link_is_replaced_and_not_followed(tmp_path) -> None:
    """The file of somebody else that a link leads to stays as it is."""
    theirs = tmp_path / "theirs.onnx"
    theirs.write_text("theirs")
    (tmp_path / "model.onnx").symlink_to(theirs)
    write_atomic(tmp_path / "model.onnx", b"ours")
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "model.onnx").is_symlink()


def test_what_is_no_place_for_a_file_stays(tmp_path) -> None:
    """A pipe, also behind a link, and what names no file: as root, /dev/null would become a file for everybody."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(WriteError, match="is a device, a pipe or a socket"):
            write_atomic(tmp_path / name, b"1")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    for name in ("", "/"):
        with pytest.raises(WriteError, match="names none; give the name of one"):
            write_atomic(Path(name), b"1")


def test_only_files_of_killed_writers_of_ours_are_left_overs(tmp_path) -> None:
    """Users' hidden .tmp files, folders and links under our pattern, and writers that are alive are left alone."""
    child = subprocess.Popen([sys.executable, "--version"], stdout=subprocess.DEVNULL)
    child.wait()
    mine = temporary_name()
    dead = mine.replace(f"-{os.getpid()}-", f"-{child.pid}-")
    other_host = f".compressor-00000000-{os.getpid()}-{'0' * 16}.tmp"
    no_number = mine.replace(f"-{os.getpid()}-", "-9999999999-")
    names = (".draft.tmp", ".model.onnx.abc123.tmp", ".compressor-notes.tmp", f"x{dead}", f"{dead}.bak", mine)
    for name in (*names, dead, other_host, no_number):
        (tmp_path / name).write_text("")
    assert sorted(path.name for path in tmp_path.iterdir() if is_left_over(path)) == sorted(
        [dead, other_host, no_number]
    )
    for name in (dead, other_host, no_number):
        (tmp_path / name).unlink()
    (tmp_path / dead).mkdir()
    (tmp_path / other_host).symlink_to(tmp_path / ".draft.tmp")
    assert not any(map(is_left_over, tmp_path.iterdir()))


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch) -> None:
    """File, bytes needed and bytes free stand in the message; the file that was there is whole."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1500, 1500))
    with pytest.raises(WriteError, match=rf"{path} needs 2,000 bytes, but 1,500 bytes are free"):
        write_atomic(path, b"x" * 2000)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_disk_that_fills_while_writing_is_told_alike(tmp_path, monkeypatch, number, call) -> None:
    """What another process took meanwhile, or a quota forbids, has the same sentence, and leaves no part behind."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match=r"model\.onnx needs 2,000 bytes, but [0-9,]+ bytes are free.*make room"):
        write_atomic(tmp_path / "model.onnx", b"x" * 2000)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, sys
from pathlib import Path
from compressor.errors import StorageError
from compressor.storage import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomic(Path("small"), b"x" * 900)
try:
    write_atomic(Path("large"), b"x" * 5000)
except StorageError as error:
    print(error)
"""


def test_a_limit_on_the_size_of_files_is_told(tmp_path) -> None:
    """A process that may write no large file (ulimit -f) says which was too large, and leaves no half of it."""
    ended = subprocess.run([sys.executable, "-c", LIMITED], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "large needs 5,000 bytes, but no file may be so large here" in ended.stdout
    assert "ulimit -f" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    """A file where a folder is wanted, a folder where a file is wanted, no right to write: one typed error each."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    for path, told in {
        tmp_path / "file" / "model.onnx": f"{tmp_path / 'file'} is no folder",
        tmp_path / "file" / "inner" / "model.onnx": f"{tmp_path / 'file'} is no folder",
        tmp_path / "nowhere" / "model.onnx": f"{tmp_path / 'nowhere'} is no folder",
        tmp_path / "folder": f"{tmp_path / 'folder'} is a folder",
    }.items():
        with pytest.raises(WriteError, match=f"{path} cannot be written: {told}; move it away, or give another folder"):
            write_atomic(path, b"1")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="cannot be written: Permission denied"):
        write_atomic(tmp_path / "model.onnx", b"1")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_json_that_cannot_be_read_is_named(tmp_path, content) -> None:
    """Empty, cut, binary and endlessly nested files give a StorageError with the file's name."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StorageError, match=r"b\.json cannot be read"):
        read_json(tmp_path / "b.json")


def test_json_beyond_limits_is_named(tmp_path) -> None:
    """Nested too deep, far too large, a number without end, a pipe: one typed error each."""
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 101 + b"]" * 101)
    with pytest.raises(StorageError, match=r"a\.json is nested more than 100 levels deep"):
        read_json(path)
    path.write_bytes(b'{"a":' * 99 + b"[1]" + b"}" * 99)
    read_json(path)
    path.write_bytes(b"9" * 5000)
    with pytest.raises(StorageError, match=r"a\.json is not readable JSON"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(StorageError, match=r"a\.json has 1,000,000,000,000 bytes, and at most"):
        read_json(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match=r"a\.json is no regular file"):
        read_json(path)


def test_a_flood_of_small_values_is_not_read() -> None:
    """Ten million empty lists are thirty megabytes of text, a gigabyte in Python, and some seconds of work."""
    with pytest.raises(StorageError, match="up to 4,000,002 values, and at most 4,000,000 are read; get it again"):
        parsed_json(b"[" + b"1," * 4_000_000 + b"1]", Path("it"), way_out="get it again")
