"""Whether the reference's score can be the base of a fraction: zero, and what rounding leaves of it, are none."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.batches import judged_target
from compressor.training.replay import kept_modes, replayed
from compressor.workload import Workload, first_batches, predict

# An error that is no larger than that of targets off by this share of their spread is one of rounding: targets that are
# the reference's own outputs, from other batches or a text file.
_ROUNDING = 1e-3
_BATCHES = 4


def without_base(workload: Workload) -> str:
    """Why drops are no fractions of the reference's score, with the metric to use; "" where they are.

    The metric's score on some of the validation data is compared with that of targets that are off by a thousandth of
    their spread. Bounded metrics and decibels ask for no fraction.
    """
    metric = workload.metric
    if metric.bounded or metric.decibels or metric.higher_is_better:
        return ""
    batches = first_batches(workload.validation, _BATCHES)
    with torch.no_grad(), kept_modes(workload.model), replayed(0, 0):
        workload.model.eval()
        rows = [
            metric.rows(predict(workload.model, inputs), torch.as_tensor(judged_target(targets)))
            for inputs, targets in batches
        ]
    score = metric.aggregate(torch.cat(rows))
    if score and abs(score) > _of_rounding(workload, [torch.as_tensor(judged_target(each)) for _, each in batches]):
        return ""
    return (
        f"the reference's {metric.name} on validation is {score:.3g}, zero or rounding alone: the targets are its own "
        "outputs, it seems, and no fraction of that means anything. Compare with the reference by metric='agreement' "
        "(decisions), or metric='relative' (decibels of its signal); or give targets that somebody labelled"
    )


def _of_rounding(workload: Workload, targets: Sequence[Tensor]) -> float:
    """The score of targets that are a thousandth of their spread off; 0 where they are no numbers of one shape."""
    if not all(each.is_floating_point() for each in targets):
        return 0.0
    spread = float(torch.cat([each.reshape(-1) for each in targets]).double().std(correction=0))
    generator = torch.Generator().manual_seed(0)
    off = [each + _ROUNDING * spread * torch.randn(each.shape, generator=generator).to(each.dtype) for each in targets]
    try:
        rows = [workload.metric.rows(given, wanted) for given, wanted in zip(off, targets, strict=True)]
    except Exception:  # noqa: BLE001 - a metric whose targets are no outputs
        return 0.0
    return abs(workload.metric.aggregate(torch.cat(rows)))
