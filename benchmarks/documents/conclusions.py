"""What the tables of a page of results say, in a sentence or two before each, from the same stored results."""

import statistics
from collections.abc import Callable

from benchmarks.documents.cells import points, spread
from benchmarks.quantization.filled_widths import CLASSES
from benchmarks.structure.efficiency import DENSE

_PEER = "Torch-Pruning"


def concluded(lines: list[str], name: str, result: object) -> list[str]:
    """The section `lines`, heading first, with the conclusion of the result `name` below its heading."""
    conclusion = CONCLUSIONS.get(name)
    return lines if conclusion is None else [*lines[:2], f"**{conclusion(result)}**", "", *lines[2:]]


def cifar(networks: dict[str, dict]) -> str:
    found = []
    for network, result in networks.items():
        size = result["results"]["fp32"]["measurement"]["size_bytes"]
        own = {name: row for name, row in result["results"].items() if "steps" in row}
        name, row = max(own.items(), key=lambda entry: entry[1]["measurement"]["speedup"]["value"])
        measured = row["measurement"]
        found.append(
            f"{network} by `{name}` is {measured['speedup']['value']:.2f}x faster and "
            f"{size / measured['size_bytes']:.2f}x smaller, and loses {points(row['drop'])} points"
        )
    return "; ".join(found) + "."


def _throughput(result: dict) -> str:
    ratio = result["summary"]["ratio"]
    return f"The training loop runs at {ratio['median']:.2f}x of a plain one."


def _threads(result: dict) -> str:
    least = min(result["loads"], key=lambda load: load["ratio"])
    return (
        f"Threads chosen by timing train at {least['ratio']:.2f} of the rate of the best fixed number or better, the "
        f"least of it beside {least['busy_processes']} busy processes."
    )


def _aa(result: dict) -> str:
    false = result["claimed_speedups"]["count"] + result["claimed_slowdowns"]["count"]
    return f"Of {result['tries']} measurements of a file against itself {false} claimed a difference."


def _structure(result: dict) -> str:
    found = []
    for network, entry in result["networks"].items():
        rows = {label: row for label, row in entry["rows"].items() if label != DENSE and "float32" in row}
        ours = [row["float32"]["speedup"]["value"] for label, row in rows.items() if not label.startswith(_PEER)]
        peers = [row["float32"]["speedup"]["value"] for label, row in rows.items() if label.startswith(_PEER)]
        beside = f" ({_PEER}'s best {max(peers):.2f}x)" if peers else ""
        found.append(f"{network} {max(ours):.2f}x{beside}")
    return f"With about half of the work or less, fp32, the fastest of our files: {', '.join(found)}."


def _prediction(result: dict) -> str:
    found = [
        f"{100 * result['summary'][f'{form}_relative_error']['median']:.1f} % in {form}"
        for form in ("fp32", "int8")
        if f"{form}_relative_error" in result["summary"]
    ]
    return f"Times relative to the dense network are predicted with a median error of {' and '.join(found)}."


def _merging(result: dict) -> str:
    found = []
    for network, entry in result["networks"].items():
        worst = max(part["value"] for part in entry["part_of_loss"].values())
        found.append(f"{worst:.3f} on {network}")
    return f"Merging loses at most this part of what L1 loses: {', '.join(found)}."


def _low_rank(result: dict) -> str:
    ratios = [pair["latency_over_energy"] for entry in result["networks"].values() for pair in entry["pairs"]]
    faster, slower = (sum(side) for side in zip(*((one["low"] > 1, one["high"] < 1) for one in ratios), strict=True))
    return (
        f"At equal loss on validation, ranks by milliseconds are faster than ranks by energy in {faster} of "
        f"{len(ratios)} pairs, slower in {slower}, and tie in the others."
    )


def _recovery(result: dict) -> str:
    gains = [f"{points(gain)} points over {arm}" for arm, gain in result["gains"].items()]
    arms = result["arms"]
    others = ", ".join(f"{row['speedup']:.2f}x for {arm}" for arm, row in arms.items() if arm != "ours")
    return f"Ours keeps {' and '.join(gains)}, at {arms['ours']['speedup']:.2f}x the speed of dense ({others})."


def _pipelines(result: dict) -> str:
    found = []
    for network, entry in result["networks"].items():
        last = next(step for step in reversed(entry["steps"]) if step["measurement"] is not None)
        measured, drop = last["measurement"], last["drop"]
        lost = f", {points(drop)} points lost" if drop is not None and entry["metric"] != "mse" else ""
        score = f"{entry['metric']} {measured['score']['value']:.4f}"
        found.append(f"{network} {spread(measured['speedup'])}, {score}{lost}")
    return f"After the last stage: {'; '.join(found)}."


