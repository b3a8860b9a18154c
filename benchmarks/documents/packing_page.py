"""The results in docs/packing.md: ResNet-56 by the packed form, beside order-0 entropy and general compressors."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table, and what its columns are."""
    files = result["files"]
    others = list(next(iter(files.values()))["others"])
    speeds = [row["decode"]["weights_per_second"] / 1e6 for row in files.values()]
    return [
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
