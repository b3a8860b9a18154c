"""A model on its way to more zeros: its weights ranked as they are, and the lowest of them made zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.checks import check_calibrated, told_reasons
from compressor.errors import StageError
from compressor.pruning.constant_channels import read_inputs
from compressor.pruning.ranking.scope import PerLayer
from compressor.sparsity.layers import SparseWeight, sparse_weights
from compressor.sparsity.masks import Scope, kept_units
from compressor.sparsity.patterns import Blocks, Rows, SemiStructured, Unstructured
from compressor.sparsity.scores import Case, Score, copied
from compressor.sparsity.sparse_gpt import SparseGPT
from compressor.stage import Context
from compressor.structure.calling.shown import shown_by
from compressor.structure.graph import trace_structure
from compressor.structure.trials import evaluating
from compressor.workload import Workload, first_batches


@dataclass(kw_only=True)
class Sparsifying:
    """The weights of `model` that may get zeros, and by layer why others are `left` alone."""

    model: nn.Module
    workload: Workload
    context: Context
    pattern: Unstructured | Rows | Blocks | SemiStructured
    score: Score | SparseGPT
    scope: Scope
    layers: Sequence[str]
    ignore: Sequence[str]
    weights: list[SparseWeight] = field(init=False)
    left: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        found, self.left = sparse_weights(self.model, layers=self.layers, ignore=self.ignore)
        self.weights = []
        judged = self._making_outputs() if isinstance(self.pattern, Rows) else frozenset[str]()
        for weight in found:
            output = "its rows make the model's output" if weight.name in judged else None
            reason = output or self.pattern.unfit(weight) or self.score.unfit(weight)
            if reason is None:
                self.weights.append(weight)
            else:
                self.left[weight.layer] = reason
        if isinstance(self.pattern, Rows):
            norms = self._norms()
            self.weights = [weight.with_constants(self.model, norms.get(weight.layer)) for weight in self.weights]

    def names(self) -> list[str]:
        """The tensors whose zeros are meant from here on.

        Constants that have zeros of their own, as fresh biases have, are left out: those were not made by anybody.
        """
        own = {name: one for weight in self.weights for name, one in weight.constants.items()}
        return [
            *(weight.name for weight in self.weights),
            *(name for name, one in own.items() if bool((one != 0).all())),
        ]

    def require_some(self, sparsity: float) -> None:
        """Raises StageError, with the reasons, where `sparsity` makes no weight zero."""
        reasons = told_reasons(self.left)
        if not self.weights:
            raise StageError(
                f"no weight of {type(self.model).__name__} fits {self.pattern!r} and {self.score!r}: {reasons}; take "
                "another pattern, another score or other layers"
            )
        if isinstance(self.pattern, SemiStructured):
            return
        sizes = self._sizes(self.pattern)
        total = sum(int(size.sum()) for size in sizes.values())
        smallest = min(int(size.min()) for size in sizes.values())
        if round(sparsity * total) < smallest:
            raise StageError(
                f"sparsity={sparsity:g} of {total} weights makes none of them zero: the smallest unit of "
                f"{self.pattern!r} has {smallest}; raise sparsity"
            )

    def sparsify_(self, sparsity: float) -> None:
        """Makes weights zero until they are the part `sparsity` of all, those first that are zero already."""
        if isinstance(self.score, SparseGPT):
            self._reconstruct_(self.score, sparsity)
            return
        masks = self._masks(self.score, sparsity)
        for weight in self.weights:
            weight.zero_(masks[weight.name])

    def layer_masks(self, sparsities: Mapping[str, float]) -> dict[str, Tensor]:
        """Which elements of each weight stay where each has the part of `sparsities`, by name, at zero.

        The scores are those of the model as it is. Score and pattern rank within a layer: neither SparseGPT nor
        SemiStructured.
        """
        score, pattern = self.score, self.pattern
        assert not isinstance(score, SparseGPT)
        assert not isinstance(pattern, SemiStructured)
        units, sizes = self._units(score, pattern), self._sizes(pattern)
        kept = {
            name: kept_units({name: values}, sizes, sparsities[name], PerLayer())[name]
            for name, values in units.items()
        }
        return self._elements(pattern, kept)

    def _reconstruct_(self, method: SparseGPT, sparsity: float) -> None:
        batches = first_batches(self.workload.calibration, method.batches)
        check_calibrated(batches)
        self._leave(
            method.sparsify_(
                self.model,
                self.weights,
                batches,
                sparsity=sparsity,
                of=self.pattern.m if isinstance(self.pattern, SemiStructured) else None,
                progress=self.context.progress,
            )
        )

    def _leave(self, weights: Sequence[SparseWeight]) -> None:
        """Leaves `weights` whole. Raises StageError where no other is left."""
        self.left.update(
            {weight.layer: "data reaches no call of it, so that nothing is known of it" for weight in weights}
        )
        names = {weight.name for weight in weights}
        self.weights[:] = [weight for weight in self.weights if weight.name not in names]
        if not self.weights:
            raise StageError(
                f"no data reaches the weights of {type(self.model).__name__}; give other data or a score by weights"
            )

    def _masks(self, score: Score, sparsity: float) -> dict[str, Tensor]:
        """Which elements of each weight stay at `sparsity`, by name, of its shape."""
        pattern = self.pattern
        if isinstance(pattern, SemiStructured):
            scores, share = self._scores(score), sparsity / pattern.sparsity
            # What is zero stays zero, whatever its score is.
            live = {weight.name: scores[weight.name].masked_fill(_zeros(weight), -torch.inf) for weight in self.weights}
            return {w.name: w.as_weight(pattern.kept(w.arranged(live[w.name]), share)) for w in self.weights}
        return self._elements(
            pattern, kept_units(self._units(score, pattern), self._sizes(pattern), sparsity, self.scope)
        )

    def _units(self, score: Score, pattern: Unstructured | Rows | Blocks) -> dict[str, Tensor]:
        """The score of every unit, by the weight's name, (outputs, units); those that are zero are the least."""
        scores, units = self._scores(score), {}
        for weight in self.weights:
            values = pattern.units(weight.arranged(scores[weight.name]).double())
            gone = pattern.units(weight.arranged(_zeros(weight)).double()) == 1
            units[weight.name] = values.masked_fill(gone, -torch.inf)
        return units

    def _elements(self, pattern: Unstructured | Rows | Blocks, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            weight.name: weight.as_weight(pattern.elements(kept[weight.name], weight.arranged(weight.parameter).shape))
            for weight in self.weights
        }

    def _scores(self, score: Score) -> dict[str, Tensor]:
        """The score of every element, by the weight's name, on the CPU."""
        case = Case(model=self.model, weights=self.weights, workload=self.workload, context=self.context)
        # Scores run the model, which may be in the middle of a training.
        found = score.scores(case if score.by_weights else copied(case))
        self._leave([weight for weight in self.weights if weight.name not in found])
        return {name: values.detach().cpu() for name, values in found.items()}

    def _sizes(self, pattern: Unstructured | Rows | Blocks) -> dict[str, Tensor]:
        """How many elements each unit has, by the weight's name, (outputs, units)."""
        sizes = {}
        for weight in self.weights:
            shape = weight.arranged(weight.parameter).shape
            units = pattern.units(torch.zeros(shape))
            numbers = torch.arange(units.numel()).reshape(units.shape)
            sizes[weight.name] = torch.bincount(
                pattern.elements(numbers, shape).flatten(), minlength=units.numel()
            ).reshape(units.shape)
        return sizes

    def _norms(self) -> dict[str, str]:
        """By layer the batch normalization that is given its very output."""
        with evaluating(self.model):
            return read_inputs(self.model, self.workload.example_inputs).norm_after

    def _making_outputs(self) -> frozenset[str]:
        """The names of the weights whose outputs are those of the model."""
        with evaluating(self.model):
            groups = trace_structure(self.model, shown_by(self.workload), settled=False).groups
        parts = [part for group in groups if group.makes_output for part in group.parts if part.makes]
        return frozenset(name for part in parts for name, _ in part.tensors)


def _zeros(weight: SparseWeight) -> Tensor:
    return weight.parameter.detach().cpu() == 0