def _quantizers(result: dict) -> str:
    found = []
    for network, entry in result["networks"].items():
        ours = [row for row in entry["rows"] if row["arm"].startswith("ours") and "speedup" in row]
        others = [row for row in entry["rows"] if not row["arm"].startswith(("ours", "fp32")) and "speedup" in row]
        first = ours[0]
        drop = first.get("full_drop", first["drop"])
        best = max((row["speedup"]["value"] for row in others), default=None)
        beside = "" if best is None else f", the fastest of the others {best:.2f}x"
        found.append(f"{network} {first['speedup']['value']:.2f}x, {points(drop)} points lost{beside}")
    return f"The first of our files of each network: {'; '.join(found)}."


def _pruning_time(result: dict) -> str:
    found = []
    for model, tools in result["models"].items():
        seconds = {
            tool: statistics.median(row["graph"] + row["prune"] for row in rows if "prune" in row)
            for tool, rows in tools.items()
            if any("prune" in row for row in rows)
        }
        own = seconds.pop("compressor")
        found += [f"{own / other:.2f}x of {tool}'s on {model}" for tool, other in seconds.items()]
    return f"Finding the groups and pruning takes {', '.join(found)}."


def _integer_speed(result: dict) -> str:
    found = [
        f"{network} {entry['speedup']['value']:.2f}x of at most {entry['bound']:.2f}x"
        for network, entry in result["networks"].items()
    ]
    faster = [
        f"{row['form']} ({network})"
        for network, entry in result["networks"].items()
        for row in entry["forms"]
        if row["over_ours"]["low"] > 1
    ]
    return f"Over float: {', '.join(found)}. Other forms that are faster than ours: {', '.join(faster) or 'none'}."


def _filled_widths(result: dict) -> str:
    paying = {CLASSES[mask]: sum(row["time"] < 1 for row in rows) for mask, rows in result["classes"].items()}
    count = len(next(iter(result["classes"].values())))
    told = ", ".join(f"{mask} in {number}" for mask, number in paying.items())
    return f"Filling up to 16 channels pays, by what the CPU has, in so many of {count} sizes: {told}."


def _techniques_of_quantization(result: dict) -> str:
    found = []
    for setting, entry in result["settings"].items():
        rows = {label: row for label, row in entry["rows"].items() if "sqnr_db" in row}
        best = max(rows, key=lambda label: rows[label]["sqnr_db"])
        plain = rows["plain"]
        if rows[best]["sqnr_db"] - plain["sqnr_db"] >= 1:
            lost = 100 * (plain["test"]["drop"]["value"] - rows[best]["test"]["drop"]["value"])
            found.append(
                f"{setting}: {best}, {plain['sqnr_db']:.1f} to {rows[best]['sqnr_db']:.1f} dB, {lost:.2f} points fewer "
                "lost"
            )
    others = len(result["settings"]) - len(found)
    return f"What brings most, where anything brings 1 dB: {'; '.join(found)}. Nothing does in {others} settings."


def _calibration(result: dict) -> str:
    growth = {method: row["mib"] for method, row in result["memory_growth"].items()}
    ours = max(value for method, value in growth.items() if not method.startswith("onnxruntime"))
    theirs = max(value for method, value in growth.items() if method.startswith("onnxruntime"))
    counts = sorted({row["images"] for row in result["rows"]})
    return (
        f"From {counts[0]:,} to {counts[-1]:,} images our calibration grows by at most {ours:.0f} MiB, ONNX Runtime's "
        f"by up to {theirs:,.0f} MiB within the images it can take."
    )


def _saturation(result: dict) -> str:
    found = []
    for network, (_, *rows) in result["networks"].items():
        lost = {row["file"]: 100 * row["drop_saturated"][0] for row in rows}
        found.append(f"{network} {lost['8 bits']:.1f} points, with safe pairs {lost['8 bits, safe pairs']:.1f}")
    return f"What 8 bits lose on such a CPU: {'; '.join(found)}."


CONCLUSIONS: dict[str, Callable[..., str]] = {
    "cifar10": cifar,
    "training-throughput": _throughput,
    "training-threads": _threads,
    "aa": _aa,
    "structure": _structure,
    "latency_table": _prediction,
    "merging": _merging,
    "low-rank": _low_rank,
    "recovery": _recovery,
    "recurrent": _pipelines,
    "dense-outputs": _pipelines,
    "pruning-time": _pruning_time,
    "quantization": _quantizers,
    "integer-speed": _integer_speed,
    "filled-widths": _filled_widths,
    "quantization-ablation": _techniques_of_quantization,
    "calibration": _calibration,
    "saturation": _saturation,
}
# Sections that begin with what they found, in their own words.
IN_OWN_WORDS = {"imagenet", "never-slower", "files"}
