"""Common corruptions of inputs in five severities: noise, blur and contrast of images, words dropped, noise of signals.

D. Hendrycks, T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019
(arXiv:1903.12261), with the strengths of the authors' code: those of CIFAR-10-C for images of at most 64 pixels a side,
of ImageNet-C for larger ones. They are for values in [0, 1]: each channel is brought there by its least and largest
value in the calibration data, and back. Words are dropped as by M. Iyyer et al., Deep Unordered Composition Rivals
Syntactic Methods for Text Classification, ACL 2015, sec. 2.3. Signals get white noise at a given ratio to their power.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.workload import Workload, first_batches, input_tensors

_SMALL = 64
# By severity, from 1 to 5, for small and for large images.
_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)
_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)
_DROPPED = (0.1, 0.2, 0.3, 0.4, 0.5)
_DECIBELS = (30.0, 20.0, 15.0, 10.0, 5.0)
_BATCHES = 16
IMAGES = ("gaussian_noise", "gaussian_blur", "contrast")
WORDS, SIGNALS = ("word_drop",), ("signal_noise",)


@dataclass(frozen=True)
class Range:
    """The least and the largest value of every channel, (channels, 1, 1) each."""

    low: Tensor
    high: Tensor

    def normed(self, images: Tensor) -> Tensor:
        """(..., channels, height, width) in [0, 1], as far as they keep to the range."""
        return (images - self.low) / (self.high - self.low).clamp(min=1e-12)

    def back(self, images: Tensor) -> Tensor:
        """The way back, after clipping to [0, 1]."""
        return images.clamp(0, 1) * (self.high - self.low) + self.low


def kind_of(workload: Workload) -> str:
    """What the first input is: "images" (batch, 1 or 3, height, width), "words" (batch, length) of integers, "signals".

    Raises ValueError for anything else.
    """
    example = input_tensors(workload.example_inputs)[0]
    if example.ndim == 4 and example.shape[1] in {1, 3} and example.is_floating_point():
        return "images"
    if example.ndim == 2 and not example.is_floating_point() and example.dtype != torch.bool:
        return "words"
    if example.ndim in {2, 3} and example.is_floating_point():
        return "signals"
    raise ValueError(
        f"images (batch, 1 or 3, height, width), tokens (batch, length) or signals are corrupted, and the first input "
        f"is {example.dtype} {tuple(example.shape)}"
    )


def range_of(workload: Workload) -> Range:
    """The range of each channel over the calibration data."""
    images = [input_tensors(inputs)[0] for inputs, _ in first_batches(workload.calibration, _BATCHES)]
    low = torch.stack([each.amin(dim=(0, 2, 3)) for each in images]).amin(dim=0)
    high = torch.stack([each.amax(dim=(0, 2, 3)) for each in images]).amax(dim=0)
    return Range(low[:, None, None], high[:, None, None])


def corruption(name: str, severity: int, *, extent: Range | None, padding: int) -> Callable[[Tensor, int], Tensor]:
    """The function (inputs, seed) -> corrupted inputs of that name, `severity` 1 to 5. Images need their `extent`."""
    at = severity - 1
    if name == "word_drop":
        return lambda tokens, seed: dropped(tokens, _DROPPED[at], padding=padding, seed=seed)
    if name == "signal_noise":
        return lambda signals, seed: noisy(signals, _DECIBELS[at], seed=seed)
    assert extent is not None

    def of_images(images: Tensor, seed: int) -> Tensor:
        large = int(max(images.shape[-2:]) > _SMALL)
        normed = extent.normed(images)
        if name == "gaussian_noise":
            return extent.back(normed + _NOISE[large][at] * _normal(normed, seed))
        if name == "gaussian_blur":
            return extent.back(blurred(normed, _BLUR[large][at]))
        means = normed.mean(dim=(-2, -1), keepdim=True)
        return extent.back((normed - means) * _CONTRAST[large][at] + means)

    return of_images


def blurred(images: Tensor, sigma: float) -> Tensor:
    """(batch, channels, height, width) after a Gaussian of `sigma` pixels, cut at 4 sigma; borders are repeated."""
    radius = math.ceil(4 * sigma)
    places = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    for axis in (2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = len(kernel)
        border = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        weight = kernel.reshape(shape).expand(channels, 1, *shape[2:])
        images = F.conv2d(F.pad(images, border, mode="replicate"), weight, groups=channels)
    return images


def dropped(tokens: Tensor, share: float, *, padding: int, seed: int) -> Tensor:
    """(batch, length) with each token but the first, which often stands for the whole, replaced with that chance."""
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(tokens.shape, generator=generator) < share
    gone[:, 0] = False
    return tokens.masked_fill(gone, padding)


def noisy(signals: Tensor, decibels: float, *, seed: int) -> Tensor:
    """(batch, ...) with white noise whose power lies that many decibels below that of the sample around its mean."""
    deviation = signals.flatten(1).std(dim=1).reshape(-1, *[1] * (signals.ndim - 1))
    return signals + deviation * 10 ** (-decibels / 20) * _normal(signals, seed)


def _normal(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)
