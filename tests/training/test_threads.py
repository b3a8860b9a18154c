"""The number of threads of a training: torch's own on a quiet machine, what is fastest on a busy one."""

from collections.abc import Callable, Iterator

import pytest
import torch

from compressor.training.passes.threads import Threads, heard_rankings, ranking


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """Four cores on which a batch takes as long as `seconds` says of a number of threads, and others run."""

    def __init__(self, seconds: Callable[[int], float], others: int | None) -> None:
        self.now, self.seconds, self.others = 0.0, seconds, others
        self.used: list[int] = []

    def threads(self, *, fixed: bool = False) -> Threads:
        return Threads(
            most=4, cores=4, fixed=fixed, clock=lambda: self.now, others=lambda: self.others, wait=lambda _: None
        )

    def pass_over(self, threads: Threads, batches: int) -> list[int]:
        """The numbers of threads of the batches of a pass."""
        self.used = []
        for _ in threads.over(range(batches), lambda _: 10):
            self.used.append(torch.get_num_threads())
            self.now += self.seconds(self.used[-1])
        return self.used


def crowded(threads: int) -> float:
    """Seconds of a batch beside a busy process: the more threads, the longer they wait."""
    return {1: 1.0, 2: 1.5, 4: 9.0}[threads]


def alone(threads: int) -> float:
    """Seconds of a batch on a quiet machine."""
    return {1: 1.0, 2: 0.5, 4: 0.25}[threads]


def test_a_quiet_machine_tries_nothing() -> None:
    """Every batch with torch's own number, whatever it takes: equal runs give equal bits."""
    machine = Machine(lambda threads: 1.0, 0)
    threads = machine.threads()
    with threads.kept():
        assert machine.pass_over(threads, 20) == [4] * 20
    assert threads.told is None


def test_a_busy_machine_gets_what_is_fastest() -> None:
    """One thread and two are tried on three batches each, four given up after one; the rest is computed by one."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    with threads.kept():
        assert machine.pass_over(threads, 12) == [1] * 3 + [2] * 3 + [4] + [1] * 5
        assert threads.told is not None
        assert "4, 1 from batch 7 on" in threads.told
    assert torch.get_num_threads() == 4


def test_others_are_tried_again_in_a_later_pass_where_that_costs_little() -> None:
    """34.5 seconds of tries want 345 seconds of work in between."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    with threads.kept():
        machine.pass_over(threads, 17)
        assert machine.pass_over(threads, 400) == [1] * 400
        assert machine.pass_over(threads, 12) == [1] * 3 + [2] * 3 + [4] + [1] * 5


def test_a_rate_that_falls_within_a_pass_has_the_others_tried_again() -> None:
    """Two threads take 0.5 s when they are tried and 3 s later: six slow batches, and enough of them, begin it anew."""
    machine = Machine(alone, 1)
    machine.seconds = lambda threads: {1: 1.0, 2: 0.5 if machine.now < 15 else 3.0, 4: 9.0}[threads]
    threads = machine.threads()
    with threads.kept():
        used = machine.pass_over(threads, 100)
    assert used[:7] == [1] * 3 + [2] * 3 + [4]
    # 3 * (1 + 9) seconds of tries are 0.3 of 100: of 0.5 s three batches until second 15, then 33 of 3 s.
    again = used.index(1, 7)
    assert used[7:again] == [2] * (again - 7)
    assert 30 < again < 50
    assert used[again : again + 6] == [1] * 3 + [2] * 2 + [4]
    assert used[again + 6 :] == [1] * (100 - again - 6)


def test_a_number_is_judged_by_the_mean_of_its_batches() -> None:
    """Two threads take 0.2 and 1.9 s after the first batch, one thread always 1 s: the lucky one decides nothing."""
    machine = Machine(alone, 1)
    lucky = iter([1.5, 0.2, 1.9])
    machine.seconds = lambda threads: next(lucky) if threads == 2 else {1: 1.0, 4: 9.0}[threads]
    threads = machine.threads()
    with threads.kept():
        assert machine.pass_over(threads, 12) == [1] * 3 + [2] * 3 + [4] + [1] * 5


