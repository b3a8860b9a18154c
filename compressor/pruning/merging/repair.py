"""Batch normalization made right for what comes in once channels were merged.

REPAIR (Jordan et al. 2023, arXiv:2211.08403, sec. 3) rescales every channel to the mean and deviation that it had
before; with batch normalization that is a matter of its running statistics. They are not measured anew, for that takes
data, but moved: by how the mean and the variance differ between the merged network and the one before, on one and the
same inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.batches import Inputs
from compressor.pruning.merging.readers import run


def repair_norms_(
    model: nn.Module, original: nn.Module, kept: Mapping[str, list[int]], batches: Sequence[Inputs]
) -> list[str]:
    """Moves the running statistics of `model`, which was `original` before; the names of the norms that moved.

    `kept` are the channels that are left of each norm that is narrower now.
    """
    before, after = _statistics(original, batches), _statistics(model, batches)
    moved = []
    with torch.no_grad():
        for name in before.keys() & after.keys():
            old, new = original.get_submodule(name), model.get_submodule(name)
            assert isinstance(old, _BatchNorm)
            assert isinstance(new, _BatchNorm)
            left = torch.tensor(kept.get(name, range(old.num_features)))
            mean, variance = (values[left] for values in before[name])
            mean_now, variance_now = after[name]
            stored = [_stored(buffer)[left] for buffer in (old.running_mean, old.running_var)]
            ratio = (variance_now + new.eps) / (variance + new.eps)
            shift = (mean_now - mean) * ((stored[1] + new.eps) / (variance + new.eps)).sqrt()
            # Rounding is no difference.
            changed = bool((ratio - 1).abs().max() > 1e-6) or bool((shift.abs() > 1e-6 * stored[1].sqrt()).any())
            for buffer, value in zip(
                (new.running_mean, new.running_var), (stored[0] + shift, stored[1] * ratio), strict=True
            ):
                if changed and buffer is not None:
                    buffer.copy_(value.to(buffer))
            moved += [name] * changed
    return [name for name in before if name in moved]


def _stored(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # only norms with running statistics are looked at
    return buffer.double().cpu()


def _statistics(model: nn.Module, batches: Sequence[Inputs]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean and the variance of what every batch normalization is fed, (features,) in float64."""
    sums: dict[str, list[Any]] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            values = args[0].detach().double()
            found = sums.setdefault(name, [0.0, 0.0, 0])
            # The mean of the batches' own variances: so is the normalization.
            dims = [dim for dim in range(values.ndim) if dim != 1]
            found[0] = found[0] + values.mean(dim=dims).cpu()
            found[1] = found[1] + values.var(dim=dims, unbiased=False).cpu()
            found[2] += 1

        return record

    handles = [
        norm.register_forward_pre_hook(hook(name))
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    ]
    try:
        run(model, batches)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (mean / count, variance / count) for name, (mean, variance, count) in sums.items()}
