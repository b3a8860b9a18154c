"""The table in docs/losses.md: what a student is drawn to, at equal minutes."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table, what budget its arms had, and which of them differ from soft targets."""
    seeds, rows = len(result["seeds"]), result["rows"]
    better = [row["arm"] for row in rows if _differs(row) and row["validation"]["gain"]["value"] > 0]
    worse = [row["arm"] for row in rows if _differs(row) and row["validation"]["gain"]["value"] < 0]
    told = [f"better than soft targets: {', '.join(better)}"] if better else []
    told += [f"worse: {', '.join(worse)}"] if worse else []
    verdict = "; ".join(told) or "none can be told apart from soft targets"
    minutes = "minutes of one thread's processor time" if result["clock"] == "processor" else "minutes"
    return [
        "ResNet-20's structure out of ResNet-56 on CIFAR-10 (`make bench-teachers`):",
        f"{result['minutes']:g} {minutes} for each training, its teacher's answers included,",
        f"on {result['images']:,} images, {seeds} seeds, the last epoch; a longer one may order the arms otherwise.",
        "Points over soft targets are paired, of the mean over seeds, with the 95 % interval over images. Validation",
        f"images decide: where the interval excludes 0 there and all seeds agree, the arm differs: {verdict}.",
        f"The {result['test_images']:,} test images decide nothing.",
        "",
        "| drawn to | test accuracy, %: mean | by seed | points over soft targets, test | validation | steps |",
        "|---|---|---|---|---|---|",
        *map(_row, rows),
    ]


def _differs(row: dict) -> bool:
    return bool(row["validation"].get("differs"))


def _row(row: dict) -> str:
    scores = ", ".join(f"{100 * score:.2f}" for score in row["test"]["scores"])
    steps = ", ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in row["runs"]}))
    gains = " | ".join(_points(row[half].get("gain")) for half in ("test", "validation"))
    return f"| {row['arm']} | {100 * row['test']['mean']:.2f} | {scores} | {gains} | {steps} |"


def _points(gain: dict | None) -> str:
    return f"{100 * gain['value']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else ""
