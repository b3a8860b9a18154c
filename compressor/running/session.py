"""What several runs share: finished stages on disk, times of one session, scores of files, and who made what."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.identity.package import package_code
from compressor.identity.workload import DATA, Identity
from compressor.measuring.session_times import Times
from compressor.storage import sha256
from compressor.store.kept import Store
from compressor.target import cpu_name

# Made in this run, taken from the run's own folder, or from the store.
How = Literal["made", "folder", "store"]


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A stage of a run as it came about: `seconds` is what making it took, whenever that was.

    Equal keys mean one piece of work; `run` is the folder of the run by name.
    """

    run: str
    stage: str
    key: str
    how: How
    seconds: float


@dataclass(kw_only=True)
class Session:
    """What the runs that are given it share; `store` may be None. `worked` tells of every stage, in order."""

    store: Store | None = None
    times: Times = field(default_factory=Times)
    worked: list[Worked] = field(default_factory=list)
    _rows: dict[str, dict[Any, Tensor]] = field(default_factory=dict, repr=False)

    def rows(self, identity: Identity) -> dict[Any, Tensor]:
        """The rows of files on the data and by the metric of `identity`; nothing is shared of what is not known."""
        told = {name: str(identity.told[name]) for name in (*DATA, "metric")}
        if any(text.startswith("not known") for text in told.values()):
            return {}
        return self._rows.setdefault(json.dumps(told, sort_keys=True), {})

    def every_row(self) -> dict[Any, Tensor]:
        """The rows of all files that were scored; only where all runs are of one workload."""
        return {key: rows for known in self._rows.values() for key, rows in known.items()}

    def tell(self, of: "Worked") -> None:
        """Adds a stage that has come about."""
        self.worked.append(of)


def store_key(key: str, *, seed: int) -> str:
    """Under what the state that a run knows by `key` is stored.

    The state's key says how it came about. To it come the code of this package, the processor, by whose instructions
    sums differ in their last bits, torch's number of threads, and the run's seed, by which intervals are drawn.
    """
    parts = [key, package_code(), cpu_name(), torch.get_num_threads(), seed]
    return sha256(json.dumps(parts).encode())


def reused_sentence(worked: list[Worked]) -> str:
    """Which stages of a run were made and which taken, in a sentence; "" where all were made."""
    taken = [one for one in worked if one.how != "made"]
    if not taken:
        return ""
    places: Mapping[How, str] = {"store": "from the store", "folder": "from the run's folder"}
    parts = []
    for how, place in places.items():
        names = [one.stage for one in taken if one.how == how]
        if names:
            seconds = sum(one.seconds for one in taken if one.how == how)
            parts.append(f"{', '.join(names)} {place} ({seconds:.0f} s not spent again)")
    made = [one.stage for one in worked if one.how == "made"]
    return f"taken: {'; '.join(parts)}; made: {', '.join(made) or 'nothing'}"
