"""What a workload's outputs are taken for by loss and metric, and is more often a mistake: warned of before work."""

import warnings

from torch import Tensor

from compressor.batches import Inputs, Targets, judged_target
from compressor.given.notices import WorkloadWarning
from compressor.outputs.finding import taken_twice
from compressor.outputs.kinds import Classes
from compressor.training.judged import judged_by
from compressor.training.lessons import MASK, unmasked
from compressor.workload import Workload


def warn_of_outputs(workload: Workload, inputs: Inputs, outputs: Tensor, targets: Targets) -> None:
    """Warns, with WorkloadWarning, where a loss takes Softmax or Sigmoid again, and where padding has labels.

    `workload` is settled; `outputs` and `targets` are those of the first batch, whose inputs are `inputs`.
    """
    assert workload.output is not None  # it is settled
    says = taken_twice(workload.output, outputs, *judged_by(workload, targets))
    if says:
        _warn(f"{type(workload.model).__name__} {says}; it learns little otherwise. If that is meant, all is well")
    present = unmasked(workload.output, outputs, inputs)
    labelled = workload.output.counted(outputs, judged_target(targets))
    if not isinstance(workload.output, Classes) or present is None or labelled is None:
        return
    padding = int((labelled & ~present.reshape(present.shape + (1,) * (labelled.ndim - present.ndim))).sum())
    if padding:
        _warn(
            f"{MASK} leaves out {padding} positions of the first batch that have labels: loss and metric count them, "
            f"the teacher does not; label padding -100, as in labels.masked_fill({MASK} == 0, -100). If that is meant, "
            "all is well"
        )


def _warn(text: str) -> None:
    warnings.warn(text, WorkloadWarning, stacklevel=4)
