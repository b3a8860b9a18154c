"""The header of an encrypted file: the file's own key, as each of those who may read it can have it, and its MAC."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import TrustError, WrongUseError
from compressor.trust.canonical import canonical, parsed
from compressor.trust.keys import Kind, PrivateKey, PublicKey, checked_passphrase

MAGIC = b"compressor-encrypted-1\n"
_MAC = 32
_MOST_HEADER_BYTES = 1 << 16
_MOST_RECIPIENTS = 100
# OWASP's password storage cheat sheet: 32 MiB, three times over. Fixed, so that no header can ask for more.
_SCRYPT: dict[str, int] = {"n": 1 << 15, "r": 8, "p": 3, "maxmem": 1 << 26}
# The key that wraps is used once.
_ONCE = bytes(12)

# What opens a file: a private key for encryption, or a passphrase.
Secret = PrivateKey | bytes


@dataclass(frozen=True)
class Header:
    """The header as the file has it (`raw`, with the magic), its MAC, the salt of the pieces, and the stanzas."""

    raw: bytes
    mac: bytes
    nonce: bytes
    stanzas: tuple[dict[str, str], ...]

    @property
    def begins(self) -> int:
        """Where the pieces begin."""
        return len(self.raw) + len(self.mac)

    @property
    def recipients(self) -> tuple[str, ...]:
        """For whom the file is: ids of keys, or "scrypt"."""
        return tuple(stanza.get("key_id", "scrypt") for stanza in self.stanzas)


def new_header(to: Sequence[PublicKey], passphrase: bytes | None) -> tuple[Header, Any]:
    """A header for a new file, and the cipher for its pieces. Raises WrongUseError for neither or both."""
    file_key, nonce = secrets.token_bytes(32), secrets.token_bytes(16)
    stanzas = _wrapped(file_key, to, passphrase)
    raw = _framed(canonical({"nonce": nonce.hex(), "recipients": stanzas}))
    header = Header(raw, _mac(file_key, raw), nonce, tuple(stanzas))
    return header, _cipher(_derived(file_key, nonce, b"payload"))


def read_header(source: BinaryIO, path: Path) -> Header:
    """The header at the beginning of `source`, unauthenticated yet. Raises TrustError for anything else."""
    start = source.read(len(MAGIC) + 4)
    if start[: len(MAGIC)] != MAGIC:
        name, _, version = start[: len(MAGIC)].rstrip().rpartition(b"-")
        if name == b"compressor-encrypted" and version.isdigit():
            raise TrustError(f"{path} is encrypted in version {version.decode()}, and this program reads version 1")
        raise TrustError(f"{path} is no file that `compressor encrypt` wrote, or its beginning was changed")
    length = int.from_bytes(start[len(MAGIC) :], "big")
    if len(start) != len(MAGIC) + 4 or length > _MOST_HEADER_BYTES:
        raise TrustError(f"{path} cannot be decrypted: its header was changed or cut off; get the file again")
    text, mac = source.read(length), source.read(_MAC)
    if len(text) != length or len(mac) != _MAC:
        raise TrustError(f"{path} cannot be decrypted: it is cut off in its header; get the file again")
    value = parsed(text, what=f"the header of {path}", most_bytes=_MOST_HEADER_BYTES)
    try:
        nonce, stanzas = bytes.fromhex(value["nonce"]), [_stanza(stanza) for stanza in value["recipients"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrustError(
            f"{path} cannot be decrypted: its header is not laid out as one; get the file again"
        ) from error
    alone = len(stanzas) == 1 or all(stanza["kind"] != "scrypt" for stanza in stanzas)
    whole = value.keys() == {"nonce", "recipients"} and len(nonce) == 16
    if not whole or not 1 <= len(stanzas) <= _MOST_RECIPIENTS or not alone:
        raise TrustError(f"{path} cannot be decrypted: its header is not laid out as one; get the file again")
    return Header(start + text, mac, nonce, tuple(stanzas))


def _wrapped(file_key: bytes, to: Sequence[PublicKey], passphrase: bytes | None) -> list[dict[str, str]]:
    """The stanzas of a header: the file's key as each recipient can have it."""
    if bool(to) == (passphrase is not None):
        raise WrongUseError(
            "a file is encrypted for keys or by a passphrase, one of the two; give --to or --passphrase"
        )
    if passphrase is not None:
        salt = secrets.token_bytes(16)
        wrapped = _cipher(_stretched(checked_passphrase(passphrase), salt)).encrypt(_ONCE, file_key, None)
        return [{"kind": "scrypt", "salt": salt.hex(), "wrapped": wrapped.hex()}]
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if len(to) > _MOST_RECIPIENTS:
        raise WrongUseError(f"a file is for at most {_MOST_RECIPIENTS} keys, got {len(to)}")
    stanzas = {}
    for key in to:
        if key.kind is not Kind.X25519:
            raise WrongUseError(f"the key {key.key_id[:16]} signs, and one for encryption is wanted: --kind x25519")
        own = X25519PrivateKey.generate()
        half = own.public_key().public_bytes_raw()
        wrapping = _agreed(own.exchange(key.loaded), half, key)
        wrapped = _cipher(wrapping).encrypt(_ONCE, file_key, None)
        stanzas[key.key_id] = {
            "kind": "x25519",
            "key_id": key.key_id,
            "ephemeral": half.hex(),
            "wrapped": wrapped.hex(),
        }
    return [stanzas[key_id] for key_id in sorted(stanzas)]


