"""Calibration, gaps, corruptions, changes by class and removed parts: by hand, and against other implementations."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from compressor.evaluations.by_class import ByClass, classes
from compressor.evaluations.calibration import Calibration, calibration_error, calibration_errors
from compressor.evaluations.corruptions import Range, blurred, corruption, dropped, kind_of, noisy
from compressor.evaluations.evaluation import Answers, Known, Subject, evaluated
from compressor.evaluations.generalisation import GeneralisationGap
from compressor.evaluations.pictures import png
from compressor.evaluations.removed import WhatWent
from compressor.evaluations.robustness import Robustness
from compressor.intervals import gap_between, gap_change
from compressor.metrics import Metric


def answers(confidences: list[float], right: list[int]) -> Answers:
    labels = torch.zeros(len(right), dtype=torch.long)
    return Answers(1 - torch.tensor(right), torch.tensor(confidences).double(), labels, torch.arange(len(right)))


SURE = answers([0.9, 0.8, 0.6, 0.7], [1, 0, 1, 1])


@pytest.mark.parametrize(("bins", "error"), [(4, 0.35), (1, 0.0), (2, 0.0)])
def test_the_calibration_error_by_hand(bins: int, error: float) -> None:
    """Guo et al. eq. 3. In 4 bins: (0.5, 0.75] is 0.65 sure and always right, (0.75, 1] 0.85 sure and half right:
    2/4 of 0.35 each. In one bin 0.75 sure and 0.75 right.
    """
    assert calibration_error(SURE, bins=bins) == pytest.approx(error)


def test_a_bin_holds_its_upper_end() -> None:
    """A confidence of 0.5 belongs to (0, 0.5]: apart from 0.6 it is 0.5 wrong, with it 0.05 on average."""
    assert calibration_error(answers([0.5, 0.6], [1, 0]), bins=2) == pytest.approx((0.5 + 0.6) / 2)


def test_calibration_is_compared_on_the_same_resamples() -> None:
    """A file against itself differs by nothing; a less sure one by what it is, and intervals hold their values."""
    same = calibration_errors([SURE, SURE], bins=4, seed=0)[2]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    confidences = 0.5 + torch.rand(2000, generator=generator) / 2
    right = (torch.rand(2000, generator=generator) < confidences).long()
    honest = answers(confidences.tolist(), right.tolist())
    boasting = answers([0.99] * 2000, right.tolist())
    value, reference, worse = calibration_errors([boasting, honest], bins=15, seed=0)
    assert reference.value < 0.05 < value.low
    assert worse.low > 0.15
    for each in (value, reference, worse):
        assert each.low <= each.value <= each.high


def test_the_gap_by_hand() -> None:
    """All of the seen and half of the unseen samples right: 50 points; a reference without a gap makes it 50 more."""
    seen, unseen = torch.ones(50), torch.tensor([1.0, 0.0]).repeat(25)
    gap = gap_between(seen, unseen, Metric.accuracy())
    assert gap.value == pytest.approx(0.5)
    assert 0.3 < gap.low < 0.5 < gap.high < 0.7
    change = gap_change([seen, unseen], [seen, seen], Metric.accuracy())
    assert change.value == pytest.approx(0.5)
    assert gap_change([seen, unseen], [seen, unseen], Metric.accuracy()).high == 0.0


def test_blur_is_scipys() -> None:
    """Cut at four deviations, borders repeated, as in the authors' code (scikit-image's gaussian)."""
    images = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = blurred(images, 0.7)
    for image, blurry in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert np.allclose(blurry.numpy(), gaussian_filter(image.numpy(), 0.7, mode="nearest", truncate=4.0), atol=1e-6)


def test_corruptions_of_images_know_how_they_are_scaled() -> None:
    """Contrast of small images at severity 3 leaves 0.4 of the distance from the mean; scaled inputs give scaled
    outputs; noise stays in the range.
    """
    raw = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    unit = Range(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    scaled = Range(torch.full((1, 1, 1), -2.0), torch.full((1, 1, 1), 3.0))
    grey = corruption("contrast", 3, extent=unit, padding=0)(raw, 0)
    means = raw.mean(dim=(2, 3), keepdim=True)
    assert torch.allclose(grey, 0.4 * (raw - means) + means, atol=1e-6)
    for name in ("contrast", "gaussian_blur", "gaussian_noise"):
        plain = corruption(name, 3, extent=unit, padding=0)(raw, 5)
        wide = corruption(name, 3, extent=scaled, padding=0)(5 * raw - 2, 5)
        assert torch.allclose(5 * plain - 2, wide, atol=1e-5)
        assert plain.min() >= 0
        assert plain.max() <= 1
    noise = corruption("gaussian_noise", 1, extent=unit, padding=0)(torch.full((1, 1, 64, 64), 0.5), 1) - 0.5
    assert float(noise.std()) == pytest.approx(0.04, rel=0.05)


def test_words_are_dropped_and_signals_get_noise() -> None:
    """A third of the words becomes padding, the first stays; noise has the power that was asked for."""
    tokens = torch.randint(1, 100, (50, 200), generator=torch.Generator().manual_seed(0))
    gone = dropped(tokens, 0.3, padding=0, seed=1)
    assert (gone[:, 0] == tokens[:, 0]).all()
    assert float((gone == 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(gone[gone != 0], tokens[gone != 0])
    signals = torch.sin(torch.arange(8000) / 10).repeat(2, 1) * torch.tensor([[1.0], [50.0]])
    noise = noisy(signals, 15.0, seed=1) - signals
    ratio = signals.std(dim=1) / noise.std(dim=1)
    assert torch.allclose(20 * ratio.log10(), torch.full((2,), 15.0), atol=0.3)


def test_inputs_that_are_nothing_of_all_that_are_refused(tiny_workload) -> None:
    """Volumes and flags have no common corruptions; those that do not suit are named."""
    with pytest.raises(ValueError, match="the first input is"):
        kind_of(replace(tiny_workload, example_inputs=torch.zeros(2, 1, 4, 4, 4)))
    assert kind_of(tiny_workload) == "images"
    with pytest.raises(ValueError, match="corruptions are known by name"):
        Robustness(corruptions=("fog",))
    with pytest.raises(ValueError, match="severity is 1 to 5"):
        Robustness(severity=6)


def test_classes_that_lost_are_told_from_those_that_seem_to() -> None:
    """Of class 0 all 10 are lost, of class 1 one of 10: only the first is called lost."""
    labels = torch.tensor([0] * 10 + [1] * 10)
    sure = torch.full((20,), 0.9).double()
    base = Answers(labels, sure, labels, torch.arange(20))
    own = Answers(torch.tensor([1] * 10 + [0] + [1] * 9), sure, labels, torch.arange(20))
    first, second = classes(own, base)
    assert (first.label, first.before, first.after, first.lost) == ("0", 1.0, 0.0, True)
    assert first.p == pytest.approx(2 * 2 * 0.5**10)
    assert (second.label, second.after, second.lost) == ("1", 0.9, False)
    assert second.drop.value == pytest.approx(0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_png_files(channels: int) -> None:
    """Read back by hand: the head, every check sum, and the pixels behind the filter of each line."""
    image = torch.tensor([0.0, 1.0, 0.5, 2.0, -1.0, 0.2]).reshape(1, 2, 3).repeat(channels, 1, 1)
    raw = png(image)
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        name, data = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        assert struct.unpack(">I", raw[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + data)
        chunks[name], at = data, at + 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 2 if channels == 3 else 0, 0, 0, 0)
    lines = [[0, 255, 128], [255, 0, 51]]
    wanted = b"".join(b"\0" + bytes(value for value in line for _ in range(channels)) for line in lines)
    assert zlib.decompress(chunks[b"IDAT"]) == wanted
    assert struct.unpack(">II", png(torch.rand(channels, 500, 250))[16:24]) == (48, 96)


class Halves(nn.Module):
    """Four units of which the third is silent and the fourth twice the second, and a block that adds a tenth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(1, 4), nn.Linear(4, 4)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [1.0], [0.0], [2.0]]))
            self.first.bias.copy_(torch.tensor([0.0, 0.0, 7.0, 0.0]))
            self.block.weight.copy_(1.1 * torch.eye(4))
            self.block.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


