"""What each way to shrink a network loses, measured: the loss with a block skipped, or with channels at zero."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from compressor.batches import Batch
from compressor.progress.bars import progress_bar
from compressor.pruning.choice.costs import block_key
from compressor.pruning.choice.knapsack_choice import Choice, Item, State
from compressor.pruning.choice.loss_probe import batch_statistics, loss_of, masked
from compressor.pruning.choice.width_choice import removed_importance, width_options
from compressor.pruning.narrowing import gone_channels
from compressor.structure.blocks import Block, skipped
from compressor.structure.couplings import Coupled
from compressor.workload import Loss

# A group's loss is measured at so many of its widths; between them it follows the importance that is removed.
_MEASURED_WIDTHS = 4
# What a network that gives no number any more loses.
_BROKEN = 1e6


class StructureLosses:
    """The measured loss of every block and width of `model`, which is in eval mode and stays as it is.

    Batch normalization takes the statistics of each batch of `data` meanwhile, as if it had been re-estimated. `groups`
    are those that may be narrowed, to multiples of `align` (by name), the channels of the least `scores` first, and
    `blocks` those that may go. A group that lies within one block is decided with it.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Coupled],
        blocks: Mapping[str, Block],
        *,
        scores: Mapping[str, Tensor],
        align: Mapping[str, int],
        data: list[Batch],
        loss: Loss,
        progress: bool = False,
    ) -> None:
        self._model, self._data, self._loss, self._progress = model, data, loss, progress
        self.groups, self.blocks, self._scores = tuple(groups), dict(blocks), scores
        self._options = {group.name: width_options(group.width, align[group.name]) for group in groups}
        self._inside: dict[str, list[Coupled]] = {name: [] for name in blocks}
        self._outside: list[Coupled] = []
        for group in groups:
            home = next((name for name in blocks if _within(group, name)), None)
            (self._outside if home is None else self._inside[home]).append(group)
        self._known: dict[tuple[tuple[str, int], ...], float] = {}

    @property
    def whole(self) -> dict[str, int]:
        """The state with everything in it."""
        return {group.name: group.width for group in self.groups} | {block_key(name): 1 for name in self.blocks}

    def standing(self, state: State) -> tuple[Coupled, ...]:
        """The groups that are not inside of a block that goes in `state`."""
        lost = {id(group) for name, inside in self._inside.items() if not state[block_key(name)] for group in inside}
        return tuple(group for group in self.groups if id(group) not in lost)

    def of(self, state: State) -> float:
        """The mean loss over the data in `state`."""
        key = self._key(state)
        if key not in self._known:
            widths = {group.name: state[group.name] for group in self.groups}
            gone = {name: block for name, block in self.blocks.items() if not state[block_key(name)]}
            cut = gone_channels(self.groups, self._scores, widths)
            # Masks first: what is skipped cannot be found by its name.
            with masked(self._model, cut), skipped(self._model, gone), batch_statistics(self._model):
                value = loss_of(self._model, self._data, self._loss)
            self._known[key] = value if math.isfinite(value) else _BROKEN
        return self._known[key]

    def asked(self, state: State) -> list[dict[str, int]]:
        """The states whose losses `items` goes by, each once, in its order, for those who measure them one by one."""
        here = dict(state)
        found = [here]
        for name, inside in self._inside.items():
            standing = here | {block_key(name): 1}
            found += [standing, here | {block_key(name): 0}]
            found += [narrower for group in inside for narrower in self._narrower(group, standing)]
        found += [narrower for group in self._outside for narrower in self._narrower(group, here)]
        return list({self._key(each): each for each in found}.values())

    def knows(self, state: State) -> bool:
        """Whether the loss in `state` was measured, or said by `remember`."""
        return self._key(state) in self._known

    def remember(self, state: State, loss: float) -> None:
        """Takes `loss` for that of `state`, as it was measured before."""
        self._known[self._key(state)] = loss

    def items(self, state: State, label: str = "measuring losses") -> list[Item]:
        """What can be decided, each choice with the loss it adds when everything else is as in `state`."""
        here = dict(state)
        jobs = [(name, inside) for name, inside in self._inside.items()]
        probes = sum(min(_MEASURED_WIDTHS, len(self._options[group.name])) for group in self.groups) + len(jobs)
        found = []
        with progress_bar(total=probes, desc=label, unit="probe", shown=self._progress) as bar:
            now = self.of(here)
            for name, inside in jobs:
                standing = here | {block_key(name): 1}
                base = self.of(standing)
                dropped = self.of(here | {block_key(name): 0})
                bar.update()
                found.append(
                    Item(
                        parts=tuple(self._choices(group, standing, base, bar) for group in inside),
                        kept=Choice(changes={block_key(name): 1}, loss=base - now),
                        dropped=Choice(changes={block_key(name): 0}, loss=max(dropped, base) - now),
                    )
                )
            found += [Item(parts=(self._choices(group, here, now, bar),)) for group in self._outside]
        return self._never_free(found)

    def _choices(self, group: Coupled, state: State, base: float, bar: Any) -> tuple[Choice, ...]:
        options = self._options[group.name]
        places, measured = self._places(group, state), []
        for place, narrower in zip(places, self._narrower(group, state), strict=True):
            measured.append(self.of(narrower) - base)
            bar.update(place > 0)
        removed = [removed_importance(self._scores[group.name], width) for width in options]
        # Where scores are all alike, importance is the number of channels.
        axis = removed if removed[-1] > 0 else [float(group.width - width) for width in options]
        losses = np.interp(axis, [axis[place] for place in places], measured)
        return tuple(
            Choice(changes={group.name: width}, loss=float(value)) for width, value in zip(options, losses, strict=True)
        )

    def _places(self, group: Coupled, state: State) -> list[int]:
        """Which of the widths of `group` are measured: some, evenly spread, and the one at hand."""
        options = self._options[group.name]
        spread = np.linspace(0, len(options) - 1, min(_MEASURED_WIDTHS + 1, len(options))).round().astype(int)
        return sorted({*spread.tolist(), options.index(state[group.name])})

    def _narrower(self, group: Coupled, state: State) -> list[dict[str, int]]:
        options = self._options[group.name]
        return [{**state, group.name: options[place]} for place in self._places(group, state)]

    def _never_free(self, items: list[Item]) -> list[Item]:
        """`items`, where taking all of one away loses a tenth of the mean loss more, and a part of it a part of that.

        Each change alone may lose nothing, and all of them together much.
        """
        losses = [choice.loss for item in items for part in (*item.parts, _ends(item)) for choice in part]
        price = 0.1 * sum(max(loss, 0.0) for loss in losses) / max(len(losses), 1)
        widths = self.whole

        def priced(choice: Choice) -> Choice:
            gone = sum(1 - value / widths[name] for name, value in choice.changes.items())
            return replace(choice, loss=choice.loss + price * gone)

        return [
            Item(
                parts=tuple(tuple(map(priced, part)) for part in item.parts),
                kept=item.kept,
                # As much as the narrowest of everything inside, at least.
                dropped=None
                if item.dropped is None
                else replace(item.dropped, loss=item.dropped.loss + price * max(1, len(item.parts))),
            )
            for item in items
        ]

    def _key(self, state: State) -> tuple[tuple[str, int], ...]:
        # What a block that is gone would have been like does not matter.
        lost = {group.name for group in self.groups} - {group.name for group in self.standing(state)}
        return tuple(sorted((name, value) for name, value in state.items() if name not in lost))


def _ends(item: Item) -> tuple[Choice, ...]:
    return tuple(choice for choice in (item.kept, item.dropped) if choice is not None)


def _within(group: Coupled, block: str) -> bool:
    return all(part.module.startswith(f"{block}.") for part in group.parts)
