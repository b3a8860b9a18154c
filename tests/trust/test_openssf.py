"""What model-signing signed verifies here, and what is signed here verifies there."""

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.errors import TrustError
from compressor.trust.keys import read_private
from compressor.trust.manifest import MANIFEST, OPENSSF, SIGNATURE
from compressor.trust.openssf import read_bundle
from compressor.trust.signing import bundle_by, sign_folder
from compressor.trust.trusted import Seen, TrustStore
from compressor.trust.verification import check
from workbench import ROOT

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")

HERE = Path(__file__).parent
# `model_signing sign key` 1.1.1 made it, of three files, with a key that was thrown away.
THEIRS, THEIR_KEY = HERE / "made_by_model_signing", HERE / "made_by_model_signing.pub"
TOOL = ROOT / ".venv-trust/bin/model_signing"


def call(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def theirs(tmp_path) -> Path:
    return Path(shutil.copytree(THEIRS, tmp_path / "theirs"))


@pytest.fixture
def ours(made, keys) -> Path:
    sign_folder(made, read_private(keys / "nist"), name="digits", openssf=True)
    return made


def test_a_folder_that_model_signing_signed_verifies(theirs, keys) -> None:
    """By its key, without a manifest; another key's and none are refused."""
    assert call("verify", theirs, "--key", THEIR_KEY)[0] == 0
    told = json.loads(call("verify", theirs, "--key", THEIR_KEY, "--json")[1])
    assert (told["verified"], told["signature"]["format"]) == (True, "model-signing")
    code, _, err = call("verify", theirs, "--key", keys / "nist.pub")
    assert code == 4
    assert "by none of the keys that are trusted" in err
    assert call("verify", theirs, "--key", THEIR_KEY, "--name", "m")[0] == 4
    assert call("verify", theirs)[0] == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda place: (place / "f1").write_text("A\n"), "f1 was changed"),
        (lambda place: (place / "d/f2").unlink(), "d/f2 is missing"),
        (lambda place: (place / "d/f3").write_text(""), "d/f3 is not listed"),
        (lambda place: (place / "x").symlink_to("f1"), "x is a link"),
    ],
)
def test_what_differs_from_it_is_refused(theirs, change, says) -> None:
    """As from a manifest."""
    change(theirs)
    with pytest.raises(TrustError, match=says):
        bundle_by(theirs, THEIR_KEY)


def envelope(change):
    def edit(value):
        payload = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
        change(payload)
        value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    return edit


