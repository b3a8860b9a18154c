"""The text of docs/architectures.md from what became of every architecture of the zoo."""

import re
from collections import Counter

OUTPUT = "it makes the model's output"
# Where a reason says which line of the network it comes from, and where layers of that network stand in it.
PLACE = re.compile(r" in (?P<kind>\w+) \((?P<file>[^()]*):\d+\)")


def page(stored: dict, hub: dict | None) -> str:
    """The text of docs/architectures.md: the zoo, and the families of torchvision and timm where they were run."""
    rows = stored["architectures"]
    count = Counter(row["outcome"] for row in rows)
    text = f"""\
# Architectures

Written by `make docs` from `benchmarks/results/architectures.json`. The networks are in `workbench/zoo`, small and with
random weights; those named HF are of Hugging Face transformers {stored["transformers"]}.

`PruneChannels(remove=0.5, scope=PerLayer(), align=1)` on {len(rows)} architectures:
**{count["pruned"]} pruned, {count["refused"]} refused, {count["failed"]} failed**.
Pruned means: in double precision the network computes what the original computes with the removed channels, heads and
units at zero; the plan alone rebuilds it; a backward pass in train mode reaches the same parameters; tied weights stay
tied; every output keeps its shape; and ONNX Runtime agrees with torch at other batch sizes and lengths. Networks that
have no ONNX file even before pruning say so. Vision networks whose own code pads or resizes images of other sizes
(`fixed=True` in `workbench/zoo/hugging_face_vision.py`) are held to one size, for exporters freeze such code or
never finish.

Layers that make an output always stay. What else stayed, and why, is in the last column.

| architecture | outcome | parameters | after | removed | what stayed, and why |
|---|---|---:|---:|---:|---|
"""
    return text + "".join(f"{line(row)}\n" for row in rows) + (hub_section(hub) if hub else "")


def hub_section(hub: dict) -> str:
    """What became of one small member of every family of torchvision and timm."""
    rows = hub["members"]
    count = Counter(row["outcome"] for row in rows)
    libraries = f"torchvision {hub['torchvision']} and timm {hub['timm']}"
    outcomes = f"{count['passed']} passed, {count['refused']} were refused, {count['failed']} failed"
    text = f"""
## Families of torchvision and timm (`make bench-hub`)

One small member of a family of {libraries}, as the library builds it, with random weights, on small images:
`PruneChannels(remove=0.3, scope=PerLayer(), align=1)`, compared with the masked original in double precision, trained,
exported and run in ONNX Runtime at another batch size, and quantized by `Quantize()`.
Of {len(rows)} families that were run **{outcomes}**. Refused means that one of the product's own errors says why; the
step is named.

| family | member | outcome | parameters | after | removed | what stayed, or why it was refused or failed |
|---|---|---|---:|---:|---:|---|
"""
    return text + "".join(f"{hub_line(row)}\n" for row in rows)


def hub_line(row: dict) -> str:
    before, after = row["parameters_before"], row["parameters_after"]
    numbers = f"{before:,} | {after:,} | {1 - after / before:.0%}" if after < before else f"{before:,} | | "
    why = reasons(row["locked"]) if row["outcome"] == "passed" else row["reason"]
    outcome = row["outcome"] if row["outcome"] == "passed" else f"{row['outcome']} ({row['step']})"
    return (
        f"| {row['family']} | `{row['name']}` | {outcome} | {numbers} | {shortened(why).replace('|', chr(92) + '|')} |"
    )


def shortened(text: str, most: int = 300) -> str:
    """The first line of `text`, at most `most` characters of it."""
    first = (text.splitlines() or [""])[0]
    return first if len(first) <= most else f"{first[:most]} ..."


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
