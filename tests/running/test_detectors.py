"""Models whose outputs are no fixed number of tensors are refused before any work, with the way out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.running.preflight import check_workload
from compressor.workload import output_tensor
from workbench.same_data import same_data


class Detector(nn.Module):
    """A backbone and a head; `select` makes the output of what the head gives."""

    def __init__(self, select: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.backbone, self.head, self.select = nn.Linear(4, 6), nn.Linear(6, 3), select

    def forward(self, x: Tensor) -> Any:
        return self.select(self.head(self.backbone(x)))


class Judged(nn.Module):
    """The way out, as the refusal words it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.head(self.model.backbone(x))


@dataclass
class Boxes:
    scores: Tensor


def check(model: nn.Module, samples: int = 2) -> None:
    data = [(torch.randn(6, 4), torch.arange(6) % 3)]
    check_workload(same_data(model.eval(), data, torch.randn(samples, 4), loss=F.cross_entropy), [])


def detections(raw: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": row[row > 0], "scores": row[row > 0]} for row in raw]


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (detections, r"a list with an entry \(dict\) for each of the 2 samples of example_inputs"),
        (lambda raw: [row[row > 0] for row in raw], r"a list with an entry \(Tensor\) for each of the 2 samples"),
        (lambda raw: tuple(Boxes(row) for row in raw), r"a list with an entry \(Boxes\) for each"),
        (lambda raw: [raw.sum(0, keepdim=True).expand(2, 3) for _ in raw], r"an entry \(Tensor\) for each"),
        (lambda raw: {"found": detections(raw)}, r"got dict of list\. "),
        (lambda raw: detections(raw)[:1], r"got list of dict with 'boxes', 'scores'\. "),
        (lambda _: None, r"got NoneType\. "),
        (Boxes, r"got Boxes\. "),
        (lambda _: [], r"got list\. "),
    ],
)
def test_detections_are_refused_with_the_way_out(select: Any, says: str) -> None:
    """Lists with an entry for each sample, of anything, and objects that hold their tensors some other way."""
    with pytest.raises(WorkloadError, match=says) as caught:
        check(Detector(select))
    assert "class Judged(torch.nn.Module)" in str(caught.value)
    assert "before boxes are selected" in str(caught.value)


@pytest.mark.parametrize("select", [detections, Boxes])
def test_the_way_out_is_one(select: Any) -> None:
    """The wrapped model passes."""
    check(Judged(Detector(select)))


@pytest.mark.parametrize("samples", [2, 3])
def test_a_fixed_number_of_outputs_that_is_the_batch_size_by_chance_is_none_of_it(samples: int) -> None:
    """Two or three outputs of a batch of two or three are outputs, not samples."""
    check(Detector(lambda raw: [raw] * samples), samples)


def test_what_is_judged_is_the_first_or_the_logits() -> None:
    """As before, of tuples, dicts and objects."""
    x, y = torch.zeros(2), torch.ones(2)
    for output in (x, (x, y), [x, y], {"a": x, "b": y}, {"b": y, "logits": x}):
        assert output_tensor(output) is x
