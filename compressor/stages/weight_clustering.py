"""Weight sharing: the weights of a layer take few different values, and what learns later is those values.

Han et al. 2016, "Deep Compression", arXiv:1510.00149, sec. 3. The arithmetic is in `clustering/codebooks.py`; how
values stay shared in later trainings in `training/held_values.py`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.checks import check_count, check_globs, check_kinds, told_reasons
from compressor.clustering.codebooks import DensityCentroids, KMeansPlusPlus, LinearCentroids, shared_values
from compressor.errors import StageError
from compressor.notes.structure import LockedLayers
from compressor.notes.training import SharedValues, ValueCount
from compressor.progress.bars import progress_bar
from compressor.pruning.narrowing import fold_model_
from compressor.quantization.grids.schemes import PerBlock, PerChannel, PerTensor
from compressor.sparsity.layers import SparseWeight, sparse_weights
from compressor.stage import Context, Effect
from compressor.structure.preparing.matching import check_modules_match
from compressor.training.held_values import clusters_entry
from compressor.training.held_zeros import held_names
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class ClusterWeights:
    """Gives the weights of every layer at most `clusters` (>= 2) different values, by k-means, for good.

    A codebook of that many values is for a whole layer, for each of its output channels or for blocks of inputs, as
    `granularity` says; `initial` is where its centroids begin. Weights are those of convolutions, linear, recurrent and
    embedding layers whose names match a glob of `layers` and none of `ignore`; layers whose codebooks would have a
    value for every weight are left alone, with the reason. Weights that are zero and meant to be stay zero. Later
    trainings move the values, and weights that share one go on sharing it. The file becomes smaller once it is
    compressed, and nothing faster.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    needs_recovery: ClassVar[bool] = True
    shares_values: ClassVar[bool] = True

    clusters: int = 16
    granularity: PerTensor | PerChannel | PerBlock = field(default_factory=PerTensor)
    initial: LinearCentroids | DensityCentroids | KMeansPlusPlus = field(default_factory=LinearCentroids)
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        check_count(self.clusters, "clusters counts the different values of a codebook", least=2)
        if isinstance(self.granularity, PerBlock) and self.clusters >= self.granularity.size:
            raise ValueError(
                f"clusters counts the different values of a codebook, fewer than the weights that share it; got "
                f"clusters={self.clusters} for blocks of {self.granularity.size}; lower clusters or raise size"
            )
        check_globs(self.layers, "layers", least=1)
        check_globs(self.ignore, "ignore")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The model with shared weights. Raises StageError, with the reasons, where no layer can share any."""
        check_modules_match("layers", self.layers, model, context.began_with(workload))
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        fold_model_(model, workload, context, layers=self.layers, ignore=self.ignore)
        weights, left = sparse_weights(model, layers=self.layers, ignore=self.ignore)
        zeros = held_names([*context.plan_before, *context.plan])
        chosen = []
        for weight in weights:
            held = weight.name in zeros
            parts = self._parts(weight.parameter.detach())
            if not bool(weight.parameter.isfinite().all()):
                left[weight.layer] = "its weights are not finite"
            elif (most := max(_different(part, zeros=held) for part in parts)) <= self.clusters:
                left[weight.layer] = f"{self.clusters} values are too many for {most} different weights: none is shared"
            else:
                chosen.append(weight)
        context.tell(LockedLayers.of(left))
        if not chosen:
            reasons = told_reasons(left)
            raise StageError(
                f"no weights of {type(model).__name__} can share values: {reasons}; lower clusters, take larger "
                "codebooks (granularity=PerTensor()) or ignore fewer layers"
            )
        bar = progress_bar(chosen, desc="codebooks", unit="layer", shown=context.progress)
        counts = tuple(self._share_(weight, zeros=weight.name in zeros, seed=context.seed) for weight in bar)
        context.plan.append(clusters_entry([weight.name for weight in chosen]))
        context.tell(SharedValues(shared_by=repr(self), shared_values=counts))
        return model

    def _share_(self, weight: SparseWeight, *, zeros: bool, seed: int) -> ValueCount:
        """Gives `weight` itself its codebooks; with `zeros`, those that it has stay."""
        before = weight.parameter.detach().double()
        after = before.clone()
        for part in self._parts(after):
            # The parts are views of what they are parts of.
            free = _free(part, zeros=zeros)
            if _different(part, zeros=zeros) > self.clusters:
                part[free] = shared_values(part[free], self.clusters, self.initial, seed)
        weight.parameter.data.copy_(after.to(weight.parameter))
        power = float(before.square().mean())
        return ValueCount(
            layer=weight.name.removesuffix(".weight"),
            values=len(torch.unique(weight.parameter.detach())),
            of=weight.parameter.numel(),
            error=float((after - before).square().mean()) / power if power else 0.0,
        )

    def _parts(self, weight: Tensor) -> list[Tensor]:
        """Views of what shares a codebook."""
        if isinstance(self.granularity, PerTensor):
            return [weight]
        rows = list(weight.flatten(1).unbind())
        if isinstance(self.granularity, PerChannel):
            return rows
        return [block for row in rows for block in torch.split(row, self.granularity.size)]


def _free(part: Tensor, *, zeros: bool) -> Tensor:
    """Which weights of `part` take a value of the codebook: all, but for the zeros where those are held."""
    return part != 0 if zeros else torch.ones_like(part, dtype=torch.bool)


def _different(part: Tensor, *, zeros: bool) -> int:
    """How many different values those of them have."""
    return len(torch.unique(part[_free(part, zeros=zeros)]))
