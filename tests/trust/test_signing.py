"""A signature counts for one manifest, by a trusted key, while it and the key last, and for no older release."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.errors import TrustError, WrongUseError
from compressor.storage import sha256, temporary_name, write_sealed
from compressor.trust import trusted as trusted_stores
from compressor.trust.canonical import canonical
from compressor.trust.keys import read_private, read_public
from compressor.trust.manifest import MANIFEST, SIGNATURE, Manifest, described, read_manifest, write_manifest
from compressor.trust.signing import sign_folder, signed_by
from compressor.trust.statements import Statement, sign, signature_file
from compressor.trust.trusted import Seen, TrustStore, changing, trusted
from compressor.trust.verification import check, signatures_in

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def call(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def counted(folder: Path, given, **wanted):
    return signed_by(folder, read_manifest(folder), given, **wanted)


@pytest.mark.parametrize("name", ["release", "nist"])
def test_a_signed_folder_verifies_by_its_key(made, keys, name) -> None:
    """Both kinds; the words and the JSON say who signed what as which release."""
    code, out, _ = call("sign", made, "--key", keys / name, "--name", "digits", "--release", 3)
    key_id = read_public(keys / f"{name}.pub").key_id
    assert (code, out) == (0, f"{made}: signed as release 3 of digits by the key {key_id[:16]}\n")
    code, out, _ = call("verify", made, "--key", keys / f"{name}.pub", "--name", "digits", "--least-release", 3)
    assert (code, out) == (
        0,
        f"{made}: 3 files are as listed (8 bytes); signed by {key_id[:16]} as release 3 of digits\n",
    )
    told = json.loads(call("verify", made / "model.onnx", "--key", keys / f"{name}.pub", "--json")[1])
    assert (told["signature"]["key_id"], told["signature"]["release"]) == (key_id, 3)


def test_other_keys_do_not_count(signed, keys) -> None:
    """Nor the private half, a key for encryption, or a file that is none; of several keys one is enough."""
    code, _, err = call("verify", signed, "--key", keys / "other.pub")
    assert code == 4
    assert "which is not trusted, made a signature" in err
    assert call("verify", signed, "--key", keys / "release")[0] == 2
    assert call("verify", signed, "--key", keys / "box.pub")[0] == 2
    assert call("verify", signed, "--key", signed / "a-b")[0] == 2
    assert call("verify", signed, "--key", keys / "other.pub", "--key", keys / "release.pub")[0] == 0
    with pytest.raises(WrongUseError, match="no key is given"):
        counted(signed, [])


def test_an_unsigned_folder_does_not_verify_by_a_key(made, keys) -> None:
    """Though all its files are as listed."""
    code, out, err = call("verify", made, "--key", keys / "release.pub")
    assert (code, out) == (4, "")
    assert "is not signed" in err


def forged(folder: Path, change) -> None:
    """A signature file with one thing changed, and with a digest of itself that fits."""
    value = json.loads((folder / SIGNATURE).read_bytes())
    del value["sha256"]
    change(value["signatures"][0])
    (folder / SIGNATURE).write_bytes(canonical({**value, "sha256": sha256(canonical(value))}))


def stated(**changes):
    return lambda entry: entry["statement"].update(changes)


FORGERIES = {
    "a later release": stated(release=9),
    "another name": stated(name="others"),
    "no end": stated(expires="2099-01-01T00:00:00Z"),
    "another line": stated(replaces="0" * 64),
    "another manifest": stated(manifest_sha256="0" * 64),
    "another kind": stated(kind="p256"),
    "another version": stated(version=2),
    "a version that is true": stated(version=True),
    "a release that is true": stated(release=True),
    "a time with a fraction": stated(signed="2026-11-28T00:00:00.5Z"),
    "an entry more": stated(trusted=True),
    "another signature": lambda entry: entry.update(signature="00" * 64),
    "no signature": lambda entry: entry.update(signature=""),
    "a signature in capitals": lambda entry: entry.update(signature=entry["signature"].upper()),
    "a signature that is longer": lambda entry: entry.update(signature=entry["signature"] + "00"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_edited_statement_or_signature_is_refused(signed, keys, forgery) -> None:
    """Whoever edits it can make its digest of itself fit, and not the signature."""
    forged(signed, FORGERIES[forgery])
    with pytest.raises(TrustError):
        counted(signed, keys / "release.pub")
    assert call("verify", signed, "--key", keys / "release.pub")[0] == 4


def test_changed_files_with_a_manifest_to_fit_are_refused(signed, keys) -> None:
    """The manifest is another one then, which nobody signed; verification without a key sees that, too."""
    (signed / "model.onnx").write_bytes(b"theirs")
    write_manifest(signed, Manifest(files=described(signed)))
    with pytest.raises(TrustError, match="for another manifest"):
        counted(signed, keys / "release.pub")
    assert [str(problem) for problem in check(signed).problems] == [
        f"{SIGNATURE} signs something else than what is there"
    ]


def test_a_signature_over_something_else_is_none_over_a_statement(signed, keys) -> None:
    """What is signed begins with the name of its kind: the same JSON signed as such does not count."""
    key = read_private(keys / "release")
    statement = counted(signed, keys / "release.pub").statement
    bare = key.loaded.sign(canonical(statement.to_json()))
    (signed / SIGNATURE).write_bytes(signature_file({statement.key_id: (statement, bare)}))
    with pytest.raises(TrustError, match="it is forged or damaged"):
        counted(signed, keys / "release.pub")


def test_ends_are_kept(made, keys) -> None:
    """Of the signature, of the key, and the beginning, by the clock of whoever looks."""
    sign_folder(made, read_private(keys / "release"), days=10, now=NOW)
    public = read_public(keys / "release.pub")
    assert counted(made, public, now=NOW + timedelta(days=10)).statement.release == 1
    with pytest.raises(TrustError, match="expired at 2026-12-08T12:00:00Z"):
        counted(made, public, now=NOW + timedelta(days=10, seconds=1))
    with pytest.raises(TrustError, match="is yet to come; look at this machine"):
        counted(made, public, now=NOW - timedelta(days=2))
    store = made.parent / "trust.json"
    assert call("trust", "add", keys / "release.pub", "--store", store, "--days", 1, "--name", "CI")[0] == 0
    with pytest.raises(TrustError, match="the key CI was trusted until"):
        counted(made, store, now=datetime.now(UTC) + timedelta(days=2))


def test_a_moment_is_a_second_at_least(made, keys) -> None:
    """Times are told in whole seconds, and an end that is no later than the beginning could not be read again."""
    sign_folder(made, read_private(keys / "release"), days=1e-9, now=NOW)
    assert counted(made, keys / "release.pub", now=NOW).statement.expires == NOW + timedelta(seconds=1)


def test_a_store_that_cannot_be_changed_says_so(signed, keys, tmp_path, monkeypatch) -> None:
    """Held by a process that hangs, or where nothing can be put beside it: what to do is said, and nothing is noted."""
    store = tmp_path / "trust.json"
    assert call("trust", "add", keys / "release.pub", "--store", store)[0] == 0
    monkeypatch.setattr(trusted_stores, "_WAIT_SECONDS", 0.05)
    with changing(store):
        code, _, err = call("verify", signed, "--trust", store)
    assert code == 1
    assert "another process holds it" in err
    (tmp_path / ".trust.json.lock").unlink(missing_ok=True)
    (tmp_path / ".trust.json.lock").mkdir()
    code, _, err = call("verify", signed, "--trust", store)
    assert code == 1
    assert "to note nothing, give --read-only" in err
    assert call("verify", signed, "--trust", store, "--read-only")[0] == 0
    assert TrustStore.read(store).seen == {}
    assert call("trust", "add", keys / "release.pub", "--store", ".")[0] == 1
    code, _, err = call("trust", "add", keys / "release.pub", "--store", tmp_path / "new", "--name", "a\x1b[31m")
    assert code == 2
    assert not (tmp_path / "new").exists()


def test_a_key_is_revoked_for_good(signed, keys, tmp_path) -> None:
    """By the beginning of its id; its signatures count no more, and adding it again is refused."""
    store = tmp_path / "trust.json"
    key_id = read_public(keys / "release.pub").key_id
    call("trust", "add", keys / "release.pub", "--store", store, "--name", "CI")
    assert call("verify", signed, "--trust", store)[0] == 0
    code, out, _ = call("trust", "revoke", key_id[:6], "--store", store)
    assert (code, out) == (
        0,
        f"{key_id[:16]}  ed25519  CI, revoked\nseen: release 2 of digits\n",
    )
    code, _, err = call("verify", signed, "--trust", store)
    assert code == 4
    assert "the key CI was revoked" in err
    assert call("trust", "add", keys / "release.pub", "--store", store)[0] == 2
    assert call("trust", "revoke", "ffff", "--store", store)[0] == 2
    assert call("trust", "add", keys / "box.pub", "--store", store)[0] == 2


def test_no_older_release_is_taken_once_a_newer_was_accepted(signed, copied, keys, tmp_path) -> None:
    """Nor another one of the same number, nor one that replaces another line; a gap is none of anybody's harm."""
    key, store = read_private(keys / "release"), tmp_path / "trust.json"
    call("trust", "add", keys / "release.pub", "--store", store)
    old, twin, next_, far, stray = map(copied, ("old", "twin", "next", "far", "stray"))
    for folder in (twin, next_, far, stray):
        (folder / "model.onnx").write_bytes(folder.name.encode())
    sign_folder(twin, key, name="digits", release=2, anew=True)
    sign_folder(next_, key, replaces=signed, anew=True)
    sign_folder(stray, key, replaces=twin, anew=True)
    sign_folder(far, key, name="digits", release=9, anew=True)
    assert call("verify", signed, "--trust", store)[0] == 0
    for folder, says in ((twin, "another release 2"), (stray, "replaces another release 2")):
        code, _, err = call("verify", folder, "--trust", store)
        assert code == 4
        assert says in err
    assert call("verify", next_, "--trust", store, "--read-only")[0] == 0
    assert call("verify", old, "--trust", store)[0] == 0  # nothing was noted
    assert call("verify", next_, "--trust", store)[0] == 0
    code, _, err = call("verify", old, "--trust", store)
    assert code == 4
    assert "release 2 of 'digits', and release 3 was accepted before" in err
    assert call("verify", far, "--trust", store)[0] == 0
    assert TrustStore.read(store).seen == {"digits": Seen(9, read_manifest(far).digest)}


