"""What a model would cost with other widths, without blocks, in 8 bits: predicted at once, and what it would lose.

Milliseconds come from the latency table, scaled to the file as it was measured; losses are measured with the channels
masked and the blocks skipped, nothing trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import CompressorError
from compressor.estimate import Estimate
from compressor.inspection.inspection import Looked
from compressor.intervals import paired_drop, score_estimate
from compressor.latency.table import LatencyTable
from compressor.measuring.timing import time_interleaved
from compressor.packing.files import packed_size
from compressor.pruning.choice.costs import LatencyCosts, StructureCosts, block_key, file_time, float_key, table_times
from compressor.pruning.choice.knapsack_choice import choose_structure
from compressor.pruning.choice.shipped_form import in_integers
from compressor.pruning.choice.width_choice import width_options
from compressor.pruning.narrowing import multiple_of
from compressor.pruning.ranking.criterion import channel_scores
from compressor.quantization.placement.policy import matches
from compressor.stage import Context
from compressor.structure.trials import evaluating
from compressor.studio.choice import CRITERIA, FLOAT_BITS, FORMS, USUAL_BITS, Choice, Free
from compressor.studio.foresight.prompt_times import PromptTimes
from compressor.studio.foresight.sensitivities import Sensitivities
from compressor.target import Target
from compressor.workload import Workload, resize_batch

_FLOAT_BYTES, _INTEGER_BYTES = 4, 1
# Operators that are timed in one step, some hundredths of a second each.
_AT_ONCE = 8
# Packing takes a second a megabyte.
_MOST_PACKED = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a choice costs: milliseconds a call, parameters, multiply-accumulates of a sample, bytes of the file.

    `packed_bytes` are those of the packed file. None is what is not measured yet of the form that was chosen; `rough`
    says that some layers' times stand in for others.
    """

    ms: float | None
    parameters: float
    macs: float
    size_bytes: float | None
    packed_bytes: float | None
    rough: bool = False


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a choice loses before anything is trained: the drop, the score that is left, and of how many samples."""

    drop: Estimate
    score: Estimate
    samples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """A form of the numbers that is known: its file's bytes, and what foretells milliseconds, promptly or exactly."""

    size_bytes: int
    prompt: PromptTimes
    promptly: LatencyCosts
    exactly: LatencyCosts