def _by_passphrase(header: Header, passphrase: bytes, path: Path) -> bytes:
    stanza = header.stanzas[0]
    if stanza["kind"] != "scrypt":
        raise TrustError(f"{path} is encrypted for keys and not by a passphrase; give --key, one of {_for(header)}")
    found = _unwrapped(_stretched(passphrase, bytes.fromhex(stanza["salt"])), stanza)
    if found is None:
        raise TrustError(f"{path} cannot be decrypted: the passphrase is another one, or its header was changed")
    return found


def _by_key(header: Header, secret: PrivateKey, path: Path) -> bytes:
    if secret.kind is not Kind.X25519:
        raise WrongUseError(f"a key of the kind {secret.kind} signs; what decrypts is of the kind x25519")
    public = secret.public
    stanza = next((stanza for stanza in header.stanzas if stanza.get("key_id") == public.key_id), None)
    if stanza is None:
        raise TrustError(
            f"{path} cannot be decrypted by the key {public.key_id[:16]}: it is encrypted for {_for(header)}"
        )
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    half = bytes.fromhex(stanza["ephemeral"])
    try:
        shared = secret.loaded.exchange(X25519PublicKey.from_public_bytes(half))
    except ValueError:  # a point of low order, which nobody's key is
        shared = None
    found = None if shared is None else _unwrapped(_agreed(shared, half, public), stanza)
    if found is None:
        raise TrustError(f"{path} cannot be decrypted: its header was changed; get the file again")
    return found


def opened(header: Header, secret: Secret, path: Path) -> Any:
    """The cipher of the pieces, which `secret` opens. Raises TrustError where it does not, WrongUseError for none."""
    if not isinstance(secret, PrivateKey | bytes):
        raise WrongUseError(
            f"what opens {path} is a private key (its path, or read_private) or a passphrase as bytes; got "
            f"{type(secret).__name__}"
        )
    return _cipher(_derived(_file_key(header, secret, path), header.nonce, b"payload"))


def _file_key(header: Header, secret: Secret, path: Path) -> bytes:
    """The key of the file, which `secret` opens. Raises TrustError where it does not, or the header was changed."""
    file_key = _by_passphrase(header, secret, path) if isinstance(secret, bytes) else _by_key(header, secret, path)
    if not hmac.compare_digest(_mac(file_key, header.raw), header.mac):
        raise TrustError(f"{path} cannot be decrypted: its header was changed; get the file again")
    return file_key


def _stanza(value: dict[str, Any]) -> dict[str, str]:
    """`value`, if it is a stanza; raises ValueError else."""
    wanted = {"x25519": {"key_id": 32, "ephemeral": 32, "wrapped": 48}, "scrypt": {"salt": 16, "wrapped": 48}}
    sizes = wanted[value["kind"]]
    if value.keys() != {"kind", *sizes} or any(len(bytes.fromhex(value[name])) != size for name, size in sizes.items()):
        raise ValueError("no stanza")
    return value


def _framed(header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "big") + header


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase, salt=salt, dklen=32, **_SCRYPT)


def _agreed(shared: bytes, half: bytes, recipient: PublicKey) -> bytes:
    return _derived(shared, half + recipient.loaded.public_bytes_raw(), b"x25519")


def _derived(secret: bytes, salt: bytes, what: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return bytes(HKDF(SHA256(), 32, salt or None, MAGIC + what).derive(secret))


def _unwrapped(wrapping: bytes, stanza: dict[str, str]) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    try:
        return bytes(_cipher(wrapping).decrypt(_ONCE, bytes.fromhex(stanza["wrapped"]), None))
    except InvalidTag:
        return None


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _for(header: Header) -> str:
    names = [name[:16] for name in header.recipients]
    return "a passphrase" if names == ["scrypt"] else f"the keys {', '.join(names)}"
