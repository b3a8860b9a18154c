"""Low rank: layers become chains of thinner ones, whose product is as near to their weight as the rank allows.

Linear layers and 1x1 convolutions by truncated singular values (Denton et al. 2014, arXiv:1404.0736; Xue et al. 2013),
kernels as separable ones (Jaderberg et al. 2014, arXiv:1405.3866), by Tucker-2 (Kim et al. 2016, arXiv:1511.06530) or
as a sum of outer products (CP: Lebedev et al. 2015, arXiv:1412.6553).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import nn

from compressor.checks import check_calibrated, check_count, check_globs, check_kinds, one_of, told_reasons
from compressor.errors import BudgetError, StageError
from compressor.latency.operators import Operator
from compressor.low_rank import choice
from compressor.low_rank.candidates import Candidate
from compressor.low_rank.choice import Choice, Decomposed
from compressor.low_rank.decompositions import Whitening
from compressor.low_rank.layers import Layer, Layers, changing, find_layers, input_moments
from compressor.low_rank.settings import (
    BestWay,
    Canonical,
    Channelwise,
    Energy,
    OutputError,
    Rank,
    Spatial,
    Tucker,
    WeightError,
)
from compressor.notes.structure import FactorizedLayer, FactorizedLayers, LockedLayers
from compressor.progress.bars import progress_bar
from compressor.pruning.choice.goals import Goal, LatencyGoal, goal_of, out_of_reach
from compressor.pruning.choice.measured_choice import Proposal, measured_choice
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.narrowing import prepare_model_, project_model_
from compressor.stage import Context, Effect
from compressor.structure.factored.chains import CP, full_ranks, put_
from compressor.structure.plan import Entry
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.trials import evaluating, fault, outputs_at
from compressor.training.held_values import clustered_names
from compressor.training.held_zeros import held_names
from compressor.workload import Workload, first_batches, resize_batch


@dataclass(frozen=True, kw_only=True)
class FactorizeLayers:
    """Puts chains of two or three thinner layers in the place of linear layers and convolutions.

    `target` says how much goes: a rank for every layer, the energy that each keeps, or what is to be left of the whole
    model's milliseconds, multiply-accumulates or parameters. For the last three the growth of the calibration loss
    decides which layers give how much; a layer that no chain makes cheaper in that unit stays whole, and the choice is
    built, measured and made once more where the prediction was off. `kernels` says how convolutions are taken apart,
    `near` what the chains come near to. Ranks are multiples of `align` (None: what the target's kernels are built for;
    1: any). Layers that match a glob of `ignore`, grouped and depthwise ones, and whatever the model does not survive
    stay whole, with the reason. Losses are measured on `batches` calibration batches. Training should follow.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    target: Energy | Rank | Latency | Macs | Parameters = field(default_factory=Energy)
    kernels: BestWay | Canonical | Channelwise | Spatial | Tucker = field(default_factory=BestWay)
    near: OutputError | WeightError = field(default_factory=OutputError)
    align: int | None = None
    ignore: tuple[str, ...] = ()
    batches: int = 4

    def __post_init__(self) -> None:
        check_kinds(self)
        if isinstance(self.target, Macs) and self.target.efficiency is not None:
            raise ValueError(
                f"FactorizeLayers takes no efficiency, got {self.target!r}; write Macs({self.target.fraction}) or "
                f"Latency({self.target.fraction})"
            )
        check_globs(self.ignore, "ignore")
        if self.align is not None:
            check_count(self.align, "align is what ranks are multiples of", way_out="1 rounds nothing")
        check_count(self.batches, "batches counts the calibration batches that losses are measured on")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The model with chains. Raises StageError, with the reason for every layer, where none can be factorised."""
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        with evaluating(model):
            goal = None
            if isinstance(self.target, Latency | Macs | Parameters):
                goal = goal_of(self.target, model, workload, context)
            prepare_model_(model, workload, context, ignore=self.ignore)
            plan = [*context.plan_before, *context.plan]
            held = {*held_names(plan), *clustered_names(plan)}
            # Tensors that are held keep their names.
            owners = tuple(name.rpartition(".")[0] for name in sorted(held))
            project_model_(model, workload, context, ignore=(*self.ignore, *owners))
            search = _Search(self, model, workload, context, held)
            chosen = search.by_layer() if goal is None else search.towards(goal)
            entries = search.entries(chosen)
            wanted = outputs_at(model, workload.example_inputs)
            for name, candidate in chosen.items():
                layer = model.get_submodule(name)
                put_(model, layer, search.found[name].chain(layer, candidate))
            reason = fault(model, workload.example_inputs, wanted)
            if reason is not None:
                raise StageError(f"with its layers factorised the model does not work: {reason}")
        context.plan.extend(entries)
        context.tell(search.note(chosen))
        context.tell(LockedLayers.of(search.reasons(chosen)))
        return model


class _Search:
    """What can be factorised, how, at which rank, and at which cost."""

    def __init__(
        self, stage: FactorizeLayers, model: nn.Module, workload: Workload, context: Context, held: set[str]
    ) -> None:
        self.stage, self.model, self.workload, self.context = stage, model, workload, context
        self.found: dict[str, Decomposed] = {}
        timed = resize_batch(workload.example_inputs, context.target.batch_size)
        self.layers: Layers = find_layers(model, workload.example_inputs, timed, ignore=stage.ignore, held=held)
        if not self.layers.free:
            raise self._nothing()
        allowed: tuple[str, ...] = stage.kernels.ways
        if isinstance(stage.target, Rank):
            if isinstance(stage.kernels, BestWay):
                allowed = tuple(by for by in allowed if by != CP)
            low = choice.too_low(self.layers.free, allowed, stage.target)
            self.layers = self.layers.without(low)
        whitenings = self._whitenings()
        bar = progress_bar(self.layers.free, desc="taking layers apart", unit="layer", shown=context.progress)
        self.found = {layer.name: choice.take_apart(model, layer, allowed, whitenings.get(layer.name)) for layer in bar}

    def by_layer(self) -> dict[str, Candidate]:
        """The chain of each layer by its own error or the rank that is given."""
        target, chosen = self.stage.target, dict[str, Candidate]()
        bar = progress_bar(self.found.items(), desc="ranks", unit="layer", shown=self.context.progress)
        for name, found in bar:
            if isinstance(target, Energy):
                best = choice.by_energy(found, target, self._align(found.layer))
            else:
                assert isinstance(target, Rank)  # the others have a goal
                best = choice.by_rank(found, target)
            if best is not None:
                chosen[name] = best
        if not chosen:
            raise self._nothing()
        return chosen

    def towards(self, goal: Goal) -> dict[str, Candidate]:
        """The chains that bring the model within the goal for the least loss, built and measured."""
        target = self.stage.target
        assert isinstance(target, Latency | Macs | Parameters)  # the others have no goal
        everything = list(self.found.values())
        changes = choice.find_candidates_(everything, self._align, self._savings(goal), goal.unit)
        standing = [found for found in everything if found.candidates]
        if not standing:
            raise self._nothing()
        data = first_batches(self.workload.calibration, self.stage.batches)
        check_calibrated(data)
        losses = choice.measured_losses(self.model, standing, data, self.workload.loss, progress=self.context.progress)
        options = Choice(found=standing, losses=losses, changes=changes)

        def propose(limit: float) -> Proposal:
            try:
                chosen, saved = options.within(goal.start - limit)
            except BudgetError as error:
                left = BudgetError(limit, goal.start + error.least)
                raise out_of_reach(
                    target,
                    goal,
                    limit,
                    left,
                    least="every layer at its least rank",
                    locked=self._locked(),
                    way_out=one_of({"raise the target": True, "set a smaller align": self._is_coarse()}),
                ) from error
            state = {
                found.layer.name: found.candidates.index(chosen[found.layer.name]) + 1
                for found in standing
                if found.layer.name in chosen
            }
            return Proposal(entries=self.entries(chosen), state=state, predicted=goal.start - saved)

        taken = measured_choice(goal, target, self.model, propose, self.context.tell)
        return {name: self.found[name].candidates[number - 1] for name, number in taken.state.items()}

    def entries(self, chosen: choice.Chosen) -> list[Entry]:
        """The plan entry of what was chosen."""
        layers = {
            name: {"by": one.by, "ranks": list(one.ranks), "shape": list(self.found[name].layer.shape)}
            for name, one in chosen.items()
        }
        errors = {name: float(f"{one.error:.4g}") for name, one in chosen.items()}
        return [{"kind": "factor", "layers": layers, "why": {"target": repr(self.stage.target), "errors": errors}}]

    def note(self, chosen: choice.Chosen) -> FactorizedLayers:
        """What the report is told of the layers that became chains."""
        return FactorizedLayers(
            factorized=tuple(
                FactorizedLayer(
                    layer=name,
                    by=one.by,
                    ranks=one.ranks,
                    full_ranks=full_ranks(self.found[name].layer.shape, one.by),
                    error=float(f"{one.error:.4g}"),
                    before=self.found[name].layer.parameters,
                    after=one.parameters,
                )
                for name, one in chosen.items()
            )
        )

    def reasons(self, chosen: choice.Chosen) -> dict[str, str]:
        """Why the layers that are not chosen stay whole."""
        rest = {
            name: "what it would lose is worth more than what it would save"
            for name, found in self.found.items()
            if name not in chosen and not found.whole
        }
        return self._whole() | rest

    def _whole(self) -> dict[str, str]:
        return self.layers.locked | {name: found.whole for name, found in self.found.items() if found.whole}

    def _locked(self) -> str:
        return told_reasons(self._whole())

    def _nothing(self) -> StageError:
        return StageError(
            f"no layer of {type(self.model).__name__} can be factorised with target={self.stage.target!r}"
            f"{': ' + self._locked() if self._whole() else ', for it has no linear layer or convolution'}; "
            + one_of({"set a smaller align": self._is_coarse(), "prune channels or quantize instead": True})
        )

    def _is_coarse(self) -> bool:
        return any(self._align(layer) > 1 for layer in self.layers.free) and not isinstance(self.stage.target, Rank)

    def _align(self, layer: Layer) -> int:
        del layer
        if self.stage.align is not None:
            return self.stage.align
        multiple = self.context.target.channel_multiple
        integer = isinstance(self.stage.target, Latency) and self.stage.target.form == "int8"
        # Integer kernels have smaller steps.
        return max(1, multiple // 2) if integer else multiple

    def _whitenings(self) -> dict[str, Whitening | None]:
        if not isinstance(self.stage.near, OutputError):
            return {}
        data = first_batches(self.workload.calibration, self.stage.near.batches)
        check_calibrated(data)
        moments = input_moments(self.model, self.layers.free, data)
        return {name: Whitening.of(found) for name, found in moments.items()}

    def _savings(self, goal: Goal) -> choice.Savings:
        target = self.stage.target
        if isinstance(target, Parameters):
            return lambda found: [[float(one.parameters - layer.parameters) for one in every] for layer, every in found]
        if isinstance(goal, LatencyGoal):
            return partial(self._milliseconds, goal)
        batch = self.context.target.batch_size
        return lambda found: [[(one.macs - layer.macs) / batch for one in every] for layer, every in found]

    def _milliseconds(self, goal: LatencyGoal, found: Sequence[tuple[Layer, Sequence[Candidate]]]) -> list[list[float]]:
        """What each candidate changes, by the latency table."""
        whole = [operator for call in self.layers.calls for operator in call.operators]
        models: list[list[Operator]] = [whole]
        for layer, every in found:
            rest = [
                operator
                for call in self.layers.calls
                for operator in call.operators[len(changing(call)) if call.name == layer.name else 0 :]
            ]
            models += [[*rest, *one.operators] for one in every]
        before, *after = goal.times(models)
        changes = iter([ms - before for ms in after])
        return [[next(changes) for _ in every] for _, every in found]
