"""What the tables of a page of results say, in a sentence or two before each, from the same stored results."""

from collections.abc import Callable

from benchmarks.documents.cells import points, spread
from benchmarks.structure.efficiency import DENSE

_PEER = "Torch-Pruning"


def concluded(lines: list[str], name: str, result: object) -> list[str]:
    """The section `lines`, heading first, with the conclusion of the result `name` below its heading."""
    conclusion = CONCLUSIONS.get(name)
    return lines if conclusion is None else [*lines[:2], f"**{conclusion(result)}**", "", *lines[2:]]


def _cifar(networks: dict[str, dict]) -> str:
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


CONCLUSIONS: dict[str, Callable[..., str]] = {
    "cifar10": _cifar,
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
    "quantization": _quantizers,
}
