"""The text and the picture of docs/quantization-results.md from the stored results of the quantization benchmarks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.documents.cells import escaped, points, spread
from benchmarks.documents.conclusions import concluded
from benchmarks.quantization import (
    ablation,
    calibration,
    filled_widths,
    integer_speed,
    never_slower,
    photographs,
    saturation,
)
from benchmarks.quantization.files import page as files


def section(result: dict) -> list[str]:
    """One table for the files of every network."""
    networks = result["networks"]
    where = next(iter(networks.values()))["environment"]
    parts = [
        "## Files beside those of other quantizers (`make bench-quantization`)",
        "",
        (
            f"{where.get('cpu')}, one thread, batch 1, ONNX Runtime {where['versions']['onnxruntime']}. Every "
            "file is timed interleaved with the network's fp32 file; drops are paired, sample by sample, in "
            "points, with their 95 % intervals. On CIFAR-10 the drop stands over the full test set (10,000) and "
            "over the half that no choice has read; elsewhere over the test set. *Over defaults* is the time of "
            "`quantize_static` with its defaults over ours. Seconds: making the file on one core, calibration "
            "and learning included, for orientation."
        ),
        "",
    ]
    for network, entry in networks.items():
        parts += [
            f"### {network}",
            "",
            f"| file | {entry['metric']} | drop | drop, unread half | speed-up | over defaults | smaller | KiB | s |",
            "|---|---|---|---|---|---|---|---|---|",
            *(cells(row, entry["rows"][0]["size_bytes"]) for row in entry["rows"]),
            "",
        ]
    return [*parts, "![drop against speed-up](quantization.svg)"]


def cells(row: dict, fp32_bytes: int) -> str:
    """One row of the table; a file that could not be made says why."""
    if "failed" in row:
        return f"| {row['arm']} | failed: {escaped(row['failed'])} |  |  |  |  |  |  |  |"
    full = "full_drop" in row
    shown = [
        f"{100 * row['full_score' if full else 'score']:.2f}",
        points(row["full_drop" if full else "drop"]),
        points(row["drop"]) if full else "",
    ]
    if row["arm"] == "fp32":
        shown[1:] = ["", ""]
    shown += [spread(row[name]) if name in row else "" for name in ("speedup", "over_defaults")]
    shown += [f"{fp32_bytes / row['size_bytes']:.2f}x", f"{row['size_bytes'] / 1024:.0f}"]
    shown.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
    return f"| {row['arm']} | {' | '.join(shown)} |"


# What makes the section of every stored result, in the order of the page.
SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "quantization": section,
    "imagenet": photographs.section,
    "integer-speed": integer_speed.section,
    "filled-widths": filled_widths.section,
    "quantization-ablation": ablation.section,
    "calibration": calibration.section,
    "saturation": saturation.section,
    "never-slower": never_slower.section,
    "files": files.section,
}


def page(results: dict[str, dict]) -> str:
    """The text of docs/quantization-results.md; what is not stored has no section."""
    parts = [
        "# Quantization, measured",
        "",
        "Written by `make docs` from `benchmarks/results/*.json`. Timings hold for the machine named; compare ratios.",
        "",
    ]
    for name, lines in SECTIONS.items():
        if name in results:
            parts += [*concluded(lines(results[name]), name, results[name]), ""]
    return "\n".join(parts).rstrip() + "\n"


def draw(networks: dict[str, dict], path: Path) -> None:
    """Drop against speed-up of every file, one panel a network."""
    from benchmarks.documents.pictures import plt

    columns = 3
    lines = -(-len(networks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(networks) :]:
        axis.set_axis_off()
    arms = list(dict.fromkeys(row["arm"] for entry in networks.values() for row in entry["rows"] if "speedup" in row))
    ours = [arm for arm in arms if arm.startswith("ours")]
    looks = {arm: _look(ours.index(arm), ours=True) for arm in ours}
    looks |= {arm: _look(index, ours=False) for index, arm in enumerate(arm for arm in arms if arm not in looks)}
    handles = {}
    for axis, (network, entry) in zip(axes.flat, networks.items(), strict=False):
        for row in entry["rows"]:
            if "speedup" not in row:
                continue
            drop = row.get("full_drop", row["drop"])
            (handles[row["arm"]],) = axis.plot(
                row["speedup"]["value"], 100 * drop["value"], label=row["arm"], linestyle="none", **looks[row["arm"]]
            )
        axis.axvline(1.0, color="#d1d5db", linewidth=0.8)
        axis.axhline(0.0, color="#d1d5db", linewidth=0.8)
        axis.set_title(network, fontsize=9)
        axis.set_xlabel("speed-up over fp32", fontsize=8)
        axis.set_ylabel(f"{entry['metric']} lost, points", fontsize=8)
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
    figure.legend(handles=[handles[arm] for arm in looks], loc="outside right center", fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _look(index: int, *, ours: bool) -> dict[str, Any]:
    """A marker of its own for every arm: ours filled, in one colour for each form, the others' outlines."""
    color = f"C{index % 10}" if ours else "#4b5563"
    return {"marker": "osD^vP*X<>hp"[index % 12], "color": color, "markerfacecolor": color if ours else "none"}
