"""Which trials go on, what limits say of them, and how recipes with shorter trainings are made."""

from dataclasses import replace

import pytest

from compressor.errors import RecipeError
from compressor.estimate import Estimate
from compressor.recipe.recipe import Recipe
from compressor.searching.clock import Forecast
from compressor.searching.finals import finalists_of, newest
from compressor.searching.halving import beside_failed, going_on, leads_of, left_to_encode, rungs_of
from compressor.searching.limits import Limits
from compressor.searching.memory import Memory
from compressor.searching.sampler import Grid, Random
from compressor.searching.space import candidates_of, prefixes
from compressor.searching.trials import Trial, TrialFiles, in_one_time
from workbench.two_layers import small_workload

SPACE = """
name: space
stages:
  - prune_channels: {remove: {sweep: [0.2, 0.4, 0.6, 0.8]}}
  - distill: {epochs: 9}
  - sweep: [null, quantize]
"""


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def trial(candidate: str, drop: float, ms: float, size: int, *, rung: int = 0, error: str = "") -> Trial:
    return Trial(
        name=f"{candidate}-{rung}",
        candidate=candidate,
        rung=rung,
        recipe=f"{candidate} at {rung}",
        recipe_name=candidate,
        seconds=1.0,
        error=error,
        score=exactly(1 - drop),
        drop=exactly(drop),
        latency_ms=exactly(ms),
        speedup=exactly(1 / ms),
        size_bytes=size,
        compressed_bytes=size,
    )


@pytest.fixture
def space():
    return {each.recipe.name: each for each in candidates_of(Recipe.loads_all(SPACE))}


def test_a_space_is_stems_with_encodings(space) -> None:
    """Eight recipes of four stems: those that differ in the last stage alone share all training."""
    assert len(space) == 8
    stems = [each.stem for each in space.values()]
    assert stems[0] == stems[1] == prefixes(space["space-remove_0.2-without"].recipe)[1]
    assert len(set(stems)) == 4


def test_a_recipe_written_twice_is_one_candidate() -> None:
    """Two files that say the same, under two names and two budgets, are tried once."""
    one = "name: one\nbudget: {max_drop: 0.02}\nstages: [quantize]"
    two = "# Another one.\nname: two\nstages: [quantize]"
    found = candidates_of([Recipe.loads(one), Recipe.loads(two)])
    assert [(each.recipe.name, each.recipe.budget) for each in found] == [("one", None)]


def test_impossible_orders_are_refused_by_name() -> None:
    """What trains after an encoding is named with the values that were chosen."""
    text = "name: odd\nstages: [{sweep: [quantize, {prune_channels: {remove: 0.3}}]}, {fine_tune: {epochs: 2}}]"
    with pytest.raises(RecipeError, match=r"odd-quantize .*fine_tune cannot follow quantize") as error:
        candidates_of(Recipe.loads_all(text))
    assert len(error.value.errors) == 1


@pytest.mark.parametrize(
    ("epochs", "most", "expected"),
    [(9, 3, [1 / 9, 1 / 3, 1]), (8, 3, [1 / 9, 1 / 3, 1]), (2, 3, [1 / 3, 1]), (9, 1, [1])],
)
def test_rungs_triple_and_end_with_the_recipe(epochs: int, most: int, expected: list[float]) -> None:
    """Three rungs for 9 epochs: 1, 3 and 9; a short training has fewer."""
    text = SPACE.replace("epochs: 9", f"epochs: {epochs}")
    assert rungs_of(candidates_of(Recipe.loads_all(text)), eta=3, most=most) == pytest.approx(expected)


def test_a_rung_shortens_every_training() -> None:
    """Epochs, the tail and the trainings inside a stage's values; the name says the longest; the whole is itself."""
    text = """
    name: two
    stages:
      - sparsify_weights: {sparsity: 0.8, schedule: {polynomial: {epochs: 6}}}
      - distill: {epochs: 9, tail_epochs: 2}
    """
    (candidate,) = candidates_of([Recipe.loads(text)])
    short = candidate.at(1 / 3)
    assert short.name == "two-epochs_3"
    assert [short.stages[0].schedule.epochs, short.stages[1].epochs, short.stages[1].tail_epochs] == [2, 3, 1]
    assert candidate.at(1 / 100).stages[1].epochs == 1
    assert candidate.at(1.0) is candidate.recipe
    # As a file it is the same recipe again.
    assert Recipe.loads(short.dump()).stages == short.stages


