"""What of several outputs is scored is said by name or by a function; everything else of the model stays its own."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from compressor import Pipeline
from compressor.errors import WorkloadError
from compressor.running.preflight import check_workload
from compressor.stages import FineTune, PruneChannels, Quantize
from compressor.workload import Workload, output_tensor, predict

DATA = (torch.randn(64, 1, 8, 8), torch.arange(64) % 3)


@dataclass
class Seen:
    depth: torch.Tensor
    kind: torch.Tensor


class Pair(NamedTuple):
    depth: torch.Tensor
    kind: torch.Tensor


class Two(nn.Module):
    """Two heads: the first is a map of depths, the second says which of three classes an image is."""

    def __init__(self, form) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.depth, self.kind, self.form = nn.Conv2d(8, 1, 1), nn.Linear(8, 3), form

    def forward(self, x):
        seen = self.body(x)
        return self.form(self.depth(seen), self.kind(seen.mean((2, 3))))


FORMS = {
    "tuple": (lambda depth, kind: (depth, kind), "1"),
    "named tuple": (Pair, "kind"),
    "dict": (lambda depth, kind: {"depth": depth, "kind": kind}, "kind"),
    "dataclass": (Seen, "kind"),
    "object": (lambda depth, kind: SimpleNamespace(depth=depth, kind=kind), "kind"),
    "nested": (lambda depth, kind: {"maps": [depth], "heads": {"kind": kind}}, "heads.kind"),
    "beside logits": (lambda depth, kind: {"logits": depth, "kind": kind}, "kind"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_name_says_which_output_is_judged(form) -> None:
    """Of every form, the second output is what loss and metric see; names of weights stay; the model is a copy."""
    make, name = FORMS[form]
    model = Two(make).eval()
    workload = Workload.from_datasets(model, train=DATA, test=DATA, judge=name)
    expected = model.kind(model.body(DATA[0]).mean((2, 3)))
    assert torch.equal(predict(workload.model, DATA[0]), expected)
    assert workload.model.state_dict().keys() == model.state_dict().keys()
    assert not model._forward_hooks
    given = workload.model(DATA[0])
    assert next(iter(given)) == "judged"
    assert len(given) == 2  # the judged output has no second name
    check_workload(workload)


def test_a_function_makes_one_tensor_of_several() -> None:
    """Its result is judged, and both outputs stay beside it."""
    model = Two(Seen).eval()
    workload = Workload.from_datasets(model, train=DATA, test=DATA, judge=lambda seen: seen.kind - seen.kind.mean())
    given = workload.model(DATA[0])
    kind = model(DATA[0]).kind
    assert torch.equal(output_tensor(given), kind - kind.mean())
    assert list(given) == ["judged", "depth", "kind"]
    picked = Workload.from_datasets(model, train=DATA, test=DATA, judge=lambda seen: seen.kind)
    assert list(picked.model(DATA[0])) == ["judged", "depth"]


def test_the_judged_output_goes_through_pruning_and_integers(tmp_path) -> None:
    """The file gives what the judge picked, and the weights on disk fit the user's own class."""
    from compressor import load_checkpoint

    torch.manual_seed(1)
    model = Two(FORMS["dict"][0]).eval()
    workload = Workload.from_datasets(model, train=DATA, test=DATA, judge="kind", validation=DATA)
    result = Pipeline([PruneChannels(remove=0.25, align=1), FineTune(epochs=1, tail_epochs=0), Quantize()]).run(
        workload, out=tmp_path / "run", progress=False
    )
    assert result.artifact.path.exists()
    folder = next((tmp_path / "run").rglob("plan.json")).parent
    own = load_checkpoint(folder, lambda: Two(FORMS["dict"][0]))
    assert set(own(DATA[0])) == {"depth", "kind"}


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("kinds", r"got 'kinds'; it gives 'depth', 'kind'\. Did you mean 'kind'\?"),
        (1, r"judge must be the name of an output.*got int 1; the third of a tuple is judge='2'"),
        (lambda seen: seen.kinds, "must make one tensor.*AttributeError"),
        (lambda seen: (seen.kind, seen.depth), "must make one tensor of what Two gives, got tuple"),
        (Seen, "got type"),
    ],
)
def test_a_judge_that_does_not_fit_is_refused(judge, says) -> None:
    """Before any work, with the names that there are."""
    with pytest.raises(WorkloadError, match=says):
        Workload.from_datasets(Two(Seen), train=DATA, test=DATA, judge=judge)
