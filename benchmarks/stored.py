"""Where results are stored, and what reads them."""

from typing import Any

from compressor.storage import read_json
from workbench import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> Any | None:
    """The stored result `name`, without its ending; None where there is none."""
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else None


def load_all(names: list[str]) -> dict[str, Any]:
    """The stored results by name, those that are there, in the order of `names`."""
    found = {name: load(name) for name in names}
    return {name: result for name, result in found.items() if result is not None}
