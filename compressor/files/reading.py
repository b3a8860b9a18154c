"""ONNX files from elsewhere as models of torch, opened with limits before anything here looks at them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressor.batches import Inputs
from compressor.checks import as_path, check_one_of
from compressor.errors import OnnxFileError
from compressor.files.carrying import note_layout_, noted_layout
from compressor.files.converting.inputs import Sample
from compressor.files.graphs import parse
from compressor.files.opening import note_given, note_same_given, open_file
from compressor.files.preparing import Batch
from compressor.files.watching import Watcher
from compressor.runtime import OnnxModule


def read_onnx(
    path: str | Path,
    *,
    example: Inputs | None = None,
    judged: str | None = None,
    batch: Batch = "free",
    streams: Mapping[str, str] | None = None,
) -> OnnxModule:
    """The ONNX file at `path` as a model for `Workload.from_datasets`, to be quantized and measured.

    A fixed batch becomes free where it can, unless `batch` is "fixed" and says that it stays. Weights that are listed
    as inputs become constants, functions of the file's own are written out, double and half precision become single
    (inputs and outputs keep their types), and the opset the one that is written here; what was done stands in the
    report. The
    outputs are compared with those of the file as it was, on the first of `example` (inputs, a sample in every row) or
    on made-up ones. Weights in files of their own, in the same folder, are read, too. All of it is done in a process
    with limits of time and memory, which the environment variables COMPRESSOR_OPEN_SECONDS and COMPRESSOR_OPEN_MIB
    raise. `judged` names the output that loss and metric read; the usual one is called "output" or "logits", or is the
    first. A batch that cannot be free stays, and a file without one is called sample by sample.

    `streams` names outputs that carry a state, and for each the input that the next step is given it as:
    {"state_out": "state_in"}. A sample is then a sequence, (samples, steps, ...) in all other inputs, its state begins
    with zeros or with what is given for it, and it is scored as it runs, with the file's own states. Steps are
    calibrated on with the states that the float file comes to.

    Raises FileNotFoundError, and OnnxFileError for what is no ONNX file, is beyond the limits, or could not be changed
    so that it computes the same, and for names in `streams` that it does not have.
    """
    check_one_of(batch, "batch is what becomes of a batch that the file fixes", ("free", "fixed"))
    sample = None if example is None else _arrays(example)
    prepared = open_file(as_path(path, "path names an ONNX file"), sample, batch=batch, streams=streams)
    onnx_bytes = prepared.onnx_bytes if judged is None else _judging(prepared.onnx_bytes, judged, path)
    note_given(onnx_bytes, Path(path), outside_bytes=prepared.outside_bytes)
    return OnnxModule(onnx_bytes)


def read_onnx_on(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    watcher: Watcher,
    *,
    batch: Batch = "free",
    streams: Mapping[str, str] | None = None,
) -> OnnxModule:
    """The same on `arrays` by the names of the inputs, "inputs" where there is one, in types that the file need not
    have; `watcher` is told the types of the file's inputs before they are used. Raises as `read_onnx` does.
    """
    prepared = open_file(path, arrays, cast=True, watcher=watcher, batch=batch, streams=streams)
    note_given(prepared.onnx_bytes, path, outside_bytes=prepared.outside_bytes)
    return OnnxModule(prepared.onnx_bytes)


def read_onnx_alone(
    path: Path, *, batch: Batch = "free", streams: Mapping[str, str] | None = None
) -> tuple[OnnxModule, int]:
    """(what `read_onnx` gives without an example, how many of the `made_up` inputs it does not run on)."""
    prepared = open_file(path, None, batch=batch, streams=streams)
    note_given(prepared.onnx_bytes, path, outside_bytes=prepared.outside_bytes)
    return OnnxModule(prepared.onnx_bytes), prepared.skipped


def judged_by(onnx_bytes: bytes, judged: str) -> bytes:
    """The file whose output `judged`, one that it has, is the one that loss and metric read."""
    model = parse(onnx_bytes)
    note_layout_(model, noted_layout(model).judging(judged))
    judging = bytes(model.SerializeToString(deterministic=True))
    note_same_given(judging, onnx_bytes)
    return judging


def _judging(onnx_bytes: bytes, judged: str, path: str | Path) -> bytes:
    names = [value.name for value in parse(onnx_bytes).graph.output]
    if judged not in names:
        raise OnnxFileError(f"{path} has the outputs {', '.join(names)}, and none called {judged!r}")
    return judged_by(onnx_bytes, judged)


def _arrays(example: Any) -> Sample:
    if isinstance(example, Mapping):
        return {name: _array(values) for name, values in example.items()}
    return [_array(values) for values in (example if isinstance(example, tuple) else (example,))]


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
