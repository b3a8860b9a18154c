"""Key pairs: made, written for their owner alone and never over a file, read, and named by a digest of the public half.

Keys that sign are Ed25519 (RFC 8032) or ECDSA on P-256 (FIPS 186-5); those that decrypt are X25519 (RFC 7748).
"""

import os
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.errors import TrustError, WriteError, WrongUseError, first_said
from compressor.storage import not_written, read_bytes, require_file_place, sha256, temporary_name

PUBLIC_ENDING = ".pub"
_MOST_KEY_BYTES = 16_384
_PEM = b"-----BEGIN "
# Characters; what guards a file on a disk can be guessed at without end.
SHORTEST_PASSPHRASE = 12


class KeyWarning(UserWarning):
    """A secret that others can read as well."""


class Kind(StrEnum):
    """What a key is for: the first two sign, the third decrypts."""

    ED25519 = "ed25519"
    P256 = "p256"
    X25519 = "x25519"

    @property
    def signs(self) -> bool:
        """Whether keys of this kind sign."""
        return self is not Kind.X25519


@dataclass(frozen=True)
class PublicKey:
    """The half that everybody may have. `der` is its SubjectPublicKeyInfo (RFC 5280), which `key_id` is a digest of."""

    kind: Kind
    der: bytes

    @property
    def key_id(self) -> str:
        """The SHA-256 of `der` in hexadecimal."""
        return sha256(self.der)

    @property
    def pem(self) -> bytes:
        """The key as a file has it."""
        _, serialization = _libraries()
        return bytes(
            self.loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    @property
    def loaded(self) -> Any:
        """The key as `cryptography` has it."""
        _, serialization = _libraries()
        return serialization.load_der_public_key(self.der)

    @classmethod
    def of(cls, loaded: Any) -> "PublicKey":
        """The public half `loaded`. Raises ValueError for a kind that is not used here."""
        _, serialization = _libraries()
        der = loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(_kind_of(loaded), der)


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """The half that its owner alone has, as `cryptography` has it; it never shows itself."""

    kind: Kind
    loaded: Any

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey.of(self.loaded.public_key())

    def __repr__(self) -> str:
        return f"<{self.kind} key {self.public.key_id[:16]}>"


def generate(path: Path, kind: Kind = Kind.ED25519, *, passphrase: bytes | None = None) -> PublicKey:
    """Makes a key pair: the private half at `path`, rights 0600, the public one beside it with the ending .pub.

    With a `passphrase` the private half is encrypted by it. Raises WrongUseError where either file is there already,
    and WriteError where one cannot be written; none of the two is left then.
    """
    _, serialization = _libraries()
    require_file_place(path)
    public_path = public_of(path)
    for place in (path, public_path):
        if os.path.lexists(place):
            raise WrongUseError(f"{place} is there already, and a key is never written over; give another name")
    key = PrivateKey(kind, _made(kind))
    how = serialization.NoEncryption() if passphrase is None else _locked(passphrase)
    raw = key.loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    write_new(path, raw, mode=0o600)
    try:
        write_new(public_path, key.public.pem, mode=0o666)
    except BaseException:
        path.unlink()
        raise
    return key.public


def public_of(path: Path) -> Path:
    """Where the public half of the key at `path` lies."""
    return path.with_name(path.name + PUBLIC_ENDING)


def read_public(path: Path) -> PublicKey:
    """The public key at `path`, in PEM. Raises WrongUseError for anything else, a private key among it."""
    raw = _read_pem(path)
    if b"PRIVATE KEY" in raw:
        raise WrongUseError(f"{path} is a private key, which stays where it is; give the public one, {public_of(path)}")
    _, serialization = _libraries()
    try:
        return PublicKey.of(serialization.load_pem_public_key(raw))
    except Exception as error:  # cryptography's errors share no base
        raise WrongUseError(f"{path} is no public key that can be used here: {first_said(error)}") from error


def read_private(path: Path, *, passphrase: bytes | None = None) -> PrivateKey:
    """The private key at `path`, in PEM, opened by `passphrase` where it is encrypted.

    Warns with KeyWarning where others may read the file. Raises WrongUseError for anything else, and TrustError for a
    passphrase that does not open it.
    """
    raw = _read_pem(path)
    if b"PRIVATE KEY" not in raw:
        raise WrongUseError(f"{path} is a public key, and the private one is wanted: the file without {PUBLIC_ENDING}")
    _warn_of_readers(path)
    _, serialization = _libraries()
    encrypted = b"ENCRYPTED" in raw
    if encrypted and passphrase is None:
        raise WrongUseError(f"{path} is encrypted; give its passphrase (--passphrase-file)")
    try:
        loaded = serialization.load_pem_private_key(raw, passphrase if encrypted else None)
        return PrivateKey(_kind_of(loaded.public_key()), loaded)
    except Exception as error:  # as above
        if encrypted:
            raise TrustError(f"the passphrase does not open {path}, or the file is damaged") from error
        raise WrongUseError(f"{path} is no private key that can be used here: {first_said(error)}") from error


def passphrase_in(path: Path) -> bytes:
    """The passphrase in the file at `path`, without a line break at its end.

    Raises WrongUseError for one that is shorter than 12 characters or has several lines.
    """
    raw = read_bytes(path, way_out="give a file with the passphrase in it", most=_MOST_KEY_BYTES)
    _warn_of_readers(path)
    return checked_passphrase(raw.removesuffix(b"\n").removesuffix(b"\r"), str(path))


def checked_passphrase(passphrase: bytes, where: str = "the passphrase") -> bytes:
    """`passphrase`; raises WrongUseError for one that is too short, or has line breaks or zeros in it."""
    characters = len(passphrase.decode(errors="replace"))
    if characters < SHORTEST_PASSPHRASE or any(character in passphrase for character in b"\n\r\0"):
        raise WrongUseError(
            f"{where} must be one line of at least {SHORTEST_PASSPHRASE} characters, such as five words drawn at "
            f"random; got {characters}"
        )
    return passphrase


def write_new(path: Path, raw: bytes, *, mode: int) -> None:
    """Puts `raw` into the new file `path`, whole or not at all, with what the umask leaves of the rights `mode`.

    Raises WriteError where something is there already, or the file cannot be written.
    """
    part = path.with_name(temporary_name())
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # unlike a move, it refuses to replace
        except FileExistsError:
            raise
        except OSError:  # a disk without second names
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            part.replace(path)
    except FileExistsError as error:
        raise WriteError(f"{path} cannot be written: something is there already; give another name") from error
    except OSError as error:
        raise not_written(path, len(raw), error) from error
    finally:
        with suppress(OSError):  # it was never there, or what was raised says why
            part.unlink()


def require_cryptography() -> None:
    """Raises WrongUseError, with what to install, where the package that computes is missing."""
    if find_spec("cryptography") is None:
        raise WrongUseError(
            "keys and encryption need the package cryptography; install it with: pip install 'torch-compressor[trust]'"
        )


def _libraries() -> tuple[Any, Any]:
    require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec, serialization


def _made(kind: Kind) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

    if kind is Kind.P256:
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if kind is Kind.ED25519 else x25519.X25519PrivateKey.generate()


def _kind_of(public: Any) -> Kind:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

    if isinstance(public, ed25519.Ed25519PublicKey):
        return Kind.ED25519
    if isinstance(public, x25519.X25519PublicKey):
        return Kind.X25519
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return Kind.P256
    name = public.curve.name if isinstance(public, ec.EllipticCurvePublicKey) else type(public).__name__
    raise ValueError(f"it is of the kind {name}, and Ed25519, P-256 and X25519 are used")


def _locked(passphrase: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization

    return serialization.BestAvailableEncryption(checked_passphrase(passphrase))


def _read_pem(path: Path) -> bytes:
    if not path.is_file():
        got = "something else is" if path.exists() else "nothing is"
        raise WrongUseError(f"there is no key at {path}: {got} there; `compressor keygen KEY` makes a pair")
    raw = read_bytes(path, way_out="give the path of a key that `compressor keygen` made", most=_MOST_KEY_BYTES)
    if raw.startswith(b"{"):
        raise WrongUseError(f"{path} is no key; where it is a trust store, give it as one: --trust {path}")
    if raw.count(_PEM) != 1:
        raise WrongUseError(
            f"{path} must hold one key in PEM, the text that begins with -----BEGIN, got {raw.count(_PEM)}"
        )
    return raw


def is_pem(path: Path) -> bool:
    """Whether the file at `path` begins as a key does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_PEM)) == _PEM
    except OSError:
        return False


def _warn_of_readers(path: Path) -> None:
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        warnings.warn(f"{path} can be read by others as well: chmod 600 {path}", KeyWarning, stacklevel=3)
