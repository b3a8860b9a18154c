"""The results in docs/packing.md: ResNet-56 beside other coders, LeNets and ResNet-56 made as small as they travel."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict, lenets: dict | None = None, residual: dict | None = None) -> str:
    """`text`, the page as it is, with the tables of the results that there are between its marks."""
    lines = section(result)
    lines += ["", *lenet_section(lenets)] if lenets else []
    lines += ["", *residual_section(residual)] if residual else []
    return MARK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table of coders, and what its columns are."""
    files = result["files"]
    others = list(next(iter(files.values()))["others"])
    speeds = [row["decode"]["weights_per_second"] / 1e6 for row in files.values()]
    less = [1 - row["packed_bytes"] / min(row["others"].values()) for row in files.values()]
    return [
        f"**Packed files are {100 * min(less):.0f} to {100 * max(less):.0f} % smaller than the best of the others.**",
        "",
        "ResNet-56 (sparse: 80 % of the weights of every layer at zero), made without training. Bytes; and packed",
        "weights without the graph, tables and headers included, in percent of the sum of each tensor's own entropy of",
        "order 0:",
        "",
        f"| file | bytes | packed | {' | '.join(others)} | of order 0, % | million symbols a second |",
        f"|---|---|---|{'---|' * len(others)}---|---|",
        *(
            f"| {name} | {row['size_bytes']:,} | **{row['packed_bytes']:,}** | "
            f"{' | '.join(format(row['others'][other], ',') for other in others)} | {100 * row['of_order_0']:.1f} | "
            f"{speed:.0f} |"
            for (name, row), speed in zip(files.items(), speeds, strict=True)
        ),
        "",
        "Symbols are decoded by NumPy on one thread, in CPU time, beside other work on the same machine. Reading the",
        "plan comes on top, some hundredths of a second a chunk, whatever its size.",
    ]


def lenet_section(result: dict) -> list[str]:
    """The LeNets of Deep Compression: what is left of them, and their error beside the dense network's."""
    networks = result["networks"]
    images = next(iter(networks.values()))["images"]
    smaller = ", ".join(f"{name} {row['times_smaller']:.0f} times" for name, row in networks.items())
    return [
        f"**Smaller than the dense weights: {smaller}, with no error beyond chance.**"
        if all(row["right_in_one_alone"]["p"] > 0.05 for row in networks.values())
        else f"**Smaller than the dense weights: {smaller}.**",
        "",
        "LeNets on MNIST, pruned, taught by the dense network, with shared values, packed, unpacked and run on the",
        f"first {images:,} test images. The drop is paired; p, by McNemar, is how likely so uneven a split of the",
        "images that one alone gets right would be by chance. Left: numbers that are not zero, and the bits that each",
        "takes; packed in bytes; times: of the dense weights in float32; minutes beside other work, training included.",
        "",
        "| network | left | packed | times smaller | bits each | error, % | dense, % | drop, points | p | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['weights_left']:,} | {row['packed_bytes']:,} | **{row['times_smaller']:.0f}** | "
            f"{row['bits_a_weight_left']:.1f} | {100 - 100 * row['packed']['value']:.2f} | "
            f"{100 - 100 * row['dense']['value']:.2f} | {_points(row['drop'])} | "
            f"{row['right_in_one_alone']['p']:.2f} | {row['seconds'] / 60:.0f} |"
            for name, row in networks.items()
        ),
    ]


def residual_section(result: dict) -> list[str]:
    """ResNet-56 by chains of stages: packed size, speed, drop, and the files that validation names."""
    named = [f"at most {limit} points: {arm or 'none'}" for limit, arm in result["chosen"].items()]
    return [
        f"ResNet-56 on CIFAR-10 (`python -m benchmarks.packing.residual`), {result['epochs']} epochs over",
        f"{result['images']:,} images after blocks went and a third of that after zeros came; the drop is paired, on",
        f"{result['test_images']:,} test images that no decision has read. Smallest by validation with a drop of",
        f"{'; '.join(named)}.",
        "",
        "| dropped, zeros, bits | bytes | packed | times smaller | bits a weight | speed-up | drop, points | minutes |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {arm} | {row['size_bytes']:,} | {row['packed_bytes']:,} | **{row['times_smaller']:.1f}** | "
            f"{row['bits_a_weight']:.2f} | {row['speedup']['value']:.2f}x [{row['speedup']['low']:.2f}, "
            f"{row['speedup']['high']:.2f}] | {_points(row['drop'])} | {row['seconds'] / 60:.0f} |"
            for arm, row in result["rows"].items()
        ),
    ]


def _points(drop: dict) -> str:
    return f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]"
