"""ONNX files that have proved, in ONNX Runtime and on real inputs, that they compute what the model computes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import onnx
import torch
from torch import nn

from compressor.errors import AmplifiedError, ExportError
from compressor.files.carrying import note_layout_, noted_layout, reading_notes
from compressor.files.child_process import Limit, LimitError
from compressor.files.export_memory import Exported, ExportMemory
from compressor.files.exported_outputs import TOLERANCE, judge_of
from compressor.files.exporters import Exporter, condensed, failing_module, write
from compressor.files.graph_cleaning import pool_globally_, rename_, strip_, unsign_zeros_
from compressor.files.graphs import opset_of, parse
from compressor.files.limits import MAX_BYTES
from compressor.files.shape_cleaning import simplify_shapes_
from compressor.files.verification import NUDGE, ExportTask, export_task, verified_bytes
from compressor.kept_state import as_before
from compressor.outputs.layout import Layout, judged_name
from compressor.progress.bars import waiting
from compressor.runtime import OnnxModule
from compressor.workload import Workload, input_names

__all__ = ["ExportError", "Exported", "export_onnx", "input_names"]

_PREFIX = "model."
# An exporter holds the weights a few times over; the rest is what a graph without end is stopped at.
_MEMORY, _COPIES = 8_000_000_000, 6
# Times the workload's limit that a file of fixed sizes may take: there is nothing left to try after it.
_LAST_TRY = 5
_UNFINISHED = "the exporter had not finished after"
# These write to logs and standard error about operators of packages that are not installed and about their own insides.
_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnx")


def export_onnx(model: nn.Module, workload: Workload, *, memory: ExportMemory | None = None) -> Exported:
    """The verified ONNX file of `model`: one file, dynamic batch, inputs named as in the workload, all its outputs.

    Outputs have their keys or fields for names, a lone one and the first of a tuple "output", the next "output_1".
    Where no file of all of them passes, the judged one is exported alone, and the notes say why.

    torch's current exporter goes first, the TorchScript one second. What either writes counts only after ONNX Runtime
    gave the eager model's outputs (within TOLERANCE of their scale) for calibration inputs in several other batch
    sizes, and in other sizes along every dimension that the model lets vary and `workload.free_sizes` names. Where
    neither can write a file of free sizes, or the current one has not finished after `workload.export_seconds` of CPU
    time (models that cut maps into windows or patches keep it busy without end), it writes one with all sizes but the
    batch fixed, and the notes say so. Exporters run in a child process that is ended at the limit, where the system
    can fork. The same model gives the same bytes; with the `memory` of a run it is exported once.
    `model` and torch's random numbers are left as they were; an OnnxModule is returned as the file it is. Raises
    ExportError where no file passes, and for models beyond MAX_BYTES.
    """
    if isinstance(model, OnnxModule):
        proto = parse(model.onnx_bytes)
        return Exported(
            onnx_bytes=_judging(model, proto), exporter="onnx", opset=opset_of(proto), notes=reading_notes(proto)
        )
    kind = type(model).__name__
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))  # tied weights count once
    if size > MAX_BYTES:
        raise ExportError(
            f"{kind} holds {size / 1e9:.1f} GB of weights, and one ONNX file holds at most {MAX_BYTES / 1e9:.1f} GB; "
            "export a smaller model, or store its weights as float16"
        )
    memory = memory if memory is not None and memory.serves(workload) else None
    key, known = memory.find(model) if memory is not None else (None, None)
    if known is not None:
        return known
    # Caches in classes and closures are those of all copies.
    unchanged = as_before(model, in_training_too=True)
    with waiting("exporting"), _quietly(), torch.no_grad(), torch.random.fork_rng(devices=[]), unchanged:
        task = export_task(model, workload)
        limit = Limit(seconds=workload.export_seconds, memory=_MEMORY + _COPIES * size)
        tries = _Tries(task=task, limit=limit, ended=memory.ended if memory is not None else "")
        tries.go()
        left_out = ""
        if not tries.files and task.outputs.others:
            left_out = _left_out(tries)
            tries = _Tries(task=task.with_outputs(task.outputs.alone), limit=limit, ended=tries.ended)
            tries.go()
        if memory is not None:
            memory.ended = tries.ended
        if not tries.files:
            raise _refusal(kind, tries)
    # Fewest frozen dimensions first; the order of trying decides between equals.
    exporter = min(tries.files, key=lambda name: len(tries.files[name][2]))
    onnx_bytes, opset, notes = tries.files[exporter]
    if exporter == "torchscript":
        reason = tries.errors.get("dynamo") or "; ".join(tries.files["dynamo"][2])
        notes = [*notes, f"written by the TorchScript exporter; the current one: {reason}"]
    if left_out:
        notes = [*notes, left_out]
    exported = Exported(onnx_bytes=onnx_bytes, exporter=exporter, opset=opset, notes=tuple(notes))
    if memory is not None:
        memory.keep(key, exported)
    return exported


@dataclass(kw_only=True)
class _Tries:
    """Files that passed, with their opset and what they fix, and the errors of the others, by exporter.

    `ended` says at which limit the current exporter was ended with free sizes, now or for an earlier state, "" where it
    was not.
    """

    task: ExportTask
    limit: Limit
    ended: str = ""
    on_values: bool = False
    files: dict[str, tuple[bytes, int, list[str]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def fixed(self) -> ExportTask:
        """The task with nothing free but the batch."""
        return replace(self.task, free=tuple(axes & {0} for axes in self.task.free))

    def go(self) -> None:
        """Tries until there is a file that leaves free all that may be, or nothing is left to try."""
        if self.ended:  # for an earlier state of the model
            self.errors["dynamo"] = f"{_UNFINISHED} {self.ended}"
        else:
            self._try("dynamo")
        if self.ended:
            self._try("dynamo", fixed=True)
            if not self.files:
                self._try("torchscript")
            return
        if "dynamo" not in self.files or self.files["dynamo"][2]:
            self._try("torchscript")
        if not self.files and self.fixed.free != self.task.free:
            self._try("dynamo", fixed=True)

    def _try(self, exporter: Exporter, *, fixed: bool = False) -> None:
        task = self.fixed if fixed else self.task
        is_free = task.free != self.fixed.free
        limit = self.limit if is_free else replace(self.limit, seconds=_LAST_TRY * self.limit.seconds)
        label = f"{exporter}, with fixed sizes" if fixed else exporter
        try:
            written = write(exporter, task, limit, on_values=self.on_values)
            if written.error:
                self.errors[label], self.on_values = written.error, self.on_values or written.on_values
                return
            try:
                onnx_bytes, opset, notes = self._passed(written.onnx_bytes)
            except ExportError:
                if not written.direct:
                    raise
                onnx_bytes, opset, notes = self._passed(write(exporter, task, limit, direct=False).onnx_bytes)
        except LimitError as error:
            self.errors[label] = f"{_UNFINISHED} {error}"
            if exporter == "dynamo" and is_free:
                self.ended = str(error)
        except Exception as error:  # noqa: BLE001 - a file of others may fail in any way; every error is reported
            self.errors[label] = condensed(error)
        else:
            self.files[exporter] = onnx_bytes, opset, [*notes, *([self._why_fixed()] if fixed else [])]

    def _why_fixed(self) -> str:
        if self.ended:
            return (
                f"with free sizes {_UNFINISHED} {self.ended}; export_seconds gives it longer, and "
                "free_sizes says which sizes to leave free at all"
            )
        reasons = "; ".join(f"{exporter}: {message}" for exporter, message in self.errors.items())
        return f"with free sizes it could not be written ({reasons})"

    def _passed(self, written: bytes) -> tuple[bytes, int, list[str]]:
        """The file as it ships, its opset and what it fixes. Raises ExportError where it computes something else."""
        proto = onnx.load_from_string(written)
        # Cleaning comes before verification: what ships is what was verified.
        simplify_shapes_(proto)
        pool_globally_(proto)
        unsign_zeros_(proto)
        rename_(proto, self.task.parameters, prefix=_PREFIX)
        strip_(proto)
        outputs = self.task.outputs
        if judged_name(outputs.names) != outputs.judged:
            note_layout_(proto, Layout(judged=outputs.judged))
        onnx_bytes, notes = verified_bytes(proto, self.task)
        return onnx_bytes, opset_of(proto), notes


def _judging(model: OnnxModule, proto: onnx.ModelProto) -> bytes:
    """The file of `model`, which notes the output that its workload chose. Raises ExportError for a function."""
    judge = judge_of(model)
    if judge is None:
        return model.onnx_bytes
    if not isinstance(judge.which, str):
        raise ExportError(
            "of a file's outputs the judged one is chosen by its name, got a function; judge= one of "
            f"{', '.join(repr(value.name) for value in proto.graph.output)}"
        )
    note_layout_(proto, noted_layout(proto).judging(judge.which))
    return bytes(proto.SerializeToString(deterministic=True))


def _left_out(tries: _Tries) -> str:
    outputs = tries.task.outputs
    tried = "; ".join(f"{exporter}: {message}" for exporter, message in tries.errors.items())
    return (
        f"the file gives {outputs.judged!r} alone, and not {', '.join(map(repr, outputs.others))}: with all of them it "
        f"could not be written ({tried})"
    )


def _refusal(kind: str, tries: _Tries) -> ExportError:
    tried = "; ".join(f"{exporter}: {message}" for exporter, message in tries.errors.items())
    ended = all(message.startswith(_UNFINISHED) for message in tries.errors.values())
    if ended:
        return ExportError(
            f"{kind} could not be exported in the time and memory that an export may take. Tried {tried}. Give it "
            "longer with Workload(export_seconds=...), or leave fewer sizes free with free_sizes='batch'"
        )
    differs = any("differs from torch" in message for message in tries.errors.values())
    if differs and (change := tries.task.amplification()) > TOLERANCE:
        return AmplifiedError(
            f"{kind} amplifies rounding: inputs that grow by {NUDGE:g} of themselves change its output by {change:.2g} "
            f"of its scale, so that no two computations of it agree, and no file of it can be checked. Tried {tried}. "
            "Untrained networks without norms do so; train it, or bring its inputs to the scale it was trained with"
        )
    culprit = failing_module(tries.task, tries.limit)
    where = f" The error arose in the submodule {culprit}." if culprit else ""
    return ExportError(
        f"{kind} could not be exported to an ONNX file that computes what it computes. Tried {tried}.{where} "
        "Shapes and branches in forward() must follow from x.shape, not from fixed numbers or tensor values "
        "(torch.where instead of if), and every operator must exist in ONNX"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' chatter, and without the attention fast path, whose operator ONNX does not have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    for name in _LOGGERS:
        logging.getLogger(name)
    # Those without a level of their own have that of the next one above.
    loggers = [
        logger
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
        and (name in _LOGGERS or (name.partition(".")[0] in _LOGGERS and logger.level != logging.NOTSET))
    ]
    levels = [(logger, logger.level) for logger in loggers]
    sink = io.StringIO()
    torch.backends.mha.set_fastpath_enabled(False)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            # Deprecations inside torch, tracer warnings about Python numbers: verification is what decides.
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)
