"""Every family of torchvision and timm through the product, and the run that stores what became of them."""

from dataclasses import dataclass

import pytest
from torch import Tensor, nn

from benchmarks.documents.architectures_page import hub_section
from benchmarks.structure import hub
from benchmarks.structure.hub_members import MEMBERS, Member, absent
from benchmarks.structure.hub_process import check_member


@pytest.mark.hub
@pytest.mark.timeout(2 * hub.SECONDS)
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.family)
def test_a_family_passes_or_is_refused_with_a_reason(member: Member) -> None:
    """Pruned like the masked original, trained, exported and quantized; or one of the product's own errors says why."""
    missing = absent()
    if missing is not None:
        pytest.skip(f"{missing} is not installed: make test-hub makes an environment with it")
    outcome = hub.outcome_of(member)
    assert outcome.outcome != "failed", f"{outcome.step}: {outcome.reason}"


def test_every_family_is_there_once() -> None:
    """Families are what results are stored by."""
    families = [member.family for member in MEMBERS]
    assert len(set(families)) == len(families)
    assert {member.library for member in MEMBERS} == {"timm", "torchvision"}


class Small(nn.Module):
    def __init__(self, *, hidden: bool, trains: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()) if hidden else nn.Identity()
        self.head = nn.Linear(8 if hidden else 3, 10)
        self.trains = trains

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.trains:
            raise KeyError("no training")
        return self.head(self.first(x).mean((2, 3)))


@dataclass(frozen=True, kw_only=True)
class Own(Member):
    """A member that is built here."""

    hidden: bool = True
    trains: bool = True

    def build(self) -> nn.Module:
        return Small(hidden=self.hidden, trains=self.trains)


def own(**settings: bool) -> Own:
    return Own(family="small", library="none", name="small", shape=(3, 8, 8), **settings)


def test_what_goes_through_every_step_passes() -> None:
    """8 channels become 6: of (3 * 9 + 1) * 8 + 8 * 10 + 10 parameters (3 * 9 + 1) * 6 + 6 * 10 + 10 are left."""
    outcome = check_member(own())
    assert (outcome.outcome, outcome.step, outcome.reason) == ("passed", "", "")
    assert (outcome.parameters_before, outcome.parameters_after) == (314, 238)
    assert outcome.locked == {"head": "it makes the model's output"}


def test_refusals_and_failures_name_their_step() -> None:
    """An error of the product is a refusal; anything else that goes wrong is a failure."""
    refused = check_member(own(hidden=False))
    assert (refused.outcome, refused.step) == ("refused", "prune")
    assert "it makes the model's output" in refused.reason
    failed = check_member(own(trains=False))
    assert (failed.outcome, failed.step) == ("failed", "compare")
    assert "no training" in failed.reason


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family fails at the step it was at; the run goes on."""
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    outcome = hub.outcome_of(own())
    assert (outcome.outcome, outcome.step, outcome.reason) == (
        "failed", "build", "it was not done within 0.05 seconds",
    )  # fmt: skip


def test_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is not run again, unless its outcome is asked for again."""
    stored = {"members": [{"family": MEMBERS[0].family, "outcome": "failed"}]}
    ran: list[str] = []
    monkeypatch.setattr(hub, "MEMBERS", MEMBERS[:2])
    monkeypatch.setattr(hub, "load", lambda _name: stored)
    monkeypatch.setattr(hub, "store", lambda _rows: None)

    def outcome_of(member: Member) -> hub.HubOutcome:
        ran.append(member.family)
        return hub.HubOutcome(family=member.family, library=member.library, name=member.name, outcome="passed")

    monkeypatch.setattr(hub, "outcome_of", outcome_of)
    hub.run()
    assert ran == [MEMBERS[1].family]
    hub.run(again="failed")
    assert ran == [MEMBERS[1].family, *(member.family for member in MEMBERS[:2])]


def test_the_page_counts_and_names_the_step() -> None:
    """One row a family; what did not pass says where and why, in a line."""
    passed = {
        "family": "a", "library": "timm", "name": "a1", "outcome": "passed", "step": "", "reason": "",
        "parameters_before": 200, "parameters_after": 150, "locked": {"head": "it makes the model's output"},
    }  # fmt: skip
    refused = passed | {"family": "b", "outcome": "refused", "step": "export", "reason": "no | file\nat all"}
    text = hub_section({"torchvision": "1", "timm": "2", "members": [passed, refused]})
    assert "Of 2 families that were run **1 passed, 1 were refused, 0 failed**" in text
    assert "| a | `a1` | passed | 200 | 150 | 25% |  |" in text
    assert "| b | `a1` | refused (export) | 200 | 150 | 25% | no \\| file |" in text
