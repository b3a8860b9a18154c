"""The manifest of a folder: every file with its size and SHA-256, and how it was made; written last, read strictly."""

import os
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import RunFolderError, TrustError
from compressor.storage import is_name_left_over, sha256, write_atomic
from compressor.trust.canonical import canonical, fitting, is_text, parsed
from compressor.trust.tree import Digest, content_of, digest_of, is_plain_name, shown, walk

MANIFEST, SIGNATURE, OPENSSF = "manifest.json", "signature.json", "model.sig"
# They stand beside what they speak of: a manifest cannot hold its own digest, nor those of signatures over it.
BESIDE = (MANIFEST, SIGNATURE, OPENSSF)
# What a run holds a folder by while it writes: it is gone, or empty, once the run has ended.
LOCKS = (".lock", ".lock.held")
MOST_MANIFEST_BYTES = 32_000_000
_FORMAT, _VERSION = "compressor-manifest", 1
_DIGEST = re.compile("[0-9a-f]{64}")
_KEYS = {"format", "version", "files", "parents", "made", "sha256"}


class ManifestWarning(UserWarning):
    """Something beside the files of a folder that a manifest cannot list, and that verification will refuse."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds, and how it came about.

    `files` by name (relative, with slashes), `parents` what it was made from, `made` how, both JSON values. `digest` is
    the SHA-256 of the manifest's own bytes: what a signature speaks of.
    """

    files: Mapping[str, Digest]
    parents: tuple[Mapping[str, Any], ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The manifest in its one form, with a digest of the rest of it."""
        value = {
            "format": _FORMAT,
            "version": _VERSION,
            "files": {
                name: {"bytes": digest.size_bytes, "sha256": digest.sha256} for name, digest in self.files.items()
            },
            "parents": [fitting(parent) for parent in self.parents],
            "made": fitting(self.made),
        }
        return canonical({**value, "sha256": sha256(canonical(value))})

    @property
    def digest(self) -> str:
        """The SHA-256 of `to_bytes`."""
        return sha256(self.to_bytes())

    @classmethod
    def from_bytes(cls, raw: bytes, *, what: str = MANIFEST) -> "Manifest":
        """The manifest that `raw` is. Raises TrustError for anything that `to_bytes` would not have written."""
        value = parsed(raw, what=what, most_bytes=MOST_MANIFEST_BYTES)
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise TrustError(f"{what} is no manifest of compressor's; give the folder that a run wrote")
        if type(value.get("version")) is not int or value["version"] != _VERSION:  # True is 1 to Python
            raise TrustError(
                f"{what} is of version {_short(value.get('version'))}, and this program reads version {_VERSION}; "
                "verify it with the version of compressor that wrote it"
            )
        if value.keys() != _KEYS:
            raise TrustError(f"{what} has other entries than a manifest: {_short(sorted(value.keys() ^ _KEYS))}")
        seal = value.pop("sha256")
        if seal != sha256(canonical(value)):
            raise TrustError(f"{what} is not as it was written: its digest of itself differs; get the folder again")
        parents, made = value["parents"], value["made"]
        if not isinstance(parents, list) or not all(isinstance(parent, dict) for parent in parents):
            raise TrustError(f"{what} must list its parents as objects, got {_short(parents)}")
        if not isinstance(made, dict):
            raise TrustError(f"{what} must say by an object how it was made, got {_short(made)}")
        return cls(files=_files(value["files"], what), parents=tuple(parents), made=made)


def described(folder: Path, *, only: Collection[str] | None = None) -> dict[str, Digest]:
    """Every file below `folder` with its digest, but manifest, signatures and locks.

    With `only`, what the folder itself holds under other names is passed over. Links and what cannot be read are not
    listed, which is told with a ManifestWarning, and verification refuses them. Raises TrustError for a folder of more
    files than are looked at.
    """
    found: dict[str, Digest] = {}
    for name, odd in walk(folder, only=only):
        if name in {*BESIDE, *LOCKS} or is_name_left_over(name.rpartition("/")[2]):
            continue
        why = f"is {odd.is_what}" if odd is not None else ""
        if not why and not (is_plain_name(name) and is_text(name)):
            why = "has a name that other systems cannot have"
        if not why:
            try:
                found[name] = digest_of(folder, name)
            except OSError as error:
                why = f"cannot be read ({error.strerror})"
        if why:
            told = f"{folder / shown(name)} {why}: the manifest does not list it, and verification will refuse it"
            warnings.warn(told, ManifestWarning, stacklevel=2)
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Puts `manifest` into `folder`, whole or not at all; it belongs there after everything that it lists."""
    write_atomic(folder / MANIFEST, manifest.to_bytes())


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises TrustError where there is none, or it is not as it was written."""
    return Manifest.from_bytes(manifest_bytes(folder), what=str(folder / MANIFEST))


def manifest_bytes(folder: Path) -> bytes:
    """Its bytes as they are. Raises TrustError where there is none to read."""
    try:
        return content_of(folder, MANIFEST, most_bytes=MOST_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise TrustError(
            f"{folder} has no {MANIFEST}, so nothing says what belongs there; a run writes it when it has ended: give "
            "its command again, or list and sign the folder as it is: compressor sign --anew"
        ) from error
    except OSError as error:
        raise TrustError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error


def retire_manifest(folder: Path) -> None:
    """Takes the manifest out of `folder`, which is about to change, whatever became of it.

    Raises RunFolderError where it is another program's.
    """
    path = folder / MANIFEST
    try:
        if not os.path.lexists(path):
            return
        if path.is_file() and not path.is_symlink() and _FORMAT.encode() in _beginning(path):
            path.unlink()
            return
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be used: {error.strerror or error}; see to the rights to read and write it, or give "
            "another folder"
        ) from error
    raise RunFolderError(
        f"{path} is not what a run writes, and this one would replace it; move it away, or give another folder"
    )


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_MANIFEST_BYTES)


def _files(value: Any, what: str) -> dict[str, Digest]:
    if not isinstance(value, dict):
        raise TrustError(f"{what} must list its files as an object, got {_short(value)}")
    found = {}
    for name, facts in value.items():
        if not is_plain_name(name) or name in {*BESIDE, *LOCKS}:
            raise TrustError(f"{what} lists {shown(name)!r}, which is no file that a manifest may speak of")
        if not isinstance(facts, dict) or facts.keys() != {"bytes", "sha256"}:
            raise TrustError(f"{what} must have bytes and sha256 of {shown(name)!r}, got {_short(facts)}")
        size, digest = facts["bytes"], facts["sha256"]
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise TrustError(f"{what} has no size and digest of {shown(name)!r} that could be: {_short(facts)}")
        found[name] = Digest(size, digest)
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
