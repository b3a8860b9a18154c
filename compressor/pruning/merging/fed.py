"""What a network is run on to see which of its channels are alike: data, or noise where there is none.

Batch normalization uses the statistics of each batch meanwhile, so that whatever comes in, its outputs have the means
and deviations that they have on the data the network was trained on; that is what makes noise good enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.batches import Inputs, map_tensors
from compressor.checks import check_count
from compressor.workload import Workload, batch_size_of, first_batches

# Pictures smaller than this have no room for shapes, and these many cover one.
_LEAST_SIDE, _LEAVES = 8, 60
_COLOURS = 4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Up to `batches` (>= 1) batches of the workload's calibration data."""

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches that channels are compared on")

    def inputs(self, workload: Workload, seed: int) -> list[Inputs]:  # noqa: ARG002 - as Noise
        """The inputs, batches of at least 2; none where there is no such batch."""
        batches = [inputs for inputs, _ in first_batches(workload.calibration, self.batches)]
        return [inputs for inputs in batches if batch_size_of(inputs) > 1]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """No data: `samples` (>= 2) random inputs in the form of the example inputs, of mean 0 and deviation 1.

    Pictures (batch, up to 4 colours, height, width from 8) are dead leaves: flat ellipses of all sizes over one
    another, whose edges and scales are near those of photographs (Lee et al. 2001, "Occlusion models for natural
    images"; Baradad et al. 2021, arXiv:2106.05963). Other real inputs are normally distributed; whole numbers are drawn
    from the range of the example's, and truth values stay the example's.
    """

    samples: int = 256

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts the random inputs that channels are compared on", least=2)

    def inputs(self, workload: Workload, seed: int) -> list[Inputs]:
        """The inputs, in batches of at least 2 and at most 128; equal for equal seeds."""
        generator = torch.Generator().manual_seed(seed)
        count = -(-self.samples // 128)
        sizes = [self.samples // count + (number < self.samples % count) for number in range(count)]

        def drawn(example: Tensor, size: int) -> Tensor:
            shape = (size, *example.shape[1:])
            if example.dtype == torch.bool or example.is_complex():
                return example[torch.arange(size, device=example.device) % len(example)]
            if not example.is_floating_point():
                low, high = int(example.min()), int(example.max())
                values = torch.randint(low, high + 1, shape, generator=generator)
            elif example.ndim == 4 and example.shape[1] <= _COLOURS and min(example.shape[2:]) >= _LEAST_SIDE:
                values = dead_leaves(shape, generator)
            else:
                values = torch.randn(shape, generator=generator)
            return values.to(example)

        return [map_tensors(workload.example_inputs, lambda one: drawn(one, size)) for size in sizes]  # noqa: B023 - at once


def dead_leaves(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Pictures of `shape` (count, colours, height, width), of mean 0 and deviation 1 over all of them."""
    count, colours, height, width = shape
    rows = torch.arange(float(height)).reshape(1, -1, 1)
    columns = torch.arange(float(width)).reshape(1, 1, -1)
    side = min(height, width)
    pictures = torch.zeros(shape)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    for _ in range(_LEAVES):
        # Radii from a twentieth to half of the side, small ones more often.
        radius = 0.05 * side / (torch.rand(count, 1, 1, generator=generator) ** 0.7 + 0.08)
        down, across = rows - height * uniform(-0.1, 1.1), columns - width * uniform(-0.1, 1.1)
        turn, stretch = uniform(0, torch.pi), uniform(0.5, 1.5)
        along = across * turn.cos() + down * turn.sin()
        beside = down * turn.cos() - across * turn.sin()
        inside = (along / stretch) ** 2 + (beside * stretch) ** 2 < radius**2
        # Colours of one leaf are alike, as in photographs, and light falls on it from one side.
        colour = 0.95 * torch.randn(count, 1, 1, 1, generator=generator)
        colour = colour + 0.45 * torch.randn(count, colours, 1, 1, generator=generator)
        shade = 0.2 * along / radius * torch.randn(count, 1, 1, generator=generator)
        pictures = torch.where(inside[:, None], colour + shade[:, None], pictures)
    pictures += 0.03 * torch.randn(shape, generator=generator)
    return (pictures - pictures.mean()) / pictures.std()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalization by the statistics of each batch; running ones stay as they are."""
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    before = [(norm, norm.momentum, norm.training, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum, training, buffers in before:
            norm.momentum, norm.training = momentum, training
            for buffer, value in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(value)
