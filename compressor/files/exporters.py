"""torch's two exporters: what each writes for an export task, in a child process that is ended at a limit."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import onnx
import torch
from torch import nn
from torch.export import Dim

from compressor.errors import LONGEST_REASON, ExportError, bounded, first_said
from compressor.files.child_process import ChildError, Limit, LimitError, run_limited
from compressor.files.direct_programs import one_table, write_direct_
from compressor.files.graphs import OPSET
from compressor.files.verification import ExportTask

Exporter = Literal["dynamo", "torchscript"]
# Whether a program had to be decomposed in this process: the next one may have to be as well.
_decomposing: list[bool] = []


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an exporter wrote, or, where `onnx_bytes` is empty, why it did not.

    `on_values` says that the model decides by the values of tensors, `direct` that nothing was decomposed.
    """

    onnx_bytes: bytes = b""
    error: str = ""
    on_values: bool = False
    direct: bool = False


def write(
    exporter: Exporter, task: ExportTask, limit: Limit, *, on_values: bool = False, direct: bool = True
) -> Written:
    """The file of `task` by `exporter`, not yet verified. Raises LimitError where it takes more than `limit`.

    `on_values` says that the other exporter found decisions by values, which TorchScript would freeze; without `direct`
    the current exporter decomposes every operator.
    """

    def work() -> bytes:
        try:
            if exporter == "dynamo":
                proto, is_direct = _dynamo(task, direct=direct)
            else:
                proto, is_direct = _torchscript(task, on_values=on_values), False
            outcome = Written(onnx_bytes=proto.SerializeToString(deterministic=True), direct=is_direct)
        except Exception as error:  # noqa: BLE001 - exporters raise anything; every error is reported or survived
            outcome = Written(error=condensed(error), on_values="data-dependent" in str(error).lower())
        return pickle.dumps(outcome)

    _warm()
    if _decomposing:
        _warm_whole()
    try:
        outcome: Written = pickle.loads(run_limited(work, limit))  # noqa: S301 - it was made a few lines above
    except ChildError as error:
        return Written(error=str(error))
    if exporter == "dynamo" and not outcome.direct:
        _decomposing.append(True)
    return outcome


def failing_module(task: ExportTask, limit: Limit) -> str:
    """The path and class of the innermost module whose forward raises while it is traced, "" where none is found."""
    try:
        return run_limited(lambda: _failing_module(task).encode(), limit).decode()
    except (ChildError, LimitError):
        return ""


def condensed(error: BaseException) -> str:
    """What `error` and its cause say first: exporters append pages of graphs and advice to the line that matters."""
    if isinstance(error, ExportError):
        return first_said(error)
    text = f"{type(error).__name__}: {first_said(error)}"
    if error.__cause__ is not None:
        text = f"{text} <- {type(error.__cause__).__name__}: {first_said(error.__cause__)}"
    return bounded(text, LONGEST_REASON)


@cache
def _warm() -> None:
    """Loads and fills what exporters need, so that not every child process has to anew."""
    write_direct_(_program_of_a_layer(), opset_version=OPSET, verbose=False)


@cache
def _warm_whole() -> None:
    """The same for programs that are decomposed, and need the whole table of translations."""
    with one_table():
        torch.onnx.export(_program_of_a_layer(), dynamo=True, opset_version=OPSET, verbose=False)


def _program_of_a_layer() -> torch.export.ExportedProgram:
    sizes = ({0: Dim.AUTO, 1: Dim.STATIC},)
    return torch.export.export(nn.Linear(1, 1), (torch.zeros(2, 1),), dynamic_shapes=sizes)


def _traced(model: nn.Module, task: ExportTask) -> torch.export.ExportedProgram:
    dynamic = tuple(
        {axis: Dim.AUTO if axis in axes else Dim.STATIC for axis in range(tensor.ndim)}
        for tensor, axes in zip(task.tensors, task.free, strict=True)
    )
    with _no_stacks():
        return torch.export.export(model, task.tensors, dynamic_shapes=(dynamic,), strict=False)


@contextmanager
def _no_stacks() -> Iterator[None]:
    """Within it torch reads no sources to note the lines of every operator, which no file keeps."""
    settings: Any = torch.fx.config
    own = settings.do_not_emit_stack_traces
    settings.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        settings.do_not_emit_stack_traces = own


def _dynamo(task: ExportTask, *, direct: bool) -> tuple[onnx.ModelProto, bool]:
    """The graph, and whether it was written directly."""
    settings: dict[str, Any] = {
        "opset_version": OPSET,
        "input_names": list(task.names),
        "output_names": list(task.outputs.names),
        "external_data": False,
        "verbose": False,
    }
    program, made = _traced(task.model, task), None
    if direct:
        try:
            made = write_direct_(program, **settings)
        except Exception:  # noqa: BLE001 - the long way is still there, whatever this one raises
            program = _traced(task.model, task)
    written_directly = made is not None
    if made is None:
        with one_table():
            made = torch.onnx.export(program, dynamo=True, **settings)
    assert made is not None  # None is only returned when a path is given
    proto: onnx.ModelProto = made.model_proto
    return proto, written_directly


def _torchscript(task: ExportTask, *, on_values: bool) -> onnx.ModelProto:
    axes = {
        name: {axis: "batch" if axis == 0 and is_batched else f"{name}_dim{axis}" for axis in sorted(free)}
        for name, free, is_batched in zip(task.names, task.free, task.batched, strict=True)
    }
    for name, free in task.free_of_outputs.items():
        axes[name] = {axis: f"{name}_dim{axis}" if axis else "batch" for axis in sorted(free)}
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
            output_names=list(task.outputs.names),
            dynamic_axes=axes,
        )
    frozen = [str(item.message) for item in caught if "Converting a tensor to a Python" in str(item.message)]
    if on_values and frozen:
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
