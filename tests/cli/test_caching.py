"""`compressor cache`: what the store holds, whether it is whole, and how it is cleaned."""

import json

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.store.kept import Store

KEYS = [f"{number:064x}" for number in (1, 2)]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("COMPRESSOR_STORE", str(tmp_path / "stages"))
    store = Store(tmp_path / "stages")
    for key, stage in zip(KEYS, ("distill", "quantize"), strict=True):
        store.put(key, stage=stage, seconds=12.5, facts={}, contents={"model.onnx": b"m" * 2_000_000})
    return store


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["cache", *words])
    return result.exit_code, result.stdout, result.stderr


def test_list_and_size(store) -> None:
    """Every stage with size, seconds and last use, then the sum; the same as JSON."""
    code, out, _ = call()
    assert code == 0
    assert "distill" in out
    assert "12.5 s" in out
    assert out.endswith(f"2 stages, 3.8 MiB, in {store.folder}\n")
    found = json.loads(call("list", "--json")[1])
    assert {stage["key"]: stage["stage"] for stage in found["stages"]} == dict(
        zip(KEYS, ("distill", "quantize"), strict=True)
    )
    assert call("size")[1] == f"2 stages, 3.8 MiB of at most 20.0 GiB, in {store.folder}\n"
    assert json.loads(call("size", "--json")[1])["bytes"] == store.size_bytes()


def test_verify_exits_with_one_where_something_was_damaged(store) -> None:
    """The damaged stage is named and gone; a second check finds nothing."""
    path = store.folder / KEYS[0][:2] / KEYS[0] / "model.onnx"
    path.write_bytes(b"n" + path.read_bytes()[1:])
    code, out, err = call("verify")
    assert (code, out) == (1, "1 stage is as it was written\n")
    assert err == f"removed: {path} is not the file that was written\n"
    assert json.loads(call("verify", "--json")[1]) == {"stages": 1, "damaged": []}


def test_clean(store) -> None:
    """By size, by age, or everything; what went is said."""
    assert call("clean", "--days", "1")[1] == "removed 0 stages, 0.0 MiB\n"
    assert call("clean", "--gib", "inf")[1] == "removed 0 stages, 0.0 MiB\n"
    assert call("clean", "--gib", "0.002")[1] == "removed 1 stage, 1.9 MiB\n"
    assert call("clean", "--all")[1] == "removed 1 stage, 1.9 MiB\n"
    assert store.entries() == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("list", "--all"), "give clean"),
        (("clean", "--all", "--days", "3"), "give one of both"),
        (("size", "--folder", "{theirs}"), "holds other things"),
    ],
)
def test_what_is_refused(store, tmp_path, words, told) -> None:
    """Options without their action, both at once, and a folder of others: a sentence and no removal."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("x")
    code, _, err = call(*(word.format(theirs=tmp_path / "theirs") for word in words))
    assert code in {1, 2}
    assert told in err
    assert len(store.entries()) == 2


def test_a_store_that_is_off(monkeypatch) -> None:
    """Where there is none, that is said."""
    monkeypatch.setenv("COMPRESSOR_STORE", "off")
    assert "COMPRESSOR_STORE is off" in call()[2]
