"""What commands tell programs: JSON on stdout, also of what is not trusted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from compressor.cli.exits import NOT_TRUSTED
from compressor.errors import TrustError


def print_json(value: Any) -> None:
    """Prints `value` on stdout."""
    import json

    typer.echo(json.dumps(value, indent=2))


@contextmanager
def told_as_json(path: Path, *, as_json: bool) -> Iterator[None]:
    """Ends with exit code 4, and with what is wrong on stdout as JSON, where something about `path` is not trusted."""
    try:
        yield
    except TrustError as error:
        if not as_json:
            raise
        print_json({"verified": False, "path": str(path), "error": str(error)})
        raise typer.Exit(NOT_TRUSTED) from None
