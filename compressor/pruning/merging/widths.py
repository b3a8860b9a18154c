"""How many channels every layer keeps when a number of all channels is to go for the least loss."""

from collections.abc import Mapping, Sequence

from compressor.pruning.ranking.importance import aligned_width

# Losses are of one layer at a time; where most of one is gone they say too little of what the network makes of it.
_LEAST_LEFT = 1 / 3


def widths_of_least_loss(
    widths: Mapping[str, int], losses: Mapping[str, Sequence[float]], aligns: Mapping[str, int], count: int
) -> dict[str, int]:
    """The widths left, by name, once about `count` (never more) of all channels are gone.

    `losses[name]` is the loss of each next channel of that layer. Step by step goes, of the layer whose next aligned
    step loses least a channel, that step; at least a third of every layer, rounded up to `aligns`, stays.
    """
    left = dict(widths)
    least = {
        name: aligned_width(max(1, -int(-width * _LEAST_LEFT // 1)), width, aligns[name])
        for name, width in widths.items()
    }
    while True:
        steps = {}
        for name, width in left.items():
            # A width that is no multiple goes down to the next that is.
            size = (width - 1) % aligns[name] + 1
            if width - size >= least[name] and size <= count:
                done = widths[name] - width
                steps[name] = sum(losses[name][done : done + size]) / size, size
        if not steps:
            return left
        best = min(steps, key=lambda name: steps[name][0])
        left[best] -= steps[best][1]
        count -= steps[best][1]
