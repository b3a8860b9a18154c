"""Files for use: their bytes are read once, held against a signature, and those very bytes are handed on."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import TrustError, WrongUseError
from compressor.storage import sha256
from compressor.trust.encryption import decrypted
from compressor.trust.keys import read_private
from compressor.trust.manifest import MANIFEST, Manifest, manifest_bytes
from compressor.trust.signing import Signed, signed_by
from compressor.trust.tree import Digest, content_of, shown
from compressor.trust.trusted import trusted
from compressor.trust.verification import place_of

if TYPE_CHECKING:
    import onnxruntime as ort

_MODEL = "model.onnx"
# Protocol buffers end there.
MOST_MODEL_BYTES = 2 << 30


def signed_files(
    folder: Path | str,
    names: Sequence[str],
    *,
    key: Any,
    name: str | None = None,
    least_release: int | None = None,
) -> dict[str, bytes]:
    """The bytes of the files `names` of `folder`, which one of the keys `key` signed: what was checked.

    `key` is a public key, a trust store, the path of either, or several keys. With `name` and `least_release` the
    signature must be for a release of that name, at least that one. A trust store notes the release. The rest of the
    folder is not looked at (`compressor verify`). Raises TrustError where anything differs, with the reason.
    """
    folder = _path_of(folder)
    manifest, signed = _signed(folder, key=key, name=name, least_release=least_release)
    return _contents(folder, manifest, names, signed)


def read_signed(path: Path | str, *, key: Any, name: str | None = None, least_release: int | None = None) -> bytes:
    """The bytes of the file at `path`, or of the model in the folder `path`; else as `signed_files`."""
    folder, only = place_of(_path_of(path))
    return signed_files(folder, [only or _MODEL], key=key, name=name, least_release=least_release)[only or _MODEL]


def signed_file(
    path: Path | str, *, key: Any, name: str | None = None, least_release: int | None = None
) -> Callable[[str], None]:
    """What says whether the file at `path` is the one that was signed, given the SHA-256 of what was read of it.

    For readers that hash while they read. It raises TrustError for any other, and notes the release in a trust store.
    Raises as `signed_files` where no signature holds.
    """
    folder, only = place_of(_path_of(path))
    if only is None:
        raise WrongUseError(f"{path} is no file in a signed folder; give one that its manifest lists")
    manifest, signed = _signed(folder, key=key, name=name, least_release=least_release)
    wanted = _listed(folder, manifest, only)

    def accept(sha256: str) -> None:
        if sha256 != wanted.sha256:
            raise TrustError(f"{path} was changed: it is not the file that was signed; get it again")
        signed.remember()

    return accept


def open_signed(
    path: Path | str, *, key: Any, name: str | None = None, least_release: int | None = None, threads: int = 1
) -> "ort.InferenceSession":
    """A session of ONNX Runtime's on the model at `path`, or in the folder `path`, once its signature holds.

    The runtime is given the bytes that were checked, and never the path. Raises TrustError as `signed_files`, and for
    a model that keeps weights in other files, which it would open by itself; ValueError for what it cannot load.
    """
    from compressor.sessions import open_session  # ONNX Runtime, which those who only decrypt need not

    content = read_signed(path, key=key, name=name, least_release=least_release)
    return open_session(all_inside(content, str(path)), threads=threads)


def open_encrypted(
    path: Path | str,
    *,
    secret: Any,
    key: Any = None,
    name: str | None = None,
    least_release: int | None = None,
    threads: int = 1,
) -> "ort.InferenceSession":
    """A session of ONNX Runtime's on the encrypted model at `path`, decrypted in memory and never on a disk.

    `secret` opens it: a private key, the path of one that has no passphrase, or a passphrase as bytes. Encryption says
    nothing of who encrypted: with `key`, the encrypted file must lie in a folder that one of these keys signed, as for
    `open_signed`. Raises TrustError where anything differs.
    """
    from compressor.sessions import open_session  # as above

    content = None if key is None else read_signed(path, key=key, name=name, least_release=least_release)
    if isinstance(secret, str | Path) and not os.path.lexists(secret):
        # Not repeated: it may be a passphrase.
        raise WrongUseError("secret names no file; give the path of a private key, or a passphrase as bytes")
    opener = read_private(Path(secret)) if isinstance(secret, str | Path) else secret
    plain = decrypted(_path_of(path), opener, content=content, most_bytes=MOST_MODEL_BYTES)
    return open_session(all_inside(plain, str(path)), threads=threads)


def _path_of(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise WrongUseError(f"what is opened is named by its path, got {type(path).__name__}; give a str or a Path")
    return Path(path)


def all_inside(content: bytes, what: str) -> bytes:
    """`content`, an ONNX file; raises TrustError where it names other files, which no session may go and open."""
    import onnx

    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's errors are its own
        raise TrustError(f"{what} holds no ONNX file") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise TrustError(
            f"{what} keeps weights in other files, which the runtime would open unchecked; store it as one file"
        )
    return content


def _signed(folder: Path, *, key: Any, name: str | None, least_release: int | None) -> tuple[Manifest, Signed]:
    store = trusted(key)
    if least_release is not None and type(least_release) is not int:
        raise WrongUseError(f"least_release is a whole number, got {least_release!r}")
    manifest = Manifest.from_bytes(manifest_bytes(folder), what=str(folder / MANIFEST))
    return manifest, signed_by(folder, manifest, store, name=name, least_release=least_release)


def _listed(folder: Path, manifest: Manifest, name: str) -> Digest:
    wanted = manifest.files.get(name)
    if wanted is None:
        raise TrustError(f"{shown(name)} is not listed in {folder / MANIFEST}: it came along later")
    return wanted


def _contents(folder: Path, manifest: Manifest, names: Sequence[str], signed: Signed) -> dict[str, bytes]:
    found = {}
    for name in names:
        wanted = _listed(folder, manifest, name)
        try:
            found[name] = content_of(folder, name, most_bytes=min(wanted.size_bytes, MOST_MODEL_BYTES))
        except TrustError as error:
            raise TrustError(f"{folder / name} was changed: {error.sentence}") from error
        except OSError as error:
            raise TrustError(f"{folder / name} cannot be read: {error.strerror}") from error
        if sha256(found[name]) != wanted.sha256:
            raise TrustError(f"{folder / name} was changed: it is not the file that was signed; get it again")
    signed.remember()
    return found


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor anywhere in an ONNX message: weights, attributes, those of inner graphs and functions."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if hasattr(value, "ListFields") else value:
            yield from _tensors(inner)
