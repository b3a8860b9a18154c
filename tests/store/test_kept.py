"""The store of stages on disk: whole or absent, verified, bounded, and used by several processes at once."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from compressor.errors import StorageError, WrongUseError
from compressor.storage import temporary_name
from compressor.store.kept import Store, StoreWarning
from compressor.store.place import users_store

KEYS = [f"{number:064x}" for number in range(1, 6)]
FILES = {"model.onnx": b"m" * 1000, "plan.json": b"[]"}


def put(store: Store, key: str = KEYS[0], contents: dict[str, bytes] = FILES) -> bool:
    return store.put(key, stage="distill", seconds=2.0, facts={"plan": [1]}, contents=contents)


def place(store: Store, key: str = KEYS[0]) -> Path:
    return store.folder / key[:2] / key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "stages")


def test_what_is_put_is_got(store) -> None:
    """Facts and files come back byte by byte, to another process too; what was not put is not there."""
    assert put(store)
    kept = Store(store.folder).get(KEYS[0])
    assert (kept.facts, kept.contents) == ({"plan": [1]}, FILES)
    assert store.get(KEYS[1]) is None
    (entry,) = store.entries()
    assert (entry.key, entry.stage, entry.seconds) == (KEYS[0], "distill", 2.0)
    assert entry.size_bytes == store.size_bytes() > 1002
    assert list((store.folder / "part").iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "plan.json", "entry.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "folder"])
def test_damage_is_found_told_and_made_good(store, name, damage) -> None:
    """A stage of which a bit, an end or a file is missing is taken out with the file's name, and can be put again."""
    put(store)
    path = place(store) / name
    raw = path.read_bytes()
    path.unlink()
    if damage == "bit":
        path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "folder":
        path.mkdir()
    with pytest.warns(StoreWarning, match=rf"{name}.*made anew"):
        assert store.get(KEYS[0]) is None
    assert not place(store).exists()
    assert put(store)
    assert store.get(KEYS[0]).contents == FILES


def test_an_entry_may_not_lead_out_of_its_folder(store) -> None:
    """Names of files with a path in them are refused, whatever their digest says."""
    put(store, contents={"model.onnx": b"m"})
    (store.folder / "outside").write_bytes(b"m")
    text = (place(store) / "entry.json").read_text()
    from compressor.storage import read_sealed, write_sealed

    saved = read_sealed(place(store) / "entry.json", way_out="")
    saved["files"] = {"../../outside": saved["files"]["model.onnx"]}
    write_sealed(place(store) / "entry.json", saved)
    assert text != (place(store) / "entry.json").read_text()
    with pytest.warns(StoreWarning, match="no file of a stage"):
        assert store.get(KEYS[0]) is None


def test_it_holds_no_more_than_it_may(tmp_path) -> None:
    """What was used longest ago goes first; a stage larger than the store is told and not kept."""
    store = Store(tmp_path / "stages", most_bytes=4000)
    now = time.time()
    for number, key in enumerate(KEYS[:2]):
        put(store, key)
        os.utime(place(store, key) / "entry.json", (now - 100 + number, now - 100 + number))
    assert store.get(KEYS[0]) is not None  # used now, later than the second one
    put(store, KEYS[2])
    assert {entry.key for entry in store.entries()} == {KEYS[0], KEYS[2]}
    with pytest.warns(StoreWarning, match=r"5,000 bytes.*at most 4,000"):
        assert not put(store, KEYS[3], {"model.onnx": b"m" * 5000})
    assert len(store.entries()) == 2


def test_what_nobody_used_for_long_goes(store) -> None:
    """Age counts from the last use; `clean` says how much went, and takes what killed writers left."""
    for key in KEYS[:2]:
        put(store, key)
    old = time.time() - 8 * 86400
    os.utime(place(store) / "entry.json", (old, old))
    left = store.folder / "part" / ".compressor-00000000-1-0000000000000000.tmp"
    left.mkdir()
    size = store.entries()[1].size_bytes
    assert store.clean(most_days=7) == (1, size)
    assert [entry.key for entry in store.entries()] == [KEYS[1]]
    assert not left.exists()
    assert store.clean(most_bytes=0)[0] == 1
    assert store.size_bytes() == 0


