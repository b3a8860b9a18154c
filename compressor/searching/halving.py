"""Successive halving on several objectives: short trainings for all, longer ones for those that no other beats.

Jamieson & Talwalkar 2016, arXiv:1502.07943 (successive halving); Schmucker et al. 2021, arXiv:2106.12639 (its promotion
by non-dominated rank). Rungs are worked one after the other, so that what goes on does not depend on which trial ended
first. What goes on are stems: recipes that differ in their encoding alone share all training. An encoding changes the
sizes and times of all structures much alike, and costs as much as a short training: stems are judged by one encoding,
and the others are made in the end, of the stems that are worth it.
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


def leads_of(candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """Whom the rungs try: of every stem that trains its first encoding, and all that trains nothing.

    All of them where time or bytes are limited: which encodings of a stem can fit, the first rung tells.
    """
    if limits.of_files:
        return list(candidates)
    found: dict[str, Candidate] = {}
    for each in candidates:
        found.setdefault(each.stem if each.epochs else each.recipe.name, each)
    return list(found.values())


def beside_failed(
    trials: Sequence[Trial], candidates: Mapping[str, Candidate], able: Sequence[Candidate]
) -> list[Candidate]:
    """The other encodings of stems of which nothing in `trials`, those of a rung, gave a file."""
    tried = [candidates[trial.candidate] for trial in trials]
    lost = {each.stem for each in tried} - {candidates[trial.candidate].stem for trial in trials if trial.ended}
    return [each for each in able if each.stem in lost and each not in tried]


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


def nearest(
    ended: Sequence[Trial], candidates: Mapping[str, Candidate], limits: Limits, *, last: int
) -> list[list[Candidate]]:
    """The stems that were not trained whole, the one of the least drop first: who is tried where nothing keeps limits.

    Of each those encodings that are within reach, of its longest training so far. `ended` are the trials of all rungs
    that gave a file, `last` the number of the last one.
    """
    newest = _newest_of_stems(ended, candidates)
    found = []
    for trials in newest.values():
        within = [trial for trial in trials if not limits.out_of_reach(trial)]
        if within and within[0].rung < last:
            found.append((min(trial.drop.value for trial in within), [candidates[each.candidate] for each in within]))
    return [stem for _, stem in sorted(found, key=lambda pair: pair[0])]


def left_to_encode(
    ended: Sequence[Trial], candidates: Mapping[str, Candidate], limits: Limits, *, last: int
) -> dict[int, list[Candidate]]:
    """By rung the encodings that are left to be made, each of the longest training that its stem had.

    `ended` are the trials of all rungs that gave a file, `last` the number of the last one, whose stems have all their
    encodings made. Of the other stems those that keep the limit of drop, and that no other of them beats.
    """
    kept = {
        stem: trials[0]
        for stem, trials in _newest_of_stems(ended, candidates).items()
        if trials[0].rung == last or limits.max_drop is None or trials[0].drop.value <= limits.max_drop
    }
    ranked = zip(kept, ranks([limits.point(trial) for trial in kept.values()]), strict=True)
    chosen = {stem for stem, rank in ranked if rank == 0 or kept[stem].rung == last}
    made = {(trial.candidate, trial.rung) for trial in ended}
    found: dict[int, list[Candidate]] = {}
    for name, each in candidates.items():
        if each.epochs and each.stem in chosen and (name, kept[each.stem].rung) not in made:
            found.setdefault(kept[each.stem].rung, []).append(each)
    return found


def _newest_of_stems(ended: Sequence[Trial], candidates: Mapping[str, Candidate]) -> dict[str, list[Trial]]:
    """By stem, of those that train, the trials of its longest training."""
    found: dict[str, list[Trial]] = {}
    for trial in sorted(ended, key=lambda each: each.rung):
        candidate = candidates[trial.candidate]
        if candidate.epochs:
            known = found.setdefault(candidate.stem, [])
            found[candidate.stem] = [each for each in known if each.rung == trial.rung] + [trial]
    return found


def worst(points: Sequence[Point]) -> Point:
    """A point that all of `points` beat."""
    columns = list(zip(*points, strict=True))
    return tuple(max(column) + (_BEYOND - 1) * max(abs(max(column)), 1e-3) for column in columns)
