"""The table in docs/losses.md: what a student is drawn to, at equal minutes."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table, what its columns are, and which arms differ from soft targets."""
    seeds, where = len(result["seeds"]), result["environment"]
    better = [row["arm"] for row in result["rows"] if row.get("differs") and row["gain"]["value"] > 0]
    worse = [row["arm"] for row in result["rows"] if row.get("differs") and row["gain"]["value"] < 0]
    told = [f"better than soft targets: {', '.join(better)}"] if better else []
    told += [f"worse: {', '.join(worse)}"] if worse else []
    verdict = "; ".join(told) or "none can be told apart from soft targets"
    return [
        f"ResNet-20's structure out of ResNet-56 on CIFAR-10 (`make bench-teachers`): {result['minutes']:g} minutes of",
        f"training each, {seeds} seeds, the last epoch, {result['test_images']:,} test images that no decision has",
        f"read, {where.get('cpu')}. Points over soft targets: paired, of the mean over seeds, with the 95 % interval",
        f"over images. Where it excludes 0 and all seeds agree, the arm differs: {verdict}.",
        "",
        "| drawn to | accuracy, %: mean | by seed | points over soft targets | steps |",
        "|---|---|---|---|---|",
        *map(_row, result["rows"]),
    ]


def _row(row: dict) -> str:
    scores = ", ".join(f"{100 * score:.2f}" for score in row["scores"])
    gain = row.get("gain")
    told = f"{100 * gain['value']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else ""
    steps = ", ".join(f"{run['steps']:,}" for run in row["runs"])
    return f"| {row['arm']} | {100 * row['mean']:.2f} | {scores} | {told} | {steps} |"
