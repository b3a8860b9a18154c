"""The command that verifies folders and files: what it asks, and what it says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.documenting import bom, card
from compressor.cli.encrypting import decrypt, encrypt
from compressor.cli.exits import NOT_TRUSTED, reported
from compressor.cli.inspecting import inspect
from compressor.cli.options import AsJson, Quiet, Verbose, WorkloadName
from compressor.cli.signing import keygen, sign, trust
from compressor.cli.telling import print_json, told_as_json

if TYPE_CHECKING:
    from compressor.running.again.rerun import Rerun
    from compressor.trust.signing import Signed
    from compressor.trust.trusted import TrustStore
    from compressor.trust.verification import Checked


def verify(
    *,
    path: Annotated[Path, typer.Argument(metavar="FOLDER_OR_FILE", help="The folder of a run, or a file in it.")],
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun", help="Makes the stage that shipped once more, from what is on disk, and wants the same bytes."
        ),
    ] = False,
    workload: Annotated[str | None, WorkloadName.__metadata__[0]] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY.PUB", help="A public key, one of which must have signed the folder."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--trust",
            metavar="FILE",
            help="A trust store, one of whose keys must have signed; the release is noted in it, and no older one is "
            "taken later.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With a key: what it must be a release of.")] = None,
    least_release: Annotated[
        int | None, typer.Option("--least-release", min=1, help="With a key: the oldest release that is taken.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Notes nothing in the trust store.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Says whether every byte is as the manifest lists it, without any network; exit code 4 where it is not.

    `compressor verify runs/digits`

    `compressor verify runs/digits/model.onnx`, that file alone

    `compressor verify runs/digits --key release.pub --name digits`, signed by that key

    `compressor verify runs/digits --trust trust.json`, and no older than what was accepted before

    `compressor verify runs/digits --rerun --workload digits`

    Refused are files that were changed, are missing, came along later or are links, and a manifest that is not as it
    was written. Without a key this finds accidents and mixed-up files; who can write the folder can forge all of it.
    """
    with reported(verbose=verbose):
        from compressor.errors import WrongUseError
        from compressor.trust.trusted import TrustStore

        if rerun and workload is None:
            raise WrongUseError("--rerun needs what the run was given: its --workload")
        if workload is not None and not rerun:
            raise WrongUseError("--workload is for --rerun; leave it out, or give --rerun as well")
        if key and store is not None:
            raise WrongUseError("--key and --trust both say whose signature counts; give one of them")
        if not key and store is None and (name is not None or least_release is not None or read_only):
            raise WrongUseError("--name, --least-release and --read-only are about signatures; give --key or --trust")
        with told_as_json(path, as_json=as_json):
            # A key in its place would count, and remember nothing.
            keys = TrustStore.read(store) if store is not None else key or None
            checked, signed = _checked(path, keys, name=name, least_release=least_release)
            again = None
            if rerun and checked is not None and checked.holds:
                from compressor.cli.options import workload_of
                from compressor.running.again.rerun import rerun as run_again

                again = run_again(checked, workload_of(str(workload)), progress=not (quiet or as_json))
            holds = (checked is None or checked.holds) and (again is None or not again.others)
            if holds and signed is not None and not read_only:
                signed.remember()
        if as_json:
            facts = {"verified": holds, "folder": str(path)} if checked is None else checked.to_json()
            facts |= {"verified": holds, "signature": None if signed is None else signed.to_json()}
            print_json(facts | ({} if again is None else {"rerun": again.to_json()}))
            if not holds:
                raise typer.Exit(NOT_TRUSTED)
            return
        if checked is not None:
            checked.require()
        if again is not None:
            again.require()
        if not quiet:
            typer.echo(_says(path, checked, signed, again))


