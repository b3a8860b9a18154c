"""Mean average precision is COCO's: by hand, and against pycocotools where it is installed."""

import contextlib
import io

import numpy as np
import pytest
import torch

from compressor.errors import WorkloadError
from compressor.intervals import paired_drop, score_estimate
from compressor.metrics import Metric
from compressor.scoring.boxes import overlaps_of

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def test_overlaps_by_hand():
    """Half a box over is a third in common; boxes without an area have nothing in common."""
    found = overlaps_of(np.array([UNIT]), np.array([[5.0, 0, 15, 10], UNIT, FAR, [1.0, 1, 1, 1]]))
    assert found[0].tolist() == pytest.approx([1 / 3, 1, 0, 0])


def test_average_precision_by_hand():
    """Hit, miss, hit of two boxes: precision is 1 up to recall 0.5 and 2/3 beyond: (51 + 50 * 2/3) / 101."""
    outputs = torch.tensor([[[*UNIT, 0.9], [100.0, 0, 110, 10, 0.8], [*FAR, 0.7]]])
    targets = torch.tensor([[[0, *UNIT], [0, *FAR], [-1, 0, 0, 0, 0]]])
    metric = Metric.named("map50")
    assert metric.score(outputs, targets) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_is_found_once():
    """The second of two boxes on one object is wrong, unless it is suppressed."""
    twice = torch.tensor([[[*UNIT, 0.9], [0.0, 0, 10, 9, 0.8], [*FAR, 0.7]]])
    targets = torch.tensor([[[0, *UNIT], [0, *FAR]]])
    assert Metric.mean_average_precision((0.5,)).score(twice, targets) == pytest.approx(1)
    every = Metric.mean_average_precision((0.5,), suppress=None)
    assert every.score(twice, targets) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_do_not_take_each_others_boxes():
    """A box of the wrong class is no hit: of two classes one is found."""
    outputs = torch.tensor([[[*UNIT, 0.9, 0.1], [*FAR, 0.8, 0.2]]])
    targets = torch.tensor([[[0, *UNIT], [1, *FAR]]])
    # Class 1: its best score lies on the far box (0.2), the second on the unit box: found at once.
    assert Metric.named("map50").score(outputs, targets) == pytest.approx((1 + 1) / 2)
    only_first = torch.tensor([[[*UNIT, 0.9, -torch.inf], [*FAR, 0.8, -torch.inf]]])
    assert Metric.named("map50").score(only_first, targets) == pytest.approx(0.5)


