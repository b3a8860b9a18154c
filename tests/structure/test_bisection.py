"""Bisection by hand: one trial for everything, few for every culprit."""

from compressor.structure.bisection import bisected


def test_one_trial_is_enough_where_all_can_go() -> None:
    """A hundred harmless parts take a single trial."""
    trials = []
    kept, faults = bisected(list(range(100)), lambda parts: trials.append(len(parts)))
    assert (kept, faults, trials) == (list(range(100)), {}, [100])


def test_culprits_are_found_with_few_trials() -> None:
    """Two of 64 that break the network are found in some 2 log2(64) trials each, with their reasons."""
    trials = []

    def fault_of(parts):
        trials.append(parts)
        return next((f"{part} breaks it" for part in parts if part in {5, 40}), None)

    kept, faults = bisected(list(range(64)), fault_of)
    assert faults == {5: "5 breaks it", 40: "40 breaks it"}
    assert kept == [part for part in range(64) if part not in faults]
    assert len(trials) <= 2 * 2 * 6 + 2
