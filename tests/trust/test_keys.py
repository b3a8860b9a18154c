"""Keys are written for their owner alone, never over a file, and the wrong half or kind is refused by name."""

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.errors import TrustError, WriteError, WrongUseError
from compressor.storage import sha256
from compressor.trust.keys import KeyWarning, Kind, generate, passphrase_in, read_private, read_public, write_new

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")

LONG = b"five words drawn at random"


@pytest.mark.parametrize("kind", Kind)
def test_a_pair_is_made_and_read_again(tmp_path, kind) -> None:
    """The private half has the rights 0600 whatever the umask, the other those of the umask; one id, by the DER."""
    before = os.umask(0o000)
    try:
        public = generate(tmp_path / "key", kind)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key.pub").stat().st_mode) == 0o666
    private = read_private(tmp_path / "key")
    assert private.public == public == read_public(tmp_path / "key.pub")
    assert public.kind is kind
    assert public.key_id == sha256(public.der)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]
    assert repr(private) == f"<{kind.value} key {public.key_id[:16]}>"


@pytest.mark.parametrize("there", ["key", "key.pub"])
def test_nothing_is_written_over(tmp_path, there) -> None:
    """Neither half, nor through a link that leads nowhere yet; the other half is not left alone."""
    (tmp_path / there).write_text("mine")
    with pytest.raises(WrongUseError, match="is there already, and a key is never written over"):
        generate(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(WrongUseError, match="is there already"):
        generate(tmp_path / "link")
    with pytest.raises(WriteError, match="cannot be written"):
        write_new(tmp_path / there, b"", mode=0o600)
    with pytest.raises(WriteError, match="cannot be written"):
        generate(tmp_path / "no folder" / "key")
    with pytest.raises(WriteError, match=f"{there} is no folder; move it away, or give another folder"):
        generate(tmp_path / there / "key")
    for place in ("", ".", "/"):
        with pytest.raises(WriteError, match="names none; give the name of one"):
            generate(Path(place))


def test_a_key_encrypted_by_a_passphrase(tmp_path) -> None:
    """It opens with that one alone, and says so where it is missing."""
    generate(tmp_path / "key", passphrase=LONG)
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    assert read_private(tmp_path / "key", passphrase=LONG).kind is Kind.ED25519
    with pytest.raises(WrongUseError, match="is encrypted; give its passphrase"):
        read_private(tmp_path / "key")
    with pytest.raises(TrustError, match="does not open"):
        read_private(tmp_path / "key", passphrase=LONG + b".")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "one line of at least 12 characters"),
        (b"short\n", "got 5"),
        (b"two lines\nof a passphrase\n", "one line"),
        ("\N{KEY}\N{KEY}\N{KEY}".encode(), "got 3"),
    ],
)
def test_passphrases_that_guard_nothing_are_refused(tmp_path, content, says) -> None:
    """Empty, short, or with a second line that somebody overlooked; a line break at the end is none of it."""
    path = tmp_path / "pass"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(WrongUseError, match=says):
        passphrase_in(path)
    path.write_bytes(LONG + b"\r\n")
    assert passphrase_in(path) == LONG


def test_a_secret_that_others_can_read_is_told(keys, tmp_path) -> None:
    """With the command that mends it; it is used all the same."""
    path = tmp_path / "key"
    path.write_bytes((keys / "release").read_bytes())
    path.chmod(0o640)
    with pytest.warns(KeyWarning, match=f"chmod 600 {path}"):
        read_private(path)


def test_what_is_no_key_is_refused(keys, tmp_path) -> None:
    """The other half, nothing, several keys, other curves, RSA, damage: each says what was wanted."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    with pytest.raises(WrongUseError, match=r"is a private key, which stays where it is; give the public one, .*\.pub"):
        read_public(keys / "release")
    with pytest.raises(WrongUseError, match="is a public key, and the private one is wanted"):
        read_private(keys / "release.pub")
    with pytest.raises(WrongUseError, match="there is no key at"):
        read_public(tmp_path / "none")
    both = tmp_path / "both"
    both.write_bytes((keys / "release.pub").read_bytes() + (keys / "other.pub").read_bytes())
    with pytest.raises(WrongUseError, match="must hold one key in PEM"):
        read_public(both)
    both.write_bytes(b"ssh-ed25519 AAAA me@host")
    with pytest.raises(WrongUseError, match="must hold one key in PEM"):
        read_public(both)
    wide = ec.generate_private_key(ec.SECP384R1())
    both.write_bytes(wide.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(WrongUseError, match="secp384r1, and Ed25519, P-256 and X25519 are used"):
        read_public(both)
    raw = (keys / "release.pub").read_bytes()
    both.write_bytes(raw[:40] + b"!" + raw[41:])
    with pytest.raises(WrongUseError, match="is no public key that can be used here"):
        read_public(both)


def test_the_command(tmp_path) -> None:
    """It says where the public half is and its id; a second call refuses."""
    path = tmp_path / "k"
    result = CliRunner().invoke(app, ["keygen", str(path), "--kind", "p256"])
    assert result.exit_code == 0
    assert result.stdout == f"{path}.pub: p256, key id {read_public(tmp_path / 'k.pub').key_id}\n"
    assert CliRunner().invoke(app, ["keygen", str(path)]).exit_code == 2