EDITS = {
    "another digest": envelope(lambda said: said["predicate"]["resources"][0].update(digest="0" * 64)),
    "a name that leads out": envelope(lambda said: said["predicate"]["resources"][0].update(name="../f1")),
    "a name of another file": envelope(lambda said: said["predicate"]["resources"][0].update(name="f2")),
    "another predicate": envelope(lambda said: said.update(predicateType="https://example.org")),
    "shards": envelope(lambda said: said["predicate"]["serialization"].update(method="shards")),
    "more passed over": envelope(lambda said: said["predicate"]["serialization"].update(ignore_paths=["f1"])),
    "another media type": lambda value: value.update(mediaType="x"),
    "an identity": lambda value: value.update(verificationMaterial={"certificate": {}}),
    "another hint": lambda value: value["verificationMaterial"]["publicKey"].update(hint="0" * 64),
    "no signature": lambda value: value["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda value: value["dsseEnvelope"].update(signatures=value["dsseEnvelope"]["signatures"] * 2),
    "another signature": lambda value: value["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
    "no base64": lambda value: value["dsseEnvelope"]["signatures"][0].update(sig="A A"),
    "no envelope": lambda value: value.pop("dsseEnvelope"),
    "numbers": lambda value: value["dsseEnvelope"].update(payload=7),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_bundle_is_refused(theirs, edit) -> None:
    """Every part of it that counts."""
    value = json.loads((theirs / OPENSSF).read_bytes())
    EDITS[edit](value)
    (theirs / OPENSSF).write_text(json.dumps(value))
    with pytest.raises(TrustError):
        bundle_by(theirs, THEIR_KEY)


def test_a_second_spelling_of_a_bundle_is_refused(theirs) -> None:
    """A name given twice, of which readers take either; base64 with bits that say nothing: one content, other bytes."""
    raw = (theirs / OPENSSF).read_text()
    said = json.loads(raw)["dsseEnvelope"]
    spelt = next(text for text in (said["payload"], said["signatures"][0]["sig"]) if text.endswith("="))
    bare = spelt.rstrip("=")
    other = f"{bare[:-1]}{chr(ord(bare[-1]) + 1)}{spelt[len(bare) :]}"
    assert base64.b64decode(other) == base64.b64decode(spelt)
    for text, says in ((raw.replace("{", '{"mediaType": "x", ', 1), "twice"), (raw.replace(spelt, other), "second")):
        (theirs / OPENSSF).write_text(text)
        with pytest.raises(TrustError, match=says):
            bundle_by(theirs, THEIR_KEY)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"7", b'{"a": 1, "a": 1}', b"\xff", b"[" * 100_000, b'{"mediaType": null}']
)
def test_what_is_no_bundle_is_refused(raw) -> None:
    """With a typed error, whatever it is."""
    with pytest.raises(TrustError, match="it is no signature of model-signing"):
        read_bundle(raw, what="it")


def test_both_signatures_beside_each_other(ours, keys) -> None:
    """The manifest is among what model.sig covers; each verifies alone, and a stale one is told."""
    assert check(ours).holds
    bundle = read_bundle((ours / OPENSSF).read_bytes(), what="it")
    assert sorted(bundle.files) == ["a-b", MANIFEST, "model.onnx", "stages/01-a/plan.json"]
    assert call("verify", ours, "--key", keys / "nist.pub")[0] == 0
    assert call("verify", ours, "--key", keys / "release.pub")[0] == 4
    (ours / SIGNATURE).unlink()
    assert call("verify", ours)[0] == 0
    sign_folder(ours, read_private(keys / "release"), anew=True)
    assert [str(problem) for problem in check(ours).problems] == [f"{OPENSSF} signs something else than what is there"]
    (ours / OPENSSF).write_bytes(b"anything")
    (problem,) = check(ours).problems
    assert "is no signature of model-signing" in problem.says


def test_a_key_of_another_kind_cannot(made, keys) -> None:
    """model-signing knows elliptic curves of NIST; nothing is written."""
    code, _, err = call("sign", made, "--key", keys / "release", "--openssf")
    assert code == 2
    assert "make one: --kind p256" in err
    assert not (made / SIGNATURE).exists()


@pytest.mark.skipif(not TOOL.exists(), reason="model-signing is in an environment of its own: make .venv-trust")
def test_the_other_tool_agrees(ours, keys, tmp_path) -> None:
    """`model_signing verify` takes our file and refuses a changed folder; we take what it signs today."""

    def theirs(*words) -> int:
        return subprocess.run([TOOL, *map(str, words)], capture_output=True).returncode

    verify = ("verify", "key", ours, "--signature", ours / OPENSSF, "--public_key")
    assert theirs(*verify, keys / "nist.pub") == 0
    (ours / "model.onnx").write_bytes(b"mOdel")
    assert theirs(*verify, keys / "nist.pub") != 0
    (ours / "model.onnx").write_bytes(b"model")
    bare = Path(shutil.copytree(ours / "stages", tmp_path / "bare"))
    assert theirs("sign", "key", bare, "--signature", bare / OPENSSF, "--private_key", keys / "nist") == 0
    assert bundle_by(bare, keys / "nist.pub").statement is None


def test_taking_the_signature_away_brings_nothing_back(made, keys, tmp_path) -> None:
    """model.sig names no release and no end: it does not stand in for the signature.json that it was made beside."""
    store = tmp_path / "trust.json"
    call("trust", "add", keys / "nist.pub", "--store", store)
    sign_folder(made, read_private(keys / "nist"), name="digits", openssf=True)
    old = Path(shutil.copytree(made, tmp_path / "old"))
    (made / "notes").write_text("better")
    sign_folder(made, read_private(keys / "nist"), replaces=old, anew=True, openssf=True)
    assert call("verify", made, "--trust", store)[0] == 0
    assert call("verify", old, "--trust", store)[0] == 4
    (old / SIGNATURE).unlink()
    code, _, err = call("verify", old, "--trust", store)
    assert code == 4
    assert "which says which release it is and is gone" in err
    (old / SIGNATURE).symlink_to("nowhere")
    (old / MANIFEST).unlink()
    assert call("verify", old, "--trust", store)[0] == 4


def test_a_bundle_of_a_name_that_was_accepted_as_a_release_is_refused(theirs, tmp_path) -> None:
    """It may be an older one; of a name that nobody saw it counts."""
    store = tmp_path / "trust.json"
    call("trust", "add", THEIR_KEY, "--store", store)
    bundle = read_bundle((theirs / OPENSSF).read_bytes(), what="it")
    found = TrustStore.read(store)
    assert bundle_by(theirs, found).statement is None
    replace(found, seen={bundle.name: Seen(2, "0" * 64)}).write(store)
    with pytest.raises(TrustError, match="names no release, so it may be an older one"):
        bundle_by(theirs, store)
