"""Random networks compute after pruning what they computed before with zeros, on every input and in training too."""

import pytest

from workbench.random_networks.check import try_network
from workbench.random_networks.growth import RandomNetwork

# Seeds are sorted into tests of this many networks, so that processes can share them.
TOGETHER = 10
QUICK, ALL = 40, 2000
# Networks in which everything is locked are rare, and more of them would mean that locks have become too wide.
MOST_REFUSED = 0.2


def _check(first: int, count: int) -> None:
    trials = [try_network(seed) for seed in range(first, first + count)]
    wrong = [
        f"seed {trial.seed}: {trial.reason}\n{RandomNetwork(trial.seed).program()}"
        for trial in trials
        if trial.outcome == "wrong"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("first", range(0, QUICK, TOGETHER))
def test_random_networks_compute_the_same_after_pruning(first: int) -> None:
    _check(first, TOGETHER)


@pytest.mark.random_networks
@pytest.mark.parametrize("first", range(QUICK, ALL, TOGETHER))
def test_many_random_networks_compute_the_same_after_pruning(first: int) -> None:
    _check(first, TOGETHER)


@pytest.mark.slow
def test_most_random_networks_have_something_to_prune() -> None:
    trials = [try_network(seed) for seed in range(60)]
    pruned = [trial for trial in trials if trial.outcome == "pruned"]
    assert sum(trial.outcome == "refused" for trial in trials) <= MOST_REFUSED * len(trials)
    assert sum(trial.removed for trial in pruned) / len(pruned) > 0.2


def test_a_forgotten_reader_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The check must be able to fail: a plan that leaves channels in one place is found.
    from compressor.structure.axes.groups import AxisStructure

    honest = AxisStructure.entries

    def forgetful(self, gone):
        entries = honest(self, gone)
        for entry in entries:
            if len(entry["tensors"]) > 1:
                entry["tensors"].pop(next(reversed(entry["tensors"])))
        return entries

    monkeypatch.setattr(AxisStructure, "entries", forgetful)
    monkeypatch.setattr("compressor.structure.probe.ProbedStructure.fault_without", lambda *_: None)
    monkeypatch.setattr("compressor.structure.probe.ProbedStructure._fault_without", lambda *_, **__: None)
    outcomes = [try_network(seed).outcome for seed in range(5)]
    assert outcomes.count("wrong") >= 3