def test_one_third_of_the_stems_goes_on_with_what_nothing_beats(space) -> None:
    """Of four stems two go on (rounded up), those on the front; of each the encodings that no other of it beats."""
    names = list(space)
    ended = [
        trial(names[0], 0.00, 1.0, 400), trial(names[1], 0.01, 0.9, 100),
        trial(names[2], 0.02, 0.8, 300), trial(names[3], 0.02, 0.7, 90),
        # Beaten by the second stem in everything.
        trial(names[4], 0.30, 0.9, 310), trial(names[5], 0.30, 0.9, 300),
        trial(names[6], 0.50, 0.8, 300), trial(names[7], 0.50, 0.8, 95),
    ]  # fmt: skip
    going = going_on(ended, space, Limits(max_drop=None), eta=3)
    # The float file of the second stem is beaten by its 8-bit one; the order is that of the volume they add.
    assert {each.recipe.name for each in going} == {names[0], names[1], names[3]}
    assert len({each.stem for each in going}) == 2


def test_what_cannot_fit_stays_behind(space) -> None:
    """Too slow for certain, or too large: no training changes that. What trains nothing is whole already."""
    names = list(space)
    ended = [trial(names[0], 0.0, 1.0, 400), trial(names[2], 0.1, 0.4, 200), trial(names[4], 0.2, 0.3, 900)]
    limits = Limits(max_drop=0.01, max_latency_ms=0.5, max_size_bytes=500)
    assert [each.recipe.name for each in going_on(ended, space, limits, eta=2)] == [names[2]]
    assert going_on([], space, limits, eta=2) == []
    encoded = {each.recipe.name: each for each in candidates_of([Recipe.loads("name: int8\nstages: [quantize]")])}
    assert going_on([trial("int8", 0.0, 0.1, 1)], encoded, limits, eta=2) == []


def test_stems_are_judged_by_their_first_encoding(space) -> None:
    """What trains nothing is tried in every form; where the first one of a stem fails, the others of it are tried."""
    encoded = candidates_of(
        Recipe.loads_all("name: as-it-is\nstages: [quantize: {bias_correction: {sweep: [null, bias_correction]}}]")
    )
    names, able = list(space), [*space.values(), *encoded]
    assert leads_of(able, Limits()) == [*(space[name] for name in names[0::2]), *encoded]
    # Whether an encoding fits is known from the first rung on.
    assert leads_of(able, Limits(max_size_bytes=100)) == leads_of(able, Limits(max_latency_ms=1.0)) == able
    trials = [trial(names[0], 0.1, 1.0, 10), trial(names[2], 0.1, 1.0, 10, error="it broke")]
    assert beside_failed(trials, space, able) == [space[names[3]]]
    assert beside_failed(trials[:1], space, able) == []


def test_encodings_are_made_where_no_other_stem_beats_theirs(space) -> None:
    """Of the last rung's stems all, of the others those on the front; each at its longest training."""
    names = list(space)
    ended = [
        trial(names[0], 0.30, 1.0, 400), trial(names[2], 0.005, 0.8, 300), trial(names[4], 0.40, 0.7, 200),
        trial(names[6], 0.02, 0.9, 310), trial(names[2], 0.009, 0.8, 300, rung=1),
        trial(names[0], 0.01, 1.0, 400, rung=2),
    ]  # fmt: skip

    def left(max_drop: float | None) -> dict[int, list[str]]:
        found = left_to_encode(ended, space, Limits(max_drop=max_drop), last=2)
        return {rung: [each.recipe.name for each in made] for rung, made in found.items()}

    # The fourth is beaten by the second in everything, the third in the drop alone.
    assert left(None) == {2: [names[1]], 1: [names[3]], 0: [names[5]]}
    assert left(0.01) == {2: [names[1]], 1: [names[3]]}
    ended.append(trial(names[3], 0.01, 0.5, 80, rung=1))
    # That one is the newest of its stem now, and made.
    assert left(0.01) == {2: [names[1]]}


