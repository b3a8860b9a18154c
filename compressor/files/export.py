"""ONNX files that have proved, in ONNX Runtime and on real inputs, that they compute what the model computes."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import onnx
import torch
from torch import nn
from torch.export import Dim

from compressor.errors import ExportError
from compressor.files.graph_cleaning import pool_globally_, rename_, strip_
from compressor.files.graphs import OPSET, opset_of, parse
from compressor.files.limits import MAX_BYTES
from compressor.files.shape_cleaning import simplify_shapes_
from compressor.files.verification import ExportTask, export_task, input_names, verified_bytes
from compressor.runtime import OnnxModule
from compressor.workload import Workload

__all__ = ["ExportError", "Exported", "export_onnx", "input_names"]

_PREFIX = "model."
# Seconds after which no further file is tried.
_PATIENCE = 600.0
# These write to logs and standard error about operators of packages that are not installed and about their own insides.
_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnx")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A verified ONNX file, who wrote it ("dynamo", "torchscript" or "onnx"), its opset, and what to know of it."""

    onnx_bytes: bytes
    exporter: str
    opset: int
    notes: tuple[str, ...]


def export_onnx(model: nn.Module, workload: Workload) -> Exported:
    """The verified ONNX file of `model`: one file, dynamic batch, inputs named as in the workload, output "output".

    torch's current exporter goes first, the TorchScript one second. What either writes counts only after ONNX Runtime
    gave the eager model's outputs (within TOLERANCE of their scale) for calibration inputs in several other batch
    sizes, and in other lengths along every dimension that the model lets vary. Where neither can write a file of free
    lengths, the current one writes one with all lengths but the batch fixed, and the notes say so, unless the first two
    took longer than _PATIENCE. The same model gives the same bytes.
    `model` is left as it was; an OnnxModule is returned as the file it is. Raises ExportError where no file
    passes, and for models beyond MAX_BYTES.
    """
    if isinstance(model, OnnxModule):
        opset = opset_of(parse(model.onnx_bytes))
        return Exported(onnx_bytes=model.onnx_bytes, exporter="onnx", opset=opset, notes=())
    kind = type(model).__name__
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))  # tied weights count once
    if size > MAX_BYTES:
        raise ExportError(
            f"{kind} holds {size / 1e9:.1f} GB of weights, and one ONNX file holds at most {MAX_BYTES / 1e9:.1f} GB; "
            "export a smaller model, or store its weights as float16"
        )
    with _quietly(), torch.no_grad():
        start = perf_counter()
        task = export_task(model, workload)
        attempts: dict[str, tuple[bytes, int, list[str]]] = {}
        errors: dict[str, str] = {}
        culprit = ""
        data_dependent = False
        for exporter in ("dynamo", "torchscript"):
            try:
                attempts[exporter] = _attempt(exporter, task, task, data_dependent=data_dependent)
            except Exception as error:  # noqa: BLE001 - exporters raise anything; every error is reported or survived
                errors[exporter] = _condensed(error)
                if exporter == "dynamo":
                    culprit = _failing_module(task)
                    data_dependent = "data-dependent" in str(error).lower()
            else:
                if not attempts[exporter][2]:
                    break
        fixed = replace(task, free=tuple(axes & {0} for axes in task.free))
        if not attempts and fixed.free != task.free and perf_counter() - start < _PATIENCE:
            with contextlib.suppress(Exception):  # its error would say again what is known
                onnx_bytes, opset, notes = _attempt("dynamo", fixed, task, data_dependent=data_dependent)
                reasons = "; ".join(f"{exporter}: {message}" for exporter, message in errors.items())
                attempts["dynamo"] = (
                    onnx_bytes,
                    opset,
                    [*notes, f"with free lengths it could not be written ({reasons})"],
                )
    if not attempts:
        tried = "; ".join(f"{exporter}: {message}" for exporter, message in errors.items())
        where = f" The error arose in the submodule {culprit}." if culprit else ""
        raise ExportError(
            f"{kind} could not be exported to an ONNX file that computes what it computes. Tried {tried}.{where} "
            "Shapes and branches in forward() must follow from x.shape, not from fixed numbers or tensor values "
            "(torch.where instead of if), and every operator must exist in ONNX"
        )
    # Fewest frozen dimensions first; the order of trying decides between equals.
    exporter = min(attempts, key=lambda name: len(attempts[name][2]))
    onnx_bytes, opset, notes = attempts[exporter]
    if exporter == "torchscript":
        reason = errors.get("dynamo") or "; ".join(attempts["dynamo"][2])
        notes = [*notes, f"written by the TorchScript exporter; the current one: {reason}"]
    return Exported(onnx_bytes=onnx_bytes, exporter=exporter, opset=opset, notes=tuple(notes))


