"""What files say that nobody meant to ship: paths, names of users and machines, tokens, addresses, samples.

Text is looked for in every file, whatever its kind: runs of printable UTF-8 that begin with some ASCII.
What is compressed or encrypted inside a file is not seen, and files that hold data are told for that reason.
"""

import getpass
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import StorageError, WrongUseError
from compressor.trust.manifest import SIGNATURE
from compressor.trust.tree import shown, walk
from compressor.workload import Workload, input_tensors

_PIECE = 1 << 20
# What is looked for is shorter, so that nothing is missed where two pieces meet.
_OVERLAP = 1 << 12
# Letters beyond ASCII, and what goes on with them: to begin anywhere with one takes five times as long.
_LETTER = (
    rb"(?:\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})"
)
_TEXT = re.compile(rb"[\x20-\x7e]{6,}(?:%b+[\x20-\x7e]*)*" % _LETTER)
# Bytes of UTF-8; a piece may end within one.
_LONGEST_LETTER = 4
_LONGEST_SHOWN = 80
# Accounts and machines that thousands have.
_COMMON = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "app", "localhost", "docker", "container"}
_SHORTEST_NAME = 4
# A sample is known by so many of its bytes in a row, of which enough differ that no padding is taken for one.
_NEEDLE, _DISTINCT, _SAMPLES = 48, 12, 32

# By kind: what gives it away.
_PATTERNS: dict[str, re.Pattern[str]] = {
    "path": re.compile(
        r"(?:/home/|/Users/|/root/|/mnt/c/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})[^\s\"'<>|:;,&)\]}]{2,200}"
    ),
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"),
    "token": re.compile(
        r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}|glpat-[\w-]{20,}"
        r"|hf_[A-Za-z0-9]{30,}|sk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}|xox[abprs]-[A-Za-z0-9-]{20,}|AIza[\w-]{35}"
        r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
    ),
    "password in an address": re.compile(r"\b[a-z][a-z0-9+.-]{2,15}://[^\s/:@\"']{1,64}:[^\s/@\"']{3,128}@[\w.-]{3,}"),
    "e-mail address": re.compile(r"\b[\w.+-]{2,64}@[\w-]{2,63}(?:\.[\w-]{2,63})*\.[a-z]{2,12}\b"),
    "picture": re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]{40}"),
}
_SECRET = {"token", "private key", "password in an address"}
# Files in which samples lie rather than models, or which run code when they are read.
_DATA_ENDINGS = {".npz", ".npy", ".csv", ".tsv", ".parquet", ".arrow", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".zip"}


@dataclass(frozen=True)
class Finding:
    """Something in `file` that tells more than a model should: of which `kind`, what it `shows`, and how often."""

    file: str
    kind: str
    shows: str
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{shown(self.file)}: {self.kind}: {shown(self.shows)}{times}"


def scan(path: Path, workload: Workload | None = None, *, names: Mapping[str, str] | None = None) -> list[Finding]:
    """What the files below `path`, or the file itself, say that was hardly meant, sorted by file and kind.

    With a `workload`, some of its samples are looked for as well, value by value. `names` are {name: kind} of users and
    machines, by default those of this process. Secrets are shown by their first characters alone.
    """
    names = own_names() if names is None else names
    needles = {} if workload is None else dict(_needles(workload))
    found: Counter[tuple[str, str, str]] = Counter()
    for name, place in _files(path):
        if place.suffix.lower() in _DATA_ENDINGS:
            found[name, "data file", f"files with the ending {place.suffix} hold samples, or code"] += 1
        try:
            with place.open("rb") as file:
                for kind, shows in _in_file(file, names, needles):
                    found[name, kind, shows] += 1
        except OSError as error:
            raise StorageError(
                f"{place} cannot be read: {error.strerror}, so nothing shows what it tells; see to your right to do so"
            ) from error
    return [Finding(*key, count) for key, count in sorted(found.items())]


