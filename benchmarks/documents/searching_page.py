"""The tables in docs/searching.md: what searches find of grids, and what an hour finds of ResNet-56."""

import re

from benchmarks.documents.cells import points, spread

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, digits: dict, residual: dict | None = None, headline: dict | None = None) -> str:
    """`text`, the page as it is, with the tables of the results between its marks: of two grids, and of ResNet-56."""
    lines = section(digits)
    for result, write in ((residual, section), (headline, hour)):
        if result is not None:
            lines += ["", *write(result)]
    return MARK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """Each search, random recipes at its cost, then the shipped recipes together."""
    volume, work = (_share(result["goals"][name]) for name in ("volume", "work"))
    images = f", trained on {result['images']:,} images" if result.get("images") else ""
    command = "bench-search" if result["workload"] == "digits" else f"bench-search-{result['workload']}"
    return [
        f"`make {command}`: {result['recipes']} recipes for {result['workload']}{images}, each run whole, which takes",
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


def hour(result: dict) -> list[str]:
    """What a search found in its minutes: the finalists on test data, and the trials by rung."""
    goals = result["goals"]
    machine = result["environment"]
    reference = result["finalists"][0]["size_bytes"]
    return [
        f"`make bench-headline`: `compressor auto` on {result['workload']} for {result['minutes']:.0f} minutes on",
        f"{machine['cores']} cores of {machine['cpu']} ({machine['isa']}), {100 * result['max_drop']:.1f} points of",
        f"drop allowed on validation data. The goal: {goals['speedup']:.0f}x faster, {goals['smaller']:.0f}x smaller,",
        f"{100 * goals['drop']:.1f} points.",
        "",
        "| finalist | drop on test, points | speed-up | smaller |",
        "|---|--:|--:|--:|",
        *(
            f"| {'**' if row['ships'] else ''}`{row['name']}`{'** ships' if row['ships'] else ''} | "
            f"{points(row['drop'])} | {spread(row['speedup'])} | {row['smaller']:.1f}x |"
            for row in result["finalists"][1:]
        ),
        "",
        "| trial | rung | drop on validation, points | speed-up | smaller | minutes of work |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| `{row['name']}` | {row['rung']} | {100 * row['drop']:.2f} | {row['speedup']:.2f}x | "
            f"{reference / row['size_bytes']:.1f}x | {row['minutes']:.1f} |"
            for row in result["trials"]
            if not row["error"]
        ),
        "",
        *result["told"],
    ]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