def test_files_that_differ_are_not_noted_as_accepted(signed, keys, tmp_path) -> None:
    """A signed manifest with a changed file is refused, and the store stays as it was."""
    store = tmp_path / "trust.json"
    call("trust", "add", keys / "release.pub", "--store", store)
    (signed / "model.onnx").write_bytes(b"mOdel")
    assert call("verify", signed, "--trust", store)[0] == 4
    assert TrustStore.read(store).seen == {}


def test_a_key_is_no_store_and_a_store_no_key(signed, keys, tmp_path) -> None:
    """A key in place of a store would count, and remember nothing; either is told by what it is."""
    store = tmp_path / "trust.json"
    call("trust", "add", keys / "release.pub", "--store", store)
    code, _, err = call("verify", signed, "--trust", keys / "release.pub")
    assert code == 2
    assert "is a key and no trust store; give it as one (--key)" in " ".join(err.split())
    for nothing in (None, [None], 5):
        with pytest.raises(WrongUseError, match="a key is a public key, the path of one, or a trust store; got"):
            trusted(nothing)
    code, _, err = call("verify", signed, "--key", store)
    assert code == 2
    assert f"give it as one: --trust {store}" in err
    assert call("verify", signed, "--trust", tmp_path / "none")[0] == 2


def test_an_edited_trust_store_is_refused(signed, keys, tmp_path) -> None:
    """A key brought in by a text editor is no key that was added."""
    store = tmp_path / "trust.json"
    call("trust", "add", keys / "other.pub", "--store", store)
    text = store.read_text()
    for before, after in (('"revoked": false', '"revoked": 0'), ('"name": ""', '"name": "CI"'), ("}", "")):
        store.write_text(text.replace(before, after, 1))
        code, _, err = call("verify", signed, "--trust", store)
        assert code == 4
        assert "trust.json" in err
    store.write_text(text)
    theirs = TrustStore.read(store).to_json()
    theirs["keys"][0]["public"] = read_public(keys / "release.pub").der.hex()
    write_sealed(store, theirs)
    with pytest.raises(TrustError, match="not the one that its id names"):
        trusted(store)