def scene(samples=24, boxes=12, classes=3, seed=0):
    """Boxes near true ones and elsewhere, scores that tell a little."""
    draw = torch.Generator().manual_seed(seed)
    corners = 100 * torch.rand(samples, 6, 2, generator=draw)
    wanted = torch.cat([corners, corners + 10 + 30 * torch.rand(samples, 6, 2, generator=draw)], -1)
    kinds = torch.randint(-1, classes, (samples, 6), generator=draw)
    near = wanted.repeat(1, 2, 1)[:, :boxes] + 5 * torch.randn(samples, boxes, 4, generator=draw)
    # Corners in order: pycocotools leaves boxes of negative area out, and they are wrong here.
    near = torch.cat([torch.minimum(near[..., :2], near[..., 2:]), torch.maximum(near[..., :2], near[..., 2:])], -1)
    scores = torch.rand(samples, boxes, classes, generator=draw)
    for number in range(classes):
        scores[..., number] += 0.5 * (kinds.repeat(1, 2)[:, :boxes] == number)
    return torch.cat([near, scores], -1), torch.cat([kinds[..., None].float(), wanted], -1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_what_pycocotools_gives(seed):
    """The mean over ten thresholds, and that at 0.5, on boxes that are found well, badly and twice."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    outputs, targets = scene(seed=seed)
    annotations, detections = [], []
    for sample in range(len(outputs)):
        for kind, x1, y1, x2, y2 in targets[sample].double().tolist():
            if kind >= 0:
                box = [x1, y1, x2 - x1, y2 - y1]
                known = {"id": len(annotations) + 1, "image_id": sample, "category_id": int(kind), "bbox": box}
                annotations.append(known | {"area": box[2] * box[3], "iscrowd": 0})
        for x1, y1, x2, y2, *scores in outputs[sample].double().tolist():
            detections += [
                {"image_id": sample, "category_id": kind, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
                for kind, score in enumerate(scores)
            ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": sample} for sample in range(len(outputs))],
            "categories": [{"id": kind} for kind in range(3)],
            "annotations": annotations,
            "info": {},
        }
        truth.createIndex()
        found = evaluation.COCOeval(truth, truth.loadRes(detections), "bbox")
        found.evaluate()
        found.accumulate()
        found.summarize()
    every = Metric.mean_average_precision(suppress=None)
    assert every.score(outputs, targets) == pytest.approx(found.stats[0], abs=1e-9)
    half = Metric.mean_average_precision((0.5,), suppress=None)
    assert half.score(outputs, targets) == pytest.approx(found.stats[1], abs=1e-9)


@pytest.mark.parametrize(
    ("seed", "every", "half"),
    [(0, 0.06554216599671, 0.32733438317509), (1, 0.08319297637316, 0.35299001598809)],
)
def test_it_is_what_pycocotools_gave(seed, every, half):
    """The numbers of version 2.0.11 on the same boxes, where it is not installed."""
    outputs, targets = scene(seed=seed)
    assert Metric.mean_average_precision(suppress=None).score(outputs, targets) == pytest.approx(every)
    assert Metric.mean_average_precision((0.5,), suppress=None).score(outputs, targets) == pytest.approx(half)


def test_intervals_resample_the_samples():
    """Worse scores drop, with an interval; one against itself drops by nothing; batches of two lengths are one set."""
    metric = Metric.named("map50")
    outputs, targets = scene()
    better = outputs.clone()
    better[:, :6, :4] = targets[..., 1:]
    halves = [metric.rows(outputs[:9], targets[:9]), metric.rows(outputs[9:, :12], targets[9:])]
    rows = torch.cat(halves)
    assert metric.aggregate(rows) == pytest.approx(metric.score(outputs, targets))
    estimate = score_estimate(rows, metric)
    assert estimate.low < estimate.value < estimate.high
    assert paired_drop(rows, rows, metric).value == 0
    assert paired_drop(rows, metric.rows(better, targets), metric).low > 0


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        ((2, 5), (2, 3, 5), r"got outputs \(2, 5\).*judge=lambda out"),
        ((2, 3, 4), (2, 3, 5), r"a score for each class"),
        ((2, 3, 6), (2, 3, 4), r"got outputs \(2, 3, 6\) and targets \(2, 3, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(outputs, targets, says):
    """With the form that boxes have."""
    with pytest.raises(WorkloadError, match=says):
        Metric.named("map").rows(torch.zeros(outputs), torch.zeros(targets))


def test_classes_without_a_score_are_refused():
    """A class beyond the scores would never be found, and the mean would say so silently."""
    with pytest.raises(WorkloadError, match=r"a class from 0 to 0, or -1 for padding, got \[3.0\]"):
        Metric.named("map").rows(torch.zeros(1, 2, 5), torch.tensor([[[3.0, 0, 0, 1, 1]]]))


def test_wrong_settings_are_refused():
    """Percents for thresholds, no detection at all; and a loss cannot be guessed."""
    with pytest.raises(ValueError, match=r"each in \(0, 1\], got \(50,\)"):
        Metric.mean_average_precision((50,))
    with pytest.raises(ValueError, match="suppress is an intersection"):
        Metric.mean_average_precision(suppress=50)
    with pytest.raises(ValueError, match="most counts"):
        Metric.mean_average_precision(most=0)
    with pytest.raises(WorkloadError, match="loss must be given with the metric map50"):
        Metric.named("map50").usual_loss()
