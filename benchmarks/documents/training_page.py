"""The results in docs/training.md: what recovery by defaults did to small networks, and regression around offsets."""

import re

MARK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_WAYS = {
    "reference": "before",
    "pruned": "pruned",
    "fine_tune": "`FineTune()`",
    "hand_6": "by hand, 6 epochs",
    "distill": "`Distill()`",
    "hand_9": "by hand, 9 epochs",
}


def page(text: str, result: dict, weights: dict | None) -> str:
    """`text`, the page as it is, with the tables of `result` and `weights` (None: without) between its marks."""
    lines = section(result) + (by_weight(weights) if weights else [])
    return MARK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def by_weight(result: dict) -> list[str]:
    """How `Distill` was told how much of its loss is the teacher's."""
    kinds, chosen = result["networks"], result["decided"]
    weights = list(chosen["worse"])
    large = result["large"]
    return [
        "### How much the teacher counts",
        "",
        (
            f"`Distill(soft_weight=...)` on validation data of the same kinds with {len(result['seeds'])} other seeds: "
            "how far it stays below the hand loop of 9 epochs, in points or percent, negative where it is better. "
            f"Fewest kinds are worse beyond noise, and the average is lowest, by {chosen['best']:g}; a larger network "
            f"has to agree before a default changes. The default is {chosen['weight']:g}."
        ),
        "",
        f"| network | {' | '.join(weights)} |",
        f"|---|{'---|' * len(weights)}",
        *(
            f"| {kind['name']} | {' | '.join(_drop(kind['drops'][weight], kind['metric']) for weight in weights)} |"
            for kind in kinds
        ),
        f"| worse beyond noise | {' | '.join(str(chosen['worse'][weight]) for weight in weights)} |",
        f"| on average | {' | '.join(format(100 * chosen['mean_drop'][weight], '+.2f') for weight in weights)} |",
        "",
        *(
            [
                (
                    f"{large['name']} after a prune of 30 %, {result['images']} training images, 4 epochs, against "
                    f"{large['beside']}: "
                    + "; ".join(f"{weight} {_drop(large['drops'][weight], large['metric'])}" for weight in weights)
                    + "."
                ),
                "",
            ]
            if large
            else []
        ),
    ]


def section(result: dict) -> list[str]:
    seeds, where = result["seeds"], result["environment"]
    kinds = result["networks"]
    drops = [drop["high"] for kind in kinds if kind["metric"] == "accuracy" for drop in kind["drops"].values()]
    measured = f"no drop of accuracy can be larger than {100 * max(drops):.1f} points by the intervals"
    worse = "; ".join(f"{entry['network']} by `{entry['by']}`" for entry in result["worse"])
    alone = "; ".join(
        f"{one['network']} by `{one['by']}`, p = {one['p_value']:.3f} by itself, {one['corrected']:.2f} corrected"
        for one in result["worse_alone"]
    )
    epochs = [told["reference"]["epochs"] for kind in kinds for told in kind["told"]]
    rates = [told[ours]["rate"] for kind in kinds for told in kind["told"] for ours in ("fine_tune", "distill")]
    return [
        "## What the defaults do after a mild prune (`make bench-training`)",
        "",
        (
            f"Small networks of {len(kinds)} kinds, {len(seeds)} seeds with samples of their own, trained by hand "
            f"until validation stands still, after {min(epochs)} to {max(epochs)} epochs, pruned, and recovered by "
            "defaults or by hand for as many epochs: the loop that trained the network, with a cosine from the best of "
            "its rate, a third and a tenth of it on validation, at its best epoch on validation. Scores of test data "
            "(accuracy in %, or the mean squared error) over the samples of all seeds, with 95 % intervals; drops are "
            "paired, sample by sample, and negative where ours are better. Rates that were found: "
            f"{min(rates):.2g} to {max(rates):.2g}. {where.get('cpu')}."
        ),
        "",
        (
            f"**Worse than by hand beyond noise, after Holm's correction for {result['comparisons']} comparisons: "
            f"{worse or 'none'}.** Beyond its own interval: {alone or 'none'}. Of so many intervals of 95 % "
            f"{0.025 * result['comparisons']:.1f} lie above 0 by chance; {measured}. An interval covers the noise of "
            "the samples, not that of the trainings themselves."
        ),
        "",
        f"| network | {' | '.join(_WAYS.values())} |",
        f"|---|{'---|' * len(_WAYS)}",
        *(
            f"| {kind['name']} | {' | '.join(_score(kind['scores'][way], kind['metric']) for way in _WAYS)} |"
            for kind in kinds
        ),
        "",
        "| network | `FineTune()` below hand | `Distill()` below hand | optimizer | rates of `FineTune()` |",
        "|---|---|---|---|---|",
        *(
            f"| {kind['name']} | {_drop(kind['drops']['fine_tune'], kind['metric'])} | "
            f"{_drop(kind['drops']['distill'], kind['metric'])} | {kind['told'][0]['fine_tune']['optimizer']} | "
            f"{', '.join(format(told['fine_tune']['rate'], '.2g') for told in kind['told'])} |"
            for kind in kinds
        ),
        "",
        "### Regression around an offset",
        "",
        (
            "Targets that vary by about 1 around the offset, three epochs of `FineTune()`: mean squared error of "
            "test data. "
            "*Chosen* is the number format that is chosen by itself."
        ),
        "",
        "| offset | before | float32 | chosen |",
        "|---|---|---|---|",
        *(
            f"| {row['offset']:g} | {row['before']:.5f} | {row['float32']:.5f} | {row['auto']:.5f} |"
            for row in result["offsets"]
        ),
        "",
    ]


def _score(score: dict, metric: str) -> str:
    scale, digits = (100, 1) if metric == "accuracy" else (1, 4)
    value, low, high = (f"{scale * score[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _drop(drop: dict, metric: str) -> str:
    unit = "points" if metric == "accuracy" else "%"
    return f"{100 * drop['value']:+.1f} [{100 * drop['low']:+.1f}, {100 * drop['high']:+.1f}] {unit}"
