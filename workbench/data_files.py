"""The files of data and trained networks that are not in the repository, found by COMPRESSOR_DATA."""

import os
from pathlib import Path


def data_file(name: str) -> Path:
    """The path of `name` in the folder that COMPRESSOR_DATA names; without it, in ../shared/data.

    Raises FileNotFoundError, saying where was looked and what to set, where it is absent.
    """
    folder = Path(os.environ.get("COMPRESSOR_DATA", "../shared/data"))
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"no {name} in {folder.resolve()}; set COMPRESSOR_DATA to the folder with data and models"
        )
    return folder / name
