"""The command that looks into the store of stages, checks it, and cleans it."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.exits import FAILED, reported
from compressor.cli.options import AsJson, Verbose
from compressor.errors import WrongUseError

if TYPE_CHECKING:
    from compressor.store.kept import Store


# More than any disk has, and a number of bytes still.
_MOST_GIB = 1 << 30


class Action(StrEnum):
    """What `compressor cache` does."""

    LIST = "list"
    SIZE = "size"
    VERIFY = "verify"
    CLEAN = "clean"


def cache(
    *,
    action: Annotated[Action, typer.Argument(help="`list`, `size`, `verify` or `clean`.")] = Action.LIST,
    folder: Annotated[
        Path | None,
        typer.Option(help="The store; by default $COMPRESSOR_STORE, or `stages` in the user's cache folder."),
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, help="With `clean`: what was not used for so long goes; by default 90.")
    ] = None,
    gib: Annotated[
        float | None, typer.Option("--gib", min=0, help="With `clean`: at most so many GiB stay; by default 20.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With `clean`: everything goes.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Shows, checks and cleans the store of stages, where every command looks before it works.

    `compressor cache`

    `compressor cache clean --days 7 --gib 2`

    `compressor cache verify`: every byte is read; damaged stages go, and are made again when they are wanted; exit
    code 1 where there were any

    A stage is stored by all that it was made of: model, data, loss, metric, code, parameters, seed, versions,
    processor. COMPRESSOR_STORE names its folder, or is `off`; COMPRESSOR_STORE_GIB and COMPRESSOR_STORE_DAYS are its
    limits.
    """
    with reported(verbose=verbose):
        from compressor.store.place import users_store

        if action is not Action.CLEAN and (days is not None or gib is not None or everything):
            raise WrongUseError("--days, --gib and --all say what `compressor cache clean` takes out; give clean")
        if everything and (days is not None or gib is not None):
            raise WrongUseError("--all takes out everything, and --days and --gib leave some; give one of both")
        store = users_store(folder)
        if store is None:
            raise WrongUseError("COMPRESSOR_STORE is off, so there is no store; give one with --folder")
        if action is Action.LIST:
            _list(store, as_json=as_json)
        elif action is Action.SIZE:
            entries = store.entries()
            count, size = len(entries), sum(entry.size_bytes for entry in entries)
            facts = {"folder": str(store.folder), "stages": count, "bytes": size, "most_bytes": store.most_bytes}
            _tell(
                facts,
                f"{_stages(count)}, {_size(size)} of at most {_size(store.most_bytes)}, in {store.folder}",
                as_json,
            )
        elif action is Action.VERIFY:
            _verify(store, as_json=as_json)
        else:
            limits = {"most_bytes": None if gib is None else int(min(gib, _MOST_GIB) * (1 << 30)), "most_days": days}
            count, size = store.clean(**({"most_bytes": 0, "most_days": 0.0} if everything else limits))
            _tell({"removed": count, "bytes": size}, f"removed {_stages(count)}, {_size(size)}", as_json)


def _list(store: "Store", *, as_json: bool) -> None:
    from compressor.storage import json_safe

    entries = store.entries()
    if as_json:
        _tell({"folder": str(store.folder), "stages": [json_safe(entry.to_json()) for entry in entries]}, "", as_json)
        return
    for entry in entries:
        used = datetime.fromisoformat(entry.used).astimezone().strftime("%Y-%m-%d %H:%M")
        spent = "" if entry.stage == "damaged" else f"{entry.seconds:9.1f} s"
        typer.echo(f"{entry.key[:12]}  {entry.stage:<24} {_size(entry.size_bytes):>10} {spent:>11}  used {used}")
    typer.echo(f"{_stages(len(entries))}, {_size(sum(entry.size_bytes for entry in entries))}, in {store.folder}")


def _verify(store: "Store", *, as_json: bool) -> None:
    damaged = store.verify()
    count = len(store.entries())
    for text in [] if as_json else damaged:
        typer.secho(f"removed: {text}", err=True, fg="yellow")
    whole = "is as it was written" if count == 1 else "are as they were written"
    _tell({"stages": count, "damaged": damaged}, f"{_stages(count)} {whole}", as_json)
    if damaged:
        raise typer.Exit(FAILED)


def _stages(count: int) -> str:
    return f"{count} stage{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    value, unit = (count / (1 << 20), "MiB") if count < 1 << 30 else (count / (1 << 30), "GiB")
    return f"{value:.1f} {unit}"


def _tell(facts: dict[str, Any], text: str, as_json: bool) -> None:  # noqa: FBT001 - the option of all commands
    import json

    typer.echo(json.dumps(facts, indent=2) if as_json else text)
