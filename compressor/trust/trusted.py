"""Whom a machine trusts: keys with their dates, and the newest release that it has seen of each name, in one file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.errors import StorageError, TrustError, WriteError, WrongUseError
from compressor.storage import not_written, read_sealed, require_file_place, write_sealed
from compressor.trust.keys import Kind, PublicKey, is_pem, read_public
from compressor.trust.statements import Statement, parsed_time, time_text

_FORMAT, _VERSION = "compressor-trust", 1
_WAY_OUT = "make it again with: compressor trust add"
# A store is written in milliseconds.
_WAIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class TrustedKey:
    """A key that is trusted: what people call it, `until` when (None for ever), and whether it was `revoked`."""

    public: PublicKey
    name: str = ""
    until: datetime | None = None
    revoked: bool = False

    def refused(self, now: datetime) -> str:
        """Why its signatures do not count at `now`; "" where they do."""
        who = f"the key {self.name or self.public.key_id[:16]}"
        if self.revoked:
            return f"{who} was revoked"
        if self.until is not None and now > self.until:
            return f"{who} was trusted until {time_text(self.until)}"
        return ""


@dataclass(frozen=True)
class Seen:
    """The newest release that was accepted of a name, and the digest of its manifest."""

    release: int
    manifest_sha256: str


@dataclass(frozen=True, kw_only=True)
class TrustStore:
    """`keys` that are trusted, by id, and what was `seen`, by name. `path` is the file, None for keys alone."""

    keys: dict[str, TrustedKey] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def of(cls, keys: Sequence[PublicKey]) -> "TrustStore":
        """A store of these keys, which remembers nothing. Raises WrongUseError for a key that does not sign."""
        for key in keys:
            if not key.kind.signs:
                raise WrongUseError(f"the key {key.key_id[:16]} is for decryption; give one that signs")
        return cls(keys={key.key_id: TrustedKey(public=key) for key in keys})

    @classmethod
    def read(cls, path: Path) -> "TrustStore":
        """The store in the file at `path`. Raises WrongUseError where there is none, TrustError where it was edited."""
        if not path.is_file():
            got = "something else is" if path.exists() else "nothing is"
            raise WrongUseError(
                f"there is no trust store at {path}: {got} there; `compressor trust add KEY.pub --store FILE` makes one"
            )
        if is_pem(path):
            raise WrongUseError(f"{path} is a key and no trust store; give it as one (--key), or another --store")
        try:
            value = read_sealed(path, way_out=_WAY_OUT)
        except StorageError as error:
            raise TrustError(error.sentence) from error
        if value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise TrustError(f"{path} is no trust store of version {_VERSION}; {_WAY_OUT}")
        try:
            keys = [_key(entry) for entry in value["keys"]]
            seen = {str(name): Seen(int(entry[0]), str(entry[1])) for name, entry in value["seen"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise TrustError(f"{path} is not laid out as a trust store: {error}; {_WAY_OUT}") from error
        return cls(keys={key.public.key_id: key for key in keys}, seen=seen, path=path)

    def write(self, path: Path) -> None:
        """Puts the store at `path`, whole or not at all."""
        write_sealed(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The fields as the file has them."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "keys": [_told(key) for key in self.keys.values()],
            "seen": {name: [entry.release, entry.manifest_sha256] for name, entry in self.seen.items()},
        }

    def refused(self, statement: Statement) -> str:
        """Why what `statement` speaks of is older than what was seen, or another line of it; "" where it is not."""
        seen = self.seen.get(statement.name)
        if seen is None:
            return ""
        if statement.release < seen.release:
            return (
                f"it is release {statement.release} of {statement.name!r}, and release {seen.release} was accepted "
                "before: an older one is not taken"
            )
        if statement.release == seen.release and statement.manifest_sha256 != seen.manifest_sha256:
            return (
                f"it is another release {statement.release} of {statement.name!r} than the one that was accepted "
                "before; whoever signs gives every release a number of its own"
            )
        if statement.release == seen.release + 1 and statement.replaces not in {None, seen.manifest_sha256}:
            return (
                f"it replaces another release {seen.release} of {statement.name!r} than the one that was accepted "
                "before"
            )
        return ""

    def remember(self, statement: Statement) -> None:
        """Notes in the file that what `statement` speaks of was accepted; of several processes the newest stays.

        Raises TrustError where it has become old meanwhile, and WriteError where the file cannot be written.
        """
        if self.path is None or self.seen.get(statement.name) == Seen(statement.release, statement.manifest_sha256):
            return
        try:
            with changing(self.path) as store:
                if why := store.refused(statement):
                    raise TrustError(why)
                seen = {**store.seen, statement.name: Seen(statement.release, statement.manifest_sha256)}
                replace(store, seen=seen).write(self.path)
        except WriteError as error:
            raise WriteError(
                f"{error.sentence}. What was accepted is noted there; to note nothing, give --read-only, or in Python "
                "a TrustStore whose path is None"
            ) from error


@contextmanager
def changing(path: Path) -> Iterator[TrustStore]:
    """The store at `path`, an empty one where there is none, held against other processes while it is changed.

    Raises WriteError where it cannot be held: no right to write beside it, or another process that does not let go.
    """
    require_file_place(path)
    if path.exists():
        TrustStore.read(path)  # nothing is put beside what is no store
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise WriteError(
            f"{path} could not be held for {_WAIT_SECONDS:.0f} s: another process holds it, which may be waited for or "
            "stopped, or no file can be put beside it"
        ) from error
    except OSError as error:
        raise not_written(path, 0, error) from error
    try:
        yield TrustStore.read(path) if path.exists() else TrustStore(path=path)
    finally:
        lock.release()


def trusted(given: Any) -> TrustStore:
    """The store that `given` is: a store, a public key, the path of either, or a sequence of keys and their paths.

    Raises WrongUseError for anything else.
    """
    if isinstance(given, TrustStore):
        return given
    if isinstance(given, str | Path) and _is_store(Path(given)):
        return TrustStore.read(Path(given))
    several = given if isinstance(given, list | tuple) else [given]
    if not several:
        raise WrongUseError("no key is given, so no signature could count; name one that is trusted")
    keys = [read_public(Path(key)) if isinstance(key, str | Path) else key for key in several]
    for key in keys:
        if not isinstance(key, PublicKey):  # None, too
            raise WrongUseError(f"a key is a public key, the path of one, or a trust store; got {type(key).__name__}")
    return TrustStore.of(keys)


def _is_store(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def _told(key: TrustedKey) -> dict[str, Any]:
    return {
        "key_id": key.public.key_id,
        "kind": key.public.kind.value,
        "name": key.name,
        "public": key.public.der.hex(),
        "until": None if key.until is None else time_text(key.until),
        "revoked": key.revoked,
    }


def _key(entry: dict[str, Any]) -> TrustedKey:
    public = PublicKey(Kind(entry["kind"]), bytes.fromhex(entry["public"]))
    if public.key_id != entry["key_id"] or PublicKey.of(public.loaded) != public or not public.kind.signs:
        raise ValueError(f"the key {str(entry['key_id'])[:16]} is not the one that its id names")
    until = None if entry["until"] is None else parsed_time(entry["until"])
    return TrustedKey(public=public, name=str(entry["name"]), until=until, revoked=entry["revoked"] is not False)
