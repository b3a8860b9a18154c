"""ONNX Runtime sessions, and an ONNX file as a torch module."""

from collections.abc import Iterable, Iterator
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from compressor.batches import Batch, Inputs, Targets, judged_target, map_targets, split_batch
from compressor.calls.running import calls, feeds_of, first_step, is_stream, run_on_samples, unrolled
from compressor.calls.samples import (
    as_tensor,
    filled,
    fixed_batch,
    in_rows,
    judged_output,
    laid_out,
    layout_of,
    samples_of,
    why_not_run,
)
from compressor.errors import WorkloadError
from compressor.outputs.layout import NamedOutputs
from compressor.sessions import Feeds, by_order, load_session, open_session, session_options
from compressor.workload import batches_of

__all__ = [
    "Feeds",
    "OnnxModule",
    "calls",
    "feeds_of",
    "filled",
    "fixed_batch",
    "judged_output",
    "laid_out",
    "layout_of",
    "load_session",
    "open_session",
    "predict_batches",
    "predicted",
    "run_on_samples",
    "samples_of",
    "session_options",
]


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
        """The one number of samples that the file takes at once, 0 where it takes any; 1 without a batch."""
        return fixed_batch(self.session)

    @property
    def streams(self) -> dict[str, str]:
        """The input that the next step of a stream is given each of these outputs for."""
        return dict(layout_of(self.session).streams)

    def in_rows(self, inputs: Any, count: int | None = None) -> Any:
        """`inputs` of `count` samples as the file takes them, or with samples first: a sample in every row of each.

        An input that is one for all samples of a call is repeated. Without a `count` it is that of the file's layout.
        """
        return in_rows(self.session, inputs, count)

    def one_step(self, inputs: Inputs) -> dict[str, Tensor]:
        """The first step of streams, a sample in every row, with the states that they begin with."""
        return {name: torch.from_numpy(values) for name, values in first_step(self.session, inputs).items()}

    def unrolled(self, batch: Any) -> Batch:
        """A batch of streams as one of their steps, with the states and targets that each has; others as they are."""
        inputs, targets = split_batch(batch)
        if not is_stream(self.session, inputs):
            return inputs, targets
        found = unrolled(self.session, inputs)
        steps = max(found.steps) + 1

        def of_steps(values: Any) -> Any:
            stepwise = getattr(values, "ndim", 0) > 1 and values.shape[1] == steps
            return values[found.of, found.steps] if stepwise else values[found.of]

        rows = {name: torch.from_numpy(values) for name, values in found.samples.items()}
        return rows, map_targets(targets, of_steps)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch, on the CPU. Raises WorkloadError with the input that the file does not take."""
        names = [node.name for node in self.session.get_inputs()]
        given = {**by_order(names, args), **kwargs}
        outputs = tuple(map(as_tensor, self._outputs(given)))
        if len(outputs) == 1:
            return outputs[0]
        names = [node.name for node in self.session.get_outputs()]
        return NamedOutputs(names, outputs, judged_output(self.session))

    def _outputs(self, given: dict[str, Tensor]) -> list[Any]:
        feeds = samples_of(self.session, given)
        try:
            return run_on_samples(self.session, given) if self._samples_first else self.session.run(None, feeds)
        except ValueError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            fed = feeds_of(self.session, given) if self._samples_first else feeds
            raise WorkloadError(why_not_run(self.session, fed, error)) from error

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


def predict_batches(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(judged output, targets) of every batch of `data`, of streams (samples, steps, ...)."""
    session = open_session(onnx_bytes, threads=threads)
    for inputs, targets in batches_of(data):
        yield predicted(session, inputs, targets)


def predicted(session: ort.InferenceSession, inputs: Inputs, targets: Targets) -> tuple[Tensor, Tensor]:
    """(judged output, targets) of one batch."""
    place = [node.name for node in session.get_outputs()].index(judged_output(session))
    return as_tensor(run_on_samples(session, inputs)[place]), torch.as_tensor(judged_target(targets))
