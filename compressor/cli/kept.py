"""What is on disk of a run that was stopped: its finished stages, and the epochs of the training in between."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Some hundred bytes for each tensor, and the log of every epoch.
_MOST_HEADER_BYTES = 16 << 20
# What a fold of a cross-validation trains first.
_REFERENCE = "reference.safetensors"


def kept_in(out: Path | None) -> str:
    """What the folder `out` of a run, or of several, keeps, as a sentence's beginning; "" where it keeps nothing."""
    if out is None:
        return ""
    # Of a search its finished trials are all that there is to say.
    if (out / "asked.json").is_file() and (out / "trials").is_dir():
        ended = len(list((out / "trials").glob("*.json")))
        return f"{out} keeps {ended} trial{'' if ended == 1 else 's'}, and the stages of one that was begun"
    begun = {path.parent for name in ("run.json", _REFERENCE) for path in out.glob(f"*/{name}")}
    runs = [out] if (out / "run.json").is_file() else sorted(begun)
    told = {run: ", ".join(_kept_of(run)) for run in runs}
    return "; ".join(f"{run} keeps {text}" for run, text in told.items() if text)


def _kept_of(run: Path) -> Iterator[str]:
    """The stages of one run, by name; of a fold the reference that was trained for it, before."""
    if (run / _REFERENCE).is_file():
        yield "a trained model"
    for folder in sorted((run / "stages").glob("[0-9][0-9]-*")):
        name = folder.name[3:]
        if (folder / "outcome.json").is_file():
            yield name
            continue
        for snapshot in sorted(folder.glob("snapshots/*/*.safetensors")):
            count = _epochs(snapshot)
            if count:
                inside = "" if snapshot.stem == name else f"{snapshot.stem} in "
                yield f"{count} epoch{'s' if count > 1 else ''} of {inside}{name}"


def _epochs(snapshot: Path) -> int:
    """How many epochs of a training the file holds; 0 where it cannot be read."""
    try:
        with snapshot.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= _MOST_HEADER_BYTES else {}
        return len(json.loads(header["__metadata__"]["compressor"])["facts"]["logs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
