"""ONNX Runtime sessions, and what they are fed; importing it loads no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime as ort
from numpy.typing import NDArray

from compressor.checks import check_count
from compressor.errors import first_said

Feeds = dict[str, NDArray[Any]]
_Value = TypeVar("_Value")


def open_session(model: bytes | Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session of the ONNX file on ONNX Runtime's CPU provider, with `threads` (>= 1) threads inside operators.

    Raises ValueError for a file that ONNX Runtime cannot load.
    """
    check_count(threads, "threads is the number of ONNX Runtime threads")
    return load_session(model, session_options(threads))


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options for one operator at a time, `threads` threads inside it, and nothing in the log."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Errors are raised, in words of ours or to try another way: printed in red, they would alarm for nothing.
    options.log_severity_level = 4
    if threads > 1:
        # Idle threads otherwise spin on after a call, and slow down whatever runs next: the other file, for instance.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def load_session(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session with the given options. Raises ValueError for a file that ONNX Runtime cannot load."""
    source = str(model) if isinstance(model, Path) else model
    name = str(model) if isinstance(model, Path) else f"the ONNX model of {len(model)} bytes"
    try:
        # Without the second attempt, which would be the same and print why.
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        raise ValueError(
            f"ONNX Runtime {ort.__version__} cannot load {name}: {first_said(error)}. It is no ONNX file, is damaged, "
            "or uses operators this version lacks; export it again"
        ) from error


def by_input(names: Sequence[str], values: Mapping[str, _Value]) -> dict[str, _Value]:
    """The values of a file's inputs, `names`; others are left out. Raises ValueError where one is missing."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"the ONNX file has the inputs {names}, got {sorted(values)}; pass {missing} as well")
    return {name: values[name] for name in names}


def by_order(names: Sequence[str], values: Sequence[_Value]) -> dict[str, _Value]:
    """The `values`, given in the order of the inputs `names`, by their names. Raises ValueError for too many."""
    numbered = {f"input_{index}": value for index, value in enumerate(values)}
    # The exporter may have dropped an input that the model ignores: the rest keep their numbers.
    if len(values) > len(names) and all(name in numbered for name in names):
        return {name: numbered[name] for name in names}
    if len(values) > len(names):
        raise ValueError(
            f"the ONNX file has {len(names)} inputs, {names}, got {len(values)} tensors; pass them by name"
        )
    return dict(zip(names, values, strict=False))