def test_verify_reads_every_byte(store) -> None:
    """Of three stages the damaged one goes, with the file named."""
    for key in KEYS[:3]:
        put(store, key)
    path = place(store, KEYS[1]) / "model.onnx"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (told,) = store.verify()
    assert told == f"{path} is not the file that was written"
    assert [store.get(key) is not None for key in KEYS[:3]] == [True, False, True]
    assert store.verify() == []


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="the super-user may write anywhere")
def test_a_store_that_cannot_be_written_is_read(store) -> None:
    """A read-only store gives what it has and takes nothing: told once, and nothing fails."""
    put(store)
    folders = [store.folder, *(path for path in store.folder.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        readonly = Store(store.folder)
        assert readonly.get(KEYS[0]).contents == FILES
        with readonly.making(KEYS[1]), pytest.warns(StoreWarning, match="stays in the folder of its run alone"):
            assert not put(readonly, KEYS[1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not put(readonly, KEYS[2])
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_full_disk_costs_no_stage(store, monkeypatch) -> None:
    """Without room nothing is kept, no part is left, and what there was stays."""
    put(store)
    from types import SimpleNamespace

    from compressor import storage

    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.warns(StoreWarning, match="10 bytes are free"):
        assert not put(store, KEYS[1])
    assert list((store.folder / "part").iterdir()) == []
    assert store.get(KEYS[0]) is not None


def test_folders_of_others_are_refused(tmp_path) -> None:
    """A folder with other files, a file, and a store of another layout are no store; an empty folder becomes one."""
    (tmp_path / "thesis.tex").write_text("theirs")
    with pytest.raises(StorageError, match="holds other things"):
        Store(tmp_path)
    with pytest.raises(StorageError, match="is no folder"):
        Store(tmp_path / "thesis.tex")
    (tmp_path / "empty").mkdir()
    assert put(Store(tmp_path / "empty"))
    (tmp_path / "empty" / "store.json").write_text('{"compressor_store": 99}')
    with pytest.raises(StorageError, match="another version"):
        Store(tmp_path / "empty")


def test_a_store_begins_again_where_it_was_killed_before_it_had_a_name(tmp_path) -> None:
    """What the writer of the mark left behind is none of somebody else's, and goes; so is one that is at it now."""
    left = tmp_path / f".compressor-{'0' * 8}-1-{'0' * 16}.tmp"
    left.write_text("half of a mark")
    at_it = tmp_path / temporary_name()
    at_it.write_text("of this process")
    assert put(Store(tmp_path))
    assert not left.exists()
    assert at_it.exists()


WAITS = """
import sys, time
from pathlib import Path
from compressor.store.kept import Store
store = Store(Path(sys.argv[1]))
with store.making(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
    store.put(sys.argv[2], stage="distill", seconds=1.0, facts={}, contents={"model.onnx": b"theirs"})
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_for_the_first(store, killed) -> None:
    """It finds what the first one made; of one that was killed it inherits the work at once."""
    seconds = "60" if killed else "0.5"
    command = [sys.executable, "-c", WAITS, str(store.folder), KEYS[0], seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        if killed:
            process.kill()
        with store.making(KEYS[0]):
            found = store.get(KEYS[0])
    assert (found is None) == killed
    assert list((store.folder / "locks").iterdir()) == []


def test_ten_thousand_stages_are_looked_up_by_their_name(store) -> None:
    """A look-up reads its own folder alone, however many others there are."""
    put(store)
    for number in range(300):
        place(store, f"{number + 9:064x}").mkdir(parents=True)
    opened: list[str] = []
    # Audit hooks stay for good: this one only listens while the list is there.
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "os.scandir" else None)
    assert store.get(KEYS[0]) is not None
    assert opened == []


def test_the_environment_says_where_and_how_much(tmp_path, monkeypatch) -> None:
    """A folder, `off`, and limits; numbers that are none are refused by name."""
    monkeypatch.setenv("COMPRESSOR_STORE", "off")
    assert users_store() is None
    assert users_store(tmp_path / "given").folder == tmp_path / "given"
    monkeypatch.setenv("COMPRESSOR_STORE", str(tmp_path / "there"))
    monkeypatch.setenv("COMPRESSOR_STORE_GIB", "0.5")
    found = users_store()
    assert (found.folder, found.most_bytes, found.most_days) == (tmp_path / "there", 1 << 29, 90.0)
    monkeypatch.delenv("COMPRESSOR_STORE")
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))
    assert users_store().folder == tmp_path / "cache" / "stages"
    monkeypatch.setenv("COMPRESSOR_STORE_DAYS", "-1")
    with pytest.raises(WrongUseError, match="COMPRESSOR_STORE_DAYS must be a number above 0, got '-1'"):
        users_store()
