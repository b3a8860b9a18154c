"""Sets whose inputs are on another scale than train's: warned of, by name, and nothing else is."""

import warnings

import pytest
import torch

from compressor.given.notices import WorkloadWarning
from compressor.running.doubtful_outputs import warn_of_scale

EXAMPLE = {"pixels": torch.randn(2, 3, 8, 8), "tokens": torch.randint(0, 1000, (2, 20))}


def test_pixels_up_to_255_beside_pixels_up_to_1_are_named() -> None:
    """Preprocessing that one set has not seen: the score on it would be that of chance."""
    with pytest.warns(WorkloadWarning, match="the inputs of test are 255 times as large as those of train"):
        warn_of_scale("test", EXAMPLE | {"pixels": 255 * EXAMPLE["pixels"]}, EXAMPLE)
    with pytest.warns(WorkloadWarning, match=r"the inputs of test are 0\.00392 times as large"):
        warn_of_scale("test", EXAMPLE["pixels"] / 255, EXAMPLE["pixels"])


def test_other_scatter_integers_and_what_a_set_lacks_are_no_matter() -> None:
    """Ten times as large may be; word numbers are no scale; the sets of a stream hold no states; zeros have none."""
    words = torch.full((2, 20), 100_000)
    state = {"state": torch.zeros(2, 64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_scale("test", {"pixels": 10 * EXAMPLE["pixels"], "tokens": words}, EXAMPLE)
        warn_of_scale("test", EXAMPLE, state | EXAMPLE)
        warn_of_scale("test", state | EXAMPLE, EXAMPLE)
        warn_of_scale("test", state, {"state": torch.randn(2, 64)})