def test_within_the_limit_all_drops_are_alike() -> None:
    """A drop of 0.2 points is no better than one of 0.9 where a point is allowed; without a limit it is."""
    assert Limits(max_drop=0.01).point(trial("a", 0.002, 1.0, 5)) == (0.01, 1.0, 5.0)
    assert Limits(max_drop=None).point(trial("a", 0.002, 1.0, 5)) == (0.002, 1.0, 5.0)


def test_limits_say_what_was_missed() -> None:
    """By what part, and in words; the time may be another one than the trial's own."""
    limits = Limits(max_drop=0.01, max_latency_ms=2.0, max_size_bytes=1024)
    found = trial("a", 0.02, 1.0, 1536)
    assert limits.excess(found) == pytest.approx(1.0)
    assert limits.missed(found) == ["a drop of 0.0200 where 0.01 is allowed", "1.50 KiB where 1.00 KiB are allowed"]
    assert limits.excess(trial("a", 0.0, 1.0, 5), latency_ms=3.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="max_size_bytes is a limit of the file"):
        Limits(max_size_bytes=0)


def test_finalists_are_newest_trials_within_the_limits() -> None:
    """Not an early trial that happened to score better; where none is within the limits, those that miss by least."""
    trials = [trial("a", 0.0, 1.0, 10), trial("a", 0.05, 1.0, 10, rung=1), trial("b", 0.005, 2.0, 5)]
    trials += [trial("c", 0.0, 2.1, 6), trial("d", 0.0, 0.1, 1, error="it broke")]
    assert [each.rung for each in newest(trials)] == [1, 0, 0]
    assert [each.candidate for each in finalists_of(trials, Limits(max_drop=0.01), most=5)] == ["b"]
    assert [each.candidate for each in finalists_of(trials, Limits(max_drop=0.1), most=5)] == ["a", "b"]
    assert [each.candidate for each in finalists_of(trials, Limits(max_drop=0.001), most=5)][:1] == ["c"]
    missed = finalists_of(trials[:3], Limits(max_drop=0.001), most=1)
    assert [each.candidate for each in missed] == ["b"]


def test_times_are_compared_by_the_speed_up() -> None:
    """A trial of a busy moment took twice as long as another, as did its reference: it is the faster one."""
    busy = replace(trial("busy", 0.0, 0.0258, 10), speedup=exactly(0.984))
    calm = replace(trial("calm", 0.0, 0.0133, 10), speedup=exactly(0.761))
    assert [each.candidate for each in finalists_of(in_one_time([busy, calm]), Limits(max_drop=0.01), most=5)] == [
        "busy"
    ]
    assert Limits(max_drop=None).point(busy)[1] == pytest.approx(1 / 0.984)
    ended = in_one_time([busy, calm])
    # Half way between 0.0258 x 0.984 and 0.0133 x 0.761 ms, over each speed-up.
    assert [each.latency_ms.value for each in ended] == pytest.approx([0.0177542 / 0.984, 0.0177542 / 0.761], rel=1e-4)
    limits = Limits(max_drop=None, max_latency_ms=0.02)
    assert [limits.out_of_reach(each) for each in ended] == [False, True]
    failed = trial("failed", 0.0, 1.0, 10, error="it broke")
    assert in_one_time([failed]) == [failed]


def test_samplers_keep_stems_together(space) -> None:
    """By chance the order of the stems changes with the seed, and the encodings of a stem follow one another."""

    def order(sampler) -> list[str]:
        waiting, found = list(space.values()), []
        while waiting:
            found.append(sampler.next(waiting, [], list(space.values())))
            waiting.remove(found[-1])
        return [each.stem for each in found]

    assert order(Grid()) == [each.stem for each in space.values()]
    orders = {tuple(order(Random(seed))) for seed in range(5)}
    assert len(orders) > 1
    assert all(stems[0::2] == stems[1::2] for stems in orders)
    assert order(Random(3)) == order(Random(3))


def test_trials_made_side_by_side_spend_their_time_once(tmp_path) -> None:
    """From 0 to 30 s and from 10 to 40 s, then from 100 to 105 s: 45 s."""
    memory = Memory(files=TrialFiles(tmp_path), forecast=Forecast(workload=small_workload()))
    for name, ended, seconds in (("a", 30.0, 30.0), ("c", 105.0, 5.0), ("b", 40.0, 30.0)):
        memory.files.add(replace(trial(name, 0.1, 1.0, 10), ended_at=ended, seconds=seconds))
    assert memory.spent_seconds == 45.0
