"""The benchmark of teachers: steps that fit into equal time, the student's blocks, and what counts as a difference."""

import copy
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.documents import teachers_page
from benchmarks.teaching.teachers import ARMS, LABELS, SOFT, Pace, Shared, compared, planned, stage_of, student_of
from compressor.metrics import Metric
from compressor.stages import Distill, FineTune
from compressor.storage import write_json
from compressor.workloads.residual import ResNet


def test_steps_fit_into_the_time() -> None:
    """Two views of 10 batches at 2 s are 40 s, and 0.5 s each after that: 60 s are 20 + 40 batches."""
    pace = Pace(computed=2.0, remembered=0.5)
    assert pace.steps(60, batches=10, views=2) == 60
    assert pace.steps(30, batches=10, views=2) == 15
    assert pace.steps(0.1, batches=10, views=2) == 1


def test_the_student_has_the_teachers_blocks() -> None:
    """The first, middle and last of nine, with all weights around them: 3 x 3 blocks are ResNet-20."""
    torch.manual_seed(0)
    teacher = ResNet(blocks=[9, 9, 9])
    student = student_of(teacher)
    assert sum(each.numel() for each in student.parameters()) < 0.28e6
    assert torch.equal(student.layer2[1].conv2.weight, teacher.layer2[4].conv2.weight)
    assert torch.equal(student.layer3[2].bn1.running_mean, teacher.layer3[8].bn1.running_mean)
    assert torch.equal(student.linear.bias, teacher.linear.bias)


def test_every_arm_is_a_stage() -> None:
    """All but labels ask a teacher, which costs the others what it costs."""
    kinds = {arm: type(stage_of(arm, 0.06, 4, steps=3)) for arm in ARMS}
    assert kinds.pop(LABELS) is FineTune
    assert set(kinds.values()) == {Distill}
    assert SOFT in kinds


def test_a_plan_stays_and_is_not_taken_for_another_budget(tmp_path) -> None:
    """A resumed benchmark takes the steps that it began with; other minutes are refused beside them."""
    workload = SimpleNamespace(train=range(10))
    asked = Namespace(minutes=1.0, clock="processor", images=1280, views=2, rate=0.06, out=tmp_path)
    budget = {"minutes": 1.0, "clock": "processor", "images": 1280, "views": 2, "rate": 0.06}
    write_json(tmp_path / "plan.json", {"budget": budget, "paces": {SOFT: {"computed": 2.0, "remembered": 0.5}}})
    assert planned([SOFT], workload, asked) == {SOFT: 60}
    with pytest.raises(SystemExit, match="give the same, or another --out"):
        planned([SOFT], workload, Namespace(**{**vars(asked), "minutes": 2.0}))


def test_equal_images_are_answered_once() -> None:
    """By copies of the teacher, too; other images, and the other number format, are computed."""
    called = []

    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            called.append(len(images))
            return images.flatten(1)

    teacher = Shared(Counting())
    images = torch.rand(2, 3)
    assert torch.equal(teacher(images), copy.deepcopy(teacher)(images.clone()))
    assert called == [2]
    with torch.autocast("cpu"):
        teacher(images)
    teacher(images + 1)
    assert called == [2, 2, 2]
    Shared.answers.clear()


def test_an_arm_differs_where_images_and_seeds_agree() -> None:
    """100 images, 60 right by soft targets in each seed: 80 right is +20 points; a seed that falls says nothing yet."""

    def right(count: int) -> torch.Tensor:
        return (torch.arange(100) < count).float()

    soft = [right(60)] * 3
    found = compared([right(80)] * 3, soft, Metric.accuracy())
    assert found["gain"]["value"] == pytest.approx(0.2)
    assert found["gain"]["low"] > 0
    assert found["differs"]
    assert found["mean"] == pytest.approx(0.8)
    mixed = compared([right(90), right(90), right(59)], soft, Metric.accuracy())
    assert mixed["gains"] == [pytest.approx(0.3), pytest.approx(0.3), pytest.approx(-0.01)]
    assert not mixed["differs"]
    assert "gain" not in compared(soft, soft, Metric.accuracy())


def test_the_page_has_a_row_for_every_arm() -> None:
    """What is stored stands between the marks, with the verdict in words."""
    runs = [{"steps": 1200}, {"steps": 1200}]
    gain = {"value": 0.01, "low": 0.002, "high": 0.018}
    soft, other = {"scores": [0.88, 0.9], "mean": 0.89}, {"scores": [0.9, 0.9], "mean": 0.9, "gain": gain}
    result = {
        "minutes": 2.0,
        "clock": "processor",
        "images": 10_000,
        "seeds": [0, 1],
        "test_images": 5000,
        "rows": [
            {"arm": SOFT, "validation": soft, "test": soft, "runs": runs},
            {"arm": "decoupled", "validation": {**other, "differs": True}, "test": other, "runs": runs},
        ],
    }
    text = teachers_page.page("before\n<!-- results -->\nold\n<!-- /results -->\nafter", result)
    told = "+1.00 [+0.20, +1.80]"
    assert f"| decoupled | 90.00 | 90.00, 90.00 | {told} | {told} | 1,200 |" in text
    assert "the arm differs: better than soft targets: decoupled." in text
    assert "2 minutes of one thread's processor time" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after")
