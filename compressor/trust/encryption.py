"""Files encrypted for those who hold a key or a passphrase, read back in pieces that were each authenticated first.

A new key for every file, wrapped for each recipient: by X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869), or by scrypt
(RFC 7914). The content is cut into pieces of 64 KiB, each AES-256-GCM (NIST SP 800-38D) under a nonce that holds its
number and whether it is the last: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár 2015 ("Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", sec. 5), so that pieces that are cut off, swapped,
repeated or appended are seen. A MAC under the file's key covers the header, and binds the file to that one key.

magic (23 bytes), length of the header (4), header (canonical JSON), MAC (32), pieces
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compressor.errors import StorageError, TrustError, WrongUseError
from compressor.storage import not_written, require_file_place, require_space, temporary_name, written_whole
from compressor.trust.digests import HashingBeside
from compressor.trust.encrypted_header import MAGIC, Header, Secret, new_header, opened, read_header
from compressor.trust.keys import PublicKey, require_cryptography

PIECE = 1 << 16
_TAG = 16

# What is told of the work: bytes done since the last time, and bytes in all.
Told = Callable[[int, int], None]
# What is given the SHA-256 of an encrypted file, and raises what speaks against it.
Accept = Callable[[str], object]


@dataclass(frozen=True)
class Encrypted:
    """An encrypted file: where it is, its bytes, those of the content, and for whom it is (key ids, or "scrypt")."""

    path: Path
    encrypted_bytes: int
    size_bytes: int
    recipients: tuple[str, ...]


def encrypt(
    path: Path,
    out: Path | None = None,
    *,
    to: Sequence[PublicKey] = (),
    passphrase: bytes | None = None,
    told: Told | None = None,
) -> Encrypted:
    """Encrypts the file at `path` into `out`, by default beside it with the ending .enc, and says what came of it.

    `to` are the X25519 keys of those who may read it; or a `passphrase` of at least 12 characters does. The file
    itself stays. Raises WrongUseError for neither or both, for keys that sign, and where the default name is taken, and
    WriteError where it cannot be written.
    """
    require_cryptography()
    if not path.is_file():
        raise WrongUseError(f"{path} is no file; what is encrypted is one file, such as runs/digits/model.onnx")
    if out is None and os.path.lexists(_beside(path)):
        raise WrongUseError(f"{_beside(path)} is there already; name it, or another file, with --out")
    out = _beside(path) if out is None else out
    if out.exists() and out.samefile(path):
        raise WrongUseError(f"{out} is the file itself; give another name for the encrypted one")
    header, cipher = new_header(to, passphrase)
    with _readable(path) as source:
        size = os.fstat(source.fileno()).st_size
        total = header.begins + size + _TAG * max(1, -(-size // PIECE))
        with written_whole(out, total) as target:
            target.write(header.raw + header.mac)
            for number, (piece, last) in enumerate(_pieces(source, PIECE)):
                target.write(cipher.encrypt(_nonce(number, last=last), piece, None))
                if told is not None:
                    told(len(piece), size)
            written = target.tell()
    return Encrypted(out, written, size, header.recipients)


def decrypt(
    path: Path, out: Path, secret: Secret, *, told: Told | None = None, accept: Accept | None = None
) -> Encrypted:
    """Writes what `path` holds to `out`, with the rights 0600, once the last of it was found to be as it was encrypted.

    Until then it has no name on the disk, where the system can do that: a process that is killed leaves nothing.
    `accept` is given the SHA-256 of the encrypted bytes, of the same reading, and raises what keeps the file from
    having a name. Raises TrustError where `secret` does not open it or anything was changed, and WriteError where `out`
    cannot be written.
    """
    with _opened(path) as (source, header):
        size = _content_bytes(source, header)
        require_file_place(out)
        require_space(out, size)
        if out.exists() and out.samefile(path):
            raise WrongUseError(f"{out} is the encrypted file itself; give another name")
        with _private_file(out, size) as target:
            for piece in _plain(source, header, secret, path, accept):
                target.write(piece)
                if told is not None:
                    told(len(piece), size)
        return _described(path, header, size)


def decrypted(path: Path, secret: Secret, *, content: bytes | None = None, most_bytes: int = 2 << 30) -> bytes:
    """What `path` holds, in memory alone, at most `most_bytes`; with `content`, those bytes, and `path` names them.

    Raises TrustError as `decrypt` does.
    """
    with _opened(path, content) as (source, header):
        if (size := _content_bytes(source, header)) > most_bytes:
            raise TrustError(f"{path} holds {size:,} bytes, and at most {most_bytes:,} are read into memory")
        return b"".join(_plain(source, header, secret, path))


def check_encrypted(path: Path, secret: Secret, *, told: Told | None = None, accept: Accept | None = None) -> Encrypted:
    """What `path` is, once all of it was decrypted and found whole; nothing of it is kept. Raises as `decrypt`."""
    with _opened(path) as (source, header):
        size = _content_bytes(source, header)
        for piece in _plain(source, header, secret, path, accept):
            if told is not None:
                told(len(piece), size)
        return _described(path, header, size)


def is_encrypted(path: Path) -> bool:
    """Whether the file at `path` begins as an encrypted one does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _plain(
    source: BinaryIO, header: Header, secret: Secret, path: Path, accept: Accept | None = None
) -> Iterator[bytes]:
    """The content, piece by piece, each authenticated; raises TrustError at the first that is not as it was."""
    from cryptography.exceptions import InvalidTag

    cipher = opened(header, secret, path)
    source.seek(header.begins)
    hashing = None if accept is None else HashingBeside(header.raw + header.mac)
    for number, (piece, last) in enumerate(_pieces(source, PIECE + _TAG)):
        if hashing is not None:
            hashing.update(piece)
        try:
            plain = cipher.decrypt(_nonce(number, last=last), piece, None)
        except (InvalidTag, ValueError):
            plain = None
        # Nothing is written after a whole last piece: an empty one is the whole of an empty file.
        if plain is None or (number and not plain):
            raise TrustError(
                f"{path} was changed, cut off or put together anew, {number * PIECE:,} bytes from its beginning: "
                "nothing of it is kept; get the file again"
            )
        yield plain
    if accept is not None and hashing is not None:
        accept(hashing.hexdigest())