def test_many_threads_come_back_where_the_machine_grows_quiet() -> None:
    """When most of eight moments in a row are quiet, without a try; and fewer come when it is busy again."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    with threads.kept():
        machine.pass_over(threads, 10)
        machine.others, machine.seconds = 0, alone
        assert machine.pass_over(threads, 10) == [1] * 4 + [4] * 6
        machine.others, machine.seconds = 3, crowded
        # Of the eight moments five are busy after five batches.
        assert machine.pass_over(threads, 14) == [4] * 5 + [1] * 3 + [2] * 3 + [4] + [1] * 2
    assert threads.told is not None
    assert "4, 1 from batch 7 on, 4 from batch 14 on, 1 from batch 32 on" in threads.told


def test_busy_with_cores_to_spare_or_faster_all_the_same_the_number_stays() -> None:
    """Beside others all four may still be fastest; and what nobody can tell counts as quiet."""
    machine = Machine(alone, 2)
    threads = machine.threads()
    with threads.kept():
        assert machine.pass_over(threads, 12) == [1] * 3 + [2] * 3 + [4] * 6
    assert threads.told is None
    machine = Machine(crowded, None)
    threads = machine.threads()
    with threads.kept():
        assert machine.pass_over(threads, 9) == [4] * 9


def test_a_single_busy_moment_is_none() -> None:
    """Something runs for a moment on every machine."""
    machine = Machine(crowded, 0)
    moments = iter([1, 0, 0, 0, 0, 0, 0, 0] * 10)
    threads = Threads(most=4, cores=4, fixed=False, clock=lambda: machine.now, others=moments.__next__)
    with threads.kept():
        assert machine.pass_over(threads, 30) == [4] * 30


def test_a_number_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment, or as one thread."""
    machine = Machine(crowded, 9)
    threads = machine.threads(fixed=True)
    assert machine.pass_over(threads, 5) == [4] * 5
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert Threads().fixed
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert not Threads().fixed
    torch.set_num_threads(1)
    assert Threads().most == 1


def test_a_pass_that_is_left_early_and_one_that_fails_give_the_threads_back() -> None:
    """Behind the training torch has its own number again."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    with threads.kept():
        for _ in threads.over(range(9), lambda _: 10):
            break
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    failing = Machine(lambda threads: 1 / 0, 1)
    threads = failing.threads()
    with pytest.raises(ZeroDivisionError), threads.kept():
        failing.pass_over(threads, 9)
    assert failing.used == [1]
    assert torch.get_num_threads() == 4


def test_what_is_done_aside_is_no_part_of_a_batch() -> None:
    """A session that is opened for a number of threads takes long once, and does not make that number slow."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    used, opened = [], set()
    with threads.kept():
        for _ in threads.over(range(12), lambda _: 10):
            number = threads.number
            assert number == torch.get_num_threads()
            used.append(number)
            if number not in opened:
                with threads.aside():
                    machine.now += 100.0
                opened.add(number)
            machine.now += machine.seconds(number)
    assert used == [1] * 3 + [2] * 3 + [4] + [1] * 5


def test_a_list_of_batches_is_timed_in_every_pass() -> None:
    """What a ranking goes over again and again chooses as a training does."""
    machine = Machine(crowded, 1)
    threads = machine.threads()
    batches = threads.timed([(torch.zeros(10, 1), None)] * 4)
    assert len(batches) == 4
    used = []
    with threads.kept():
        for _ in range(3):
            for inputs, _ in batches:
                assert inputs.shape == (10, 1)
                used.append(torch.get_num_threads())
                machine.now += machine.seconds(used[-1])
    assert used == [1] * 3 + [2] * 3 + [4] + [1] * 5


def test_what_a_ranking_chose_is_heard_outside() -> None:
    """Its words come once beside busy processes, and none when all is quiet; torch has its number back."""
    machine = Machine(crowded, 4)

    def ranked() -> list[int]:
        with ranking() as threads:
            threads.fixed, threads.cores, threads.clock = False, 4, lambda: machine.now
            threads.others, threads.wait = (lambda: machine.others), (lambda _: None)
            return machine.pass_over(threads, 12)

    with heard_rankings() as heard:
        assert ranked()[-1] == 1
        ranked()
        assert torch.get_num_threads() == 4
    assert len(heard) == 1
    assert "1 from batch" in heard[0]
    machine.others = 0
    with heard_rankings() as heard:
        ranked()
    assert heard == []
