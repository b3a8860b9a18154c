"""The text and the picture of docs/structure.md from the stored results of the structure benchmarks."""

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.documents.cells import escaped, points, spread
from benchmarks.documents.conclusions import concluded
from benchmarks.structure.efficiency import DENSE, asked_and_achieved

FORMS = {"float32": "fp32", "int8": "int8"}
# What the page says was aimed at.
AIM_EFFICIENCY, AIM_TIME, AIM_LOSS = 0.9, 1.1, 1 / 3


def efficiency_section(result: dict) -> list[str]:
    networks = result["networks"]
    where = next(iter(networks.values()))["environment"]
    parts = [
        "## Half of the multiply-accumulates (`make bench-structure`)",
        "",
        (
            f"{where.get('cpu')}, one thread, batch 1, ONNX Runtime {where['versions']['onnxruntime']}. Speed-ups are "
            "over the dense network in the same precision, timed interleaved, with their 95 % intervals. *Per MAC* is "
            "the latency efficiency: the speed-up over the ratio of multiply-accumulates, which are counted on the "
            f"ONNX graphs (aim: {AIM_EFFICIENCY} wherever whole blocks or aligned widths exist, and never slower than "
            "dense). Only time is judged here: nothing is trained after pruning. Seconds: choosing and pruning."
        ),
        "",
        "| network | arm | fewer MACs | fp32 speed-up | per MAC | int8 speed-up | per MAC | int8 over dense fp32 | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, entry in networks.items():
        for label, row in entry["rows"].items():
            if label == DENSE:
                over = f"{row['int8_over_float32']['speedup']['value']:.2f}x"
                parts.append(f"| {network} | dense, {row['macs'] / 1e6:.1f} M MACs | | | | | | {over} | |")
            else:
                parts.append(f"| {network} | {label} | {' | '.join(efficiency_cells(row))} | {row['seconds']:.0f} |")
    parts += ["", "![speed-up against the ratio of multiply-accumulates](structure.svg)", ""]
    for network, entry in networks.items():
        if "kernel" in entry:
            parts += kernel_section(network, entry["kernel"])
    achieved = [row for network, entry in networks.items() for row in asked_and_achieved(network, entry["rows"])]
    if achieved:
        parts += [
            "### Asked for half of the time",
            "",
            "| network | arm | form | asked | achieved |",
            "|---|---|---|---|---|",
            *(
                f"| {row['network']} | {row['label']} | {FORMS[row['form']]} | {row['asked']:.2f} | "
                f"{row['achieved']['value']:.3f} [{row['achieved']['low']:.3f}, {row['achieved']['high']:.3f}] |"
                for row in achieved
            ),
            "",
        ]
    return parts


def efficiency_cells(row: dict) -> list[str]:
    """The cells of an arm from the ratio of MACs to int8 over fp32."""
    if row["error"] is not None:
        return [f"failed: {escaped(row['error'])}", "", "", "", "", ""]
    cells = [f"{row['macs_ratio']:.2f}x"]
    for form in FORMS:
        cells += (
            [spread(row[form]["speedup"]), f"{row[form]['efficiency']:.2f}"]
            if form in row
            else [
                escaped(row["int8_error"] or "failed"),
                "",
            ]
        )
    over = row.get("int8_over_float32")
    return [*cells, f"{over['speedup']['value']:.2f}x" if over else ""]


def kernel_section(network: str, kernel: dict[str, dict]) -> list[str]:
    """What the recurrent kernels by themselves make of narrower layers: a bound on what any choice can reach."""
    widths = sorted(map(int, kernel["macs"]), reverse=True)
    whole = str(widths[0])

    def cells(form: str, width: str) -> str:
        speedup = kernel[form][whole] / kernel[form][width]
        fewer = kernel["macs"][whole] / kernel["macs"][width]
        return f"{1000 * kernel[form][width]:.0f} | {speedup:.2f}x | {speedup / fewer:.2f}"

    return [
        f"### What the kernels of the {network} allow",
        "",
        (
            "Its two layers alone, from the latency table. Of every step's work the products go with the square of the "
            "width, the gates' activations and the quantization of the state with the width itself, and the start of a "
            "step with nothing: in 8 bits the products are so quick that the rest shows."
        ),
        "",
        "| units | fewer MACs | fp32, microseconds | speed-up | per MAC | int8, microseconds | speed-up | per MAC |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {width} | {kernel['macs'][whole] / kernel['macs'][str(width)]:.2f}x | {cells('float32', str(width))} | "
            f"{cells('int8', str(width))} |"
            for width in widths
        ),
        "",
    ]


