"""Whether a folder, or one file in it, is what its manifest says: all that differs is told, and anything is refused."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.errors import TrustError, WrongUseError
from compressor.trust.manifest import BESIDE, LOCKS, MANIFEST, OPENSSF, SIGNATURE, Manifest, manifest_bytes
from compressor.trust.openssf import MOST_BUNDLE_BYTES, Bundle, read_bundle
from compressor.trust.statements import Statement, parsed_signatures
from compressor.trust.tree import Digest, content_of, digest_of, shown, walk

# A run's files lie three levels below its folder.
_LEVELS_UP = 4
_SHOWN = 20
# Some hundred bytes a key.
MOST_SIGNATURE_BYTES = 1_000_000
_OTHER_MANIFEST = "signs something else than what is there"


@dataclass(frozen=True)
class Problem:
    """One thing that is not as the manifest says: which file, and `says` what is wrong with it, in words."""

    kind: str
    name: str
    says: str

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.says}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What became of looking at `folder`: its manifest, the files and bytes that were read, and what differs.

    `only` is the one file that was looked at, None for all of the folder.
    """

    folder: Path
    manifest: Manifest
    only: str | None = None
    files: int = 0
    size_bytes: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether all is as the manifest says."""
        return not self.problems

    def require_files(self) -> "Checked":
        """Itself, whatever signatures say; raises TrustError with all else that differs."""
        replace(self, problems=tuple(problem for problem in self.problems if problem.kind != "signature")).require()
        return self

    def require(self) -> "Checked":
        """Itself; raises TrustError with all that differs."""
        if self.holds:
            return self
        told = [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            told.append(f"  and {len(self.problems) - _SHOWN} more")
        raise TrustError("\n".join([f"{self.folder} is not what its {MANIFEST} says:", *told, _way_out(self.problems)]))

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "verified": self.holds,
            "folder": str(self.folder),
            "file": self.only,
            "manifest_sha256": self.manifest.digest,
            "files": self.files,
            "bytes": self.size_bytes,
            "problems": [
                {"kind": problem.kind, "file": shown(problem.name), "says": problem.says} for problem in self.problems
            ],
        }


def check(path: Path) -> Checked:
    """The folder `path`, or the file and its folder's manifest, held against each other.

    Of a folder every file is read: what was changed, is missing, came along, or is a link is a problem. Of a file the
    manifest is that of its folder or of the nearest one above that has one. Raises TrustError where there is no
    manifest, or it is not as it was written, and WrongUseError where there is nothing at `path`.
    """
    folder, only = place_of(path)
    manifest = Manifest.from_bytes(manifest_bytes(folder), what=str(folder / MANIFEST))
    problems, files, size = [], 0, 0
    for name in manifest.files if only is None else [only]:
        wanted = manifest.files.get(name)
        if wanted is None:
            problems.append(Problem("extra", name, "is not listed: it came along later"))
            continue
        files += 1
        size += wanted.size_bytes
        problems += _compared(folder, name, wanted)
    if only is None:
        problems += [*_others(folder, manifest), *_beside(folder, manifest)]
    first = {problem.name: problem for problem in reversed(problems)}
    return Checked(
        folder=folder,
        manifest=manifest,
        only=only,
        files=files,
        size_bytes=size,
        problems=tuple(first[name] for name in sorted(first)),
    )


def place_of(path: Path) -> tuple[Path, str | None]:
    """(folder with a manifest, name of a file in it); the name is None for the folder itself, or its manifest.

    Raises WrongUseError where there is nothing at `path`, TrustError where no folder above has a manifest.
    """
    if path.is_dir():
        above = next(
            (folder for folder in list(path.absolute().parents)[:_LEVELS_UP] if (folder / MANIFEST).exists()), None
        )
        if above is not None and not os.path.lexists(path / MANIFEST):
            raise WrongUseError(
                f"{path} is a part of {above}, whose {MANIFEST} speaks of it; give that folder, or a file"
            )
        return path, None
    if not os.path.lexists(path):
        raise WrongUseError(f"there is nothing at {path}; give the folder of a run, or a file in it")
    # Not resolved: a link is told as one.
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link
    if whole.name in BESIDE:
        return whole.parent, None
    for folder in list(whole.parents)[:_LEVELS_UP]:
        if os.path.lexists(folder / MANIFEST):
            return folder, whole.relative_to(folder).as_posix()
    raise TrustError(
        f"neither the folder of {path} nor one of the {_LEVELS_UP - 1} above it has a {MANIFEST}, so nothing says what "
        "the file should be"
    )


def _compared(folder: Path, name: str, wanted: Digest) -> Iterator[Problem]:
    try:
        got = digest_of(folder, name, most_bytes=wanted.size_bytes)
    except (FileNotFoundError, NotADirectoryError):
        yield Problem("missing", name, "is missing")
    except TrustError:
        yield Problem("odd", name, "is a link, lies behind one, or is no plain file; links are not followed")
    except OSError as error:
        yield Problem("unreadable", name, f"cannot be read: {error.strerror}")
    else:
        if got.size_bytes != wanted.size_bytes:
            more = "more" if got.size_bytes > wanted.size_bytes else f"{got.size_bytes:,} bytes"
            yield Problem("changed", name, f"was changed: {wanted.size_bytes:,} bytes are listed, and it has {more}")
        elif got != wanted:
            yield Problem(
                "changed", name, f"was changed: its SHA-256 is {got.sha256[:16]}..., listed is {wanted.sha256[:16]}..."
            )


def _others(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """What is in the folder and not listed."""
    for name, odd in walk(folder):
        if odd is not None and odd.shut:
            yield Problem("unreadable", name, f"is {odd.is_what}")
        elif odd is not None:
            yield Problem("odd", name, f"is {odd.is_what}, and no manifest lists one")
        elif name == ".lock":
            yield Problem("lock", name, "is there: a run is writing here, or was killed; give its command again")
        elif name in LOCKS and (folder / name).stat().st_size == 0:
            continue
        elif name not in manifest.files and name not in BESIDE:
            yield Problem("extra", name, "is not listed: it came along later")


def _beside(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Signatures that are none, or speak of something else; who made them is not looked at here."""
    if os.path.lexists(folder / SIGNATURE):
        try:
            signed = signatures_in(folder)
        except (TrustError, OSError) as error:
            yield Problem("signature", SIGNATURE, f"cannot be read: {error}")
        else:
            if any(statement.manifest_sha256 != manifest.digest for statement, _ in signed.values()):
                yield Problem("signature", SIGNATURE, _OTHER_MANIFEST)
    if os.path.lexists(folder / OPENSSF):
        try:
            bundle = bundle_in(folder)
        except (TrustError, OSError) as error:
            yield Problem("signature", OPENSSF, f"cannot be read: {error}")
        else:
            listed = {name: digest.sha256 for name, digest in manifest.files.items()} | {MANIFEST: manifest.digest}
            if bundle.files != {name: digest for name, digest in listed.items() if bundle.covers(name)}:
                yield Problem("signature", OPENSSF, _OTHER_MANIFEST)


def signatures_in(folder: Path) -> dict[str, tuple[Statement, bytes]]:
    """{key id: (statement, signature)} in `folder`. Raises TrustError for a damaged file, OSError without one."""
    raw = content_of(folder, SIGNATURE, most_bytes=MOST_SIGNATURE_BYTES)
    return parsed_signatures(raw, what=str(folder / SIGNATURE), most_bytes=MOST_SIGNATURE_BYTES)


def bundle_in(folder: Path) -> Bundle:
    """What model.sig in `folder` says. Raises as `signatures_in` does."""
    raw = content_of(folder, OPENSSF, most_bytes=MOST_BUNDLE_BYTES)
    return read_bundle(raw, what=str(folder / OPENSSF))


def _way_out(problems: tuple[Problem, ...]) -> str:
    kinds = {problem.kind for problem in problems}
    if kinds == {"signature"}:
        return "delete the signature, or sign what is there now: compressor sign"
    if kinds == {"unreadable"}:
        return "see to your right to read all of it, and verify it again"
    if kinds <= {"extra", "odd"}:
        return "move away what came along, or list all that is there anew and vouch for it: compressor sign --anew"
    return "get the folder again from where it was made; a run's folder is made whole by giving its command again"
