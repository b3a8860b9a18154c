"""Layer pruning: blocks whose output has their input's shape become identity, those that matter least first.

Removing whole blocks turns multiplications saved into time saved one to one, which narrowing layers does not.
Men et al. 2024, "ShortGPT", arXiv:2403.03853 (block influence).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.batches import Batch
from compressor.checks import check_count, check_fraction, check_globs, check_kinds, one_of
from compressor.errors import StageError
from compressor.notes import structure as notes
from compressor.progress.bars import progress_bar
from compressor.pruning.choice.loss_probe import loss_increases
from compressor.pruning.narrowing import fold_model_
from compressor.pruning.ranking.criteria import Random
from compressor.pruning.ranking.scope import Global, PerGroup
from compressor.stage import Context, Effect
from compressor.structure.blocks import (
    Block,
    can_drop_blocks,
    entries_without,
    fault_without_blocks,
    find_blocks,
    skipped,
)
from compressor.structure.calling.hooks import hooks
from compressor.structure.calling.shown import shown_by
from compressor.structure.graph import can_lose_channels
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.recurrent_layers import layer_activations, plain, stack_and_layer
from compressor.structure.trials import evaluating, outputs_at
from compressor.training.passes.threads import Threads, ranking
from compressor.workload import Loss, Workload, first_batches, free_axes, predict


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Ranks by block influence: one minus the mean cosine similarity of a block's input and output."""


@dataclass(frozen=True, kw_only=True)
class LossIncrease:
    """Ranks by how much the loss grows without the block.

    Batch normalization uses the statistics of the batch meanwhile, as if it had been re-estimated: with the statistics
    of the whole network the loss mostly tells how wrong they have become. ResNet-56 on CIFAR-10 cut to 2, 3 and 3
    blocks, statistics re-estimated, nothing trained, every block measured in every round on one batch of 256 images:
    41.8 % accuracy this way, 23.9 % with running statistics, 38.3 % by influence.
    """


def block_influence(inputs: Tensor, outputs: Tensor) -> Tensor:
    """One minus the cosine similarity of each sample's input and output, (batch,), in [0, 2].

    `inputs` and `outputs` are (batch, ...) of the same shape. Men et al. 2024, arXiv:2403.03853, eq. 1, with a sample's
    whole activation as the vector.
    """
    return 1 - nn.functional.cosine_similarity(inputs.flatten(1).double(), outputs.flatten(1).double(), dim=1)


def drop_count(count: int, remove: float) -> int:
    """How many of `count` blocks the fraction `remove` is, halves rounded up."""
    return math.floor(count * remove + 0.5)