def _attempt(
    exporter: str, task: ExportTask, judged_by: ExportTask, *, data_dependent: bool
) -> tuple[bytes, int, list[str]]:
    """The file that `exporter` writes for `task`, its opset and what it fixes, once it passed what `judged_by` asks."""
    convert = _dynamo if exporter == "dynamo" else _torchscript
    proto = convert(task, data_dependent=data_dependent)
    # Cleaning comes before verification: what ships is what was verified.
    simplify_shapes_(proto)
    pool_globally_(proto)
    rename_(proto, task.parameters, prefix=_PREFIX)
    strip_(proto)
    onnx_bytes, notes = verified_bytes(proto, judged_by)
    return onnx_bytes, opset_of(proto), notes


def _traced(model: nn.Module, task: ExportTask) -> torch.export.ExportedProgram:
    dynamic = tuple(
        {axis: Dim.AUTO if axis in axes else Dim.STATIC for axis in range(tensor.ndim)}
        for tensor, axes in zip(task.tensors, task.free, strict=True)
    )
    return torch.export.export(model, task.tensors, dynamic_shapes=(dynamic,), strict=False)


def _dynamo(task: ExportTask, *, data_dependent: bool) -> onnx.ModelProto:
    del data_dependent  # it refuses such models by itself
    program = _traced(task.model, task)
    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(task.names),
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert written is not None  # None is only returned when a path is given
    proto: onnx.ModelProto = written.model_proto
    return proto


def _torchscript(task: ExportTask, *, data_dependent: bool) -> onnx.ModelProto:
    axes = {
        name: {axis: "batch" if axis == 0 and is_batched else f"{name}_dim{axis}" for axis in sorted(free)}
        for name, free, is_batched in zip(task.names, task.free, task.batched, strict=True)
    }
    if task.batch_in_output:
        axes["output"] = {0: "batch"}
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.onnx.export(
            task.model,
            task.tensors,
            file,  # type: ignore[arg-type]  # torch 2.13 declares paths alone; its older exporter writes to files too
            dynamo=False,
            opset_version=OPSET,
            input_names=list(task.names),
            output_names=["output"],
            dynamic_axes=axes,
        )
    frozen = [str(item.message) for item in caught if "Converting a tensor to a Python" in str(item.message)]
    if data_dependent and frozen:
        # Tracing kept what the example's values decided. No number of real inputs proves that others decide the same.
        raise ExportError(f"it would freeze a choice made on tensor values: {frozen[0].partition('.')[0]}")
    return onnx.load_from_string(file.getvalue())


def _failing_module(task: ExportTask) -> str:
    """The path and class of the innermost module whose forward raised while it was traced, "" if none did."""
    model = copy.deepcopy(task.model)
    entered: list[str] = []
    for name, module in model.model.named_modules():
        label = f"{name!r} ({type(module).__name__})" if name else f"{type(module).__name__} itself"
        module.register_forward_pre_hook(_entering(entered, label))
        module.register_forward_hook(lambda *_: entered.pop() and None)
    try:
        _traced(model, task)
    except Exception:  # noqa: BLE001 - it is expected to fail; where is the question
        return entered[-1] if entered else ""
    return ""


def _entering(entered: list[str], label: str) -> Callable[..., None]:
    def note(*_: object) -> None:
        entered.append(label)

    return note


def _condensed(error: BaseException) -> str:
    # Exporters append pages of graphs and advice to the line that says what happened.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    text = lines[0] if lines else "no message"
    if not isinstance(error, ExportError):
        text = f"{type(error).__name__}: {text}"
    if cause is not None and not isinstance(error, ExportError):
        first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        text = f"{text} <- {type(cause).__name__}: {first}"
    return text if len(text) <= 400 else f"{text[:397]}..."


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' chatter, and without the attention fast path, whose operator ONNX does not have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    loggers = [
        logger
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _LOGGERS
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
