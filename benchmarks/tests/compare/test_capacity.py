"""The capacity model: a simulation whose ends are known, and a formula that stays near it from one to many workers."""

import pytest

from benchmarks.compare.capacity import Load, Machine, predicted, row, simulated, tree


def load(recipes: list[str], seconds: dict[str, float], **changes) -> Load:
    asked = {"timing_seconds": 0.0, "start_seconds": 0.0, "megabytes": 0.0, **changes}
    return Load(recipes=tuple(map(tuple, recipes)), seconds={tuple(k): v for k, v in seconds.items()}, **asked)


SHARED = {"a": 10.0, "ab": 5.0, "ac": 7.0, "d": 4.0}


@pytest.mark.parametrize(("workers", "wanted"), [(1, 26.0), (2, 17.0), (3, 17.0), (9, 17.0)])
def test_what_is_shared_is_made_once(workers, wanted) -> None:
    """A 10, then b 5 and c 7 beside d 4: one worker takes all 26 seconds, more take the longest, a and c."""
    asked = load(["ab", "ac", "d"], SHARED)
    assert simulated(asked, workers) == pytest.approx(wanted)
    assert (asked.work, asked.longest) == (26, 17)


def test_timing_stops_the_workers_of_a_machine_alone() -> None:
    """Two runs of ten seconds: on one machine one waits for the other's timing of three, on two none does."""
    asked = load(["a", "b"], {"a": 10.0, "b": 10.0}, timing_seconds=3.0, per_machine=2)
    assert simulated(asked, 2) == pytest.approx(10 + 3 + 3 + 6)
    assert simulated(load(["a", "b"], {"a": 10.0, "b": 10.0}, timing_seconds=3.0, per_machine=1), 2) == pytest.approx(
        10 + 3 + 6
    )


def test_work_stands_still_while_another_is_timed() -> None:
    """A run of twelve seconds beside one of ten, which is timed for three then, ends at fifteen, and is timed."""
    asked = load(["a", "b"], {"a": 10.0, "b": 12.0}, timing_seconds=3.0, per_machine=2)
    assert simulated(asked, 2) == pytest.approx(12 + 3 + 3 + 6)
    machine = Machine()
    assert machine.time_(5.0, 2.0) == 7.0
    assert machine.time_(6.0, 2.0) == 9.0
    assert machine.paused(0.0, 8.0) == pytest.approx(3.0)
    assert machine.paused(8.5, 20.0) == pytest.approx(0.5)


def test_the_formula_stays_near_the_simulation_to_a_thousand_workers() -> None:
    """Within 15 %, for every number of workers; more workers never take longer by the simulation than one."""
    asked = tree(4, 4, 4, epoch_seconds=30.0)
    rows = [row(asked, workers) for workers in (1, 2, 8, 64, 250, 1000)]
    assert all(0.95 <= each["ratio"] <= 1.15 for each in rows), rows
    assert rows[0]["ratio"] == pytest.approx(1.0, abs=0.01)
    assert all(each["minutes"] <= rows[0]["minutes"] for each in rows)
    assert simulated(asked, 1000) >= asked.longest
    assert predicted(asked, 64) < predicted(asked, 8) < predicted(asked, 1)
