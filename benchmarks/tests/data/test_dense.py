"""The networks that answer at every place, and the arithmetic of boxes."""

import pytest
import torch

from benchmarks.data import blood_cells, street_scenes
from benchmarks.data.dense_networks import Detector, UNet


def test_the_networks_answer_at_every_place():
    """Labels for every pixel; a box for every eighth pixel, around its middle."""
    assert UNet(5)(torch.zeros(2, 3, 32, 48)).shape == (2, 5, 32, 48)
    rows = Detector(3, height=32, width=48)(torch.zeros(1, 3, 32, 48))["detections"]
    assert rows.shape == (1, 24, 7)
    assert ((rows[..., :2] + rows[..., 2:4]) / 2)[0, 7].tolist() == pytest.approx([12.0, 12.0], abs=8)
    assert (rows[..., 2:4] > rows[..., :2]).all()


def test_overlap_by_hand():
    """Halves of a square share half of it; two unit squares with one between fill two thirds of what surrounds them."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 1.0]])
    assert blood_cells.overlap(boxes, others).tolist() == pytest.approx([1.0, 0.5, -1 / 3])


def test_a_place_belongs_to_the_smallest_box_around_it():
    """Two boxes share a middle: the inner one gets it; padding gets nothing, and a far place none."""
    places = torch.tensor([[50.0, 50.0], [61.0, 50.0], [200.0, 50.0]])
    targets = torch.tensor([[[0, 0, 0, 100, 100], [2, 40, 40, 60, 60], [-1, 190, 40, 210, 60]]])
    named, boxes, held = blood_cells.assigned(places, targets)
    assert held.tolist() == [[True, True, False]]
    assert named[0].argmax(dim=1)[:2].tolist() == [2, 0]
    assert named[0, 2].sum() == 0
    assert boxes[0, 0].tolist() == [40, 40, 60, 60]


def test_right_answers_cost_less_than_wrong_ones_and_gradients_reach_both():
    """A sure and right detector loses next to nothing; boxes moved or classes exchanged lose more."""
    targets = torch.tensor([[[1, 100, 100, 160, 160]]])
    wanted, boxes, held = blood_cells.assigned(
        blood_cells._places(torch.zeros(1, 1200, 7)),
        targets,
    )
    right = torch.cat([torch.where(held[..., None], boxes, torch.tensor([0.0, 0, 8, 8])), 20 * wanted - 10], dim=-1)
    moved, renamed = right.clone(), right.clone()
    moved[..., :4] += 20
    renamed[..., 4:] = renamed[..., [5, 4, 6]]
    assert blood_cells.loss(right, targets) < 1e-3
    assert blood_cells.loss(moved, targets) > 0.5
    assert blood_cells.loss(renamed, targets) > 0.5
    assert blood_cells.taught(right, right, targets) < 1e-3 < blood_cells.taught(renamed, right, targets)
    asked = moved.requires_grad_()
    (blood_cells.loss(asked, targets) + blood_cells.taught(asked, right, targets)).backward()
    assert (asked.grad[held][:, :4].abs().sum(), asked.grad[..., 4:].abs().sum()) > (0, 0)


@pytest.mark.parametrize("module", [blood_cells, street_scenes])
def test_mirrored_targets_stay_with_their_images(module):
    """What is bright in the image is where the targets say, before and after, in each of many draws."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        if module is street_scenes:
            classes = torch.randint(0, 11, (2, 8, 12), generator=generator)
            images, turned = module.mirrored(classes[:, None].expand(-1, 3, -1, -1), classes, generator)
            assert torch.equal(images[:, 0], turned)
            continue
        images, targets = (
            torch.zeros(2, 3, 240, 320),
            torch.tensor([[[0.0, 10, 20, 50, 90]], [[0.0, 200, 100, 240, 110]]]),
        )
        for image, (_, *box) in zip(images, targets[:, 0].int().tolist(), strict=True):
            image[:, box[1] : box[3], box[0] : box[2]] = 1
        images, turned = module.mirrored(images, targets, generator)
        for image, (_, *box) in zip(images, turned[:, 0].int().tolist(), strict=True):
            assert image[:, box[1] : box[3], box[0] : box[2]].min() == 1
            assert image.sum() == 3 * (box[3] - box[1]) * (box[2] - box[0])
