"""Prunes every architecture of the zoo to half; stores what became of each, and writes docs/architectures.md from it.

python benchmarks/architectures.py [--only NAME] [--docs]
"""

import argparse
import json
import re
import sys
import warnings
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from compressor.report.report import environment
from compressor.storage import write_atomic
from compressor.target import Target

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "architectures.json", ROOT / "docs" / "architectures.md"
OUTPUT = "it makes the model's output"
# Where a reason says which line of the network it comes from, and where layers of that network stand in it.
PLACE = re.compile(r" in (?P<kind>\w+) \((?P<file>[^()]*):\d+\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the architectures alone whose name contains this")
    parser.add_argument("--docs", action="store_true", help="write the document from what is stored, run nothing")
    arguments = parser.parse_args()
    if not arguments.docs:
        run(arguments.only)
    write_atomic(DOCS, page(json.loads(RESULTS.read_text(encoding="utf-8"))))


def run(only: str) -> None:
    """Prunes every architecture whose name contains `only`; each outcome is printed and stored as soon as it stands."""
    sys.path.insert(0, str(ROOT))
    from workbench.zoo import ARCHITECTURES
    from workbench.zoo.check import check

    rows = {row["name"]: row for row in json.loads(RESULTS.read_text())["architectures"]} if RESULTS.exists() else {}
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
    write_atomic(RESULTS, json.dumps(stored, indent=1) + "\n")


def short(reason: str) -> str:
    """`reason` with the files it names as they are called inside their package, not on this machine."""
    return re.sub(r"\((?:[^()]*/)?(?:site-packages|tests)/", "(", reason)


def page(stored: dict) -> str:
    """The text of docs/architectures.md."""
    rows = stored["architectures"]
    count = Counter(row["outcome"] for row in rows)
    text = f"""\
# Architectures

Written by `make docs` from `benchmarks/results/architectures.json`. The networks are in `tests/zoo`, small and with
random weights; those named HF are of Hugging Face transformers {stored["transformers"]}.

`PruneChannels(remove=0.5, scope=PerLayer(), align=1)` on {len(rows)} architectures:
**{count["pruned"]} pruned, {count["refused"]} refused, {count["failed"]} failed**.
Pruned means: in double precision the network computes what the original computes with the removed channels, heads and
units at zero; the plan alone rebuilds it; a backward pass in train mode reaches the same parameters; tied weights stay
tied; every output keeps its shape; and ONNX Runtime agrees with torch at other batch sizes and lengths. Networks that
have no ONNX file even before pruning say so. Vision networks whose own code pads or resizes images of other sizes
(`fixed=True` in `tests/zoo/hugging_face.py`) are held to one size: exporters freeze or never finish such code.

Layers that make an output always stay. What else stayed, and why, is in the last column.

| architecture | outcome | parameters | after | removed | what stayed, and why |
|---|---|---:|---:|---:|---|
"""
    return text + "".join(f"{line(row)}\n" for row in rows)


def line(row: dict) -> str:
    before, after = row["parameters_before"], row["parameters_after"]
    if row["outcome"] == "pruned":
        numbers, why = f"{before:,} | {after:,} | {1 - after / before:.0%}", reasons(row["locked"])
        if row["exporter"] == "none":
            why = "; ".join(filter(None, [why, "no ONNX file, pruned or not"]))
    else:
        numbers, why = f"{before:,} | | ", reasons(row["locked"]) or row["reason"]
    return f"| {row['name']} | {row['outcome']} | {numbers} | {why.replace('|', chr(92) + '|')} |"


def reasons(locked: dict[str, str]) -> str:
    """The reasons apart from making an output, each with the number of groups it holds for."""
    counted = Counter(
        PLACE.sub(lambda found: f" in `{found['kind']}`", why) for why in locked.values() if OUTPUT not in why
    )
    return "; ".join(f"{why} ({number})" if number > 1 else why for why, number in counted.most_common())


if __name__ == "__main__":
    main()