def prediction_section(result: dict) -> list[str]:
    kinds = {"error": "absolute time", "relative_error": "time relative to the dense network"}
    rows = [
        f"| {form} | {what} | {100 * found['median']:.1f} | {100 * found['largest']:.1f} |"
        for form in FORMS.values()
        for key, what in kinds.items()
        if (found := result["summary"].get(f"{form}_{key}")) is not None
    ]
    return [
        "## Whole models predicted from the latency table (`make bench-latency`)",
        "",
        (
            f"Models: {len({row['model'] for row in result['rows']})}, of families: "
            f"{len({row['family'] for row in result['rows']})}; {result['environment'].get('cpu')}; "
            f"{result['entries']} operators were measured in {result['seconds']:.0f} s. Aim: a median below 10 %."
        ),
        "",
        "| form | predicted | median error, % | largest, % |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def recovery_section(result: dict) -> list[str]:
    rows = []
    for arm, row in result["arms"].items():
        each = ", ".join(f"{100 * run['accuracy']:.2f}" for run in row["runs"])
        better = result["gains"].get(arm)
        gained = ""
        if better is not None:
            gained = f"{100 * better['value']:.2f} [{100 * better['low']:.2f}, {100 * better['high']:.2f}]"
        fewer = statistics.mean(run["macs_ratio"] for run in row["runs"])
        minutes = statistics.mean(run["seconds"] for run in row["runs"]) / 60
        rows.append(
            f"| {arm} | {fewer:.2f}x | {row['speedup']:.2f}x | {100 * row['accuracy']:.2f} | {each} | {gained} "
            f"| {minutes:.0f} |"
        )
    return [
        "## ResNet-56 after a short recovery (`make bench-recovery`)",
        "",
        (
            f"At least {result['ratio']}x fewer multiply-accumulates, then {result['epochs']} epochs of `Distill` on "
            f"{result['train_images']:,} images, the same for every arm; the network after the last epoch, fp32. "
            f"Accuracy: {result['test_images']} test images that no stage has read, the mean of the seeds "
            f"{', '.join(map(str, result['seeds']))}; dense {100 * result['dense_accuracy']:.2f} %. The gain is ours "
            "over the arm, paired image by image, with its 95 % interval. `l1` and `taylor` are Torch-Pruning's. One "
            "thing "
            "was settled by people who had seen a test accuracy of a first structure: that ours may use widths in "
            "multiples of 4, not of 16; the calibration loss says the same."
        ),
        "",
        "| arm | fewer MACs | speed-up | accuracy, % | by seed | ours better by, points | minutes a training |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def recurrent_section(result: dict) -> list[str]:
    return pipeline_section(
        result,
        "Recurrent networks and an autoencoder (`make bench-recurrent`)",
        "Spoken digits (takes 0 to 4 test) and MNIST: half of the multiply-accumulates pruned, recovered by "
        "distillation, quantized; every stage is kept, whether it pays or not.",
    )


def dense_section(result: dict) -> list[str]:
    return pipeline_section(
        result,
        "Segmentation and detection (`make bench-dense-outputs`)",
        "A small U-Net on CamVid (mean intersection over union, 240 x 176 pixels) and a small anchor-free detector on "
        "BCCD (mean average precision at 0.5, 320 x 240 pixels), both trained by the benchmark: half of the "
        "multiply-accumulates pruned, distilled, the detector on its raw answers, and quantized; every stage is kept, "
        "whether it pays or not. Test images that no decision has read; drops are paired, image by image.",
    )


def pipeline_section(result: dict, title: str, text: str) -> list[str]:
    """What a pipeline did to each network, a row a stage."""
    parts = [
        f"## {title}",
        "",
        text,
        "",
        "| network | after | score | drop, points | fewer MACs | speed-up | KiB | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, entry in result["networks"].items():
        dense = entry["steps"][0]["measurement"]["macs"]
        for step in entry["steps"]:
            measured, minutes = step["measurement"], f"{step['seconds'] / 60:.1f}"
            if measured is None:
                parts.append(f"| {network} | {step['stage']} | {escaped(step['reason'])} | | | | | {minutes} |")
                continue
            score = measured["score"]
            shown = f"{entry['metric']} {score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"
            # Points are of scores between 0 and 1.
            drop = points(step["drop"]) if step["drop"] is not None and entry["metric"] != "mse" else ""
            parts.append(
                f"| {network} | {step['stage']} | {shown} | {drop} | {dense / measured['macs']:.2f}x "
                f"| {spread(measured['speedup'])} | {measured['size_bytes'] / 1024:.0f} | {minutes} |"
            )
    return [*parts, ""]


def time_section(result: dict) -> list[str]:
    parts = [
        "## The time and memory of pruning itself (`make bench-pruning-time`)",
        "",
        (
            f"{result['environment'].get('cpu')}; half of every width by the L1 norm of random weights, medians of "
            "processes of their own, in turns. *Running* is the part of the time that went into forward passes: ours "
            "proves that the narrowed model computes what the masked one does, Torch-Pruning does not. The aim is at "
            f"most {AIM_TIME}x of its time."
        ),
        "",
        "| model | tool | find groups, s | prune, s | of which running, s | peak, MiB | parameters left | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, tools in result["models"].items():
        for tool, rows in tools.items():
            error = escaped(next((row["error"] for row in rows if row["error"]), ""))
            worked = [row for row in rows if "prune" in row]
            cells = [""] * 5
            if worked:
                graph, prune, running, peak, left = (
                    statistics.median(row[key] for row in worked)
                    for key in ("graph", "prune", "running", "peak_mib", "parameters_left")
                )
                cells = [f"{graph:.2f}", f"{prune:.2f}", f"{running:.2f}", f"{peak:.0f}", f"{left:.2f}"]
            parts.append(f"| {model} | {tool} | {' | '.join(cells)} | {error} |")
    return [*parts, ""]


def merging_section(result: dict) -> list[str]:
    parts = [
        "## Channels merged, without training (`make bench-merging`)",
        "",
        (
            f"{100 * result['remove']:.0f} % of all channels that may go, nothing trained afterwards; the noise that "
            "`MergeSimilar` sees is no data. Accuracy on test images that no choice has read, and what is lost of the "
            "dense network's, paired, with 95 % intervals. *Part of the loss*: of what the better of L1's first two "
            f"arms loses; the aim is at most {AIM_LOSS:.2f}. VGG-16 has its full width and was trained for 8 epochs on "
            "a fifth of the images."
        ),
        "",
        "| network | arm | accuracy, % | lost, points | part of the loss |",
        "|---|---|---|---|---|",
    ]
    for network, entry in result["networks"].items():
        parts.append(f"| {network} | dense | {100 * entry['dense_accuracy']:.2f} | | |")
        for label, row in entry["arms"].items():
            part = entry["part_of_loss"].get(label)
            text = f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]" if part else ""
            parts.append(f"| {network} | {label} | {100 * row['accuracy']:.2f} | {points(row['drop'])} | {text} |")
    return [*parts, ""]


def low_rank_section(result: dict) -> list[str]:
    entries = result["networks"]
    where = next(iter(entries.values()))["environment"]
    thread = any(entry["clock"] == "thread" for entry in entries.values())
    parts = [
        "## Low rank, without training (`make bench-low-rank`)",
        "",
        (
            f"`FactorizeLayers` on trained networks, untrained afterwards; {where.get('cpu')}, one thread, batch 1, "
            "fp32. Drops are paired: on validation, which the choice of an arm reads, and on test, which none reads. "
            "s: seconds of choosing, by the clock on the wall."
            + (
                " The machine was busy with other work: the files were timed by the calling thread's own seconds."
                if thread
                else ""
            )
        ),
        "",
        "| network | arm | layers | fewer MACs | speed-up | drop on validation, points | drop on test, points | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, entry in entries.items():
        for label, row in [pair for arms in entry["arms"].values() for pair in arms.items()]:
            if row["error"] is not None:
                parts.append(f"| {network} | {label} | refused: {escaped(row['error'])[:160]} | | | | | |")
                continue
            drops = [points(row["drops"][part]) for part in ("validation", "test")]
            parts.append(
                f"| {network} | {label} | {len(row['layers'])} | {entry['macs'] / row['macs']:.2f}x | "
                f"{spread(row['speedup'])} | {' | '.join(drops)} | {row['seconds']:.0f} |"
            )
    parts += [
        "",
        (
            "The fastest arm of each kind that loses at most so much on validation, and the two files timed against "
            "each other:"
        ),
        "",
        "| network | at most, points | by milliseconds | by energy | the former over the latter |",
        "|---|---|---|---|---|",
        *(
            f"| {network} | {100 * pair['drop']:.1f} | {pair['taken']['latency']} | {pair['taken']['energy']} | "
            f"{spread(pair['latency_over_energy'])} |"
            for network, entry in entries.items()
            for pair in entry["pairs"]
        ),
    ]
    return [*parts, ""]


# What makes the section of every stored result, in the order of the page.
SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "structure": efficiency_section,
    "latency_table": prediction_section,
    "merging": merging_section,
    "low-rank": low_rank_section,
    "recovery": recovery_section,
    "recurrent": recurrent_section,
    "dense-outputs": dense_section,
    "pruning-time": time_section,
}


def page(results: dict[str, dict]) -> str:
    """The text of docs/structure.md; what is not stored has no section."""
    parts = [
        "# Structure by milliseconds",
        "",
        "Written by `make docs` from `benchmarks/results/*.json`. Timings hold for the machine named; compare ratios.",
        "",
    ]
    for name, section in SECTIONS.items():
        if name in results:
            parts += concluded(section(results[name]), name, results[name])
    return "\n".join(parts).rstrip() + "\n"


def draw(networks: dict[str, dict], path: Path) -> None:
    """One panel a precision: speed-up over the ratio of MACs, and the line on which each saved MAC saves its time."""
    from benchmarks.documents.pictures import plt

    figure, panels = plt.subplots(1, len(FORMS), figsize=(11, 5), squeeze=False, layout="constrained")
    markers = "os^Dv*PX<>hpd8"
    labels = list(dict.fromkeys(label for entry in networks.values() for label in entry["rows"]))
    labels.remove(DENSE)
    for axis, (form, title) in zip(panels[0], FORMS.items(), strict=True):
        highest = 2.0
        for color, (network, entry) in enumerate(networks.items()):
            for label, row in entry["rows"].items():
                if form not in row:
                    continue
                ratio, x = row[form]["speedup"], row["macs_ratio"]
                highest = max(highest, x, ratio["value"])
                marker = markers[labels.index(label) % len(markers)]
                fill = "none" if label.startswith("Torch-Pruning") else f"C{color}"
                axis.plot(
                    x, ratio["value"], marker, color=f"C{color}", markerfacecolor=fill, label=f"{network}: {label}"
                )
        axis.plot([1, highest], [1, highest], color="gray", linewidth=1)
        axis.axhline(1, color="gray", linewidth=1, linestyle=":")
        axis.set_xlabel("times fewer multiply-accumulates")
        axis.set_ylabel(f"times faster than dense, {title}")
        axis.grid(alpha=0.3)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
