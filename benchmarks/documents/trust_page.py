"""The tables in docs/trust.md: what was tried against folders, readers and commands, and what models give away."""

import re
from collections.abc import Iterator

_MARKS = {name: re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL) for name in ("tried", "members")}


def page(text: str, tried: dict | None, members: dict | None) -> str:
    """`text`, the page as it is, with the tables of what is stored between their marks."""
    for name, made in (("tried", tried and [*_tried(tried)]), ("members", members and [*_members(members)])):
        if made:
            lines = "\n".join(made)
            text = _MARKS[name].sub(lambda found, lines=lines: f"{found[1]}{lines}\n{found[2]}", text)
    return text


def _tried(result: dict) -> Iterator[str]:
    yield "`make bench-trust` on one machine; what stands in the last column has to be none, or within its limit."
    yield ""
    yield "| what | how many | wrong |"
    yield "|---|---|---|"
    if "flips" in result:
        bits = result["flips"]
        yield f"| bits flipped in a signed folder | {bits['made']:,} | {bits['untold']} not told |"
        moves = [*result["moves"], "an older release brought back"]
        untold = result["moves_untold"] + (not result["replay_refused"])
        yield f"| {', '.join(moves)} | {len(moves)} | {untold} not told |"
        secrets = result["secrets"]
        yield (
            f"| encryption and decryption killed, and what is left looked into | {secrets['killed']} | "
            f"{secrets['wrong']} with content |"
        )
    if "mutants" in result:
        found = result["mutants"]["all"]
        onnx = result["mutants"]["readers"].get("ONNX", {}).get("files", 0)
        yield (
            f"| damaged files for {len(result['mutants']['readers'])} readers, of that {onnx:,} ONNX files, each "
            f"opened in a process of its own | {found['files']:,} | "
            f"{found['untyped']} errors of another type, {found['hangs']} above 5 s, "
            f"{found['over']} readers above 1 GiB, {found['other']} read as something else |"
        )
    for name, row in result.get("kills", {}).get("commands", {}).items():
        yield (
            f"| `{name}` killed, of that {row['points']} times at a write point of its own | {row['kills']} | "
            f"{row['lost']} lost, {row['other']} with other files in the end |"
        )
    if "costs" in result:
        cost = result["costs"]
        yield (
            f"| `verify` and `decrypt` of {cost['megabytes']:,} MB | {cost['verify']['cpu_seconds']:.2f} and "
            f"{cost['decrypt']['cpu_seconds']:.2f} s of the processor | {cost['of_sha256sum']:.2f} times `sha256sum`, "
            f"{_beside_openssl(cost, 'of_openssl')}"
            f"{cost['most_mebibytes']:.0f} MiB at most |"
        )
        if "both" in cost:
            # Beside other work seconds of the clock say nothing.
            clock = "" if result["environment"]["busy"] else f", {cost['both']['seconds']:.2f} s of the clock"
            yield (
                f"| both in one reading, `decrypt --signed-by` | {cost['both']['cpu_seconds']:.2f} s of the processor"
                f"{clock} | {cost['both_of_sha256sum']:.2f} times `sha256sum`, "
                f"{_beside_openssl(cost, 'both_of_openssl')}{cost['both']['mebibytes']:.0f} MiB |"
            )
    if "mutants" in result:
        yield ""
        yield (
            "A damaged file that carries a digest of itself is refused or read as what was written. Recipes, keys, "
            "reports, plans without their weights and ONNX files carry none: a change that leaves them sound makes "
            "another one of them, which is what manifests and signatures are for."
        )


def _beside_openssl(cost: dict, what: str) -> str:
    return "" if cost.get(what) is None else f"{cost[what]:.2f} times `openssl dgst`, "


def _members(result: dict) -> Iterator[str]:
    yield "### What models give away"
    yield (
        f"`make bench-membership`: {result['samples']:,} training samples beside test samples. In the row of the "
        "network's own file the value in percent, below by how much a recipe's file gives away more, in points, with "
        "the 95 % interval; in bold where it excludes 0. Guessing is 50 for areas and 1 for what is found at 1 % false "
        "alarms. Other networks learned from the data that decisions read. Accuracy is that of the test samples, in "
        "percent; no budget rolled a recipe back."
    )
    for network, rows in result["networks"].items():
        questions = [answer["what"] for answer in _longest(rows)["answers"]]
        yield ""
        yield f"**{network}**"
        yield ""
        yield f"| recipe | accuracy | {' | '.join(questions)} |"
        yield f"|---|---|{'---|' * len(questions)}"
        longest = _longest(rows)
        before = {answer["what"]: answer["reference"] for answer in longest["answers"]}
        told = " | ".join(_percent(before[question]) for question in questions)
        yield f"| none | {100 * longest['reference']['value']:.1f} | {told} |"
        for name, row in rows.items():
            told = " | ".join(_more(row["answers"], question) for question in questions)
            yield f"| `{name}` | {100 * row['score']['value']:.1f} | {told} |"


def _longest(rows: dict) -> dict:
    return max(rows.values(), key=lambda row: len(row["answers"]))


def _percent(value: dict | None) -> str:
    return "" if value is None else f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _more(answers: list[dict], question: str) -> str:
    found = next((answer["worse"] for answer in answers if answer["what"] == question), None)
    if found is None:
        return ""
    told = f"{100 * found['value']:+.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"**{told}**" if found["low"] > 0 or found["high"] < 0 else told