def _pieces(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """(piece, whether it is the last) of what is left of `source`; one empty piece where nothing is."""
    piece = source.read(size)
    while True:
        following = source.read(size)
        yield piece, not following
        if not following:
            return
        piece = following


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[tuple[BinaryIO, Header]]:
    require_cryptography()
    if content is not None:
        source = io.BytesIO(content)
        yield source, read_header(source, path)
        return
    if not path.is_file():
        raise WrongUseError(f"{path} is no file; give one that `compressor encrypt` wrote")
    with _readable(path) as file:
        yield file, read_header(file, path)


def _readable(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}; see to your right to read it, or give another file"
        ) from error


def _content_bytes(source: BinaryIO, header: Header) -> int:
    """The bytes of the content, as far as the length of the file tells."""
    held = source.seek(0, os.SEEK_END) - header.begins
    return max(0, held - _TAG * max(1, -(-held // (PIECE + _TAG))))


@contextmanager
def _private_file(path: Path, size_bytes: int) -> Iterator[BinaryIO]:
    """A file for its owner alone that is at `path` once the block ends well, and has no name until then if it can."""
    part = path.parent / temporary_name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _nameless(path.parent)
            named = descriptor is None
            with os.fdopen(_named(part) if descriptor is None else descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if not named and not os.path.lexists(path) and _name_(file, path):
                    return  # whole at once: a kill leaves nothing or all
                if not named and not _name_(file, part):
                    _copy(file, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(path, size_bytes, error) from error


def _named(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def _name_(file: BinaryIO, path: Path) -> bool:
    """Gives a file without a name the name `path`, where nothing has it; whether the system could."""
    try:
        place = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            # Without a folder Python would call link(), which names the link and not what it leads to.
            os.link(str(file.fileno()), path, src_dir_fd=place, follow_symlinks=True)
        finally:
            os.close(place)
    except OSError:
        return False
    return True


def _copy(file: BinaryIO, path: Path) -> None:
    file.seek(0)
    with os.fdopen(_named(path), "w+b") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _nameless(folder: Path) -> int | None:
    """A new file in `folder` without a name, which is gone with its process; None where the system has none."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return None


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _described(path: Path, header: Header, size: int) -> Encrypted:
    return Encrypted(path, path.stat().st_size, size, header.recipients)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".enc")
