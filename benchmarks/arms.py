"""What tables of several arms share: the folder of an arm, and what is said of one that failed."""

import traceback
from pathlib import Path


def described(error: Exception) -> str:
    """The kind of an error and its first line, or the function that raised it where it says nothing."""
    lines = str(error).strip().splitlines()
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {lines[0][:300] if lines else f'in {place.name} of {Path(place.filename).name}'}"


def slug(label: str) -> str:
    """`label` as the name of a folder."""
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower()).strip("-")
