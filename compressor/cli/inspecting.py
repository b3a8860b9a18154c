"""The command that looks for what files tell and nobody meant to ship."""

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.exits import FAILED, reported
from compressor.cli.options import AsJson, Verbose, WorkloadName
from compressor.cli.telling import print_json


def inspect(
    *,
    path: Annotated[Path, typer.Argument(metavar="FOLDER_OR_FILE", help="The folder of a run, or any other file.")],
    workload: Annotated[str | None, WorkloadName.__metadata__[0]] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Looks for paths, names of users and machines, tokens, e-mail addresses, pictures, samples; exit code 1 for any.

    `compressor inspect runs/digits`

    `compressor inspect runs/digits --workload digits`, and whether samples of it lie in a file

    `compressor sign` does so first. What is compressed or encrypted inside a file is not seen.
    """
    with reported(verbose=verbose):
        from compressor.inspection.privacy import scan

        found = None
        if workload is not None:
            from compressor.cli.options import workload_of

            found = workload_of(workload)
        findings = scan(path, found)
        if as_json:
            print_json({"path": str(path), "findings": [vars(finding) for finding in findings]})
        elif findings:
            for finding in findings:
                typer.echo(str(finding))
        else:
            typer.echo(f"{path}: nothing that tells more than it should")
        if findings:
            raise typer.Exit(FAILED)
