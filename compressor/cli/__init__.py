"""The command line: commands, shared options, errors and exit codes, the catalogue in words."""

from compressor.cli.app import app, main

__all__ = ["app", "main"]
