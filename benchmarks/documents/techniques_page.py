"""The tables of docs/techniques.md and docs/classic.md: every technique on one network, and the classic example."""

import re
from pathlib import Path

from benchmarks.classic import ACROSS, INTEGERS, OURS, THEIRS, TRAINED
from benchmarks.documents.cells import escaped, points, spread
from benchmarks.techniques import CODEBOOKS, FLOAT, INTEGER

PICTURE = "techniques.svg"
MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_ARMS = {
    TRAINED: "trained",
    OURS: "`polynomial_decay`",
    ACROSS: "the same, ranked across layers",
    THEIRS: "`tensorflow_model_optimization`",
    INTEGERS: "`polynomial_decay_int8`",
}


def page(result: dict) -> str:
    """docs/techniques.md of the stored rows."""
    where, stages = result["environment"], [row for row in result["rows"] if row["stages"]]
    thread = result["clock"] == "thread"
    lines = [
        "# Every technique on one network (`make bench-techniques`)",
        "",
        "Written by `make docs` from `benchmarks/results/techniques.json`.",
        "",
        (
            "**Zeros, in any pattern, and shared values make no file faster and the plain file no smaller: ONNX "
            "Runtime computes with them as with all others. They are for the size after zstd. Rows of few values, "
            "zero among them, fit codebooks: with `StoreCodebooks()` the file itself is smaller, and as fast.**"
        ),
        "",
        (
            f"ResNet-20 on CIFAR-10. Every technique is followed by the same training: `Distill` for "
            f"{result['epochs']} epochs on {result['images']:,} images, with the same optimizer and rate; then by "
            f"`Quantize()` for the int8 rows. Accuracy and its paired drop from the dense float32 file: "
            f"{result['test_images']:,} test images that no decision has read, with 95 % intervals. Speed-ups are over "
            f"that file, one thread, batch 1, {where.get('cpu')}, ONNX Runtime {where['versions']['onnxruntime']}, all "
            "files timed in one pass, each interleaved with it"
            + (
                "; the machine was busy with other work, so that the calling thread's own seconds were taken."
                if thread
                else "."
            )
        ),
        "",
        f"![Points of accuracy lost against the size after zstd and against the speed-up, for every file]({PICTURE})",
        "",
        "| technique | form | accuracy, % | drop, points | KiB | KiB after zstd | weights not zero | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["error"] is not None:
            lines.append(f"| {row['label']} | failed: {escaped(row['error'])} | | | | | | |")
        lines += [
            f"| {row['label']} | {form} | {_cells(row[form])} |" for form in (FLOAT, INTEGER, CODEBOOKS) if form in row
        ]
    lines += ["", "| technique | stages |", "|---|---|"]
    lines += [f"| {row['label']} | {', '.join(f'`{escaped(one)}`' for one in row['stages'])} |" for row in stages]
    return "\n".join(lines) + "\n"


def _cells(found: dict) -> str:
    cells = [f"{100 * found['accuracy']['value']:.2f}", points(found["drop"])]
    cells += [f"{found[size] / 1024:.0f}" for size in ("size_bytes", "compressed_bytes")]
    return " | ".join([*cells, f"{found['nonzero_parameters']:,}", spread(found["speedup"])])


def draw(result: dict, path: Path) -> None:
    """Points lost against size after zstd, and against speed-up: a colour for each technique, a shape for each form."""
    from benchmarks.documents.pictures import plt

    figure, (sizes, speeds) = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    rows = [row for row in result["rows"] if row["error"] is None]
    colours = {row["label"]: f"C{number % 10}" for number, row in enumerate(rows)}
    for row in rows:
        for form, marker in ((FLOAT, "o"), (INTEGER, "s"), (CODEBOOKS, "^")):
            if form not in row:
                continue
            found = row[form]
            drop, speed = found["drop"], found["speedup"]
            look = {"color": colours[row["label"]], "marker": marker, "markersize": 5, "linestyle": "none"}
            lost = 100 * drop["value"]
            up = [[lost - 100 * drop["low"]], [100 * drop["high"] - lost]]
            across = [[speed["value"] - speed["low"]], [speed["high"] - speed["value"]]]
            sizes.errorbar(found["compressed_bytes"] / 1024, lost, yerr=up, elinewidth=0.8, **look)
            speeds.errorbar(speed["value"], lost, xerr=across, yerr=up, elinewidth=0.8, **look)
    sizes.set_xscale("log")
    ticks = [60, 100, 200, 400, 800]
    sizes.set_xticks(ticks, [str(tick) for tick in ticks])
    sizes.minorticks_off()
    sizes.set_xlabel("KiB after zstd")
    sizes.set_ylabel("points of accuracy lost")
    # Near 0 every tenth of a point counts; the techniques that cost tens stay on the picture.
    sizes.set_yscale("symlog", linthresh=1)
    sizes.set_yticks([0, 1, 3, 10, 40], ["0", "1", "3", "10", "40"])
    sizes.set_ylim(100, -0.6)
    speeds.set_xlabel("speed-up over dense float32")
    for axis in (sizes, speeds):
        axis.axhline(0.0, color="#d1d5db", linewidth=0.8, zorder=0)
    patches = [
        plt.Line2D([], [], color=colour, marker="o", linestyle="none", label=label) for label, colour in colours.items()
    ]
    shapes = [
        plt.Line2D([], [], color="#4b5563", marker=marker, linestyle="none", markerfacecolor="none", label=form)
        for form, marker in ((FLOAT, "o"), (INTEGER, "s"), (CODEBOOKS, "^"))
    ]
    figure.legend(handles=[*patches, *shapes], loc="outside right center", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def classic_page(text: str, result: dict) -> str:
    """`text`, docs/classic.md as it is, with the tables of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(classic_section(result)) + "\n" + found[2], text)


def classic_section(result: dict) -> list[str]:
    """The classic example's table, beside the other tool's."""
    networks = result["networks"]
    versions = next(
        fact["versions"] for entry in networks.values() for fact in entry["arms"][THEIRS]["facts"] if "versions" in fact
    )
    seeds = next(iter(networks.values()))["seeds"]
    images = next(iter(networks.values()))["test_images"]
    lines = [
        "## Beside `tensorflow_model_optimization` (`make bench-classic`)",
        "",
        f"**{_beside(networks)}**",
        "",
        (
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. Both tools go on from "
            "the same trained weights, with the same images, batch size, Adam and constant rate, layer by layer. What "
            "the other tool made is put back into the network of torch, which computes the same logits, and every file "
            "is written by the same exporter and run by ONNX Runtime. "
            f"Accuracy: {images:,} test images, the mean of {len(seeds)} seeds; *below ours* is paired, image by "
            "image, with its 95 % interval, negative where the arm is better. The other tool's masks leave zeros of "
            "both signs; in brackets is its size with one."
        ),
        "",
        "| network | arm | accuracy, % | by seed | below ours, points | zeros, % | KiB | KiB after zstd |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, entry in networks.items():
        for label, row in entry["arms"].items():
            below = points(row["below_ours"]) if row["below_ours"] else ""
            each = ", ".join(f"{100 * score:.2f}" for score in row["by_seed"])
            lines.append(
                f"| {network} | {_ARMS[label]} | {points(row['accuracy'])} | {each} | {below} | "
                f"{100 * row['sparsity']:.1f} | {row['size_bytes'] / 1024:.0f} | "
                f"{row['compressed_bytes'] / 1024:.1f}{_one_sign(row)} |"
            )
    return [*lines, ""]


def _beside(networks: dict) -> str:
    found = []
    for network, entry in networks.items():
        theirs, own = entry["arms"][THEIRS], entry["arms"][OURS]
        sizes = f"{own['compressed_bytes'] / 1024:.1f} and {theirs['compressed_bytes'] / 1024:.1f} KiB after zstd"
        found.append(f"{network}: the other tool is {points(theirs['below_ours'])} points below ours, {sizes}")
    return f"{'; '.join(found)}."


def _one_sign(row: dict) -> str:
    name = "compressed_bytes_with_zeros_of_one_sign"
    found = [fact[name] for fact in row["facts"] if name in fact]
    return f" ({sum(found) / len(found) / 1024:.1f})" if found else ""
