"""The section of docs/quantization-results.md on files that packages ship."""

from typing import Any

from benchmarks.documents.cells import escaped, spread

_GOAL_DECISIONS, _GOAL_SPEED = 0.99, 1.3


def section(result: dict[str, Any]) -> list[str]:
    """One row for every file: what was chosen, what it keeps, and what was tried before it."""
    rows = result["files"]
    where = result["environment"]
    kept = [row for row in rows if row["outcome"] == "kept"]
    holding = [row for row in kept if _decisions(row) >= _GOAL_DECISIONS]
    faster = [row for row in holding if row.get("speedup", {}).get("low", 0) >= _GOAL_SPEED]
    return [
        "## Files that packages ship (`make bench-files`)",
        "",
        (
            f"**Of {len(rows)} files {len(kept)} ship in integers, {len(holding)} of them with "
            f"{100 * _GOAL_DECISIONS:g} % of their decisions or more, {len(faster)} of these at {_GOAL_SPEED:g}x the "
            "speed of float at least.**"
        ),
        "",
        (
            "The ONNX files that programs ship, on inputs made as their programs make them, quantized by "
            f"`Quantize(form=ByEvidence())`, without labels, {where.get('cpu')}. Timed: {result['how_timed']}. "
            "*Decisions* are those on samples that nothing was chosen by: the largest class, F1 of what lies above the "
            "program's threshold, or equal numbers, by output. *Signal* is in decibels around the mean of each output."
        ),
        "",
        "| file | form that ships | speed | smaller | decisions kept | signal, dB | in float | s of CPU |",
        "|---|---|--:|--:|---|---|--:|--:|",
        *(_line(row) for row in rows),
        "",
        "What was tried for each, in turn:",
        "",
        *(f"- **{row['name']}** (`{row['file']}`{_state(row)}): {escaped(_tried(row))}" for row in rows),
    ]


def _line(row: dict[str, Any]) -> str:
    if row["outcome"] == "failed":
        return f"| {row['name']} | not read |  |  |  |  |  |  |"
    speed = spread(row["speedup"]) if "speedup" in row else ""
    decisions = ", ".join(f"{100 * share:.1f} %" for share in row["decisions"].values())
    signal = ", ".join(_decibels(output["db"]) for output in row["outputs"].values())
    cells = [
        row["name"],
        row["form"],
        speed,
        f"{row['bytes'] / row['size_bytes']:.2f}x",
        decisions,
        signal if row["outcome"] == "kept" else "",
        str(len(row["in_float"]) or ""),
        f"{row['cpu_seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _tried(row: dict[str, Any]) -> str:
    if row["outcome"] == "failed":
        return row["reason"].split("/")[0] + " ..." if "/" in row["reason"] else row["reason"]
    if row["outcome"] == "float":
        return row["reason"]
    return "; ".join(f"{one['form']}: {one.get('why') or 'taken'}" for one in row["tried"])


def _state(row: dict[str, Any]) -> str:
    """What state of the search made the row, where that is not the present one."""
    return f", made by {row['search']}" if row.get("search", "the last state") != "the last state" else ""


def _decisions(row: dict[str, Any]) -> float:
    return min(row["decisions"].values())


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