def _checked(
    path: Path, keys: "TrustStore | list[str] | None", *, name: str | None, least_release: int | None
) -> "tuple[Checked | None, Signed | None]":
    """What was looked at, and whose signature holds; the first is None where only model-signing signed."""
    from compressor.errors import TrustError
    from compressor.trust.manifest import MANIFEST, OPENSSF, SIGNATURE
    from compressor.trust.signing import bundle_by, signed_by
    from compressor.trust.verification import check

    def by_bundle(folder: Path) -> "Signed":
        if name is not None or least_release is not None:
            raise TrustError(f"{OPENSSF} names no release, so --name and --least-release cannot hold for it")
        return bundle_by(folder, keys)

    if keys is not None and path.is_dir() and not (path / MANIFEST).exists() and (path / OPENSSF).exists():
        return None, by_bundle(path)
    checked = check(path)
    if keys is None or not checked.holds:
        return checked, None
    if not (checked.folder / SIGNATURE).exists() and (checked.folder / OPENSSF).exists():
        return checked, by_bundle(checked.folder)
    return checked, signed_by(checked.folder, checked.manifest, keys, name=name, least_release=least_release)


def _says(path: Path, checked: "Checked | None", signed: "Signed | None", again: "Rerun | None") -> str:
    if checked is None:
        said = f"{path}: all is as model.sig lists it"
    else:
        what = "1 file is" if checked.files == 1 else f"{checked.files} files are"
        said = f"{checked.only or checked.folder}: {what} as listed ({checked.size_bytes:,} bytes)"
    if again is not None:
        said += f"; {again.stage}, made again, gives the same bytes"
    if signed is None:
        return f"{said}; nobody's signature was asked for (--key)"
    who = signed.key.name or signed.key.public.key_id[:16]
    if signed.statement is None:
        return f"{said}; signed by {who}"
    return f"{said}; signed by {who} as release {signed.statement.release} of {signed.statement.name}"


def audit(
    *,
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder of the log.")] = Path("runs"),
    begin: Annotated[bool, typer.Option("--begin", help="Begins a log there.")] = False,
    last: Annotated[int, typer.Option(min=0, help="How many of the newest entries are shown; 0 shows all.")] = 20,
    holds: Annotated[
        str | None,
        typer.Option(
            "--holds", metavar="SHA256", help="The digest of an entry, noted elsewhere: exit code 4 where it is gone."
        ),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Shows who ran, changed, exported and signed what, and checks that no line of it was changed, moved or taken away.

    `compressor audit runs --begin`: from then on whatever changes something below runs is written down there first

    `compressor audit runs --last 0 --json`

    `compressor audit runs --holds 3f2a...`, the digest that was shown before

    Exit code 4, with the first line that differs, where the log is not as it was written. Whoever can write the folder
    can make all of it anew: note the newest digest elsewhere from time to time.
    """
    with reported(verbose=verbose):
        from compressor.errors import TrustError, WrongUseError
        from compressor.trust.audit import AuditLog, has_log

        if begin:
            AuditLog.begin(folder)
        elif not has_log(folder):
            raise WrongUseError(f"{folder} has no audit log; `compressor audit {folder} --begin` begins one")
        with told_as_json(folder, as_json=as_json):
            entries = list(AuditLog(folder).entries())
            if holds is not None and not any(entry["sha256"] == holds.lower() for entry in entries):
                raise TrustError(f"no entry of the log in {folder} has the digest {holds}: it was made anew or cut off")
        shown = entries[-last:] if last else entries
        if as_json:
            print_json({"verified": True, "folder": str(folder), "lines": len(entries), "entries": shown})
            return
        for entry in shown:
            typer.echo(_line(entry))
        newest = f", the newest is {entries[-1]['sha256']}" if entries else ""
        typer.echo(f"{folder}: {len(entries)} lines, each as it was written{newest}")


def _line(entry: dict[str, Any]) -> str:
    from compressor.trust.tree import shown

    by, facts = entry["by"], entry["facts"]
    who = f"{by.get('user') or by.get('number', '')}@{by['host']}"
    role = f" ({by['role']} {by['session']})" if "role" in by else ""
    ended = f": exit code {facts['exit code']}" if "exit code" in facts else ""
    return shown(f"{entry['line']:>6}  {entry['at']}  {who}{role}  {entry['did']}  {entry['what']}{ended}")


COMMANDS = (audit, verify, keygen, sign, trust, encrypt, decrypt, inspect, card, bom)
