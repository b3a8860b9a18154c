"""The tables in docs/folds.md: two recipes cross-validated, and how often the verdict is wrong."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the tables of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """How often nothing was called something, the recipes by data set, and the difference between the two."""
    test, folds = result["verdicts"], result["folds"]
    wrong, missed = test["claimed"], test["found"]
    return [
        f"`make bench-folds`, {folds} folds. How often the verdict is wrong: a small network on digits,",
        "cross-validated twice in the same folds by other seeds, is called different from itself in",
        f"{wrong['count']} of {test['tries']} tries ({_share(wrong)}; at most 5 % is the goal). One trained for",
        f"{test['shorter_epochs']} in place of {test['epochs']} epochs, {100 * test['shorter_by']:.1f} points worse in",
        f"the mean, is called different in {missed['count']} ({_share(missed)}).",
        *(_recipes(result["data"]) if result["data"] else ["Recipes were not cross-validated in this run."]),
    ]


def _recipes(found: dict) -> list[str]:
    differences = "; ".join(f"{name} {_points(data['second_below_first'])}" for name, data in found.items())
    return [
        "",
        "| data | recipe | reference, % | file, % | drop, points | differs from itself, of tries |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {recipe} | {_percent(row['reference'])} | {_percent(row['score'])} | {_points(row['drop'])} | "
            f"{row['claimed']['count']} of {row['tries']} |"
            for name, data in found.items()
            for recipe, row in data["recipes"].items()
        ),
        "",
        f"By how many points the second recipe is below the first: {differences}.",
    ]


def _share(found: dict) -> str:
    return f"95 % interval {100 * found['low']:.1f} to {100 * found['high']:.1f} %"


def _percent(value: dict) -> str:
    return f"{100 * value['value']:.2f} [{100 * value['low']:.2f}, {100 * value['high']:.2f}]"


def _points(value: dict | None) -> str:
    return (
        "" if value is None else f"{100 * value['value']:+.2f} [{100 * value['low']:+.2f}, {100 * value['high']:+.2f}]"
    )
