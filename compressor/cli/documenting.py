"""The commands that write documents for a finished run: a model card, and a bill of materials."""

import json
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.exits import reported
from compressor.cli.options import Verbose

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a finished run.")]
Out = Annotated[Path | None, typer.Option(help="Where it goes, outside of FOLDER; by default to the terminal.")]


def card(*, folder: Folder, out: Out = None, verbose: Verbose = False) -> None:
    """Writes a model card: Markdown with the front matter that the Hugging Face hub reads.

    `compressor card runs/digits --out README.md`

    What only you can know is marked TO BE FILLED IN: use, data, license, harm.
    """
    with reported(verbose=verbose, changes=out):
        from compressor.report.documents.card import model_card
        from compressor.report.documents.shipped import Shipped

        _write(model_card(Shipped.read(folder)), folder, out)


def bom(*, folder: Folder, out: Out = None, verbose: Verbose = False) -> None:
    """Writes a bill of materials: CycloneDX 1.6 in JSON, with lineage, measurements, data and versions.

    `compressor bom runs/digits --out digits.cdx.json`
    """
    with reported(verbose=verbose, changes=out):
        from compressor.report.documents.bom import bill_of_materials
        from compressor.report.documents.shipped import Shipped

        _write(json.dumps(bill_of_materials(Shipped.read(folder)), indent=2) + "\n", folder, out)


def _write(text: str, folder: Path, out: Path | None) -> None:
    from compressor.errors import WrongUseError
    from compressor.storage import write_atomic

    if out is None:
        typer.echo(text, nl=False)
        return
    if out.resolve().is_relative_to(folder.resolve()):
        raise WrongUseError(f"{out} is in the run's folder, whose manifest does not list it; give a place outside")
    write_atomic(out, text)
    typer.echo(str(out))
