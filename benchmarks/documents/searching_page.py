"""The table in docs/searching.md: what searches find of a grid, and what they cost, beside random recipes."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the tables of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """Each search, random recipes at its cost, then the shipped recipes together."""
    volume, work = (_share(result["goals"][name]) for name in ("volume", "work"))
    return [
        f"`make bench-search`: {result['recipes']} recipes for {result['workload']}, each run whole, which takes",
        f"{result['grid_minutes']:.0f} minutes of the processor; then searched. Volume is what lies between the",
        f"reference and what was found, in drop, time and KiB. The goal is {volume} of it for {work} of the work.",
        "",
        "| search | volume | work | epochs of training | random recipes at its cost |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| `eta={row['eta']}`, {row['trials']} trials | {_share(row['volume'])} | {_share(row['work'])} | "
            f"{_share(row['epochs_of_training'])} | {_share(row['random_volume'])} |"
            for row in result["searches"]
        ),
        *_shipped(result),
    ]


def _shipped(result: dict) -> list[str]:
    if "shipped" not in result:
        return []
    rows = result["shipped"]
    best = max(rows, key=lambda row: row["volume"])
    beaten = sum(row["beaten_by_the_search"] for row in rows)
    together, cost = _share(result["shipped_volume"]), _share(result["shipped_work"])
    return [
        "",
        f"The {len(rows)} shipped recipes that the network can be given come to {together} together, for {cost} of the",
        f"grid's work; the best of them, `{best['recipe']}`, to {_share(best['volume'])} for {_share(best['work'])}.",
        f"For {beaten} of them the searches found a file that is nowhere worse, and somewhere better.",
    ]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
