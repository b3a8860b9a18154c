"""The table in docs/studio.md: what the sliders foretell beside what came of it, and how promptly the page is there."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict, load: dict | None = None, drawing: dict | None = None) -> str:
    """`text`, the page as it is, with the table of `result` between its marks, and what people and a screen saw."""
    lines = [*section(result), *_loaded(load), *_drawn(drawing)]
    return MARK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def _loaded(load: dict | None) -> list[str]:
    if load is None:
        return []
    half, most = (f"{load['ms'][percent]:.0f} ms" for percent in ("50", "95"))
    return [
        "",
        f"{load['people']} people at one studio, {load['a_second_each']:.0f} requests a second each:",
        f"{load['answered']:,} of {load['asked']:,} answered, {load['lost_edits']} edits lost; half of the answers",
        f"came within {half}, 95 of 100 within {most} (`make bench-studio-load`).",
    ]


def _drawn(drawing: dict | None) -> list[str]:
    if drawing is None:
        return []
    median, most = (f"{drawing[name]:.1f} s" for name in ("median_seconds", "most_seconds"))
    return [
        "",
        f"In headless Chromium the page's first paint came within {drawing['most_first_paint_ms']:.0f} ms, and",
        f"{drawing['operators']:,} operators were on the screen within {median} of the click, at most {most}",
        "(`make bench-studio-drawing`).",
    ]


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
        "ms off, as the machine drifts",
    )
    lines = [
        f"{result['summary']['plans']} plans drawn by chance (`make bench-studio`), each made by its recipe, without",
        "training. Drops are those on test data, which the studio never reads, milliseconds those of the file timed in",
        "turns with the network's own, one sample, one thread. *Off* is the distance between what was foretold and",
        "what was measured; widths and distances are medians. Milliseconds are foretold as a part of the network's",
        "own: *ms off* takes those of the same turns, the last column those of when the studio was started, since when",
        "the machine may have become slower or faster.",
        "",
        f"| {' | '.join(columns)} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
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
        _percent(summary.get("median_error_of_ratio"), 1),
        _percent(summary.get("largest_error_of_ratio"), 1),
        _percent(summary.get("median_error"), 1),
    ]
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None, places: int) -> str:
    return "" if share is None else f"{100 * share:.{places}f} %"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
