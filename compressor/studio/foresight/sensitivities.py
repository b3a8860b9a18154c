"""What a model loses without each of its parts and without several at once: measured step by step, and kept on disk.

Channels are masked and blocks skipped, with the statistics of each batch for those of batch normalization; nothing is
trained. Data are of the validation set: a network knows its training data too well to miss anything there.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.batches import Batch
from compressor.errors import StorageError
from compressor.intervals import paired_drop
from compressor.pruning.choice.costs import block_key
from compressor.pruning.choice.knapsack_choice import Item, State
from compressor.pruning.choice.loss_probe import batch_statistics, masked
from compressor.pruning.choice.losses import StructureLosses
from compressor.pruning.narrowing import gone_channels
from compressor.storage import read_json, sha256, write_json
from compressor.structure.blocks import Block, skipped
from compressor.structure.couplings import Coupled
from compressor.structure.trials import evaluating
from compressor.studio.foresight.forecast import Forecast, Observed
from compressor.tensor_files import raw_bytes
from compressor.turns.taking import between
from compressor.workload import Workload, first_batches, input_tensors, predict

# Raised when what is measured means something else: what was kept before would not compare.
_METHOD = 2
# Batches that single changes are judged on, and choices of several.
_SINGLE_BATCHES, _BATCHES = 4, 8
# Choices of several changes that say how well single ones foretell: three of them lie beyond the 90 % interval.
_PROBES = 32
# An interval of 95 % is so many standard errors wide.
_ERRORS = 2 * 1.959963984540054


class Sensitivities:
    """The losses of `model`, prepared and in eval mode, with `groups` narrowed and without `blocks`.

    `scores` rank channels, and are asked for once; widths are multiples of `align` (by name). What is measured is kept
    in `path`, and read from there where model, data and criterion are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        groups: Sequence[Coupled],
        blocks: Mapping[str, Block],
        *,
        scores: Callable[[], Mapping[str, Tensor]],
        align: Mapping[str, int],
        path: Path,
    ) -> None:
        self._model, self._workload = model, workload
        self._groups, self._blocks, self._align = tuple(groups), dict(blocks), align
        self._scores, self._path = scores, path
        self._losses: StructureLosses | None = None
        self._ranked: Mapping[str, Tensor] = {}
        self._data: list[Batch] = []
        self._rows: dict[int, Tensor] = {}
        self._seen: list[Tensor] = []
        self._asked: list[dict[str, int]] = []
        self._singles: dict[str, dict[str, Any]] = {}
        self._probes: list[dict[str, Any]] = []
        self._items: list[Item] = []
        self._worth: dict[tuple[str, int], float] = {}
        self._forecast: Forecast | None = None
        # Another number whenever more is known.
        self.revision = 0

    @property
    def begun(self) -> bool:
        """Whether it is known what is to be measured, and what of it was."""
        return self._losses is not None

    @property
    def done(self) -> int:
        """How many steps are done."""
        return len(self._singles) + len(self._probes)

    @property
    def total(self) -> int:
        """How many steps there are; 0 as long as that is not known."""
        return len(self._asked) + (_PROBES if self._workload.metric.scored else 0) if self._asked else 0

    @property
    def items(self) -> list[Item]:
        """What a knapsack may choose from; empty until every single change is measured."""
        return self._items

    @property
    def forecast(self) -> Forecast | None:
        """What drops come of the single changes; None until all of them are measured, or without a score."""
        return self._forecast

    def worth(self, name: str, value: int) -> float | None:
        """The loss that is added where the group or `block_key` called `name` is of this value; None: not known yet."""
        return self._worth.get((name, value))

    def loss(self, state: State) -> float | None:
        """The losses of all changes of `state`, added up; None until they are known."""
        if not self._items:
            return None
        lost = {
            group.name
            for group in self._groups
            if any(not state[block_key(block)] and _within(group, block) for block in self._blocks)
        }
        return math.fsum(self._worth_of(name, value) for name, value in state.items() if name not in lost)

    def _worth_of(self, name: str, value: int) -> float:
        """What a width is worth; one that is no stop counts as the next narrower stop."""
        if (name, value) in self._worth:
            return self._worth[name, value]
        options = self._options(name)
        return self._worth[name, next((stop for stop in options if stop < value), options[-1])]

    def step(self) -> bool:
        """Measures one more state; False where all are measured."""
        found = self._step()
        self.revision += found
        return found

    def _step(self) -> bool:
        if self._losses is None:
            self._begin()
            return True
        with evaluating(self._model), torch.no_grad():
            if len(self._singles) < len(self._asked):
                self._single(next(state for state in self._asked if _name(state) not in self._singles))
                if len(self._singles) == len(self._asked):
                    self._complete()
            elif len(self._probes) < _PROBES and self._workload.metric.scored and self._worth:
                self._probe(len(self._probes))
                self._foresee()
            else:
                return False
        return True

    def rows(self, state: State, batches: int = _BATCHES) -> Tensor:
        """The metric's rows of the first `batches` validation batches in `state`."""
        ranked = self._ranking()
        cut = gone_channels(self._groups, ranked, state)
        gone = {name: block for name, block in self._blocks.items() if not state[block_key(name)]}
        with (
            evaluating(self._model),
            torch.no_grad(),
            masked(self._model, cut),
            skipped(self._model, gone),
            batch_statistics(self._model),
        ):
            metric = self._workload.metric
            return torch.cat([metric.rows(predict(self._model, x), y) for x, y in _InTurns(self._batches()[:batches])])

    def reference(self, batches: int = _BATCHES) -> Tensor:
        """The metric's rows of the whole model on the same data, by the statistics of batches as well."""
        if batches not in self._rows:
            self._rows[batches] = self.rows(self._whole(), batches)
        return self._rows[batches]

    def _whole(self) -> dict[str, int]:
        return {group.name: group.width for group in self._groups} | {block_key(name): 1 for name in self._blocks}

    def _batches(self) -> list[Batch]:
        if not self._data:
            self._data = _InTurns(first_batches(self._workload.validation, _BATCHES))
        return self._data

    def _ranking(self) -> Mapping[str, Tensor]:
        if not self._ranked and self._groups:
            self._ranked = self._scores()
        return self._ranked

    def _begin(self) -> None:
        self._losses = StructureLosses(
            self._model,
            self._groups,
            self._blocks,
            scores=self._ranking(),
            align=self._align,
            data=_InTurns(self._batches()[:_SINGLE_BATCHES]),
            loss=self._watched,
        )
        self._asked = self._losses.asked(self._losses.whole) if self._groups or self._blocks else []
        self._read()
        if self._asked and len(self._singles) == len(self._asked):
            self._complete()

    def _watched(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss of a batch, whose rows are kept besides: one call of the model tells both."""
        if self._workload.metric.scored:
            self._seen.append(self._workload.metric.rows(outputs, targets))
        return self._workload.loss(outputs, targets)

    def _single(self, state: dict[str, int]) -> None:
        assert self._losses is not None
        self._seen = []
        found = {"loss": self._losses.of(state)}
        if self._seen:
            rows = torch.cat(self._seen)
            whole = self._losses.whole
            if state == whole:
                self._rows[_SINGLE_BATCHES] = rows
            found |= self._drop(rows, self.reference(_SINGLE_BATCHES))
        self._singles[_name(state)] = found
        self._write()

    def _probe(self, number: int) -> None:
        widths = {item.name: self._options(item.name) for item in self._groups}
        state = drawn_state(number, widths, tuple(self._blocks))
        found = {"state": _name(state), **self._drop(self.rows(state), self.reference())}
        self._probes.append(found)
        self._write()

    def _drop(self, rows: Tensor, reference: Tensor) -> dict[str, float]:
        drop = paired_drop(rows, reference, self._workload.metric)
        error = (drop.high - drop.low) / _ERRORS
        # Of answers that are right or wrong, half a sample more changed in either way than did (Agresti and Min 2005,
        # Statistics in Medicine 24, section 3): that none did does not say that none will.
        least = 1 / len(rows) if self._workload.metric.proportion else 0.0
        return {"drop": drop.value, "error": math.hypot(error, least) if math.isfinite(error) else least}

    def _options(self, name: str) -> tuple[int, ...]:
        return tuple(sorted((value for part, value in self._worth if part == name), reverse=True))

    def _complete(self) -> None:
        """All single changes are measured: what they are worth is known."""
        assert self._losses is not None
        for state in self._asked:
            self._losses.remember(state, self._singles[_name(state)]["loss"])
        items = self._losses.items(self._losses.whole)
        for item in items:
            for choice in (*(choice for part in item.parts for choice in part), item.kept, item.dropped):
                for name, value in choice.changes.items() if choice is not None else ():
                    self._worth[name, value] = max(0.0, choice.loss) if choice is not None else 0.0
        self._items = items
        self._foresee()

    def _foresee(self) -> None:
        if not self._workload.metric.scored:
            return
        singles = [
            Observed(loss=self.loss(_state(name)) or 0.0, drop=each["drop"], error=each["error"])
            for name, each in self._singles.items()
        ]
        probes = [
            Observed(loss=self.loss(_state(each["state"])) or 0.0, drop=each["drop"], error=each["error"])
            for each in self._probes
        ]
        found = Forecast(singles=tuple(singles), probes=tuple(probes))
        # Worked out here, so that no answer waits for it.
        _ = found.widening
        self._forecast = found

    def _key(self) -> str:
        """What the measurements depend on: weights, the data that are read, the ranking, and how they are made."""
        parts = [
            repr((_METHOD, _SINGLE_BATCHES, _BATCHES, self._workload.metric.name, sorted(self._align.items()))).encode()
        ]
        # Of scores the order: their last digits follow from how many threads there were.
        order = [scores.argsort(stable=True) for scores in self._ranking().values()]
        tensors = [*self._model.state_dict().values(), *order]
        for inputs, targets in self._batches():
            tensors += [*input_tensors(inputs), *([targets] if isinstance(targets, Tensor) else [])]
        return sha256(b"".join([*parts, *(raw_bytes(tensor.detach().cpu().contiguous()) for tensor in tensors)]))

    def _read(self) -> None:
        self._kept = self._key()
        try:
            data = read_json(self._path)
            if data["key"] != self._kept:
                return
            known = {_name(state) for state in self._asked}
            singles = {name: _numbers(each) for name, each in data["singles"].items() if name in known}
            probes = [{"state": str(each["state"]), **_numbers(each)} for each in data["probes"]]
        except (OSError, StorageError, KeyError, TypeError, ValueError, AttributeError):
            # None yet, or of other hands: it is measured anew.
            return
        self._singles, self._probes = singles, probes

    def _write(self) -> None:
        write_json(self._path, {"key": self._kept, "singles": self._singles, "probes": self._probes})


class _InTurns(list[Batch]):
    """Batches before each of which one waits while a run, or anything else on this machine, is timed."""

    def __iter__(self) -> Iterator[Batch]:
        return between(super().__iter__())


def drawn_state(seed: int, widths: Mapping[str, Sequence[int]], blocks: Sequence[str]) -> dict[str, int]:
    """A choice by chance, by `seed`: as many changes as an exponent drawn evenly says, each a width or a block less.

    `widths` are those that each group may have, the largest first. Few changes are as likely as many.
    """
    source = np.random.default_rng(seed)
    parts = [*widths, *map(block_key, blocks)]
    count = round(len(parts) ** source.random())
    state = {name: options[0] for name, options in widths.items()} | {block_key(name): 1 for name in blocks}
    for place in source.permutation(len(parts))[: max(1, count)].tolist():
        name = parts[place]
        narrower = widths.get(name, ())[1:]
        if narrower or name not in widths:
            state[name] = narrower[int(source.integers(len(narrower)))] if narrower else 0
    return state


def _name(state: State) -> str:
    return json.dumps(sorted(state.items()))


def _state(name: str) -> dict[str, int]:
    return dict(json.loads(name))


def _numbers(each: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(each[key]) for key in ("loss", "drop", "error") if key in each}


def _within(group: Coupled, block: str) -> bool:
    return all(part.module.startswith(f"{block}.") for part in group.parts)
