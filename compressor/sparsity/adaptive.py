"""A schedule that watches what training wins back, and gives each layer a stride of its own by it.

A step that recovers is kept and the next one goes further, where a layer did less harm than most; a step that does not
is undone, and the layers that did most harm go on in smaller steps. What a layer does by itself is measured before the
training, by the loss on validation data with its step alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from compressor.budget import judge_drop
from compressor.checks import check_count, check_fraction, check_positive
from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.notes.training import SparsityRound, SparsityRounds
from compressor.progress.bars import progress_bar
from compressor.pruning.choice.loss_probe import batch_statistics, loss_of
from compressor.sparsity.sparsifying import Sparsifying
from compressor.structure.trials import evaluating
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, OwnOptimizer
from compressor.training.passes.threads import ranking
from compressor.training.precision import AutoPrecision, BFloat16, Float32, Form
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import capture, restore_
from compressor.training.validation import validation_rows
from compressor.workload import first_batches

# Validation batches on which the harm of single layers is measured.
_BATCHES = 8
# What is left of the way to the aim, in weights, that is no step any more.
_ARRIVED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Steps that are as large as the model recovers from, layer by layer.

    In each of at most `rounds` (>= 1) a layer loses the part `stride`, in (0, 1), of the weights it has left; then the
    model trains for `epochs` (>= 1) by `optimizer`. Where validation is then within `max_drop` of the model
    before the first step, paired sample by sample, the step stays, and layers that did less harm than the median
    take `faster` (>= 1) times as much next; else it is undone, and those that did more go on at `slower`, in (0, 1).
    A layer whose stride falls below `least`, in (0, 1), is done. `precision` and `freeze` as in FineTune.
    """

    stride: float = 0.3
    rounds: int = 12
    max_drop: float = 0.01
    faster: float = 1.5
    slower: float = 0.5
    least: float = 0.02
    epochs: int = 1
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fraction(
            self.stride, "stride is the part of a layer's weights that goes in its first step", within="(0, 1)"
        )
        check_count(self.rounds, "rounds counts the steps that are tried")
        check_fraction(self.max_drop, "max_drop is a fraction (0.01 is one point of accuracy)")
        check_positive(self.faster, "faster is what strides are multiplied by after a step that stays")
        if self.faster < 1:
            raise ValueError(f"faster is at least 1, for strides do not shrink by success; got {self.faster}")
        check_fraction(
            self.slower, "slower is what strides are multiplied by after a step that is undone", within="(0, 1)"
        )
        check_fraction(self.least, "least is the stride that is not worth a training", within="(0, 1)")
        assert self.training  # it cannot be made of what describes none

    @property
    def training(self) -> TrainingSettings:
        """The training after a step."""
        return TrainingSettings(
            epochs=self.epochs, optimizer=self.optimizer, precision=self.precision, freeze=self.freeze
        )


def sparsify_adaptively_(work: Sparsifying, schedule: Adaptive, aim: float, *, identity: str) -> None:
    """Makes weights zero step by step until they are the part `aim`, or no layer can go on; told.

    Raises StageError where no step at all recovers.
    """
    search = _Search(work=work, schedule=schedule, aim=aim)
    before = search.rows()
    said: list[SparsityRound] = []
    for number in range(1, schedule.rounds + 1):
        wanted = search.next_sparsities()
        if not wanted:
            break
        harm = search.harms(wanted)
        start = capture(work.model)
        masks = work.layer_masks({**search.sparsity, **wanted})
        for weight in work.weights:
            weight.zero_(masks[weight.name])
        train(
            work.model,
            work.workload,
            schedule.training,
            context=work.context,
            label=f"adaptive step {number}",
            identity=identity,
        )
        drop = paired_drop(search.rows(), before, work.workload.metric, seed=work.context.seed)
        verdict = judge_drop(drop, schedule.max_drop, work.workload.metric)
        total = search.total({**search.sparsity, **wanted})
        said.append(SparsityRound(sparsity=total, kept=verdict.keep, says=verdict.reason))
        if not verdict.keep:
            restore_(work.model, start)
        search.learn(harm, recovered=verdict.keep)
    if not any(one.kept for one in said):
        tried = "; ".join(f"{one.sparsity:.3f}: {one.says}" for one in said)
        raise StageError(
            f"no step recovers within max_drop={schedule.max_drop:g} ({tried}); raise max_drop or epochs, or begin "
            "with a smaller stride"
        )
    layers = {weight.layer: round(search.sparsity[weight.name], 6) for weight in work.weights}
    work.context.tell(SparsityRounds(sparsity_rounds=tuple(said), layer_sparsity=layers))


