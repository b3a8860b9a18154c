"""Prunes every architecture of the zoo to half, and stores what became of each.

python -m benchmarks.structure.architectures [--only NAME]
"""

import argparse
import json
import re
import warnings
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import write_atomic
from compressor.target import Target
from workbench.zoo import ARCHITECTURES
from workbench.zoo.check import check

RESULT = RESULTS / "architectures.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the architectures alone whose name contains this")
    run(parser.parse_args().only)


def run(only: str) -> None:
    """Prunes every architecture whose name contains `only`; each outcome is printed and stored as soon as it stands."""
    rows = {row["name"]: row for row in json.loads(RESULT.read_text())["architectures"]} if RESULT.exists() else {}
    for architecture in ARCHITECTURES:
        if only.lower() not in architecture.name.lower():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = check(architecture)
        row = {**asdict(outcome), "reason": short(outcome.reason)}
        row["locked"] = {layer: short(why) for layer, why in outcome.locked.items()}
        rows[outcome.name] = row
        removed = f"{outcome.parameter_fraction_removed:6.1%}" if outcome.outcome == "pruned" else "      "
        print(
            f"{outcome.name:34} {outcome.outcome:8} {removed} {outcome.seconds:5.1f} s  {row['reason'][:150]}",
            flush=True,
        )
        store([rows[known.name] for known in ARCHITECTURES if known.name in rows])
    print(dict(Counter(row["outcome"] for row in rows.values())))


def store(rows: list[dict]) -> None:
    """Writes the outcomes, in the zoo's order, with the machine and the versions they come from."""
    stored = {"environment": environment(Target()), "transformers": version("transformers"), "architectures": rows}
    write_atomic(RESULT, json.dumps(stored, indent=1) + "\n")


def short(reason: str) -> str:
    """`reason` with the files it names as they are called inside their package, not on this machine."""
    return re.sub(r"\((?:[^()]*/)?(?:site-packages|workbench)/", "(", reason)


if __name__ == "__main__":
    main()
