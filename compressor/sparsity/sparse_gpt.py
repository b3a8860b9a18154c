"""Zeros layer by layer, each made up for by the weights of its row that stay, in closed form.

Frantar & Alistarh 2023, "SparseGPT", arXiv:2301.00774, algorithm 1. For a row w of a layer with inputs X, H = X X^T:
going through the columns, the weight w_q that goes is made up for by the columns behind it,

    -w_q / [H^-1]_qq * [H^-1]_q,:                                                            (section 3.2, equation 3)

with H^-1 that of the columns from q on, rows of its Cholesky factor. Which weights go is decided for some columns at a
time, by w_q^2 / [H^-1]_qq (section 3.3, adaptive mask selection). A layer reads what the layers before it give with
their zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.batches import Batch
from compressor.checks import check_count, check_not_negative
from compressor.progress.bars import progress_bar
from compressor.pruning.ranking.scope import PerLayer
from compressor.sparsity.layer_inputs import unwatched, watch_inputs
from compressor.sparsity.layers import SparseWeight


@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """What goes costs the layer's output least, and the weights that stay make up for it.

    H is the sum over the first `batches` (>= 1) batches of calibration data, with `damping` (>= 0) of the mean of its
    diagonal added to that; zeros are chosen for `columns` (>= 1) columns at a time.
    """

    by_weights: ClassVar[bool] = False
    scope: ClassVar[PerLayer] = PerLayer()

    batches: int = 8
    damping: float = 0.01
    columns: int = 128

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches that are looked at")
        check_not_negative(self.damping, "damping is a fraction of the mean of the diagonal")
        check_count(self.columns, "columns counts those whose zeros are chosen together")

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why it cannot judge `weight`, None where it can."""
        return unwatched(weight)

    def sparsify_(
        self,
        model: nn.Module,
        weights: Sequence[SparseWeight],
        batches: Sequence[Batch],
        *,
        sparsity: float,
        of: int | None,
        progress: bool,
    ) -> list[SparseWeight]:
        """Makes the part `sparsity` of `weights` zero, in every `of` inputs where that is given; those that it cannot.

        What is zero stays zero. Weights whose layer `batches` do not reach stay whole.
        """
        called = _as_called(model, weights, batches)
        for weight in progress_bar(called, desc="SparseGPT", shown=progress):
            hessian = second_moments(model, weight, batches)
            rows = weight.arranged(weight.parameter.detach()).flatten(1)
            grouped = rows.reshape(len(hessian), -1, rows.shape[1]).double().cpu()
            sparse = [
                sparse_gpt(part, own, sparsity=sparsity, of=of, damping=self.damping, columns=self.columns)
                for part, own in zip(grouped, hessian, strict=True)
            ]
            values = torch.cat(sparse).to(rows.dtype).reshape(weight.arranged(weight.parameter).shape)
            with torch.no_grad():
                weight.parameter.copy_(weight.as_weight(values))
        names = {weight.name for weight in called}
        return [weight for weight in weights if weight.name not in names]


def _as_called(model: nn.Module, weights: Sequence[SparseWeight], batches: Sequence[Batch]) -> list[SparseWeight]:
    """`weights` in the order in which the model calls their layers, without those that it never calls."""
    called: dict[str, SparseWeight] = {}
    watch_inputs(model, weights, batches[:1], lambda weight, _columns: called.setdefault(weight.name, weight))  # type: ignore[arg-type] # what it gives is not read
    return list(called.values())


def second_moments(model: nn.Module, weight: SparseWeight, batches: Sequence[Batch]) -> Tensor:
    """The sum of x x^T over all that the layer of `weight` reads, float64 (groups, columns, columns)."""
    sums: list[Tensor] = []

    def add(_weight: SparseWeight, columns: Tensor) -> None:
        wide = columns.double()
        own = wide @ wide.mT
        if sums:
            sums[0] += own
        else:
            sums.append(own)

    watch_inputs(model, [weight], batches, add)
    return sums[0].cpu()


def sparse_gpt(
    rows: Tensor, hessian: Tensor, *, sparsity: float, of: int | None = None, damping: float = 0.01, columns: int = 128
) -> Tensor:
    """`rows` (outputs, inputs) with the part `sparsity` of them zero and the others changed to make up for it.

    `hessian` (inputs, inputs), the sum of x x^T; float64. With `of` the part is that of every `of` inputs of each row,
    else of every `columns` columns of all rows together. Inputs that are always zero lose their weights first.
    """
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    # Without damping a singular H has no inverse: float64's resolution of it is added at least.
    extra = max(damping, 1e-9) * diagonal.mean()
    damped = hessian + torch.diag(torch.where(dead, 1.0, extra.expand_as(diagonal)))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, inputs = rows.clone(), rows.shape[1]
    stretch = columns if of is None else -(-columns // of) * of
    for start in range(0, inputs, stretch):
        end = min(start + stretch, inputs)
        part, own = left[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(part)
        gone = torch.zeros_like(part, dtype=torch.bool)
        for column in range(end - start):
            width = end - start if of is None else of
            if column % width == 0:
                chosen = slice(column, column + width)
                loss = (part[:, chosen] / own.diagonal()[chosen]) ** 2
                loss[:, dead[start:end][chosen]] = -1.0
                zero = rows[:, start:end][:, chosen] == 0
                loss[zero] = -2.0
                gone[:, chosen] = _smallest(loss, sparsity, by_row=of is not None) | zero
            kept = part[:, column].masked_fill(gone[:, column], 0.0)
            errors[:, column] = (part[:, column] - kept) / own[column, column]
            part[:, column:] -= errors[:, column, None] * own[column, column:]
            part[:, column] = kept
        left[:, end:] -= errors @ upper[start:end, end:]
    return left


def _smallest(loss: Tensor, sparsity: float, *, by_row: bool) -> Tensor:
    """Which of `loss` (outputs, columns) are the part `sparsity` with the least, in each row or of all; earlier ones
    first.
    """
    lines = loss if by_row else loss.reshape(1, -1)
    order = lines.argsort(dim=1, stable=True)
    gone = torch.zeros_like(lines, dtype=torch.bool)
    return gone.scatter_(1, order[:, : round(sparsity * lines.shape[1])], value=True).reshape(loss.shape)
