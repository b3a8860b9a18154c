"""What is loaded is what was signed: the bytes that were checked, and no others."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

from compressor import load_checkpoint, sessions
from compressor.cli.app import app
from compressor.errors import StorageError, TrustError, WrongUseError
from compressor.structure.checkpoint import save_checkpoint
from compressor.trust import loading
from compressor.trust.encryption import encrypt
from compressor.trust.keys import read_private, read_public
from compressor.trust.loading import open_encrypted, open_signed, read_signed, signed_files
from compressor.trust.signing import sign_folder

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")


def model(*, outside: str = "") -> bytes:
    """A file that adds one; with `outside`, the number is kept in a file of that name."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    if outside:
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        one.external_data.add(key="location", value=outside)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], initializer=[one])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return made.SerializeToString()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.fixture
def shipped(tmp_path, keys) -> Path:
    """A folder with a model and a checkpoint, signed."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model())
    save_checkpoint(folder, small(), [])
    sign_folder(folder, read_private(keys / "release"), name="adder", anew=True)
    return folder


def test_a_session_on_a_signed_model(shipped, keys) -> None:
    """By folder and by file; it computes what the model does."""
    for path in (shipped, shipped / "model.onnx", str(shipped)):
        session = open_signed(path, key=keys / "release.pub", name="adder", least_release=1)
        assert session.run(None, {"x": np.float32([1, 2])})[0].tolist() == [2, 3]


@pytest.mark.parametrize("load", ["session", "checkpoint"])
def test_nothing_is_loaded_of_what_was_not_signed(shipped, keys, load, monkeypatch) -> None:
    """Changed bytes, another key, another name, an older release, no signature: refused before anything is opened."""
    monkeypatch.setattr(sessions, "open_session", lambda *_, **__: pytest.fail("a session was opened"))

    def attempt(key="release.pub"):
        if load == "session":
            return open_signed(shipped, key=keys / key)
        return load_checkpoint(shipped, lambda: pytest.fail("a model was made"), require_signature=keys / key)

    with pytest.raises(TrustError, match="not trusted"):
        attempt("other.pub")
    with pytest.raises(TrustError, match="and 'another' is wanted"):
        open_signed(shipped, key=keys / "release.pub", name="another")
    with pytest.raises(TrustError, match="at least 2 is wanted"):
        open_signed(shipped, key=keys / "release.pub", least_release=2)
    for name in ("model.onnx", "weights.safetensors"):
        raw = (shipped / name).read_bytes()
        (shipped / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(TrustError, match="was changed: it is not the file that was signed"):
        attempt()
    (shipped / "signature.json").unlink()
    with pytest.raises(TrustError, match="is not signed"):
        attempt()
    (shipped / "manifest.json").unlink()
    with pytest.raises(TrustError, match=r"has no manifest\.json"):
        attempt()
    with pytest.raises(WrongUseError, match="there is no key"):
        attempt("none.pub")


def test_a_checkpoint_whose_signature_holds(shipped, keys) -> None:
    """The same weights as without, by a key or several; a plan that came from elsewhere is refused."""
    given = [keys / "other.pub", keys / "release.pub"]
    loaded = load_checkpoint(shipped, small, require_signature=given)
    assert torch.equal(loaded.weight, small().weight)
    (shipped / "plan.json").write_text("[] \n")
    with pytest.raises(TrustError, match="was changed"):
        load_checkpoint(shipped, small, require_signature=given)
    with pytest.raises(StorageError, match="is not the plan"):
        load_checkpoint(shipped, small)


def test_what_was_checked_is_what_is_used(shipped, keys, monkeypatch) -> None:
    """Files that change after they were read do not matter: nothing is read a second time."""
    read = loading.content_of

    def read_and_replace(folder, name, **limits):
        content = read(folder, name, **limits)
        (folder / name).write_bytes(b"theirs")
        return content

    monkeypatch.setattr(loading, "content_of", read_and_replace)
    assert open_signed(shipped, key=keys / "release.pub").run(None, {"x": np.float32([1])})[0].tolist() == [2]
    assert torch.equal(load_checkpoint(shipped, small, require_signature=keys / "release.pub").bias, small().bias)


@pytest.mark.parametrize("place", ["a weight", "an attribute", "a branch", "a function"])
def test_a_model_that_names_other_files_is_refused(shipped, keys, place) -> None:
    """Though it is signed: the runtime would open what nobody checked. Wherever in the file it is named."""
    proto = onnx.load_from_string(model(outside="/etc/passwd" if place == "a weight" else ""))
    tensor = onnx.load_from_string(model(outside="../w")).graph.initializer[0]
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "an attribute":
        proto.graph.node.append(constant)
    if place == "a branch":
        out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
        branch = helper.make_graph([constant], "b", [], [out])
        proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    if place == "a function":
        opset = [helper.make_opsetid("", 18)]
        proto.functions.append(helper.make_function("mine", "f", [], ["c"], [constant], opset))
    (shipped / "model.onnx").write_bytes(proto.SerializeToString())
    sign_folder(shipped, read_private(keys / "release"), anew=True)
    with pytest.raises(TrustError, match="keeps weights in other files"):
        open_signed(shipped, key=keys / "release.pub")


def test_what_is_no_model_or_no_listed_file_is_refused(shipped, keys) -> None:
    """A signed text file, a file that came along, a name that leads out, a link."""
    (shipped / "model.onnx").write_bytes(b"\x00text")
    sign_folder(shipped, read_private(keys / "release"), anew=True)
    with pytest.raises(TrustError, match="holds no ONNX file"):
        open_signed(shipped, key=keys / "release.pub")
    (shipped / "extra").write_text("")
    with pytest.raises(TrustError, match="extra is not listed"):
        read_signed(shipped / "extra", key=keys / "release.pub")
    with pytest.raises(TrustError, match="is not listed"):
        signed_files(shipped, ["../shipped/model.onnx"], key=keys / "release.pub")
    (shipped / "model.onnx").rename(shipped.parent / "elsewhere")
    (shipped / "model.onnx").symlink_to(shipped.parent / "elsewhere")
    with pytest.raises(TrustError, match="links are not followed"):
        read_signed(shipped, key=keys / "release.pub")


def test_a_file_that_is_signed_is_decrypted_in_one_reading(tmp_path, keys) -> None:
    """Another file of the same recipient, another signer, and an older release leave nothing; the release is noted."""
    place, store, out = tmp_path / "shipped", tmp_path / "trust.json", tmp_path / "out"
    place.mkdir()
    plain = os.urandom(3 << 20)
    for name in ("model", "other"):
        (tmp_path / name).write_bytes(plain if name == "model" else b"other")
        encrypt(tmp_path / name, place / name, to=[read_public(keys / "box.pub")])
    (place / "other").rename(tmp_path / "other")
    sign_folder(place, read_private(keys / "release"), name="m", anew=True)

    def decrypted(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(
            app, ["decrypt", str(place / "model"), "--key", str(keys / "box"), "--out", str(out), *map(str, words)]
        )
        return done.exit_code, done.stderr

    call = CliRunner().invoke(app, ["trust", "add", str(keys / "release.pub"), "--store", str(store)])
    assert call.exit_code == 0
    for words, says in {
        ("--signed-by", keys / "other.pub"): "which is not trusted",
        ("--signed-by", store, "--name", "n"): "and 'n' is wanted",
        ("--signed-by", store, "--least-release", 2): "at least 2 is wanted",
    }.items():
        code, told = decrypted(*words)
        assert (code, says in told, out.exists()) == (4, True, False), told
    assert decrypted("--name", "m")[0] == 2
    code, told = decrypted("--signed-by", store)
    assert (code, out.read_bytes() == plain) == (0, True), told
    assert json.loads(store.read_text())["seen"]["m"][0] == 1
    out.unlink()
    (tmp_path / "other").replace(place / "model")
    code, told = decrypted("--signed-by", store)
    assert (code, "it is not the file that was signed" in told, out.exists()) == (4, True, False)
    assert decrypted()[0] == 0


def test_what_names_no_file_or_opens_nothing_is_told(shipped, keys) -> None:
    """A passphrase that was given as text is taken for a path, and is not repeated; paths are text or paths."""
    public = keys / "release.pub"
    with pytest.raises(WrongUseError, match="give the path of a private key, or a passphrase as bytes") as told:
        open_encrypted(shipped / "model.onnx", secret="correct horse battery")  # noqa: S106 - that it is none
    assert "horse" not in str(told.value)
    for opened in (lambda: open_signed(None, key=public), lambda: open_encrypted(5, secret=keys / "box")):
        with pytest.raises(WrongUseError, match="is named by its path, got"):
            opened()
    with pytest.raises(WrongUseError, match="least_release is a whole number, got '1'"):
        open_signed(shipped, key=public, least_release="1")


def test_a_trust_store_keeps_loaders_from_going_back(shipped, keys, tmp_path) -> None:
    """The loader notes what it loaded; the release before is refused from then on."""
    store = tmp_path / "trust.json"
    CliRunner().invoke(app, ["trust", "add", str(keys / "release.pub"), "--store", str(store)])
    newer = Path(shutil.copytree(shipped, tmp_path / "newer"))
    (newer / "notes").write_text("better")
    sign_folder(newer, read_private(keys / "release"), replaces=shipped, anew=True)
    read_signed(shipped, key=store)
    read_signed(newer, key=store)
    assert json.loads(store.read_text())["seen"]["adder"][0] == 2
    with pytest.raises(TrustError, match="release 2 was accepted"):
        load_checkpoint(shipped, small, require_signature=store)


def test_a_session_straight_from_an_encrypted_file(tmp_path, keys) -> None:
    """Nothing of it is on the disk; with a key, the encrypted file must be signed as well."""
    place = tmp_path / "shipped"
    place.mkdir()
    (tmp_path / "model.onnx").write_bytes(model())
    encrypt(tmp_path / "model.onnx", place / "model.onnx", to=[read_public(keys / "box.pub")])
    (tmp_path / "model.onnx").unlink()
    path = place / "model.onnx"
    session = open_encrypted(path, secret=keys / "box")
    assert session.run(None, {"x": np.float32([1])})[0].tolist() == [2]
    with pytest.raises(TrustError, match=r"has a manifest\.json"):
        open_encrypted(path, secret=keys / "box", key=keys / "release.pub")
    sign_folder(place, read_private(keys / "release"), anew=True)
    assert open_encrypted(path, secret=read_private(keys / "box"), key=keys / "release.pub") is not None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrustError, match="it is not the file that was signed"):
        open_encrypted(path, secret=keys / "box", key=keys / "release.pub")
    with pytest.raises(TrustError, match="cut off"):
        open_encrypted(path, secret=keys / "box")
    with pytest.raises(TrustError, match="is encrypted for keys"):
        open_encrypted(path, secret=b"five words drawn at random")
    assert sorted(item.name for item in place.iterdir()) == ["manifest.json", "model.onnx", "signature.json"]