def subject(workload, **changed) -> Subject:
    return Subject(
        **{"onnx_bytes": b"own", "reference": b"base", "workload": workload, "known": Known(workload), **changed}
    )


def test_what_removed_parts_did(tiny_workload) -> None:
    """Inputs -1 and 1: kept units have the size 1 and deviation 1, removed ones 7 and 2, deviations 0 and 2."""
    workload = replace(tiny_workload, calibration=[(torch.tensor([[-1.0], [1.0]]), torch.zeros(2))])
    plan = [
        {"kind": "slice", "tensors": {"first.weight": {"0": [0, 1]}, "block.weight": {"1": [0, 1]}}},
        {"kind": "identity", "modules": ["block"]},
    ]
    (note,) = WhatWent().evaluate(subject(workload, before=Halves(), plan=plan))
    channels, block = note.removed_parts
    assert (channels.part, channels.removed, channels.of, channels.silent) == ("first", 2, 4, 0.5)
    assert (channels.kept_size, channels.removed_size) == (pytest.approx(1.0), pytest.approx(4.5))
    assert (channels.kept_spread, channels.removed_spread) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (block.part, block.moved) == ("block", pytest.approx(0.1))
    assert WhatWent().evaluate(subject(workload, before=Halves(), plan=[])) == []
    assert WhatWent().evaluate(subject(workload, before=None, plan=plan)) == []


def test_what_does_not_suit_is_told_and_ends_nothing(tiny_workload) -> None:
    """A metric without classes, and data that are not there."""
    numbers = replace(tiny_workload, metric=Metric.mse())
    told = evaluated([Calibration(), ByClass()], subject(numbers))["evaluations"]
    assert [row["evaluation"] for row in told] == ["calibration", "by_class"]
    assert all("mse does not judge classes" in row["why"] for row in told)
    nothing = replace(tiny_workload, metric=Metric.unscored())
    assert "no data" in evaluated([GeneralisationGap()], subject(nothing))["evaluations"][0]["why"]


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"bins": True}])
def test_settings_are_checked(wrong) -> None:
    """Counts are whole numbers of at least one."""
    with pytest.raises(ValueError, match="bins counts"):
        Calibration(**wrong)
    with pytest.raises(ValueError, match="at most 100"):
        ByClass(pictures=101)
    with pytest.raises(TypeError, match="has no 'bin'"):
        Calibration(bin=3)
