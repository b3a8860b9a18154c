"""The table in docs/studio.md: what the sliders foretell beside what came of it."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table by network, and how promptly the server answers."""
    answer = result.get("answer")
    columns = (
        "network",
        "plans",
        "inside its 90 % interval",
        "width of it, points",
        "off, points",
        "ms off",
        "at most",
    )
    lines = [
        f"{result['summary']['plans']} plans drawn by chance (`make bench-studio`), each made by its recipe, without",
        "training. Drops are those on test data, which the studio never reads, milliseconds those of the file timed in",
        "turns with the network's own, one sample, one thread. *Off* is the distance between what was foretold and",
        "what was measured; widths and distances are medians.",
        "",
        f"| {' | '.join(columns)} |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_row(name, network["summary"]) for name, network in result["networks"].items()),
        _row("all", result["summary"]),
    ]
    if answer:
        lines += [
            "",
            f"{answer['workload']}, {answer['widths']} widths and {answer['blocks']} blocks: from a slider's place to",
            f"its numbers the server takes {answer['median_ms']:.1f} ms of a processor in the median, and at most",
            f"{answer['p99_ms']:.1f} ms in 99 of 100 of {answer['asked']} questions.",
        ]
    return lines


def _row(name: str, summary: dict) -> str:
    cells = [
        name,
        str(summary["plans"]),
        _percent(summary.get("inside"), 0),
        _points(summary.get("median_width")),
        _points(summary.get("median_off")),
        _percent(summary.get("median_error"), 1),
        _percent(summary.get("largest_error"), 1),
    ]
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None, places: int) -> str:
    return "" if share is None else f"{100 * share:.{places}f} %"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
