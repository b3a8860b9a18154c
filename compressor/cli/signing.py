"""The commands that make keys, sign folders, and keep what is trusted: what they ask, and what they say."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.exits import reported
from compressor.cli.options import AsJson, Quiet, Verbose
from compressor.cli.telling import print_json
from compressor.errors import WrongUseError

if TYPE_CHECKING:
    from compressor.trust.trusted import TrustStore

PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="A file with the passphrase in it, one line."),
]


class KeyKind(StrEnum):
    """What a key pair is for."""

    ED25519 = "ed25519"
    P256 = "p256"
    X25519 = "x25519"


class TrustAction(StrEnum):
    """What `compressor trust` does."""

    ADD = "add"
    LIST = "list"
    REVOKE = "revoke"


def keygen(
    *,
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Where the private half goes; the public one: KEY.pub.")],
    kind: Annotated[
        KeyKind,
        typer.Option(help="`ed25519` signs, `p256` signs for model-signing too, `x25519` is for encryption."),
    ] = KeyKind.ED25519,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Makes a key pair: KEY, for its owner alone (rights 0600), and KEY.pub, for everybody. Nothing is written over.

    `compressor keygen ~/.keys/release`

    `compressor keygen ~/.keys/release --passphrase-file pass.txt`, encrypted at rest
    """
    with reported(verbose=verbose, changes=key):
        from compressor.trust.keys import Kind, generate, passphrase_in, public_of

        passphrase = None if passphrase_file is None else passphrase_in(passphrase_file)
        public = generate(key, Kind(kind.value), passphrase=passphrase)
        if as_json:
            print_json({"key": str(key), "public": str(public_of(key)), "kind": kind.value, "key_id": public.key_id})
        else:
            typer.echo(str(public_of(key)) if quiet else f"{public_of(key)}: {kind.value}, key id {public.key_id}")


