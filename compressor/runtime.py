"""ONNX Runtime sessions, and an ONNX file as a torch module."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.checks import check_count
from compressor.texts import first_said
from compressor.workload import batches_of

Feeds = dict[str, NDArray[Any]]


def open_session(model: bytes | Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session of the ONNX file on ONNX Runtime's CPU provider, with `threads` (>= 1) threads inside operators.

    Raises ValueError for a file that ONNX Runtime cannot load.
    """
    check_count(threads, "threads is the number of ONNX Runtime threads")
    return load_session(model, session_options(threads))


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options for one operator at a time, `threads` threads inside it, and errors alone in the log."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if threads > 1:
        # Idle threads otherwise spin on after a call, and slow down whatever runs next: the other file, for instance.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def load_session(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session with the given options. Raises ValueError for a file that ONNX Runtime cannot load."""
    source = str(model) if isinstance(model, Path) else model
    name = str(model) if isinstance(model, Path) else f"the ONNX model of {len(model)} bytes"
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        raise ValueError(
            f"ONNX Runtime {ort.__version__} cannot load {name}: {first_said(error)}. It is no ONNX file, is damaged, "
            "or uses operators this version lacks; export it again"
        ) from error


class OnnxModule(nn.Module):
    """An ONNX file as a module: its forward is a call of ONNX Runtime, so gradients end here and it has no parameters.

    Takes tensors in the order of the file's inputs, or by their names; inputs that the file does not have are left
    out. Gives back a tensor, or a tuple where the file has several outputs. Copies and pickles hold the file's bytes.
    """

    def __init__(self, onnx_bytes: bytes, *, threads: int = 1) -> None:
        super().__init__()
        self.onnx_bytes = onnx_bytes
        self.threads = threads
        self._session: ort.InferenceSession | None = open_session(onnx_bytes, threads=threads)

    @property
    def session(self) -> ort.InferenceSession:
        """The running session, opened at the first use of a copy."""
        if self._session is None:
            self._session = open_session(self.onnx_bytes, threads=self.threads)
        return self._session

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch, on the CPU."""
        feeds = feeds_of(self.session, {**_named(self.session, args), **kwargs})
        outputs = tuple(map(torch.from_numpy, self.session.run(None, feeds)))
        return outputs[0] if len(outputs) == 1 else outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """The file's size and names, for printing."""
        names = ", ".join(node.name for node in self.session.get_inputs())
        return f"{len(self.onnx_bytes)} bytes, inputs: {names}"


def feeds_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """What `session` is fed for `inputs`: by name for a dict, by order otherwise; only inputs that the graph has.

    Raises ValueError where the graph has an input that `inputs` lacks.
    """
    named = (
        inputs if isinstance(inputs, Mapping) else _named(session, inputs if isinstance(inputs, tuple) else (inputs,))
    )
    wanted = [node.name for node in session.get_inputs()]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise ValueError(f"the ONNX file has the inputs {wanted}, got {sorted(named)}; pass {missing} as well")
    return {name: np.ascontiguousarray(named[name].detach().cpu().numpy()) for name in wanted}


def predict_batches(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(output, targets) of every batch of `data`; of several outputs the one called "output", else the first."""
    session = open_session(onnx_bytes, threads=threads)
    names = [node.name for node in session.get_outputs()]
    judged = "output" if "output" in names else names[0]
    for inputs, targets in batches_of(data):
        yield torch.from_numpy(session.run([judged], feeds_of(session, inputs))[0]), torch.as_tensor(targets)


def _named(session: ort.InferenceSession, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [node.name for node in session.get_inputs()]
    numbered = {f"input_{index}": tensor for index, tensor in enumerate(tensors)}
    # The exporter may have dropped an input that the model ignores: the rest keep their numbers.
    if len(tensors) > len(names) and all(name in numbered for name in names):
        return {name: numbered[name] for name in names}
    if len(tensors) > len(names):
        raise ValueError(
            f"the ONNX file has {len(names)} inputs, {names}, got {len(tensors)} tensors; pass them by name"
        )
    return dict(zip(names, tensors, strict=False))
