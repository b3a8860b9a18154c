"""Whoever may read a file gets its very bytes, everybody else nothing; whatever was changed is refused."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.errors import TrustError, WriteError, WrongUseError
from compressor.trust import encryption
from compressor.trust.canonical import canonical
from compressor.trust.encrypted_header import MAGIC
from compressor.trust.encryption import PIECE, check_encrypted, decrypt, decrypted, encrypt, is_encrypted
from compressor.trust.keys import Kind, PrivateKey, read_private, read_public

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")

LONG = b"five words drawn at random"
# A piece of content with its tag.
STEP = PIECE + 16


def call(*words, typed: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)], input=typed)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def box(keys) -> PrivateKey:
    return read_private(keys / "box")


@pytest.fixture
def several(tmp_path, keys) -> Path:
    """An encrypted file of four pieces, the last one short."""
    path = tmp_path / "several"
    path.write_bytes(bytes(random.Random(0).randbytes(3 * PIECE + 100)))  # noqa: S311 - no secret
    return encrypt(path, to=[read_public(keys / "box.pub")]).path


def header_end(raw: bytes) -> int:
    """Where the pieces begin."""
    length = int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 4], "big")
    return len(MAGIC) + 4 + length + 32


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7])
def test_content_comes_back_to_the_byte(tmp_path, keys, box, size) -> None:
    """Around every border of pieces, to memory and to a file; the sizes that are told are those."""
    path, out = tmp_path / "plain", tmp_path / "out"
    path.write_bytes(os.urandom(size))
    made = encrypt(path, to=[read_public(keys / "box.pub")])
    assert (made.path, made.size_bytes) == (tmp_path / "plain.enc", size)
    assert made.encrypted_bytes == made.path.stat().st_size
    assert decrypted(made.path, box) == path.read_bytes()
    assert decrypt(made.path, out, box) == made
    assert out.read_bytes() == path.read_bytes()
    assert check_encrypted(made.path, box) == made
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "plain", "plain.enc"]


def test_the_format_is_the_one_that_is_written_down(several, box) -> None:
    """Computed here from its description by the primitives alone, byte by byte."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.hmac import HMAC
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derived(secret, salt, what):
        return HKDF(SHA256(), 32, salt, b"compressor-encrypted-1\n" + what).derive(secret)

    raw = several.read_bytes()
    begins = header_end(raw)
    header = json.loads(raw[27 : begins - 32])
    (stanza,) = header["recipients"]
    half, own = bytes.fromhex(stanza["ephemeral"]), box.public.loaded.public_bytes_raw()
    shared = box.loaded.exchange(X25519PublicKey.from_public_bytes(half))
    wrapping = derived(shared, half + own, b"x25519")
    file_key = AESGCM(wrapping).decrypt(bytes(12), bytes.fromhex(stanza["wrapped"]), None)
    mac = HMAC(derived(file_key, None, b"header"), SHA256())
    mac.update(raw[: begins - 32])
    mac.verify(raw[begins - 32 : begins])
    cipher = AESGCM(derived(file_key, bytes.fromhex(header["nonce"]), b"payload"))
    plain = b"".join(
        cipher.decrypt(
            number.to_bytes(11, "big") + bytes([number == 3]),
            raw[begins + number * STEP : begins + (number + 1) * STEP],
            None,
        )
        for number in range(4)
    )
    assert plain == several.with_suffix("").read_bytes()


def test_two_encryptions_have_nothing_in_common(tmp_path, keys) -> None:
    """Every file has a key, a salt and an ephemeral key of its own: no nonce comes again under one key."""
    path = tmp_path / "zeros"
    path.write_bytes(bytes(2 * PIECE))
    public = read_public(keys / "box.pub")
    one, two = (encrypt(path, tmp_path / name, to=[public]).path.read_bytes() for name in "ab")
    headers = [json.loads(raw[27 : header_end(raw) - 32]) for raw in (one, two)]
    assert headers[0]["nonce"] != headers[1]["nonce"]
    assert all(
        headers[0]["recipients"][0][name] != headers[1]["recipients"][0][name] for name in ("ephemeral", "wrapped")
    )
    pieces = [raw[header_end(raw) + start :][:PIECE] for raw in (one, two) for start in (0, STEP)]
    assert len(set(pieces)) == 4


