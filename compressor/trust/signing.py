"""Folders signed and their signatures checked: by whom, as which release of what, and no older than what was seen."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compressor.errors import StorageError, TrustError, WrongUseError
from compressor.storage import is_left_over, write_atomic
from compressor.trust.canonical import LARGEST_INTEGER
from compressor.trust.keys import PrivateKey
from compressor.trust.manifest import (
    MANIFEST,
    OPENSSF,
    SIGNATURE,
    Manifest,
    ManifestWarning,
    described,
    read_manifest,
    write_manifest,
)
from compressor.trust.openssf import Bundle, signed_bundle
from compressor.trust.statements import LONGEST_NAME, Statement, is_good_name, is_signed, sign, signature_file
from compressor.trust.tree import digest_of, walk
from compressor.trust.trusted import TrustedKey, TrustStore, trusted
from compressor.trust.verification import bundle_in, check, signatures_in

# Clocks of two machines differ.
_AHEAD = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """Whose signature holds: the `key`, and what it says. `statement` is None for a signature of model-signing."""

    key: TrustedKey
    statement: Statement | None
    store: TrustStore

    def remember(self) -> None:
        """Notes the release in the trust store, where there is one."""
        if self.statement is not None:
            self.store.remember(self.statement)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        who = {"key_id": self.key.public.key_id, "key": self.key.name or None}
        if self.statement is None:
            return {**who, "format": "model-signing"}
        kept = ("name", "release", "signed", "expires", "replaces")
        return {**who, "format": "compressor", **{name: self.statement.to_json()[name] for name in kept}}


def sign_folder(
    folder: Path,
    key: PrivateKey,
    *,
    name: str | None = None,
    release: int | None = None,
    replaces: Path | None = None,
    days: float | None = None,
    anew: bool = False,
    openssf: bool = False,
    inspect: Callable[[Path], None] | None = None,
    now: datetime | None = None,
) -> Statement:
    """Signs the manifest of `folder` by `key`, as release number `release` of `name`, for `days` or for ever.

    All files are held against the manifest first; with `anew` they are listed anew instead, whatever they are. `name`
    is by default that of the folder that it `replaces`, or the folder's own; `release` the one after that, or 1. Both
    have to be given where `key` itself did not sign that folder. A signature by another key stays. `openssf` writes
    model.sig as well, as model-signing does. `inspect` is called before anything is written, and raises what keeps it
    from being signed.

    Raises TrustError where the folder is not what its manifest says, WrongUseError for a key that does not sign.
    """
    if not key.kind.signs:
        raise WrongUseError(f"a key of the kind {key.kind} decrypts and does not sign; make one: --kind ed25519")
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    if days is not None and not 0 < days < 36_500:
        raise WrongUseError(f"days is for how long the signature counts, above 0 and below 36,500; got {days:g}")
    if name is not None and not is_good_name(name):
        raise WrongUseError(f"a name has 1 to {LONGEST_NAME} printable characters, got {name[:50]!r}")
    if release is not None and not 1 <= release <= LARGEST_INTEGER:
        raise WrongUseError(f"a release is a whole number from 1 to {LARGEST_INTEGER:,}, got {release:.6g}")
    if replaces is not None and not replaces.is_dir():
        raise WrongUseError(f"{replaces} is no folder; what is replaced is the signed folder of the release before")
    if not anew:
        read_manifest(folder)  # before every file is looked into
    replaced = None if replaces is None else read_manifest(replaces).digest
    before = None if replaces is None else _own_release(replaces, key, given=name is not None and release is not None)
    # What a signer that was killed had not yet named: no manifest lists it, and verification refuses it.
    for left in filter(is_left_over, folder.iterdir()):
        left.unlink(missing_ok=True)
    if inspect is not None:
        inspect(folder)
    manifest = _listed_anew(folder) if anew else check(folder).require_files().manifest
    if replaced == manifest.digest:
        raise WrongUseError(
            f"{folder} holds the very files of the release that it is to replace, {replaces}; name the folder of the "
            "release before it"
        )
    statement = Statement(
        manifest_sha256=manifest.digest,
        key_id=key.public.key_id,
        kind=key.kind,
        name=name if name is not None else before.name if before else _called(folder),
        release=release if release is not None else (before.release + 1 if before else 1),
        signed=now,
        expires=None if days is None else now + timedelta(seconds=math.ceil(days * 86_400)),
        replaces=replaced,
    )
    if before is not None and statement.release <= before.release:
        raise WrongUseError(f"release {statement.release} cannot replace release {before.release}; give a later one")
    files = {listed: digest.sha256 for listed, digest in manifest.files.items()} | {MANIFEST: manifest.digest}
    bundle = signed_bundle(files, key, name=statement.name) if openssf else None
    if anew:
        write_manifest(folder, manifest)
    write_atomic(
        folder / SIGNATURE,
        signature_file({**_others(folder, statement), key.public.key_id: (statement, sign(statement, key))}),
    )
    if bundle is not None:
        write_atomic(folder / OPENSSF, bundle)
    return statement


def _called(folder: Path) -> str:
    name = folder.resolve().name
    if not is_good_name(name):
        raise WrongUseError(f"{folder} has no name of 1 to {LONGEST_NAME} printable characters; give --name")
    return name


def signed_by(
    folder: Path,
    manifest: Manifest,
    given: Any,
    *,
    name: str | None = None,
    least_release: int | None = None,
    now: datetime | None = None,
) -> Signed:
    """The signature over `manifest`, that of `folder`, which one of the keys `given` made and which still counts.

    `given` is what `trusted` takes. With `name` and `least_release` it must be a release of that name, at least that
    one. Files are not looked at, and nothing is noted. Raises TrustError, with the reason, where there is none.
    """
    now, store = now or datetime.now(UTC), trusted(given)
    try:
        signed = signatures_in(folder)
    except FileNotFoundError:
        raise TrustError(f"{folder} is not signed: it has no {SIGNATURE}; compressor sign writes it") from None
    except OSError as error:
        raise TrustError(f"{folder / SIGNATURE} cannot be read: {error.strerror}") from error
    why = []
    for key_id, (statement, signature) in signed.items():
        key = store.keys.get(key_id)
        if key is None:
            why.append(f"the key {key_id[:16]}, which is not trusted, made a signature")
            continue
        if statement.kind is not key.public.kind or not is_signed(key.public, statement.message, signature):
            raise TrustError(
                f"the signature in {folder} is not by the key {key_id[:16]} that it names: it is forged or damaged"
            )
        if statement.manifest_sha256 != manifest.digest:
            why.append("the signature is for another manifest than the one that is there")
            continue
        if reason := key.refused(now) or _refused(statement, store, name, least_release, now):
            why.append(reason)
            continue
        return Signed(key=key, statement=statement, store=store)
    raise TrustError(f"no signature in {folder} counts: {'; '.join(why) or 'there is none'}")


def bundle_by(folder: Path, given: Any, *, now: datetime | None = None) -> Signed:
    """The signature in model.sig by one of the keys `given`, once every file is found to be what it lists.

    For folders that model-signing signed, without a manifest. Raises TrustError where anything differs.
    """
    store = trusted(given)
    try:
        bundle = bundle_in(folder)
    except OSError as error:
        raise TrustError(f"{folder} is not signed: it has neither {SIGNATURE} nor {OPENSSF}") from error
    key = _maker(bundle, store)
    if key is None:
        raise TrustError(f"the signature {folder / OPENSSF} is by none of the keys that are trusted")
    if reason := key.refused(now or datetime.now(UTC)):
        raise TrustError(f"the signature {folder / OPENSSF} does not count: {reason}")
    if not bundle.covers(SIGNATURE):
        # Else whoever takes that file away would bring an older release back, or one that has expired.
        raise TrustError(
            f"{folder / OPENSSF} was made beside a {SIGNATURE}, which says which release it is and is gone"
        )
    if bundle.name in store.seen:
        raise TrustError(
            f"release {store.seen[bundle.name].release} of {bundle.name!r} was accepted before, and {OPENSSF} names no "
            "release, so it may be an older one"
        )
    differing = []
    for name, odd in walk(folder):
        if not bundle.covers(name) or name == OPENSSF:
            continue
        if odd is not None:
            differing.append(f"{name} is {odd.is_what}")
        elif name not in bundle.files:
            differing.append(f"{name} is not listed: it came along later")
    for name, sha256 in bundle.files.items():
        try:
            if digest_of(folder, name).sha256 != sha256:
                differing.append(f"{name} was changed")
        except OSError:
            differing.append(f"{name} is missing")
    if differing:
        raise TrustError("\n  ".join([f"{folder} is not what {OPENSSF} signs:", *differing[:20]]))
    return Signed(key=key, statement=None, store=store)


def _maker(bundle: Bundle, store: TrustStore) -> TrustedKey | None:
    return next((key for key in store.keys.values() if bundle.is_by(key.public)), None)


def _refused(
    statement: Statement, store: TrustStore, name: str | None, least_release: int | None, now: datetime
) -> str:
    if statement.expires is not None and now > statement.expires:
        return f"the signature expired at {statement.to_json()['expires']}"
    if statement.signed > now + _AHEAD:
        return (
            f"the signature is of {statement.to_json()['signed']}, which is yet to come; look at this machine's clock"
        )
    if name is not None and statement.name != name:
        return f"it is for {statement.name!r}, and {name!r} is wanted"
    if least_release is not None and statement.release < least_release:
        return f"it is release {statement.release}, and at least {least_release} is wanted"
    return store.refused(statement)


def _own_release(folder: Path, key: PrivateKey, *, given: bool) -> Statement | None:
    """What `key` itself said of the manifest in `folder`; None where it did not and name and release are `given`.

    Whoever can write there could add a signature of his own, with a name and a number that nobody gave.
    """
    digest, public = read_manifest(folder).digest, key.public
    try:
        statement, signature = signatures_in(folder).get(public.key_id, (None, b""))
    except OSError as error:
        raise WrongUseError(f"{folder} is not signed, so it is no release that another could replace") from error
    if statement is not None and not is_signed(public, statement.message, signature):
        raise TrustError(f"the signature in {folder} is not by the key {public.key_id[:16]} that it names")
    if statement is not None and statement.manifest_sha256 != digest:
        raise TrustError(f"{folder / SIGNATURE} is for another manifest than the one that is there")
    if statement is None and not given:
        raise WrongUseError(
            f"{folder} was not signed by the key {public.key_id[:16]}, so nothing shows which release it is; give "
            "--name and --release"
        )
    return statement


def _listed_anew(folder: Path) -> Manifest:
    try:
        old = read_manifest(folder)
    except StorageError:
        old = Manifest(files={})
    if (folder / ".lock").exists():
        raise TrustError(f"{folder} has a .lock: a run is writing there, or was killed; give its command again")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ManifestWarning)
        try:
            return replace(old, files=described(folder), made={**old.made, "listed": "anew, by hand"})
        except ManifestWarning as warning:
            raise TrustError(f"{warning}; move it away before the folder is signed") from None


def _others(folder: Path, statement: Statement) -> dict[str, tuple[Statement, bytes]]:
    """The signatures of other keys over the same manifest."""
    try:
        signed = signatures_in(folder)
    except (OSError, TrustError):
        return {}
    return {key: entry for key, entry in signed.items() if entry[0].manifest_sha256 == statement.manifest_sha256}