def sign(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run, or any other with --anew.")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="The private key that signs.")],
    name: Annotated[
        str | None, typer.Option(help="What it is a release of; by default that of --replaces, or the folder's name.")
    ] = None,
    release: Annotated[
        int | None, typer.Option(min=1, help="Its number; by default the one after --replaces, or 1.")
    ] = None,
    replaces: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The signed folder of the release before.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, help="How long the signature counts; by default for ever.")
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Lists all that is in the folder now, and vouches for it.")
    ] = False,
    openssf: Annotated[
        bool, typer.Option("--openssf", help="Writes model.sig as well, which the OpenSSF's model-signing verifies.")
    ] = False,
    no_inspect: Annotated[
        bool, typer.Option("--no-inspect", help="Signs it whatever its files tell (`compressor inspect`).")
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Signs a folder: all its files are held against the manifest, and the manifest is signed, in signature.json.

    Paths, names, tokens or pictures in its files keep it from being signed (`compressor inspect`).

    `compressor sign runs/digits --key ~/.keys/release --name digits`

    `compressor sign runs/better --key ~/.keys/release --replaces runs/digits --days 365`

    `compressor sign to_ship --key ~/.keys/release --anew`, a folder that no run made
    """
    with reported(verbose=verbose, changes=folder):
        if not folder.is_dir():
            raise WrongUseError(f"{folder} is no folder; a signature is for a folder with all that is in it")
        from compressor.inspection.privacy import require_clean
        from compressor.trust.keys import passphrase_in, read_private
        from compressor.trust.signing import sign_folder

        passphrase = None if passphrase_file is None else passphrase_in(passphrase_file)
        statement = sign_folder(
            folder,
            read_private(key, passphrase=passphrase),
            name=name,
            release=release,
            replaces=replaces,
            days=days,
            anew=anew,
            openssf=openssf,
            inspect=None if no_inspect else require_clean,
        )
        if as_json:
            print_json(statement.to_json())
        elif not quiet:
            until = "" if statement.expires is None else f", until {statement.expires:%Y-%m-%d}"
            typer.echo(
                f"{folder}: signed as release {statement.release} of {statement.name} by the key "
                f"{statement.key_id[:16]}{until}"
            )


def trust(
    *,
    action: Annotated[TrustAction, typer.Argument(help="`add`, `list` or `revoke`.")],
    key: Annotated[
        str | None, typer.Argument(metavar="KEY.PUB", help="A public key; for `revoke` the beginning of its id, too.")
    ] = None,
    store: Annotated[Path, typer.Option("--store", metavar="FILE", help="The trust store.")],
    name: Annotated[str, typer.Option(help="With `add`: what people call the key.")] = "",
    days: Annotated[
        float | None, typer.Option(min=0, help="With `add`: how long the key is trusted; by default for ever.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Keeps a trust store: the keys whose signatures count on this machine, and the newest release seen of each name.

    `compressor trust add release.pub --store trust.json --name "release team" --days 730`

    `compressor trust revoke 3f2a --store trust.json`

    `compressor trust list --store trust.json`
    """
    with reported(verbose=verbose, changes=None if action is TrustAction.LIST else store):
        from compressor.trust.tree import shown
        from compressor.trust.trusted import TrustStore, changing

        if (key is None) != (action is TrustAction.LIST):
            raise WrongUseError("`add` and `revoke` take one key, and `list` none")
        if action is not TrustAction.ADD and (name or days is not None):
            raise WrongUseError("--name and --days are for `add`")
        if action is TrustAction.ADD:
            _add(Path(str(key)), store, name=name, days=days)
        elif action is TrustAction.REVOKE:
            TrustStore.read(store)
            with changing(store) as found:
                _revoke(str(key), found, store)
        found = TrustStore.read(store)
        if as_json:
            print_json(found.to_json())
            return
        for held in found.keys.values():
            until = "" if held.until is None else f", until {held.until:%Y-%m-%d}"
            gone = ", revoked" if held.revoked else ""
            named = shown(held.name) if held.name else "no name"
            typer.echo(f"{held.public.key_id[:16]}  {held.public.kind.value:<8} {named}{until}{gone}")
        for what, seen in found.seen.items():
            typer.echo(f"seen: release {seen.release} of {shown(what)}")


def _add(key: Path, path: Path, *, name: str, days: float | None) -> None:
    from dataclasses import replace

    from compressor.trust.keys import read_public
    from compressor.trust.statements import LONGEST_NAME, is_good_name
    from compressor.trust.trusted import TrustedKey, changing

    public = read_public(key)
    if not public.kind.signs:
        raise WrongUseError(f"{key} is for encryption and signs nothing; add a key of the kind ed25519 or p256")
    if days is not None and not 0 < days < 36_500:
        raise WrongUseError(f"--days is above 0 and below 36,500, got {days:g}")
    if name and not is_good_name(name):
        raise WrongUseError(f"--name has 1 to {LONGEST_NAME} printable characters, got {name[:50]!r}")
    until = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    with changing(path) as store:
        if store.keys.get(public.key_id, TrustedKey(public=public)).revoked:
            raise WrongUseError(f"the key {public.key_id[:16]} was revoked, which is for good; make a new one")
        added = TrustedKey(public=public, name=name, until=until)
        replace(store, keys={**store.keys, public.key_id: added}).write(path)


def _revoke(key: str, store: "TrustStore", path: Path) -> None:
    from dataclasses import replace

    from compressor.trust.keys import read_public

    start = read_public(Path(key)).key_id if Path(key).is_file() else key.lower()
    found = [key_id for key_id in store.keys if key_id.startswith(start)]
    if len(found) != 1 or len(start) < 4:
        raise WrongUseError(f"{key!r} must be the beginning of one key id, four digits or more; {len(found)} begin so")
    revoked = replace(store.keys[found[0]], revoked=True)
    replace(store, keys={**store.keys, found[0]: revoked}).write(path)