@dataclass(frozen=True, kw_only=True)
class DropBlocks:
    """Replaces the fraction `remove`, in [0, 1), of the droppable blocks by identity.

    A block is a module that holds at least two layers with parameters, runs exactly once per call and hands back a
    tensor of the shape and type of its first argument. Where blocks are nested, a chain of blocks counts as its members
    and everything else as its outermost module. Recurrent layers are blocks, too, alone or in a stack, where their
    input is as wide as their output: the second layer of the stack `rnn` is called `rnn.layers.1`, and the module keeps
    those that are left. `blocks` are globs of the names that may go. `batches` calibration batches decide the ranking,
    and after every removal the remaining blocks are ranked again. Training has to follow. `rank_by` says
    by which score blocks go, and `scope` among which others each is compared: a group, in the scope PerGroup, are the
    blocks of one class and one activation shape.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    remove: float
    rank_by: Influence | LossIncrease | Random = field(default_factory=LossIncrease)
    scope: PerGroup | Global = field(default_factory=PerGroup)
    blocks: tuple[str, ...] = ("*",)
    batches: int = 8

    def __post_init__(self) -> None:
        check_kinds(self)
        check_fraction(self.remove, "remove is the fraction of the blocks that goes")
        check_globs(self.blocks, "blocks", least=1)
        check_count(self.batches, "batches counts the calibration batches used for ranking")

    def by_chance(self) -> "DropBlocks":
        """As many blocks of each group, drawn at random."""
        return replace(self, rank_by=Random())

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """`model` with the least important blocks replaced by identity. Raises StageError where there is none."""
        check_modules_match("blocks", self.blocks, model, context.began_with(workload))
        data = first_batches(workload.calibration, self.batches)
        example = workload.example_inputs
        stacks = tuple(name for name, part in model.named_modules() if isinstance(part, nn.RNNBase))
        with evaluating(model), ranking() as threads:
            # The layers of a stack go with their weights, which have to be there; other blocks go as they are.
            fold_model_(model, workload, context, layers=stacks)
            try:
                found = find_blocks(model, example, self.blocks, free=free_axes(workload))
            except StageError as error:
                raise StageError(f"{error.sentence}; {_instead(model, workload, self.blocks)}") from error
            wanted = outputs_at(model, example)

            def fault_without(names: list[str]) -> str | None:
                return fault_without_blocks(model, {name: found[name] for name in names}, example, wanted)

            trying = progress_bar(found, desc="trying blocks", unit="block", shown=context.progress)
            locked = {name: reason for name in trying if (reason := fault_without([name])) is not None}
            free = {name: block for name, block in found.items() if name not in locked}
            quota = self._quota(free, locked, model, workload)
            with progress_bar(desc="ranking blocks", total=0, shown=context.progress) as bar:
                drawn = _drawn(free, context.seed) if self.rank_by == Random() else None
                scores, dropped = self._rank(
                    model, free, quota, data, loss=workload.loss, threads=threads, bar=bar, drawn=drawn
                )
            dropped = _together(dropped, fault_without, locked)
        for entry, names in entries_without(model, {name: found[name] for name in found if name in dropped}):
            entry["why"] = {"criterion": repr(self.rank_by), "scores": {name: _short(scores[name]) for name in names}}
            context.plan.append(entry)
            apply_plan_(model, [entry])
        blocks = tuple(
            notes.Block(block=name, group=found[name].group, score=_short(score), kept=name not in dropped)
            for name, score in scores.items()
        )
        context.tell(notes.Blocks(blocks=blocks, dropped_in_order=tuple(dropped)))
        context.tell(notes.LockedLayers.of(locked))
        return model

    def _quota(
        self, droppable: dict[str, Block], locked: dict[str, str], model: nn.Module, workload: Workload
    ) -> dict[str, int]:
        groups: dict[str, int] = {}
        for block in droppable.values():
            key = self._group(block)
            groups[key] = groups.get(key, 0) + 1
        quota = {group: drop_count(count, self.remove) for group, count in groups.items()}
        if sum(quota.values()) == 0:
            reasons = "".join(f"; {name} is locked: {reason}" for name, reason in locked.items())
            if not groups:
                way_out = _instead(model, workload, self.blocks)
                raise StageError(f"no block of the model can be dropped{reasons}; {way_out}")
            way_out = one_of({"raise remove": True, "use scope=Global()": len(groups) > 1})
            raise StageError(f"remove={self.remove} of {groups} rounds to no block{reasons}; {way_out}")
        return quota

    def _group(self, block: Block) -> str:
        return block.group if self.scope == PerGroup() else "all"

    def _rank(
        self,
        model: nn.Module,
        free: dict[str, Block],
        quota: dict[str, int],
        data: list[Batch],
        *,
        loss: Loss,
        threads: Threads,
        bar: Any,
        drawn: dict[str, float] | None,
    ) -> tuple[dict[str, float], list[str]]:
        """The score of each block when it was last judged, and the blocks to drop in order; `bar` counts losses.

        `drawn` are scores that chance gave already.
        """
        left, gone, scores = dict(quota), dict[str, Block](), dict[str, float]()
        while pool := {name: b for name, b in free.items() if name not in gone and left[self._group(b)] > 0}:
            # Every round has a block less; a group that has lost its share is out before.
            rounds = range(len(pool), len(pool) - sum(left.values()), -1)
            bar.total = bar.n + sum(rounds) * len(data)
            with skipped(model, gone):
                if drawn is not None:
                    scores |= drawn
                elif self.rank_by == Influence():
                    standing = {name: free[name] for name in free if name not in gone}
                    scores |= measure_influence(model, standing, threads.timed(data))
                    bar.update(len(pool) * len(data))
                else:
                    scores |= loss_increases(model, pool, data, loss, threads=threads, step=bar.update)
            least = min(pool, key=lambda name: _rank_key(scores[name]))
            gone[least] = free[least]
            left[self._group(free[least])] -= 1
        return scores, list(gone)


def _drawn(blocks: Collection[str], seed: int) -> dict[str, float]:
    """A score for every block by chance."""
    generator = torch.Generator().manual_seed(seed)
    return dict(zip(blocks, torch.rand(len(blocks), generator=generator, dtype=torch.float64).tolist(), strict=True))


def _instead(model: nn.Module, workload: Workload, globs: tuple[str, ...]) -> str:
    """What is left to do with a model that loses no block of those that `globs` name."""
    others = globs != ("*",) and can_drop_blocks(model, workload.example_inputs, free=free_axes(workload))
    return one_of(
        {
            "name other blocks": others,
            "prune channels": not others and can_lose_channels(model, shown_by(workload)),
            "quantize instead": True,
        }
    )


def _rank_key(score: float) -> tuple[bool, float]:
    # A score that is not a number is worse than any other.
    return math.isnan(score), score


def _together(
    dropped: list[str], fault_without: Callable[[list[str]], str | None], locked: dict[str, str]
) -> list[str]:
    """The blocks that the model can do without all at once; each alone was tried before, so this mostly is all."""
    if fault_without(dropped) is None:
        return dropped
    settled: list[str] = []
    for name in dropped:
        reason = fault_without([*settled, name])
        if reason is None:
            settled.append(name)
        else:
            locked[name] = reason
    return settled


def measure_influence(model: nn.Module, blocks: Mapping[str, Block], data: list[Batch]) -> dict[str, float]:
    """The mean influence of each block of `model`, in eval mode, over the samples of `data`."""
    rows: dict[str, list[Tensor]] = {name: [] for name in blocks}
    with hooks() as handles, torch.no_grad():
        for name, block in blocks.items():
            handles.extend(_influence_hooks(model, name, block, rows[name]))
        for inputs, _ in data:
            predict(model, inputs)
    return {name: float(torch.cat(values).mean()) for name, values in rows.items()}


def _short(value: float) -> float | None:
    """`value` to four significant digits; None where it is not finite, for JSON has no word for it."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _influence_hooks(model: nn.Module, name: str, block: Block, row: list[Tensor]) -> list[RemovableHandle]:
    """Hooks that add the influence of `block` on the samples of every call to `row`."""
    if block.in_stack:
        stack, layer = stack_and_layer(name)

        def look(stack: Any, args: tuple[Any, ...], _: Any) -> None:
            row.append(block_influence(*layer_activations(stack, args)[layer]))

        return [model.get_submodule(stack).register_forward_hook(look)]
    given: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        # A block may start with an in-place operation on what it was given.
        given.append(plain(args[0]).clone())

    def compare(_: nn.Module, _args: Any, output: Any) -> None:
        made = plain(output[0] if isinstance(output, tuple) else output)
        row.append(block_influence(given.pop(), made))

    module = model.get_submodule(name)
    return [module.register_forward_pre_hook(keep), module.register_forward_hook(compare)]
