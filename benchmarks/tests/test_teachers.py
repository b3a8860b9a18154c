"""The benchmark of teachers: steps that fit into equal time, the student's blocks, and what counts as a difference."""

import pytest
import torch

from benchmarks.documents import teachers_page
from benchmarks.teaching.teachers import ARMS, SOFT, Pace, compared, student_of
from compressor.metrics import Metric
from compressor.stages import Distill
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
    assert all(Distill(**settings) for settings in ARMS.values())
    assert SOFT in ARMS


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
    runs = [{"steps": 1200}, {"steps": 1300}]
    gain = {"value": 0.01, "low": 0.002, "high": 0.018}
    result = {
        "minutes": 12.0,
        "seeds": [0, 1],
        "test_images": 5000,
        "environment": {"cpu": "a CPU"},
        "rows": [
            {"arm": SOFT, "scores": [0.88, 0.9], "mean": 0.89, "runs": runs},
            {"arm": "decoupled", "scores": [0.9, 0.9], "mean": 0.9, "gain": gain, "differs": True, "runs": runs},
        ],
    }
    text = teachers_page.page("before\n<!-- results -->\nold\n<!-- /results -->\nafter", result)
    assert "| decoupled | 90.00 | 90.00, 90.00 | +1.00 [+0.20, +1.80] | 1,200, 1,300 |" in text
    assert "the arm differs: better than soft targets: decoupled." in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after")
