"""The table in docs/evaluations.md: what shipped recipes do to ResNet-20 besides its score."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def page(text: str, result: dict) -> str:
    """`text`, the page as it is, with the table of `result` between its marks."""
    return MARK.sub(lambda found: found[1] + "\n".join(section(result)) + "\n" + found[2], text)


def section(result: dict) -> list[str]:
    """The table, how its files were made, and which of its changes are beyond chance."""
    recipes = result["recipes"]
    questions = [answer["what"] for answer in next(iter(recipes.values()))["answers"]]
    before = {answer["what"]: answer["reference"] for answer in next(iter(recipes.values()))["answers"]}
    trained = any("epochs=" in stage for row in recipes.values() for stage in row["stages"])
    how = [
        f"Trainings were cut to {result['epochs']} epochs over {result['images']:,} images: those rows are of files",
        "that were made so, not of the recipes at full length.",
    ]
    worse = [
        f"`{name}` in {answer['what']}"
        for name, row in recipes.items()
        for answer in row["answers"]
        if answer["worse"] is not None and answer["worse"]["low"] > 0
    ]
    return [
        f"**Worse beyond chance: {'; '.join(worse) or 'none of these recipes, in nothing that was asked'}.**",
        "",
        f"ResNet-20 on CIFAR-10 (`make bench-evaluations`), {result['test_images']:,} test images that no decision",
        "has read. In the first row the answer of the network's own file, in percent; below by how many points a",
        "recipe's file is worse, paired, with the 95 % interval. In bold where the interval excludes 0.",
        *(how if trained else ["No recipe here trains."]),
        "",
        f"| recipe | accuracy, % | {' | '.join(questions)} |",
        f"|---|---|{'---|' * len(questions)}",
        f"| none |  | {' | '.join(_percent(before[question]) for question in questions)} |",
        *(
            f"| `{name}` | {_percent(row['score'])} | "
            f"{' | '.join(_worse(row['answers'], question) for question in questions)} |"
            for name, row in recipes.items()
        ),
    ]


def _percent(value: dict | None) -> str:
    return "" if value is None else f"{100 * value['value']:.2f}"


def _worse(answers: list[dict], question: str) -> str:
    found = next((answer["worse"] for answer in answers if answer["what"] == question), None)
    if found is None:
        return ""
    told = f"{100 * found['value']:+.2f} [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
    return f"**{told}**" if found["low"] > 0 or found["high"] < 0 else told