def test_two_keys_may_sign_one_folder(signed, keys) -> None:
    """Each counts by itself; a new signature of one takes the place of its own alone."""
    sign_folder(signed, read_private(keys / "nist"), name="digits", release=2)
    assert (
        counted(signed, keys / "release.pub").key.public.key_id != counted(signed, keys / "nist.pub").key.public.key_id
    )
    sign_folder(signed, read_private(keys / "nist"), name="digits", release=4)
    assert counted(signed, keys / "nist.pub").statement.release == 4
    assert counted(signed, keys / "release.pub").statement.release == 2


def test_what_may_not_be_signed(made, keys, tmp_path) -> None:
    """A folder that differs or has no manifest, a link, a file; by a key that decrypts, or a public one."""
    assert call("sign", made / "model.onnx", "--key", keys / "release")[0] == 2
    assert call("sign", made, "--key", keys / "box")[0] == 2
    assert call("sign", made, "--key", keys / "release.pub")[0] == 2
    (made / "extra").write_text("")
    code, _, err = call("sign", made, "--key", keys / "release")
    assert code == 4
    assert "extra is not listed" in err
    assert not (made / SIGNATURE).exists()
    assert call("sign", made, "--key", keys / "release", "--anew")[0] == 0
    assert check(made).holds
    (made / "link").symlink_to("extra")
    code, _, err = call("sign", made, "--key", keys / "release", "--anew")
    assert code == 4
    assert "link is a link" in err
    bare = Path(shutil.copytree(made / "stages", tmp_path / "bare"))
    assert call("sign", bare, "--key", keys / "release")[0] == 4
    assert call("sign", bare, "--key", keys / "release", "--anew")[0] == 0
    assert call("sign", bare, "--key", keys / "release", "--replaces", bare, "--release", 1)[0] == 2
    assert call("sign", bare, "--key", keys / "release", "--replaces", tmp_path / "none")[0] == 2
    assert call("sign", bare, "--key", keys / "release", "--release", 1 << 53)[0] == 2
    for name in ("", " ", "a\x1bb", "n" * 201):
        assert call("sign", bare, "--key", keys / "release", "--name", name)[0] == 2