@dataclass(kw_only=True)
class _Search:
    """How far every layer is, by the weight's name: its `sparsity`, and the `strides` of those that may go on."""

    work: Sparsifying
    schedule: Adaptive
    aim: float
    sparsity: dict[str, float] = field(init=False)
    strides: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.sparsity = self._zeros()
        self.strides = dict.fromkeys(self.sparsity, self.schedule.stride)

    def rows(self) -> Tensor:
        """The metric's rows of the model as it is, on validation data."""
        rows = validation_rows(self.work.model, self.work.workload, Form.of(self.work.model))
        if rows is None:
            raise StageError("the model's outputs on validation data are not numbers; look for NaN before this stage")
        return rows

    def total(self, sparsity: Mapping[str, float]) -> float:
        """The part of all weights that is zero where every layer has its `sparsity`."""
        sizes = {weight.name: weight.parameter.numel() for weight in self.work.weights}
        return sum(sparsity[name] * size for name, size in sizes.items()) / sum(sizes.values())

    def next_sparsities(self) -> dict[str, float]:
        """What the layers that may go on have after their next step, cut where all together pass the aim."""
        now = self.total(self.sparsity)
        if self.aim - now < _ARRIVED:
            return {}
        wanted = {name: self.sparsity[name] + own * (1 - self.sparsity[name]) for name, own in self.strides.items()}
        if not wanted:
            return {}
        after = self.total({**self.sparsity, **wanted})
        share = min(1.0, (self.aim - now) / max(after - now, 1e-12))
        return {name: self.sparsity[name] + share * (value - self.sparsity[name]) for name, value in wanted.items()}

    def harms(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """How much the loss on validation data grows by each layer's step alone, without training.

        The loss, for few samples change sides by one layer. Normalizations take the statistics of the batch, as they
        will have learned new ones by then.
        """
        work, harms = self.work, {}
        data = first_batches(work.workload.validation, _BATCHES)
        masks = work.layer_masks({**self.sparsity, **wanted})
        named = [weight for weight in work.weights if weight.name in wanted]
        with evaluating(work.model), batch_statistics(work.model), ranking() as threads:
            data = threads.timed(data)
            before = loss_of(work.model, data, work.workload.loss)
            for weight in progress_bar(named, desc="harm of layers", shown=work.context.progress):
                whole = [(one, one.detach().clone()) for one in (weight.parameter, *weight.constants.values())]
                weight.zero_(masks[weight.name])
                harms[weight.name] = loss_of(work.model, data, work.workload.loss) - before
                with torch.no_grad():
                    for parameter, values in whole:
                        parameter.copy_(values)
        return harms

    def learn(self, harms: Mapping[str, float], *, recovered: bool) -> None:
        """Takes over a step that `recovered`, and changes the strides by what each layer did."""
        middle = median(harms.values())
        if recovered:
            self.sparsity = self._zeros()
        for name, harm in harms.items():
            if recovered and harm <= middle:
                self.strides[name] = min(0.9, self.strides[name] * self.schedule.faster)
            elif not recovered and harm >= middle:
                self.strides[name] *= self.schedule.slower
        # Layers that no data reaches were left whole by their score, and did no harm that could be measured.
        self.strides = {name: own for name, own in self.strides.items() if name in harms and own >= self.schedule.least}

    def _zeros(self) -> dict[str, float]:
        return {weight.name: float((weight.parameter == 0).float().mean()) for weight in self.work.weights}