@pytest.mark.parametrize("out", [False, True])
def test_who_may_not_read_it_gets_nothing(several, keys, box, tmp_path, out) -> None:
    """Another key, a key that signs, a passphrase: no file is left, and one that was there stays."""
    words = ["--out", tmp_path / "out"] if out else []
    if out:
        (tmp_path / "out").write_text("before")
    code, _, err = call("decrypt", several, "--key", keys / "crate", *words)
    assert code == 4
    assert f"it is encrypted for the keys {box.public.key_id[:16]}" in err
    assert call("decrypt", several, "--key", keys / "release", *words)[0] == 2
    assert call("decrypt", several, "--key", keys / "box.pub", *words)[0] == 2
    assert call("decrypt", several, "--passphrase", *words, typed=LONG.decode() + "\n")[0] == 4
    assert call("decrypt", several, *words)[0] == 2
    assert sorted(place.name for place in tmp_path.iterdir()) == [*["out"] * out, "several", "several.enc"]
    assert not out or (tmp_path / "out").read_text() == "before"


def pieces_of(raw: bytes) -> tuple[bytes, list[bytes]]:
    begins = header_end(raw)
    return raw[:begins], [raw[start : start + STEP] for start in range(begins, len(raw), STEP)]


def edited_header(change):
    """The file with its header changed, in canonical form and with its length to fit."""

    def edit(raw: bytes) -> bytes:
        begins = header_end(raw)
        value = json.loads(raw[27 : begins - 32])
        text = canonical(change(value) or value)
        return MAGIC + len(text).to_bytes(4, "big") + text + raw[begins - 32 :]

    return edit


def arranged(*order):
    def edit(raw: bytes) -> bytes:
        head, pieces = pieces_of(raw)
        return head + b"".join(pieces[number] for number in order)

    return edit