def require_clean(path: Path) -> None:
    """Raises WrongUseError with all that `scan` finds."""
    found = scan(path)
    if found:
        told = [f"  {finding}" for finding in found[:20]]
        if len(found) > 20:
            told.append(f"  and {len(found) - 20} more")
        raise WrongUseError(
            "\n".join(
                [
                    f"{path} tells what is hardly meant for others:",
                    *told,
                    "take it out and make the folder again, or sign it all the same: --no-inspect",
                ]
            )
        )


def own_names() -> dict[str, str]:
    """{name: kind} of this user, this machine and where this process works, where they are names that tell anything."""
    names = {str(place): "own path" for place in (Path.cwd(), Path.home())}
    with suppress(OSError, KeyError, ImportError):  # an account without a name, as in containers
        names[getpass.getuser()] = "user name"
    names[socket.gethostname().partition(".")[0]] = "host name"
    return {
        name: kind
        for name, kind in names.items()
        if len(name) >= _SHORTEST_NAME and name.lower().strip("/") not in _COMMON
    }


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        if not path.is_file():
            got = "a device, a pipe or a socket is" if path.exists() else "nothing is"
            raise WrongUseError(f"{got} at {path}, and a folder or a file is wanted")
        yield path.name, path
        return
    for name, odd in walk(path):
        if odd is None and name != SIGNATURE:
            yield name, path / name


def _in_file(file: BinaryIO, names: Mapping[str, str], needles: Mapping[bytes, str]) -> Iterator[tuple[str, str]]:
    """(kind, what it shows) of everything in `file`; what lies where two pieces meet is told once."""
    patterns = {**_PATTERNS, **_named(names)}
    before, fresh = b"", file.read(_PIECE)
    while fresh:
        following = file.read(_PIECE)
        piece, known = before + fresh, len(before)
        yield from _in_text(piece, known, patterns, last=not following)
        for needle, which in needles.items():
            if piece.find(needle, max(0, known - len(needle) + 1)) >= 0:
                yield "sample", which
        before, fresh = piece[-_OVERLAP:], following


def _in_text(
    piece: bytes, known: int, patterns: Mapping[str, re.Pattern[str]], *, last: bool
) -> Iterator[tuple[str, str]]:
    for run in _TEXT.finditer(piece):
        text = run[0].decode()
        for kind, pattern in patterns.items():
            for match in pattern.finditer(text):
                end = run.start() + (match.end() if text.isascii() else len(text[: match.end()].encode()))
                # What was whole in the part before was told there; what may go on is told with the next one.
                if end >= known - _LONGEST_LETTER + 1 and (last or end <= len(piece) - _LONGEST_LETTER):
                    yield kind, _masked(match[0]) if kind in _SECRET else _cut(match[0])


def _named(names: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {
        kind: re.compile("|".join(rf"(?<![\w]){re.escape(name)}(?![\w])" for name in names if names[name] == kind))
        for kind in set(names.values())
    }


def _needles(workload: Workload) -> Iterable[tuple[bytes, str]]:
    """(bytes in a row, which sample they are of) of the first samples of each set."""
    for which in ("train", "calibration", "validation", "test"):
        inputs = next(iter(getattr(workload, which)))[0]
        for tensor in input_tensors(inputs):
            for number, sample in enumerate(tensor[:_SAMPLES]):
                needle = _telling(sample)
                if needle is not None:
                    yield needle, f"sample {number} of {which}"


def _telling(sample: Any) -> bytes | None:
    """Bytes of the sample that nothing else has; None where it is too short or too plain for that."""
    raw = sample.detach().cpu().contiguous().numpy().tobytes()
    starts = sorted(range(0, max(0, len(raw) - _NEEDLE + 1), 16), key=lambda start: abs(start - len(raw) // 2))
    for start in starts:
        if len(set(raw[start : start + _NEEDLE])) >= _DISTINCT:
            return bytes(raw[start : start + _NEEDLE])
    return None


def _masked(text: str) -> str:
    return f"{text[:6]}... ({len(text)} characters)"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
