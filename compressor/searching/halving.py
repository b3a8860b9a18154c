"""Successive halving on several objectives: short trainings for all, longer ones for those that no other beats.

Jamieson & Talwalkar 2016, arXiv:1502.07943 (successive halving); Schmucker et al. 2021, arXiv:2106.12639 (its promotion
by non-dominated rank). Rungs are worked one after the other, so that what goes on does not depend on which trial ended
first. What goes on are stems: recipes that differ in their encoding alone share all training, and an encoding costs
next to nothing beside it.
"""

import math
from collections.abc import Mapping, Sequence

from compressor.searching.front import Point, best_groups, ranks
from compressor.searching.limits import Limits
from compressor.searching.space import Candidate
from compressor.searching.trials import Trial

# Beyond the worst of all: a point at the border of what was met still counts.
_BEYOND = 1.05


def rungs_of(candidates: Sequence[Candidate], *, eta: int, most: int) -> tuple[float, ...]:
    """The fractions of the trainings' length at each rung, at most `most` of them, ending with 1.

    Each is `eta` times the one before it, and the first leaves the longest training at least an epoch.
    """
    longest = max((each.epochs for each in candidates), default=0)
    count = 1
    while count < most and round(longest / eta**count) >= 1:
        count += 1
    return tuple(eta ** float(number - count + 1) for number in range(count))


def going_on(
    ended: Sequence[Trial], candidates: Mapping[str, Candidate], limits: Limits, *, eta: int
) -> list[Candidate]:
    """Which candidates the next rung tries, the best first: a part 1/`eta` of the stems, rounded up.

    `ended` are the trials of a rung that gave a file. Of a stem those encodings go on that no other of it beats. What
    is too slow or too large already stays behind, as does what trains nothing and is whole already.
    """
    able: dict[str, list[Trial]] = {}
    for trial in ended:
        candidate = candidates[trial.candidate]
        if candidate.epochs and not limits.out_of_reach(trial):
            able.setdefault(candidate.stem, []).append(trial)
    if not able:
        return []
    stems = list(able)
    groups = [[limits.point(trial) for trial in able[stem]] for stem in stems]
    count = math.ceil(len(stems) / eta)
    chosen = best_groups(groups, count, worst([point for group in groups for point in group]))
    found = []
    for index in chosen:
        front = zip(able[stems[index]], ranks(groups[index]), strict=True)
        found += [candidates[trial.candidate] for trial, rank in front if rank == 0]
    return found


def worst(points: Sequence[Point]) -> Point:
    """A point that all of `points` beat."""
    columns = list(zip(*points, strict=True))
    return tuple(max(column) + (_BEYOND - 1) * max(abs(max(column)), 1e-3) for column in columns)
