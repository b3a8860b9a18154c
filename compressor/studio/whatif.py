"""What a model would cost with other widths, without blocks, in 8 bits: predicted at once, and what it would lose.

Milliseconds come from the latency table, scaled to the file as it was measured; losses are measured with the channels
masked and the blocks skipped, nothing trained.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compressor.errors import BudgetError, CompressorError
from compressor.estimate import Estimate
from compressor.files.export import export_onnx
from compressor.inspection.inspection import Inspection
from compressor.intervals import paired_drop, score_estimate
from compressor.kept_state import private_copy
from compressor.latency.table import LatencyTable
from compressor.measuring.timing import time_interleaved
from compressor.pruning.choice.costs import LatencyCosts, StructureCosts, block_key, file_time, table_times
from compressor.pruning.choice.knapsack_choice import Item, choose_structure
from compressor.pruning.choice.loss_probe import batch_statistics, masked
from compressor.pruning.choice.losses import StructureLosses
from compressor.pruning.choice.shipped_form import shipped_file
from compressor.pruning.choice.width_choice import width_options
from compressor.pruning.narrowing import gone_channels, multiple_of
from compressor.pruning.ranking.criteria import Taylor
from compressor.pruning.ranking.criterion import channel_scores
from compressor.stage import Context
from compressor.structure.blocks import find_blocks, skipped
from compressor.structure.calling.shown import shown_by
from compressor.structure.graph import trace_structure
from compressor.structure.preparing.preparation import prepare_
from compressor.structure.trials import evaluating
from compressor.studio.choice import Choice, Free
from compressor.target import Target
from compressor.workload import Workload, first_batches, free_axes, predict, resize_batch

# Batches that parts are judged on, and a whole choice.
_CALIBRATION_BATCHES, _VALIDATION_BATCHES = 4, 8
_FLOAT_BYTES, _INTEGER_BYTES = 4, 1


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a choice costs: milliseconds a call, parameters, multiply-accumulates of a sample, bytes of the file."""

    ms: float
    parameters: float
    macs: float
    size_bytes: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a choice loses before anything is trained: the drop, the score that is left, and of how many samples."""

    drop: Estimate
    score: Estimate
    samples: int


class WhatIf:
    """The model of `workload` with what of it is free, as `inspection` found it. Takes seconds to make."""

    def __init__(self, workload: Workload, target: Target, inspection: Inspection) -> None:
        self._workload, self._target = workload, target
        # Numbers follow from shapes alone: they do not wait for what is measured on the model.
        self._counting, self._trying = threading.Lock(), threading.Lock()
        self._ranked: Mapping[str, Tensor] | None = None
        self._items: list[Item] = []
        self._reference: Tensor | None = None
        self._model = private_copy(workload.model)
        example = workload.example_inputs
        context = Context(target=target, progress=False)
        file = export_onnx(workload.model, workload).onnx_bytes
        try:
            integer: bytes | None = shipped_file(private_copy(workload.model), workload, context, "int8")
        except CompressorError:
            integer = None
        with evaluating(self._model):
            prepare_(self._model, example)
            graph = trace_structure(self._model, shown_by(workload))
            free = {group.name for group in inspection.free_groups}
            self._groups = [group for group in graph.groups if group.name in free]
            names = {block.name for block in inspection.free_blocks}
            found = find_blocks(self._model, example, free=free_axes(workload)) if names else {}
            self._blocks = {name: block for name, block in found.items() if name in names}
            self._align = {group.name: multiple_of(group, None, target.channel_multiple) for group in self._groups}
            inputs = resize_batch(example, target.batch_size)
            self._costs = StructureCosts(self._model, inputs, graph, list(self._blocks))
        self.free = Free(
            widths={group.name: width_options(group.width, self._align[group.name]) for group in self._groups},
            blocks=tuple(self._blocks),
            inside={
                name: tuple(
                    group.name
                    for group in self._groups
                    if all(part.module.startswith(f"{name}.") for part in group.parts)
                )
                for name in self._blocks
            },
            forms=("float32",) if integer is None else ("float32", "int8"),
        )
        timing = time_interleaved(integer or file, file, inputs, threads=target.threads)
        table = LatencyTable(target, progress=False)
        files = {"float32": file} | ({} if integer is None else {"int8": integer})
        measured = {"float32": timing.reference_ms.value, "int8": timing.candidate_ms.value}
        self._latency = {
            form: LatencyCosts(
                self._costs,
                table_times(table, form),
                file=file_time(made, example, table, form),
                measured_ms=measured[form],
            )
            for form, made in files.items()
        }
        self._bytes = {form: len(made) for form, made in files.items()}
        self._whole = {group.name: group.width for group in self._groups} | {
            block_key(name): 1 for name in self._blocks
        }
        self._parameters = self._costs.parameters([{}])[0]
        self.reference = self.numbers(Choice())

    def state(self, choice: Choice) -> dict[str, int]:
        """The choice in the words of costs: a width for every group, 1 or 0 for every block."""
        return self._whole | dict(choice.widths) | {block_key(name): 0 for name in choice.drop}

    def numbers(self, choice: Choice) -> Numbers:
        """What the choice costs. What the latency table lacks is measured first, and kept on disk."""
        state = self.state(choice)
        with self._counting:
            parameters = self._costs.parameters([state])[0]
            each = _FLOAT_BYTES if choice.form == "float32" else _INTEGER_BYTES
            return Numbers(
                ms=self._latency[choice.form]([state])[0],
                parameters=parameters,
                macs=self._costs.macs([state])[0],
                size_bytes=max(0.0, self._bytes[choice.form] - each * (self._parameters - parameters)),
            )

    def warm(self) -> None:
        """Measures what single changes of the whole model take, so that the first slider answers at once."""
        for form in self.free.forms:
            for name, stops in self.free.widths.items():
                for width in stops[1:]:
                    self.numbers(Choice(widths={name: width}, form=form))

    def measure(self) -> None:
        """Measures what every block and width is worth, so that `within` can choose."""
        with self._trying, evaluating(self._model):
            losses = StructureLosses(
                self._model,
                self._groups,
                self._blocks,
                scores=self._scores(),
                align=self._align,
                data=first_batches(self._workload.calibration, _CALIBRATION_BATCHES),
                loss=self._workload.loss,
            )
            self._items = losses.items(losses.whole)

    @property
    def can_choose(self) -> bool:
        """Whether `measure` is done."""
        return bool(self._items)

    def within(self, fraction: float, choice: Choice) -> Choice:
        """`choice` with the widths and blocks of the least loss that take at most this fraction of the float time.

        Raises BudgetError where there are none.
        """
        limit = fraction * self.reference.ms
        if not self._items:
            raise BudgetError(limit, self.reference.ms)
        with self._counting:
            found = choose_structure(self._items, self._latency[choice.form], limit, self._whole)
        state = self._whole | found.state
        return replace(
            choice,
            widths={name: state[name] for name in self.free.widths if state[name] < self._whole[name]},
            drop=tuple(name for name in self.free.blocks if not state[block_key(name)]),
        )

    def judged(self, choice: Choice) -> Judged | None:
        """What the choice loses on validation data before anything is trained, in float; None without a score."""
        metric = self._workload.metric
        if not metric.scored:
            return None
        data = first_batches(self._workload.validation, _VALIDATION_BATCHES)
        state = self.state(choice)
        with self._trying, evaluating(self._model), torch.no_grad():
            if self._reference is None:
                self._reference = torch.cat([metric.rows(predict(self._model, x), y) for x, y in data])
            rows = self._reference
            if choice.widths or choice.drop:
                cut = gone_channels(tuple(self._groups), self._scores(), state)
                gone = {name: self._blocks[name] for name in choice.drop}
                with masked(self._model, cut), skipped(self._model, gone), batch_statistics(self._model):
                    rows = torch.cat([metric.rows(predict(self._model, x), y) for x, y in data])
        return Judged(
            drop=paired_drop(rows, self._reference, metric), score=score_estimate(rows, metric), samples=len(rows)
        )

    def _scores(self) -> Mapping[str, Tensor]:
        if self._ranked is None:
            graph: Any = _Groups(tuple(self._groups))
            self._ranked = channel_scores(Taylor(), self._model, graph, self._workload, 0)
        return self._ranked


@dataclass(frozen=True)
class _Groups:
    groups: tuple[Any, ...]
