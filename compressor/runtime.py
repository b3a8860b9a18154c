"""ONNX Runtime sessions, and an ONNX file as a torch module."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from compressor.batches import Inputs, judged_target
from compressor.outputs.layout import Layout, NamedOutputs, judged_name
from compressor.sessions import Feeds, by_input, by_order, load_session, open_session, session_options
from compressor.workload import batches_of

__all__ = [
    "Feeds",
    "OnnxModule",
    "feeds_of",
    "judged_output",
    "layout_of",
    "load_session",
    "open_session",
    "predict_batches",
    "session_options",
]

# The floats of ONNX Runtime's inputs that numpy has.
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxModule(nn.Module):
    """An ONNX file as a module: its forward is a call of ONNX Runtime, so gradients end here and it has no parameters.

    Takes tensors in the order of the file's inputs, or by their names; inputs that the file does not have are left
    out. Gives back a tensor, or a tuple with names where the file has several outputs. Copies and pickles hold the
    file's bytes.
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

    @property
    def fixed_batch(self) -> int:
        """The one number of samples that the file takes at once, 0 where it takes any."""
        shapes = [node.shape for node in self.session.get_inputs() if node.shape]
        return shapes[0][0] if shapes and isinstance(shapes[0][0], int) else 0

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch, on the CPU."""
        names = [node.name for node in self.session.get_inputs()]
        feeds = feeds_of(self.session, {**by_order(names, args), **kwargs})
        outputs = tuple(map(torch.from_numpy, self.session.run(None, feeds)))
        if len(outputs) == 1:
            return outputs[0]
        names = [node.name for node in self.session.get_outputs()]
        return NamedOutputs(names, outputs, judged_output(self.session))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """The file's size and names, for printing."""
        names = ", ".join(node.name for node in self.session.get_inputs())
        return f"{len(self.onnx_bytes)} bytes, inputs: {names}"


def feeds_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """What `session` is fed for `inputs`: by name for a dict, by order otherwise; only inputs that the graph has.

    Floats take the type that the file has them in, for workloads hold them in single precision. Raises ValueError where
    the graph has an input that `inputs` lacks.
    """
    names = [node.name for node in session.get_inputs()]
    types = {node.name: _FLOATS.get(node.type) for node in session.get_inputs()}
    given = (
        inputs if isinstance(inputs, Mapping) else by_order(names, inputs if isinstance(inputs, tuple) else (inputs,))
    )
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in by_input(names, given).items()}
    return {
        name: np.ascontiguousarray(array, dtype=types[name] if array.dtype.kind == "f" else None)
        for name, array in arrays.items()
    }


def layout_of(session: ort.InferenceSession) -> Layout:
    """The layout that the session's file notes in its metadata."""
    return Layout.of_metadata(session.get_modelmeta().custom_metadata_map)


def judged_output(session: ort.InferenceSession) -> str:
    """The name of the output that metrics read."""
    return judged_name([node.name for node in session.get_outputs()], layout_of(session))


def predict_batches(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(judged output, targets) of every batch of `data`."""
    session = open_session(onnx_bytes, threads=threads)
    judged = judged_output(session)
    for inputs, targets in batches_of(data):
        yield (
            torch.from_numpy(session.run([judged], feeds_of(session, inputs))[0]),
            torch.as_tensor(judged_target(targets)),
        )
