"""The latency table: what is measured once is kept, by machine, version and threads."""

import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from compressor.latency import cache
from compressor.latency import table as latency_table
from compressor.latency.cache import CacheWarning
from compressor.latency.operator_graphs import runnable
from compressor.latency.operators import Operator, conv, light, linear, recurrent
from compressor.latency.small_graphs import OperatorGraph
from compressor.latency.table import LatencyTable, in_one_model, time_operator, weight_bytes
from compressor.storage import cache_folder
from compressor.target import Target


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Operator]:
    """The operators that were timed; each takes its inputs in milliseconds."""
    calls: list[Operator] = []

    def pretend(operator: Operator, _: Target) -> float:
        calls.append(operator)
        return float(operator.inputs)

    monkeypatch.setattr(latency_table, "time_operator", pretend)
    return calls


def _table(folder: Path, **target: int) -> LatencyTable:
    return LatencyTable(Target(**target), folder=folder, progress=False)


def test_measured_once(tmp_path: Path, timed: list[Operator]) -> None:
    """Every operator is timed once, in the order asked for, whatever table asks again."""
    table = _table(tmp_path)
    assert table.milliseconds([linear(3, 4, 1), linear(5, 4, 1), linear(3, 4, 1)]) == [3, 5, 3]
    assert len(timed) == 2
    assert _table(tmp_path).milliseconds([linear(5, 4, 1)]) == [5]
    assert len(timed) == 2
    assert _table(tmp_path).milliseconds([linear(5, 4, 1)], "int8") == [5]
    assert [operator.precision for operator in timed] == ["float32", "float32", "int8"]


def test_threads_have_tables_of_their_own(tmp_path: Path, timed: list[Operator]) -> None:
    """Times of one thread say nothing about two."""
    assert _table(tmp_path).path != _table(tmp_path, threads=2).path
    _table(tmp_path).milliseconds([linear(3, 4, 1)])
    _table(tmp_path, threads=2).milliseconds([linear(3, 4, 1)])
    assert len(timed) == 2


def test_two_writers_lose_nothing(tmp_path: Path, timed: list[Operator]) -> None:
    """Two tables that write the same file keep each other's entries."""
    first, second = _table(tmp_path), _table(tmp_path)
    first.milliseconds([linear(3, 4, 1)])
    second.milliseconds([linear(5, 4, 1)])
    assert len(_table(tmp_path)) == 2


def test_what_was_measured_before_an_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption keeps the entries that were measured by then."""

    def fail(operator: Operator, _: Target) -> float:
        if operator.inputs == 5:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(latency_table, "time_operator", fail)
    with pytest.raises(KeyboardInterrupt):
        _table(tmp_path).milliseconds([linear(3, 4, 1), linear(5, 4, 1)])
    assert len(_table(tmp_path)) == 1


def test_tables_of_another_method_are_measured_again(tmp_path: Path, timed: list[Operator]) -> None:
    """Numbers that were taken in another way are not mixed with today's."""
    table = _table(tmp_path)
    table.milliseconds([linear(3, 4, 1)])
    data = json.loads(table.path.read_text())
    table.path.write_text(json.dumps(data | {"method": -1}))
    assert len(_table(tmp_path)) == 0


def _damaged() -> dict[str, bytes]:
    """What may stand where a table should."""
    entry = {"operator": {"kind": "linear", "inputs": 3}, "ms": 1.0}

    def table(**changed: object) -> bytes:
        return json.dumps({"method": latency_table._METHOD, "entries": [entry | changed]}).encode()

    return {
        "empty": b"",
        "truncated": table()[:-9],
        "null": b"null",
        "list": b"[1, 2]",
        "text": b'"times"',
        "binary": b"\xff\xfe\x00",
        "deep": b"[" * 100_000,
        "deep and whole": b"[" * 500 + b"]" * 500,
        "digits": b'{"method": ' + b"9" * 5000 + b"}",
        "no entries": json.dumps({"method": latency_table._METHOD}).encode(),
        "entries of another kind": json.dumps({"method": latency_table._METHOD, "entries": {"a": 1}}).encode(),
        "no operator": json.dumps({"method": latency_table._METHOD, "entries": [{"ms": 1.0}]}).encode(),
        "no time": table(ms=None),
        "a text for a time": table(ms="1.0"),
        "not a number": table(ms=float("nan")),
        "below zero": table(ms=-1.0),
        "a huge time": table(ms=10**400),
        "another field": table(operator={"kind": "linear", "colour": "red"}),
        "another kind of operator": table(operator={"kind": "fold"}),
        "a text for a width": table(operator={"kind": "linear", "inputs": "3"}),
        "no steps": table(operator={"kind": "conv", "size": [8], "kernel": [3], "stride": [0], "padding": [0, 0],
                                    "dilation": [1]}),
    }  # fmt: skip


