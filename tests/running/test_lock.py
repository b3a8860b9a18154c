"""A folder has one writer, whom the others are told of, whatever becomes of the lock file."""

import errno
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compressor.errors import RunFolderError, WriteError
from compressor.running.lock import LOCK_FILE, FolderLock
from compressor.storage import read_json, write_json

HOLDER = """
import sys, time
from pathlib import Path
from compressor.running.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(folder: Path) -> str:
    with pytest.raises(RunFolderError) as caught, FolderLock(folder):
        pass
    return str(caught.value)


def test_a_second_writer_is_told_process_host_and_age(holder, tmp_path) -> None:
    """Who holds the folder can be found, waited for or stopped."""
    message = refused(tmp_path)
    assert f"process {holder.pid} on {socket.gethostname()} since " in message
    assert "seconds ago" in message
    note = read_json(tmp_path / LOCK_FILE)
    write_json(tmp_path / LOCK_FILE, note | {"since": (datetime.now(UTC) - timedelta(hours=5)).isoformat()})
    assert "(5 hours ago)" in refused(tmp_path)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists who holds what")
def test_deleting_the_lock_file_lets_nobody_in(holder, tmp_path) -> None:
    """The folder itself is held; the process is named by the system then."""
    (tmp_path / LOCK_FILE).unlink()
    message = refused(tmp_path)
    assert f"process {holder.pid} on {socket.gethostname()} since " in message
    assert "seconds ago), whose .lock is gone; wait" in message
    assert not (tmp_path / LOCK_FILE).exists()


ODD = [
    "",
    "[]",
    '{"process": "x", "host": 3, "since": "yesterday"}',
    f'{{"process": 1e99, "host": "{socket.gethostname()}", "since": "2020-01-01T00:00:00+00:00"}}',
    f'{{"process": "1", "host": "{socket.gethostname()}", "since": "2020-01-01T00:00:00"}}',
]


@pytest.mark.parametrize("content", ODD)
def test_a_lock_file_of_any_content_names_what_it_can(tmp_path, content) -> None:
    """What stands in the file decides nothing but the words."""
    with FolderLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        assert "is being written by " in refused(tmp_path)
    with FolderLock(tmp_path):
        assert read_json(tmp_path / LOCK_FILE)["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["12345\n", "{}", '{"process": 1, "name": "theirs"}'])
def test_a_lock_file_of_another_program_is_left_alone(tmp_path, content) -> None:
    """It is refused by name and neither replaced nor removed; so is a folder, and what a link leads to."""
    theirs = tmp_path / "theirs"
    theirs.write_text(content)
    path = tmp_path / LOCK_FILE
    for put in (lambda: path.write_text(content), lambda: path.symlink_to(theirs), path.mkdir):
        put()
        with (
            pytest.raises(RunFolderError, match=r"\.lock is not what a run writes; move it away"),
            FolderLock(tmp_path),
        ):
            pass
        if not path.is_dir():
            assert path.read_text() == content
            path.unlink()
    assert path.is_dir()
    path.rmdir()
    path.touch()  # as former versions left it
    with FolderLock(tmp_path):
        assert read_json(path)["process"] == os.getpid()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path) -> None:
    """What it left behind says nothing any more."""
    holder.kill()
    holder.wait()
    assert read_json(tmp_path / LOCK_FILE)["process"] == holder.pid
    with FolderLock(tmp_path):
        assert read_json(tmp_path / LOCK_FILE)["process"] == os.getpid()


FORKED = """
import os, sys, time
from pathlib import Path
from compressor.running.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_workers_of_a_killed_process_hold_nothing(tmp_path) -> None:
    """A data loader's worker outlives the process that was killed; the folder is free all the same."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        time.sleep(0.05)
        process.kill()
        process.wait()
        with FolderLock(tmp_path):
            pass
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()


def test_a_lock_is_held_once_in_a_process(tmp_path) -> None:
    """Two runs in two threads are two writers as well; afterwards the folder is free, and its fork hook forgets it."""
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    with FolderLock(tmp_path) as lock:
        assert lock.is_held()
    assert not lock.is_held()


def test_a_file_system_without_locks_of_folders_is_locked_by_a_file(tmp_path, monkeypatch) -> None:
    """Some network file systems refuse to lock a folder."""
    import fcntl

    def unsupported(descriptor: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - a descriptor, not a path of ours
            raise OSError(9, "Bad file descriptor")
        real(descriptor, operation)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_said_and_let_go(tmp_path, monkeypatch) -> None:
    """On a read-only file system nothing can be noted: the file is named, and nothing stays held."""
    real = os.open

    def read_only(path, flags, *more, **others):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(WriteError, match=r"\.lock cannot be written: Read-only file system; give a folder"):
        FolderLock(tmp_path).__enter__()
    monkeypatch.undo()
    with FolderLock(tmp_path):
        pass
