"""The commands that pack a model for travel and unpack it: what they ask, and what they say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.exits import reported
from compressor.cli.options import AsJson, Quiet, Verbose

if TYPE_CHECKING:
    from compressor.packing.files import Packed

# Below this a bar would be gone before it is seen.
_LONG = 4_000_000
_MEBIBYTE = 1 << 20


def pack(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL.ONNX", help="The ONNX file to pack.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the packed model goes; by default beside the file, with ending .pack.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Unpacks it again and compares every byte with the file.")
    ] = False,
    reader: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.PY",
            help="Writes the reader there: one Python file that needs NumPy alone, for where this package is not.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Packs a model for travel: smaller than zstd makes it, and unpacked to the very same bytes.

    `compressor pack runs/digits/model.onnx --check`

    `compressor pack model.onnx --out model.pack --reader unpack_model.py`

    Zeros, shared values and integers of few bits, which make a plain ONNX file no smaller, are what packing thrives on.
    Where this package is not installed, `python unpack_model.py model.pack model.onnx` gives the model back.
    """
    with reported(verbose=verbose, changes=out or model):
        from compressor.packing.files import check as check_packed
        from compressor.packing.files import copy_reader
        from compressor.packing.files import pack as pack_file

        with _bar("packing", quiet=quiet or as_json) as told:
            found = pack_file(model, out, told=told)
        if check:
            with _bar("checking", quiet=quiet or as_json) as told:
                check_packed(found.path, model, told=told)
        if reader is not None:
            copy_reader(reader)
        said = f"{found.times_smaller:.2f}x smaller"
        _say(
            found, said + (", unpacked and found the same byte for byte" if check else ""), as_json=as_json, quiet=quiet
        )
        if reader is not None and not quiet and not as_json:
            typer.secho(f"to unpack elsewhere: python {reader} {found.path.name} model.onnx", err=True)


def unpack(
    *,
    packed: Annotated[Path, typer.Argument(metavar="MODEL.PACK", help="What `compressor pack` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the ONNX file goes; by default beside it, with ending .onnx, where none is yet."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Unpacks all of it, says whether it is whole, and writes nothing.")
    ] = False,
    most: Annotated[
        float, typer.Option(metavar="MIB", min=0, help="Refuses what holds more than so many MiB.")
    ] = 2048.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Unpacks a packed model to the very bytes that were packed, whose SHA-256 it carries.

    `compressor unpack model.pack`

    `compressor unpack model.pack --out elsewhere/model.onnx`

    `compressor unpack model.pack --check`

    A file that is damaged, cut off, of another version or no packed model is refused, and nothing is written.
    """
    with reported(verbose=verbose, changes=None if check else out or packed):
        from compressor.packing.files import check as check_packed
        from compressor.packing.files import unpack as unpack_file

        limit = int(most * _MEBIBYTE)
        with _bar("checking" if check else "unpacking", quiet=quiet or as_json) as told:
            if check:
                found = check_packed(packed, most_bytes=limit, told=told)
            else:
                found = unpack_file(packed, out, most_bytes=limit, told=told)
        written = packed if check else out or packed.with_suffix(".onnx")
        _say(found, "whole" if check else f"unpacked to {written}", as_json=as_json, quiet=quiet, path=written)


def _say(found: "Packed", what: str, *, as_json: bool, quiet: bool, path: Path | None = None) -> None:
    path = path or found.path
    if as_json:
        import json

        value = {
            "path": str(path),
            "packed_bytes": found.packed_bytes,
            "size_bytes": found.size_bytes,
            "sha256": found.sha256,
        }
        typer.echo(json.dumps(value, indent=2))
        return
    if not quiet:
        sizes = f"{found.size_bytes:,} bytes, packed {found.packed_bytes:,}"
        typer.secho(f"{what} ({sizes}; SHA-256 {found.sha256[:16]}...)", err=True)
    typer.echo(str(path))


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for work on large files, told of bytes done and bytes in all."""
    if quiet:
        yield None
        return
    from compressor.progress.bars import progress_bar

    bar: Any = None

    def told(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and total >= _LONG:
            bar = progress_bar(total=total, desc=what, shown=True)
        if bar is not None:
            bar.update(done)

    try:
        yield told
    finally:
        if bar is not None:
            bar.close()
