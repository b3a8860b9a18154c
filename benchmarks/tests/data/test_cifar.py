"""Images are augmented whole, and no image both decides and is reported."""

import pytest
import torch

from benchmarks.data import cifar
from workbench.data_files import data_file


def test_images_are_shifted_and_mirrored_whole():
    """Every augmented image is a 32x32 window of the padded image or of its mirror."""
    images = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    windows = [padded[0, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    windows += [window.flip(2) for window in windows]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        (augmented,) = cifar.crop_and_flip(images, generator)
        assert any(torch.equal(augmented, window) for window in windows)


@pytest.mark.slow
def test_decisions_and_reports_share_no_image():
    """Validation and test are the two halves of the test file, 500 images of every class in each."""
    try:
        data_file("cifar10-test.parquet")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    workload = cifar.resnet20()
    counts = [torch.bincount(data.samples[1]).tolist() for data in (workload.validation, workload.test)]
    assert counts == [[500] * 10] * 2
    halves = [{image.numpy().tobytes() for image in data.samples[0]} for data in (workload.validation, workload.test)]
    # The data set holds a few pictures twice; the same picture may then be on both sides.
    assert len(halves[0] & halves[1]) < 20


def test_a_subset_has_as_many_images_of_each_class():
    """The first images of every class are taken, in the order of the file."""
    ranks = cifar.rank_in_class(torch.tensor([3, 3, 1, 3, 1]))
    assert ranks.tolist() == [0, 1, 0, 2, 1]
