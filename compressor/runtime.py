"""ONNX Runtime sessions, and an ONNX file as a torch module."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.batches import Inputs, Targets, judged_target
from compressor.outputs.layout import Layout, NamedOutputs, judged_name
from compressor.sessions import Feeds, by_input, by_order, load_session, open_session, session_options
from compressor.workload import batches_of

__all__ = [
    "Feeds",
    "OnnxModule",
    "feeds_of",
    "judged_output",
    "laid_out",
    "layout_of",
    "load_session",
    "open_session",
    "predict_batches",
    "predicted",
    "samples_first",
    "samples_of",
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
        self._samples_first = False

    @property
    def session(self) -> ort.InferenceSession:
        """The running session, opened at the first use of a copy."""
        if self._session is None:
            self._session = open_session(self.onnx_bytes, threads=self.threads)
        return self._session

    @property
    def fixed_batch(self) -> int:
        """The one number of samples that the file takes at once, 0 where it takes any."""
        layout = layout_of(self.session).inputs
        for node in self.session.get_inputs():
            axis = layout.get(node.name, 0)
            if node.shape and axis is not None:
                return node.shape[axis] if isinstance(node.shape[axis], int) else 0
        return 0

    def in_rows(self, inputs: Any, count: int | None = None) -> Any:
        """`inputs` of `count` samples as the file takes them, or with samples first: a sample in every row of each.

        An input that is one for all samples of a call is repeated. Without a `count` it is that of the file's layout.
        """
        layout = layout_of(self.session).inputs
        if not layout:
            return inputs
        nodes = self.session.get_inputs()
        names = [node.name for node in nodes]
        if not isinstance(inputs, Mapping):
            inputs = by_order(names, inputs if isinstance(inputs, tuple) else (inputs,))
        values = {name: torch.as_tensor(value) for name, value in inputs.items()}
        if count is None:
            sized = [(values[name], layout.get(name, 0)) for name in names if name in values]
            count = next(value.shape[axis] for value, axis in sized if axis is not None)
        ranks = {node.name: len(node.shape) for node in nodes}
        return {
            name: _in_rows(value, layout.get(name, 0), ranks.get(name, value.ndim), count)
            for name, value in values.items()
        }

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch, on the CPU."""
        names = [node.name for node in self.session.get_inputs()]
        given = {**by_order(names, args), **kwargs}
        if self._samples_first:
            outputs = tuple(map(torch.from_numpy, run_on_samples(self.session, given)))
        else:
            outputs = tuple(map(torch.from_numpy, self.session.run(None, samples_of(self.session, given))))
        if len(outputs) == 1:
            return outputs[0]
        names = [node.name for node in self.session.get_outputs()]
        return NamedOutputs(names, outputs, judged_output(self.session))

    def on_samples(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """The outputs for inputs with a sample in every row of each, wherever the file has them; outputs have, too."""
        self._samples_first = True
        try:
            return self(*args, **kwargs)
        finally:
            self._samples_first = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """The file's size and names, for printing."""
        names = ", ".join(node.name for node in self.session.get_inputs())
        return f"{len(self.onnx_bytes)} bytes, inputs: {names}"


def feeds_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """What `session` is fed for `inputs`, which have samples first: as its file lays them out.

    By name for a dict, by order otherwise; only inputs that the graph has. Raises ValueError where the graph has an
    input that `inputs` lacks, and where one that is the same for all samples of a call is not.
    """
    return laid_out(layout_of(session), samples_of(session, inputs))


def laid_out(layout: Layout, samples: Feeds) -> Feeds:
    """The `samples` of every input, first in each, in the dimensions in which a file has them.

    An input without a batch is given once. Raises ValueError where it would have several values.
    """
    if not layout.inputs:
        return samples
    return {name: _turned(name, values, layout.inputs.get(name, 0)) for name, values in samples.items()}


def _turned(name: str, values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    if axis is not None:
        return np.ascontiguousarray(np.moveaxis(values, 0, axis))
    if len(values) and not (values == values[:1]).all():
        raise ValueError(
            f"the input {name!r} is one for all samples of a call, and differs between those of a batch; give batches "
            "in which it is the same"
        )
    return np.ascontiguousarray(values[0]).reshape(values.shape[1:])


def run_on_samples(session: ort.InferenceSession, inputs: Inputs) -> list[NDArray[Any]]:
    """All outputs of the file for `inputs`, samples first in both; an output without a batch is as it is."""
    outputs = layout_of(session).outputs
    given = session.run(None, feeds_of(session, inputs))
    names = [node.name for node in session.get_outputs()]
    return [samples_first(values, outputs.get(name, 0)) for name, values in zip(names, given, strict=True)]


def samples_first(values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """An output whose samples lie in dimension `axis` of it, samples first; as it is where they lie in none."""
    return np.ascontiguousarray(np.moveaxis(values, axis, 0)) if axis else values


def samples_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """`inputs` as arrays by the names of the session's inputs, laid out as they are.

    Raises ValueError where the graph has an input that `inputs` lacks.
    """
    names = [node.name for node in session.get_inputs()]
    types = {node.name: _FLOATS.get(node.type) for node in session.get_inputs()}
    given = (
        inputs if isinstance(inputs, Mapping) else by_order(names, inputs if isinstance(inputs, tuple) else (inputs,))
    )
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in by_input(names, given).items()}
    return {
        # A lone number would become a row of one.
        name: np.ascontiguousarray(array, dtype=types[name] if array.dtype.kind == "f" else None).reshape(array.shape)
        for name, array in arrays.items()
    }


def _in_rows(value: Tensor, axis: int | None, rank: int, count: int) -> Tensor:
    if axis is None:
        # One for all samples, or one for each already.
        given = value.ndim == rank + 1 and len(value) == count
        return value if given else value.expand(count, *value.shape)
    return value.movedim(axis, 0) if axis and value.ndim > axis and value.shape[axis] == count else value


def layout_of(session: ort.InferenceSession) -> Layout:
    """The layout that the session's file notes in its metadata."""
    return Layout.of_metadata(session.get_modelmeta().custom_metadata_map)


def judged_output(session: ort.InferenceSession) -> str:
    """The name of the output that metrics read."""
    return judged_name([node.name for node in session.get_outputs()], layout_of(session))


def predict_batches(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(judged output, targets) of every batch of `data`."""
    session = open_session(onnx_bytes, threads=threads)
    for inputs, targets in batches_of(data):
        yield predicted(session, inputs, targets)


def predicted(session: ort.InferenceSession, inputs: Inputs, targets: Targets) -> tuple[Tensor, Tensor]:
    """(judged output, targets) of one batch."""
    judged = judged_output(session)
    given = session.run([judged], feeds_of(session, inputs))[0]
    axis = layout_of(session).outputs.get(judged, 0)
    return torch.from_numpy(samples_first(given, axis)), torch.as_tensor(judged_target(targets))