class WhatIf:
    """The model of `workload`, whose exported file is `file`, with what of it is free, as `looked` found it.

    Knows the float form when it is made; `form_integers` and `sensitivities` find out the rest. What is measured of
    losses is kept in files of the folder `out`, whose names begin with `kept`.
    """

    def __init__(
        self, workload: Workload, target: Target, looked: Looked, file: bytes, *, out: Path, kept: str
    ) -> None:
        self._workload, self._target, self._file = workload, target, file
        self._table = LatencyTable(target, progress=False)
        self._model, self._groups, self._blocks = looked.model, looked.groups, dict(looked.blocks)
        self._align = align = {group.name: multiple_of(group, None, target.channel_multiple) for group in self._groups}
        inputs = resize_batch(workload.example_inputs, target.batch_size)
        with evaluating(self._model):
            self._costs = StructureCosts(self._model, inputs, looked.graph, list(self._blocks))
        self.free = Free(
            widths={group.name: width_options(group.width, align[group.name]) for group in self._groups},
            blocks=tuple(self._blocks),
            inside={
                name: tuple(
                    group.name
                    for group in self._groups
                    if all(part.module.startswith(f"{name}.") for part in group.parts)
                )
                for name in self._blocks
            },
            forms=FORMS,
            norms=any(
                isinstance(module, _BatchNorm) and module.running_mean is not None for module in self._model.modules()
            ),
            classes=workload.metric.classes,
            layers=tuple(filter(None, self._costs.layer_weights({}))),
        )
        self._out, self._kept = out, kept
        # Another number whenever `numbers` may tell something else of the same choice.
        self.revision = 0
        self._sensitivities: dict[str, Sensitivities] = {}
        self._whole = {group.name: group.width for group in self._groups} | {
            block_key(name): 1 for name in self._blocks
        }
        self._parameters = self._costs.parameters([{}])[0]
        self._packed: dict[str, int | None] = {}
        self._files = {"float32": file}
        self._forms = {"float32": self._form("float32", file, looked.inspection.latency_ms)}
        self.reference = self.numbers(Choice())

    def state(self, choice: Choice) -> dict[str, int]:
        """The choice in the words of costs: a width for every group, 1 or 0 for every block."""
        return self._whole | dict(choice.widths) | {block_key(name): 0 for name in choice.drop}

    def _costed(self, choice: Choice) -> dict[str, int]:
        """`state`, with the layers that stay in float."""
        in_integers = choice.form == "int8"
        floats = [name for name, bits in choice.bits.items() if bits == FLOAT_BITS and in_integers]
        return self.state(choice) | dict.fromkeys(map(float_key, floats), 1)

    def numbers(self, choice: Choice) -> Numbers:
        """What the choice costs, at once; what the latency table lacks is `wanted` from then on."""
        # A draft may come from where there were 8 bits to choose.
        name = choice.form if choice.form in self.free.forms else FORMS[0]
        choice = replace(choice, form=name)
        state, form = self._costed(choice), self._forms.get(name)
        parameters, (macs,) = self._costs.parameters([state])[0], self._costs.macs([state])
        if form is None:
            return Numbers(ms=None, parameters=parameters, macs=macs, size_bytes=None, packed_bytes=None)
        rough = form.prompt.lacks(state)
        each = _FLOAT_BYTES if choice.form == "float32" else _INTEGER_BYTES
        size = max(0.0, form.size_bytes - each * (self._parameters - parameters) + self._bytes_of_bits(choice, state))
        packed = self._packed.get(choice.form)
        return Numbers(
            ms=form.promptly([state])[0],
            parameters=parameters,
            macs=macs,
            size_bytes=size,
            packed_bytes=None if packed is None else packed * size / form.size_bytes,
            rough=rough,
        )

    def _bytes_of_bits(self, choice: Choice, state: Mapping[str, int]) -> float:
        """By how many bytes the weights of layers with bits of their own are more than they are in 8, or fewer."""
        if choice.form != "int8" or not choice.bits:
            return 0.0
        weights = self._costs.layer_weights(state)
        return sum(weights.get(name, 0) * (bits - USUAL_BITS) / 8 for name, bits in choice.bits.items())

    def is_known(self, form: str) -> bool:
        """Whether it is known what the model costs in that form."""
        return form in self._forms

    def time_wanted(self) -> bool:
        """Times some operators that `numbers` was asked for and lacked; whether there were any."""
        found = any(form.prompt.measure(_AT_ONCE) for form in [*self._forms.values()])
        self.revision += found
        return found

    @property
    def is_timed(self) -> bool:
        """Whether nothing that was asked for is lacking."""
        return not any(form.prompt.wanted for form in [*self._forms.values()])

    def warm(self) -> None:
        """Asks for what single changes of the whole model take, so that the first slider has its time at once."""
        for form in self._forms:
            for name, stops in self.free.widths.items():
                for width in stops[1:]:
                    self.numbers(Choice(widths={name: width}, form=form))

    def form_integers(self) -> None:
        """Finds out what the model costs in 8 bits; where it has no such form, there is none to choose."""
        try:
            prepared = in_integers(self._file, self._workload, Context(target=self._target, progress=False))
            integer = prepared.shipped()
        except CompressorError:
            self.free = replace(self.free, forms=("float32",), layers=())
            self.revision += 1
            return
        static = prepared.placement.static
        layers = tuple(name for name in self.free.layers if any(matches(node, name) for node in static))
        self.free = replace(self.free, layers=layers)
        inputs = resize_batch(self._workload.example_inputs, self._target.batch_size)
        timing = time_interleaved(integer, self._file, inputs, threads=self._target.threads)
        self._files["int8"] = integer
        ms = self.reference.ms
        self._forms["int8"] = self._form("int8", integer, None if ms is None else ms / timing.speedup.value)
        self.revision += 1

    def pack(self) -> bool:
        """Finds out what one more of the files takes packed; False where all are known."""
        form = next((form for form in self._files if form not in self._packed), None)
        if form is None:
            return False
        self._packed[form] = packed_size(self._files[form], most=_MOST_PACKED)
        if form == "float32":
            self.reference = self.numbers(Choice())
        self.revision += 1
        return True

    def sensitivities(self, criterion: str) -> Sensitivities:
        """What parts are worth where channels go by that criterion, a name in `CRITERIA`."""
        if criterion not in self._sensitivities:
            self._sensitivities[criterion] = Sensitivities(
                self._model,
                self._workload,
                self._groups,
                self._blocks,
                scores=lambda: self._scores(criterion),
                align=self._align,
                path=self._out / f"{self._kept}-{criterion}.json",
            )
        return self._sensitivities[criterion]

    def within(self, fraction: float, choice: Choice) -> Choice:
        """`choice` with the widths and blocks of the least loss that take at most this fraction of the float time.

        Asks for what is known: `sensitivities` to their end, and the form. Raises BudgetError where there are none.
        """
        limit, items = fraction * (self.reference.ms or 0.0), self.sensitivities(choice.criterion).items
        found = choose_structure(items, self._forms[choice.form].exactly, limit, self._whole)
        # It has timed what the table lacked.
        self.revision += 1
        state = self._whole | found.state
        return replace(
            choice,
            widths={name: state[name] for name in self.free.widths if state[name] < self._whole[name]},
            drop=tuple(name for name in self.free.blocks if not state[block_key(name)]),
        )

    def forecast(self, choice: Choice) -> Estimate | None:
        """The drop that the choice will have before anything is trained, with its 90 % interval, at once.

        By what its parts lose one by one, in float; None as long as that is not measured, or without a score.
        """
        known = self.sensitivities(choice.criterion)
        foreseen, loss = known.forecast, known.loss(self.state(choice))
        return None if foreseen is None or loss is None or not foreseen.has_interval else foreseen.drop(loss)

    def judged(self, choice: Choice) -> Judged | None:
        """What the choice loses on validation data before anything is trained, in float; None without a score."""
        metric = self._workload.metric
        if not metric.scored:
            return None
        known = self.sensitivities(choice.criterion)
        reference = known.reference()
        rows = known.rows(self.state(choice)) if choice.widths or choice.drop else reference
        return Judged(drop=paired_drop(rows, reference, metric), score=score_estimate(rows, metric), samples=len(rows))

    def _form(self, name: str, file: bytes, measured_ms: float | None) -> _Form:
        prompt = PromptTimes(self._table, self._costs, name)
        time = file_time(file, self._workload.example_inputs, self._table, name)
        ms = time.whole_ms if measured_ms is None else measured_ms
        return _Form(
            size_bytes=len(file),
            prompt=prompt,
            promptly=LatencyCosts(self._costs, prompt, file=time, measured_ms=ms),
            exactly=LatencyCosts(self._costs, table_times(self._table, name), file=time, measured_ms=ms),
        )

    def _scores(self, criterion: str) -> Mapping[str, Tensor]:
        graph: Any = _Groups(self._groups)
        with evaluating(self._model):
            return channel_scores(CRITERIA[criterion], self._model, graph, self._workload, 0)


@dataclass(frozen=True)
class _Groups:
    groups: tuple[Any, ...]
