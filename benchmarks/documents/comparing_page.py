"""The table in docs/comparing.md: what sharing saves of twelve recipes, beside the same recipes run one by one."""

import re

MARK = re.compile(r"(<!-- saved -->\n).*?(<!-- /saved -->)", re.DOTALL)
_SETS = {
    "every combination": "two structures, two trainings, three forms",
    "one beginning": "twelve forms behind one structure and one training",
}


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """A row for each set."""
    return [
        "`make bench-compare`: seconds of the processor of a comparison, and of the same recipes run one by one.",
        "The more of a recipe's time its training takes, the more is shared.",
        "",
        "| twelve recipes | network | training | compared | one recipe | all one by one | files the same |",
        "|---|---|---|--:|--:|--:|--:|",
        *map(_row, result["sets"]),
    ]


def _row(found: dict) -> str:
    spent = found["cpu_seconds"]
    images = f" of {found['images']:,} images" if found["workload"] == "resnet20" else ""
    alone = "not run"
    if "one_by_one" in spent:
        alone = f"{spent['one_by_one']:,.0f} s: {spent['of_one_by_one']:.2f}x of it"
    return (
        f"| {_SETS[found['set']]} | {found['workload']} | {found['epochs']} epochs{images} | "
        f"{spent['together']:,.0f} s | "
        f"{spent['one']:,.0f} s: {spent['of_one']:.2f}x of it | {alone} | {found['same_files']} of {found['alone']} |"
    )
