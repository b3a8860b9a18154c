"""By which score weights are ranked: small ones go first, and which scores are compared with which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from compressor.checks import check_calibrated, check_count, check_one_of
from compressor.kept_state import private_copy
from compressor.pruning.ranking.gradients import loss_gradients
from compressor.pruning.ranking.scope import Global
from compressor.sparsity.layer_inputs import unwatched, watch_inputs
from compressor.sparsity.layers import SparseWeight
from compressor.sparsity.masks import PerRow, Scope
from compressor.stage import Context
from compressor.training.distributed.team import each_alone
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.passes.threads import ranking
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload, first_batches


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a score may look at: the model, its `weights`, the workload without its test data, and the context."""

    model: nn.Module
    weights: Sequence[SparseWeight]
    workload: Workload
    context: Context


class Score(Protocol):
    """A way to rank weights.

    `by_weights` says whether the weights alone decide, so that it costs next to nothing; otherwise it is given a copy
    of the model. `scope` is what is ranked against what where nothing else is said.
    """

    by_weights: ClassVar[bool]

    @property
    def scope(self) -> Scope:
        """What is ranked against what by default."""

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why it cannot judge `weight`, None where it can."""

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name one score for each element, of the weight's shape; the larger, the more it matters.

        A weight that nothing is known of is left out, and stays whole.
        """


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The absolute value of each weight; of rows and blocks their `norm`, L1 or L2, over the number of their weights.

    Han et al. 2015, arXiv:1506.02626, sec. 3; filters by their L1 norm: Li et al. 2017, arXiv:1608.08710, sec. 3.1.
    """

    by_weights: ClassVar[bool] = True
    scope: ClassVar[Global] = Global()

    norm: Literal["l1", "l2"] = "l1"

    def __post_init__(self) -> None:
        check_one_of(self.norm, "norm is that of rows and blocks", ("l1", "l2"))

    def unfit(self, weight: SparseWeight) -> str | None:
        """Nothing: every weight has a size."""
        del weight
        return None

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name |w|, or w^2 for the L2 norm, which ranks alike: units are judged by their mean."""
        power = torch.abs if self.norm == "l1" else torch.square
        return {weight.name: power(weight.parameter.detach()) for weight in case.weights}


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """The squared first-order change of the loss when the weight becomes zero, (w dL/dw)^2, over training batches.

    Molchanov et al. 2019, arXiv:1906.10771, eq. 8. `batches` (>= 1) training batches give the gradient.
    """

    by_weights: ClassVar[bool] = False
    scope: ClassVar[Global] = Global()

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the training batches of the gradient")

    def unfit(self, weight: SparseWeight) -> str | None:
        """Nothing: every trained weight has a gradient."""
        del weight
        return None

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name (w dL/dw)^2; weights that the loss does not reach have none."""
        gradients = loss_gradients(case.model, case.workload, self.batches, case.context.seed)
        return {
            weight.name: (weight.parameter.detach() * gradients[weight.name]).square()
            for weight in case.weights
            if weight.name in gradients
        }


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far a weight moves away from zero while the model is tuned: S = - sum over the steps of w dL/dw.

    Sanh et al. 2020, arXiv:2005.07683, eq. 2 and sec. 4. The sum is taken over `epochs` (>= 1) of training at
    `optimizer` on a copy of the model, whose weights are then dropped: zeros are hard here, and what stays
    is trained by the stages that follow.
    """

    by_weights: ClassVar[bool] = False
    scope: ClassVar[Global] = Global()

    epochs: int = 1
    # No rate is looked for: the batches of the test would count in the scores.
    optimizer: SGD | AdamW = field(default_factory=lambda: SGD(rate=0.01))

    def __post_init__(self) -> None:
        check_count(self.epochs, "epochs counts the passes over the training data that scores are summed over")

    def unfit(self, weight: SparseWeight) -> str | None:
        """Nothing: every trained weight moves."""
        del weight
        return None

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name - sum of w dL/dw; negative where the training moves it towards zero."""
        sums = {weight.name: torch.zeros_like(weight.parameter) for weight in case.weights}

        def watch(weight: SparseWeight) -> torch.utils.hooks.RemovableHandle:
            def hook(gradient: Tensor) -> None:
                # Embeddings may have gradients of the rows that were looked up alone.
                whole = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
                sums[weight.name] -= whole * weight.parameter.detach()

            handle: torch.utils.hooks.RemovableHandle = weight.parameter.register_hook(hook)  # type: ignore[no-untyped-call] # torch does not annotate it
            return handle

        handles = [watch(weight) for weight in case.weights]
        before = (*case.context.plan_before, *case.context.plan)
        alone = replace(case.context, folder=None, details={}, plan=[], plan_before=before)
        try:
            # Of a part of a batch hooks would see a part of the gradient.
            with each_alone():
                train(
                    case.model,
                    case.workload,
                    TrainingSettings(epochs=self.epochs, optimizer=self.optimizer),
                    context=alone,
                    label="movement",
                    keep_last=True,
                )
        finally:
            for handle in handles:
                handle.remove()
        return sums


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """The weight's size times the norm of the input that it multiplies, |w| ||x||_2, compared within each output.

    Sun et al. 2023, arXiv:2306.11695, eq. 1, over the first `batches` (>= 1) batches of calibration data. Layers whose
    inputs cannot be watched are left alone.
    """

    by_weights: ClassVar[bool] = False
    scope: ClassVar[PerRow] = PerRow()

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches that are looked at")

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why it cannot judge `weight`, None where it can."""
        return unwatched(weight)

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name |w| ||x||_2; weights whose layer calibration data does not reach have none."""
        squares: dict[str, Tensor] = {}

        def add(weight: SparseWeight, columns: Tensor) -> None:
            own = columns.double().square().sum(dim=-1)
            squares[weight.name] = squares[weight.name] + own if weight.name in squares else own

        batches = first_batches(case.workload.calibration, self.batches)
        check_calibrated(batches)
        with ranking() as threads:
            watch_inputs(case.model, case.weights, threads.timed(batches), add)
        scores = {}
        for weight in (weight for weight in case.weights if weight.name in squares):
            arranged = weight.arranged(weight.parameter.detach())
            # (groups, columns): the outputs of a group read the same inputs.
            norms = squares[weight.name].sqrt().to(arranged.dtype)
            each = norms.repeat_interleave(len(arranged) // len(norms), dim=0).reshape(arranged.shape)
            scores[weight.name] = weight.as_weight(arranged.abs() * each)
        return scores


def copied(case: Case) -> Case:
    """The same case on a copy of the model, in eval mode, which may be run and trained."""
    model = private_copy(case.model).eval()
    return replace(case, model=model, weights=[weight.of(model) for weight in case.weights])