@pytest.mark.parametrize("content", _damaged().values(), ids=_damaged())
def test_a_damaged_file_is_made_anew(tmp_path: Path, timed: list[Operator], content: bytes) -> None:
    """Whatever is in the file: one warning that names it, the times are measured, and the next run reads them."""
    path = _table(tmp_path).path
    path.write_bytes(content)
    with pytest.warns(CacheWarning, match=re.escape(str(path))) as caught:
        assert _table(tmp_path).milliseconds([linear(3, 4, 1)]) == [3]
    assert len(caught) == 1
    assert _table(tmp_path).milliseconds([linear(3, 4, 1)]) == [3]
    assert len(timed) == 1


def test_what_is_no_file_is_not_read(tmp_path: Path, timed: list[Operator]) -> None:
    """A pipe, a link to a device and a huge file are not opened; a folder is left where it is."""
    path = _table(tmp_path).path
    os.mkfifo(path)
    with pytest.warns(CacheWarning, match="no regular file"):
        assert _table(tmp_path).milliseconds([linear(3, 4, 1)]) == [3]
    for number, stands in enumerate(("device", "huge", "folder")):
        path = _table(tmp_path / stands).path
        path.parent.mkdir()
        if stands == "device":
            path.symlink_to("/dev/zero")
        elif stands == "huge":
            with path.open("wb") as file:
                file.truncate(10**12)
        else:
            path.mkdir()
        with pytest.warns(CacheWarning, match=re.escape(str(path))):
            assert _table(tmp_path / stands).milliseconds([linear(5, 4, 1)]) == [5]
        assert len(timed) == number + 2


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, timed: list[Operator]) -> None:
    """The times of this run are used, and a warning says that the next one measures them again."""
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.warns(CacheWarning, match=r"cannot be kept for the next run.*set COMPRESSOR_CACHE"):
            assert _table(folder).milliseconds([linear(3, 4, 1)]) == [3]


def test_a_lock_that_nobody_gives_back_stops_nothing(
    tmp_path: Path, timed: list[Operator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that hangs with the lock in its hand costs the cache, not the run."""
    monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.05)
    with FileLock(f"{_table(tmp_path).path}.lock"), pytest.warns(CacheWarning, match=r"its lock was held for 0\.05 s"):
        assert _table(tmp_path).milliseconds([linear(3, 4, 1)]) == [3]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """COMPRESSOR_CACHE decides, else the user's cache folder."""
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("COMPRESSOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "compressor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder().is_relative_to(tempfile.gettempdir())


def test_one_model_shares_the_cache() -> None:
    """Linear layers on few rows know how large the model is; small models, many rows and convolutions do not care."""
    few, many = linear(1024, 1024, 1), linear(1024, 1024, 64)
    assert weight_bytes(few) == 4 * 1024 * 1024
    assert in_one_model([linear(256, 256, 1)]) == (linear(256, 256, 1),)
    marked = in_one_model([few, many, conv(8, 8, (4, 4), kernel=(3, 3))])
    assert [operator.footprint for operator in marked] == [8192, 0, 0]
    # The same model in 8 bits has a quarter of the weights: 2 MiB.
    assert [operator.footprint for operator in in_one_model([few, many], "int8")] == [2048, 0]


def test_larger_operators_take_longer() -> None:
    """Real times are positive, and sixteen times the work takes at least twice as long."""
    pairs = [
        (conv(16, 16, (8, 8), kernel=(3, 3)), conv(64, 64, (8, 8), kernel=(3, 3))),
        (linear(64, 64, 16), linear(256, 256, 16)),
        (recurrent("lstm", 32, 32, 8), recurrent("lstm", 128, 128, 8)),
        (light("Relu", 4096), light("Relu", 65536)),
    ]
    for small, large in pairs:
        times = [time_operator(runnable(operator, "float32"), Target()) for operator in (small, large)]
        assert 0 < 2 * times[0] < times[1], (small, times)


def test_the_call_itself_has_a_time() -> None:
    """Calling a model that does nothing takes between a microsecond and a millisecond."""
    assert 1e-3 < time_operator(runnable(light("Call", 1), "float32"), Target()) < 1


def test_what_onnx_runtime_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that ONNX Runtime refuses is named in the error."""
    monkeypatch.setattr(latency_table, "operator_graph", lambda *_, **__: OperatorGraph(b"no model", {}, optimize=True))
    with pytest.raises(ValueError, match=r'no time for {"kind": "linear", "inputs": 4, "outputs": 4'):
        time_operator(runnable(linear(4, 4, 1), "float32"), Target())
