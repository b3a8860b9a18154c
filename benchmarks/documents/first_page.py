"""The text and the picture of docs/benchmarks.md, and the README's table, from the stored results."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.data.cifar import WORKLOADS
from benchmarks.documents.conclusions import cifar, concluded
from benchmarks.stored import load
from workbench import ROOT

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def stored_networks() -> dict[str, dict]:
    """The results of the CIFAR-10 benchmark by network, those that are stored."""
    found = {name: load(f"cifar10-{name}") for name in WORKLOADS}
    return {name: result for name, result in found.items() if result is not None}


def page(networks: dict[str, dict]) -> str:
    """The text of docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "",
        "Written by `make docs` from `benchmarks/results/*.json`. Timings hold for the machine named; compare ratios.",
        "",
        *(concluded(cifar_section(networks), "cifar10", networks) if networks else []),
        *_concluded(training_section, "training-throughput"),
        *_concluded(threads_section, "training-threads"),
        *_concluded(aa_section, "aa"),
    ]
    return "\n".join(parts).rstrip() + "\n"


def readme(networks: dict[str, dict]) -> str:
    """The README with its table of results."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = "\n".join([f"**{cifar(networks)}**", "", *table_rows(networks, short=True)])
    return MARK.sub(lambda match: f"{match[1]}{lines}\n{match[2]}", text)


def cifar_section(results: dict[str, dict]) -> list[str]:
    first = next(iter(results.values()))
    parts = [
        "## CIFAR-10: ResNet-56 and ResNet-20 (`make bench-cifar10`)",
        "",
        (
            f"{first['environment'].get('cpu')}, {first['target']['threads']} thread, batch "
            f"{first['target']['batch_size']}, ONNX Runtime {first['environment']['versions']['onnxruntime']}. Every "
            "file is timed interleaved with the network's own fp32 ONNX file. Accuracy: "
            f"{first['test_images']} test images that no decision has read; the drop is paired, with its 95 % "
            "interval. Minutes: the whole compression, or the peer's training, on two cores."
        ),
        "",
        *table_rows(results, short=False),
        "",
        "![accuracy against speed-up and size](benchmarks-cifar10.svg)",
        "",
    ]
    for network, result in results.items():
        for name, row in result["results"].items():
            if "steps" in row:
                parts += [
                    f"**{network}, `{name}`, by stage**",
                    "",
                    "| stage | kept | why | minutes |",
                    "|---|---|---|---|",
                ]
                parts += [
                    f"| {step['stage']} | {'yes' if step['kept'] else 'no'} | {step['reason']} "
                    f"| {step['seconds'] / 60:.1f} |"
                    for step in row["steps"]
                ]
                parts.append("")
    return parts


def table_rows(results: dict[str, dict], *, short: bool) -> list[str]:
    rows = [
        "| network | file | accuracy, % | drop, points | speed-up | smaller | KiB | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, result in results.items():
        size = result["results"]["fp32"]["measurement"]["size_bytes"]
        for name, row in result["results"].items():
            measured, drop, ratio = row["measurement"], row["drop"], row["measurement"]["speedup"]
            spread = "" if short else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            lost = (
                ""
                if name == "fp32"
                else f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]"
            )
            minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else ""
            label = f"`{name}`" if "steps" in row else name
            rows.append(
                f"| {network} | {label} | {100 * measured['score']['value']:.2f} | {lost} "
                f"| {ratio['value']:.2f}x{spread} | {size / measured['size_bytes']:.2f}x "
                f"| {measured['size_bytes'] / 1024:.0f} | {minutes} |"
            )
    return rows


def draw(results: dict[str, dict], path: Path) -> None:
    from benchmarks.documents.pictures import plt

    figure, axes = plt.subplots(len(results), 2, figsize=(10, 4 * len(results)), squeeze=False, layout="constrained")
    for line, (network, result) in zip(axes, results.items(), strict=True):
        size = result["results"]["fp32"]["measurement"]["size_bytes"]
        for index, (name, row) in enumerate(result["results"].items()):
            measured = row["measurement"]
            score = measured["score"]
            marker = "s" if "steps" in row else ("D" if name == "fp32" else "o")
            error = [[100 * (score["value"] - score["low"])], [100 * (score["high"] - score["value"])]]
            for axis, x in zip(line, (measured["speedup"]["value"], size / measured["size_bytes"]), strict=True):
                axis.errorbar(
                    x,
                    100 * score["value"],
                    yerr=error,
                    marker=marker,
                    color=f"C{index}",
                    capsize=3,
                    linestyle="",
                    label=name,
                )
        line[0].set_xlabel("times faster than its own fp32 file")
        line[1].set_xlabel("times smaller than its own fp32 file")
        line[0].set_ylabel(f"{network}: test accuracy, %")
        line[1].legend(fontsize=7)
        for axis in line:
            axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def _concluded(section: Callable[[dict], list[str]], name: str) -> list[str]:
    """The section of the stored result `name`, [] where it is not stored."""
    result = load(name)
    return [] if result is None else concluded(section(result), name, result)


def training_section(result: dict) -> list[str]:
    where = result["environment"]
    rows = [
        f"| {label} | {values['median']:.{digits}f} | {values['low']:.{digits}f} | {values['high']:.{digits}f} |"
        for label, values, digits in (
            ("plain fp32 loop, images/s", result["summary"]["plain"], 0),
            ("the training loop, images/s", result["summary"]["ours"], 0),
            ("ratio", result["summary"]["ratio"], 2),
        )
    ]
    return [
        "## Training throughput (`make bench-training`)",
        "",
        (
            f"{result['model']}, batch {result['batch']}, {len(result['rounds'])} interleaved rounds of "
            f"{result['batches']} batches on {where.get('cpu')}; the ratio is taken round by round."
        ),
        "",
        "| | median | lowest | highest |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def threads_section(result: dict) -> list[str]:
    rows = [
        f"| {load['busy_processes']} | "
        + " | ".join(f"{rate:.0f}" for rate in load["medians"].values())
        + f" | {load['ratio']:.2f} |"
        for load in result["loads"]
    ]
    machines = [load["environment"] for load in result["loads"]]
    where = " and ".join(dict.fromkeys(f"{machine.get('cpu')} with {machine['cores']} cores" for machine in machines))
    names = [name for name in result["loads"][0]["medians"] if name.isdigit()]
    head = " | ".join(["busy processes", *(f"threads fixed at {name}" for name in names), "chosen by timing", "ratio"])
    return [
        "## Training beside other work (`make bench-threads`)",
        "",
        (
            f"ResNet-20, batch 128, images a second of the training loop on {where}: medians of interleaved rounds. "
            "*Ratio*: threads chosen by timing over the best fixed number, which nobody knows beforehand; the aim is "
            "0.9."
        ),
        "",
        f"| {head} |",
        "|" + "---|" * (len(names) + 3),
        *rows,
        "",
    ]


def aa_section(result: dict) -> list[str]:
    rows = [
        f"| {label} | {claim['count']} of {result['tries']} | {claim['low']:.1%} to {claim['high']:.1%} |"
        for label, claim in (
            ("claimed speed-ups", result["claimed_speedups"]),
            ("claimed slow-downs", result["claimed_slowdowns"]),
        )
    ]
    return [
        "## One file against itself (`make bench-aa`)",
        "",
        (
            f"A file of {result['latency_ms']:.2f} ms measured against itself on {result['environment'].get('cpu')}, "
            f"{result['seconds']:g} s a try. The interval of the ratio was {result['interval_width']:.1%} wide "
            f"(median), the ratio scattered by {result['scatter']:.2%}."
        ),
        "",
        "| | count | 95 % interval |",
        "|---|---|---|",
        *rows,
        "",
    ]