CHANGES = {
    "cut in a piece": lambda raw: raw[:-1],
    "cut at a border": arranged(0, 1, 2),
    "cut to the first piece": arranged(0),
    "cut to the header": arranged(),
    "pieces swapped": arranged(1, 0, 2, 3),
    "the last one first": arranged(3, 0, 1, 2),
    "a piece left out": arranged(0, 2, 3),
    "a piece again": arranged(0, 0, 1, 2, 3),
    "the last one again": arranged(0, 1, 2, 3, 3),
    "a byte more": lambda raw: raw + b"x",
    "a tag more": lambda raw: raw + bytes(16),
    "a piece of zeros": lambda raw: raw + bytes(STEP),
    "cut in the header": lambda raw: raw[:60],
    "cut in the MAC": lambda raw: raw[: header_end(raw) - 5],
    "the beginning alone": lambda raw: raw[:20],
    "nothing": lambda _: b"",
    "another version": lambda raw: raw.replace(b"encrypted-1", b"encrypted-2", 1),
    "a header without end": lambda raw: raw[:23] + b"\xff\xff\xff\xff" + raw[27:],
    "another nonce": edited_header(lambda value: value.update(nonce="0" * 32)),
    "another recipient as well": edited_header(
        lambda value: value["recipients"].append({**value["recipients"][0], "key_id": "0" * 64})
    ),
    "another wrapped key": edited_header(lambda value: value["recipients"][0].update(wrapped="0" * 96)),
    "another ephemeral key": edited_header(lambda value: value["recipients"][0].update(ephemeral="09" + "0" * 62)),
    "a key of low order": edited_header(lambda value: value["recipients"][0].update(ephemeral="0" * 64)),
    "no recipient": edited_header(lambda value: value.update(recipients=[])),
    "a kind that is none": edited_header(lambda value: value["recipients"][0].update(kind="rot13")),
    "a passphrase beside the key": edited_header(
        lambda value: value["recipients"].append({"kind": "scrypt", "salt": "0" * 32, "wrapped": "0" * 96})
    ),
    "an entry more": edited_header(lambda value: value.update(hint="x")),
    "numbers": edited_header(lambda value: value.update(nonce=7)),
    "a list": edited_header(lambda value: [value]),
    "white space": lambda raw: raw.replace(b'{"nonce"', b'{ "nonce"').replace(
        raw[23:27], (int.from_bytes(raw[23:27], "big") + 1).to_bytes(4, "big"), 1
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_changed_is_refused_and_nothing_is_left(several, box, tmp_path, change) -> None:
    """In memory, on disk, and where it is only checked."""
    changed = CHANGES[change](several.read_bytes())
    assert changed != several.read_bytes()
    several.write_bytes(changed)
    for attempt in (
        lambda: decrypted(several, box),
        lambda: decrypt(several, tmp_path / "out", box),
        lambda: check_encrypted(several, box),
        lambda: decrypted(Path("it"), box, content=changed),
    ):
        with pytest.raises(TrustError):
            attempt()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["several", "several.enc"]


def test_every_flipped_bit_is_found(several, box) -> None:
    """Of the header and the MAC each byte, of the pieces 100 drawn at random."""
    raw, chance = several.read_bytes(), random.Random(0)  # noqa: S311 - no secret
    for place in [*range(header_end(raw)), *(chance.randrange(header_end(raw), len(raw)) for _ in range(100))]:
        changed = bytearray(raw)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(TrustError):
            decrypted(several, box, content=bytes(changed))
    assert decrypted(several, box, content=raw)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_encrypted_file_is_refused(box, raw) -> None:
    """Whatever follows the beginning, with a typed error."""
    for content in (raw, MAGIC + raw, MAGIC + len(raw).to_bytes(4, "big") + raw + bytes(64)):
        with pytest.raises(TrustError):
            decrypted(Path("it"), box, content=content)


def test_pieces_of_another_file_do_not_fit(several, keys, box, tmp_path) -> None:
    """Not even of the same content for the same key."""
    other = encrypt(several.with_suffix(""), tmp_path / "other", to=[read_public(keys / "box.pub")]).path
    mine, theirs = pieces_of(several.read_bytes()), pieces_of(other.read_bytes())
    for content in (mine[0] + b"".join(theirs[1]), mine[0] + b"".join([*mine[1][:-1], theirs[1][-1]])):
        with pytest.raises(TrustError, match="put together anew"):
            decrypted(several, box, content=content)


def test_several_may_read_one_file(several, keys, tmp_path) -> None:
    """Each by the own key, named twice or not; the signing kind and too many are refused."""
    plain = several.with_suffix("")
    publics = [read_public(keys / f"{name}.pub") for name in ("box", "crate", "box")]
    made = encrypt(plain, tmp_path / "both", to=publics)
    assert sorted(made.recipients) == sorted({public.key_id for public in publics})
    for name in ("box", "crate"):
        assert decrypted(made.path, read_private(keys / name)) == plain.read_bytes()
    with pytest.raises(WrongUseError, match="one for encryption is wanted"):
        encrypt(plain, tmp_path / "x", to=[read_public(keys / "release.pub")])
    with pytest.raises(WrongUseError, match="one of the two"):
        encrypt(plain, tmp_path / "x")
    with pytest.raises(WrongUseError, match="one of the two"):
        encrypt(plain, tmp_path / "x", to=publics, passphrase=LONG)
    assert not (tmp_path / "x").exists()


def test_a_passphrase_opens_it(tmp_path) -> None:
    """The same one, typed or from a file; another does not, and a short one is refused before any work."""
    plain, words = tmp_path / "plain", tmp_path / "words"
    plain.write_bytes(b"content")
    words.write_bytes(LONG + b"\n")
    words.chmod(0o600)
    typed = f"{LONG.decode()}\n"
    assert call("encrypt", plain, "--passphrase", typed=typed * 2)[0] == 0
    assert decrypted(tmp_path / "plain.enc", LONG) == b"content"
    code, out, _ = call("decrypt", tmp_path / "plain.enc", "--passphrase-file", words, "--json")
    assert (code, json.loads(out)["recipients"]) == (0, ["scrypt"])
    code, _, err = call("decrypt", tmp_path / "plain.enc", "--passphrase", typed="another passphrase\n")
    assert code == 4
    assert "the passphrase is another one" in err
    assert call("encrypt", plain, "--out", tmp_path / "x", "--passphrase", typed="short\nshort\n")[0] == 2
    assert call("encrypt", plain, "--passphrase", "--passphrase-file", words)[0] == 2
    with pytest.raises(TrustError, match="is encrypted for a passphrase"):
        decrypted(tmp_path / "plain.enc", PrivateKey(Kind.X25519, encryption_key()))


def encryption_key():
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate()


def test_decrypted_files_are_their_owners_alone(several, box, tmp_path, monkeypatch) -> None:
    """Rights 0600 whatever was there; a link is replaced and not followed; also where files must have names."""

    def refused(*_, **__):
        raise PermissionError

    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    out.symlink_to(elsewhere)
    for way in ("without a name", "copied", "with a name"):
        if way == "copied":
            monkeypatch.setattr(os, "link", refused)
        if way == "with a name":
            monkeypatch.setattr(encryption, "_nameless", lambda _: None)
        decrypt(several, out, box)
        assert stat.S_IMODE(out.lstat().st_mode) == 0o600
        assert not out.is_symlink()
        assert out.read_bytes() == several.with_suffix("").read_bytes()
        out.chmod(0o644)
    assert elsewhere.read_text() == "theirs"
    raw = several.read_bytes()
    several.write_bytes(raw[:-1])
    with pytest.raises(TrustError):
        decrypt(several, tmp_path / "other", box)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["elsewhere", "out", "several", "several.enc"]
    with pytest.raises(WriteError, match="elsewhere is no folder; move it away"):
        decrypt(several, elsewhere / "out", box)
    several.write_bytes(raw)
    decrypt(several, tmp_path / "new" / "out", box)
    assert (tmp_path / "new" / "out").read_bytes() == several.with_suffix("").read_bytes()


def test_what_may_not_be_encrypted_or_replaced(several, keys, tmp_path) -> None:
    """A folder, the file by itself, a name that is taken without being named."""
    public = keys / "box.pub"
    plain = several.with_suffix("")
    assert call("encrypt", tmp_path, "--to", public)[0] == 2
    assert call("encrypt", plain, "--to", public)[0] == 2
    assert call("encrypt", plain, "--to", public, "--out", plain)[0] == 2
    assert call("decrypt", several, "--key", keys / "box", "--out", several)[0] == 2
    assert call("decrypt", tmp_path / "none", "--key", keys / "box")[0] == 2
    assert call("decrypt", plain, "--key", keys / "box")[0] == 4
    assert (is_encrypted(several), is_encrypted(plain), is_encrypted(tmp_path)) == (True, False, False)


def test_what_opens_a_file_is_not_written_over(several, keys, tmp_path) -> None:
    """Neither a key nor the file of a passphrase, by whatever name; nor a pipe, which is no place for a file."""
    for name in ("box", "box.pub"):
        shutil.copy2(keys / name, tmp_path / name)
    words = tmp_path / "words"
    words.write_bytes(LONG)
    words.chmod(0o600)
    (tmp_path / "same").symlink_to("box.pub")
    os.mkfifo(tmp_path / "pipe")
    plain = several.with_suffix("")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for out, command in {
        "same": ["encrypt", plain, "--to", tmp_path / "box.pub"],
        "words": ["encrypt", plain, "--passphrase-file", words],
        "box": ["decrypt", several, "--key", tmp_path / "box"],
    }.items():
        code, _, err = call(*command, "--out", tmp_path / out)
        assert code == 2
        assert "would be written over; give another name" in err
        code, _, err = call(*command, "--out", tmp_path / "pipe")
        assert code == 1
        assert "is a device, a pipe or a socket, and a file is to be written" in err.replace("\n", " ")
    assert (tmp_path / "pipe").is_fifo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_where_nobody_types_a_passphrase_the_way_out_is_said(several, keys) -> None:
    """No terminal and nothing on stdin; in Python, something that opens nothing."""
    code, _, err = call("encrypt", several, "--passphrase")
    assert code == 2
    assert "give a file with it: --passphrase-file" in err
    for wrong in (None, 7, read_public(keys / "box.pub")):
        with pytest.raises(WrongUseError, match=f"is a private key .* got {type(wrong).__name__}"):
            decrypted(several, wrong)


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.trust.encryption import decrypt, encrypt
from compressor.trust.keys import read_private, read_public
folder, keys, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
done = 0
def told(count, total):
    global done
    done += count
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
if what == "encrypt":
    encrypt(folder / "several", folder / "out", to=[read_public(keys / "box.pub")], told=told)
else:
    decrypt(folder / "several.enc", folder / "out", read_private(keys / "box"), told=told)
"""


@pytest.mark.parametrize("what", ["encrypt", "decrypt"])
def test_a_process_that_is_killed_leaves_nothing_to_read(several, keys, tmp_path, what) -> None:
    """Half-way: no result, and of the content nothing but the file that was there before."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, keys, what], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    content = several.with_suffix("").read_bytes()
    assert not (tmp_path / "out").exists()
    left = [path for path in tmp_path.iterdir() if path.name not in {"several", "several.enc"}]
    assert all(content[:1000] not in path.read_bytes() for path in left)
    assert what == "encrypt" or not left


MEASURED = """
import resource, sys
from pathlib import Path
from compressor.trust.encryption import check_encrypted, decrypt, encrypt
from compressor.trust.keys import read_private, read_public
folder, keys = Path(sys.argv[1]), Path(sys.argv[2])
def work(name):
    made = encrypt(folder / name, to=[read_public(keys / "box.pub")])
    decrypt(made.path, folder / "out", read_private(keys / "box"))
    check_encrypted(made.path, read_private(keys / "box"))
work("small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work("large")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path, keys) -> None:
    """Sixty megabytes take less than four more than nothing does."""
    (tmp_path / "small").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(60_000_000)
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path, keys], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4_000  # KiB
    assert (tmp_path / "out").stat().st_size == 60_000_000