def test_a_statement_says_what_it_was_made_with(keys) -> None:
    """To JSON and back, to the letter."""
    key = read_private(keys / "release")
    statement = Statement(
        manifest_sha256="0" * 64, key_id=key.public.key_id, kind=key.kind, name="n", release=1, signed=NOW
    )
    assert Statement.from_json(statement.to_json(), what="it") == statement
    assert len(sign(statement, key)) == 64


def test_a_folder_that_was_signed_goes_on(signed, keys) -> None:
    """A new manifest makes the old signature void, which says what to do; signing again mends it."""
    write_manifest(signed, Manifest(files=described(signed), made={"again": True}))
    code, _, err = call("verify", signed)
    assert code == 4
    assert "delete the signature, or sign what is there now" in err
    assert call("sign", signed, "--key", keys / "release")[0] == 0
    assert call("verify", signed, "--key", keys / "release.pub")[0] == 0
    assert (signed / MANIFEST).exists()


def test_a_release_does_not_replace_itself(signed, copied, keys) -> None:
    """Neither the folder nor a copy of it: the line of releases would go in a circle."""
    key = read_private(keys / "release")
    for folder in (signed, copied("same")):
        with pytest.raises(WrongUseError, match="name the folder of the release before it"):
            sign_folder(folder, key, replaces=signed)


def test_what_another_key_says_of_the_release_before_is_hearsay(signed, copied, keys) -> None:
    """Who can write there can add a signature of any number and name: the signer's own counts, or what is given."""
    key, folder = read_private(keys / "release"), copied("next")
    sign_folder(signed, read_private(keys / "other"), name="theirs", release=2**53 - 2)
    statement = sign_folder(folder, key, replaces=signed, anew=True)
    assert (statement.name, statement.release, statement.replaces) == ("digits", 3, read_manifest(signed).digest)
    nist = read_private(keys / "nist")
    with pytest.raises(WrongUseError, match=r"was not signed by the key .* give --name and --release"):
        sign_folder(folder, nist, replaces=signed, anew=True)
    with pytest.raises(WrongUseError, match="give --name and --release"):
        sign_folder(folder, nist, replaces=signed, release=3, anew=True)
    statement = sign_folder(folder, nist, replaces=signed, name="digits", release=3, anew=True)
    assert statement.replaces == read_manifest(signed).digest
    own = signatures_in(signed)[key.public.key_id]
    (signed / SIGNATURE).write_bytes(signature_file({key.public.key_id: (own[0], bytes(64))}))
    with pytest.raises(TrustError, match="is not by the key"):
        sign_folder(folder, key, replaces=signed, anew=True)


def test_what_a_killed_signer_left_is_taken_away_by_the_next(signed, keys) -> None:
    """Half a signature under a name of its own: verification refuses it, and signing again makes the folder whole."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = signed / temporary_name().replace(f"-{os.getpid()}-", f"-{dead.stdout.strip()}-")
    alive = signed.parent / temporary_name()
    for path in (left, alive):
        path.write_bytes(b"half")
    assert call("verify", signed)[0] == 4
    sign_folder(signed, read_private(keys / "release"), name="digits", release=3)
    assert not left.exists()
    assert alive.exists()
    assert check(signed).holds
    (signed / alive.name).write_bytes(b"of a writer that is at work")
    with pytest.raises(TrustError, match="is not listed"):
        sign_folder(signed, read_private(keys / "release"), name="digits", release=4)
