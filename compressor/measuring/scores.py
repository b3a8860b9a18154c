"""Scores of ONNX files with their intervals, computed once for each file, and the paired drop between two of them."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import onnxruntime as ort
from torch import Tensor

from compressor.estimate import Estimate
from compressor.intervals import paired_drop, score_estimate
from compressor.measuring.fidelity import fidelity
from compressor.metrics import Metric
from compressor.notes.quantization import KeptOutput
from compressor.progress.bars import progress_bar
from compressor.runtime import predicted
from compressor.sessions import open_session
from compressor.storage import sha256
from compressor.training.passes.threads import Threads
from compressor.training.replay import replayed
from compressor.training.streams import said_length
from compressor.workload import Workload, batch_size_of, batches_of, first_batches

# Batches on which outputs that the metric does not read are compared.
_COMPARED_BATCHES = 16
# Decisions read the validation data; the test data is for the report.
Part = Literal["validation", "test"]


def score_rows(onnx_bytes: bytes, data: Iterable[Any], metric: Metric, *, threads: int | Threads = 1) -> Tensor:
    """The metric's row of every sample of `data`, (samples,) or (samples, k), as ONNX Runtime computes the outputs.

    Batches are scored one by one, so their outputs may differ in length; they come in the same order every time, in
    shuffled data too, so that the rows of two files can be paired. `threads` compute a batch, or as many as
    are fastest. Raises ValueError without any sample.
    """
    chosen = threads if isinstance(threads, Threads) else Threads(most=threads, fixed=True)
    with replayed(0, 0), chosen.kept():
        rows = [metric.rows(output, targets) for output, targets in predictions(onnx_bytes, data, chosen)]
    if not rows or not sum(map(len, rows)):
        raise ValueError(
            f"{metric.name} needs at least one sample, got none; if data is a generator, pass something that can be "
            "iterated again"
        )
    return metric.together(rows)


def predictions(onnx_bytes: bytes, data: Iterable[Any], threads: Threads) -> Iterator[tuple[Tensor, Tensor]]:
    """(judged output, targets) of every batch of `data`, as ONNX Runtime computes them by so many `threads`."""
    sessions: dict[int, ort.InferenceSession] = {}
    batches = progress_bar(batches_of(data), desc="scoring", unit="batch", total=said_length(data))
    for inputs, targets in threads.over(batches, lambda batch: batch_size_of(batch[0])):
        if threads.number not in sessions:
            with threads.aside():
                sessions[threads.number] = open_session(onnx_bytes, threads=threads.number)
        yield predicted(sessions[threads.number], inputs, targets)


class FileScores:
    """Scores of ONNX files on the validation and the test data of `workload`; `seed` draws the intervals.

    What a file scores is computed once, by as many threads as `threads` chooses. `based` says that drops can be told as
    fractions of the reference's score. `known` are rows that others on the same data have, or will have.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        seed: int,
        based: bool = True,
        known: dict[tuple[str, Part], Tensor] | None = None,
    ) -> None:
        self.workload, self.seed, self.based = workload, seed, based
        # Not bound to the target's threads: this is about the score, not the time.
        self.threads = Threads()
        self._known = {} if known is None else known

    def rows(self, onnx_bytes: bytes, part: Part) -> Tensor:
        """The metric's rows, one a sample."""
        key = (sha256(onnx_bytes), part)
        if key not in self._known:
            data = getattr(self.workload, part)
            self._known[key] = score_rows(onnx_bytes, data, self.workload.metric, threads=self.threads)
        return self._known[key]

    def score(self, onnx_bytes: bytes, part: Part) -> Estimate:
        """The score with its interval."""
        return score_estimate(self.rows(onnx_bytes, part), self.workload.metric, seed=self.seed)

    def drop(self, onnx_bytes: bytes, base: bytes, part: Part) -> Estimate:
        """How much the file scores below `base`, paired sample by sample."""
        metric = self.workload.metric
        return paired_drop(self.rows(onnx_bytes, part), self.rows(base, part), metric, seed=self.seed)

    def told_drop(self, onnx_bytes: bytes, base: bytes, part: Part) -> Estimate | None:
        """`drop` for the report; None where the reference's score is no base for it."""
        return self.drop(onnx_bytes, base, part) if self.based else None

    def others(self, onnx_bytes: bytes, base: bytes, part: Part) -> list[KeptOutput]:
        """What the file keeps of `base` in the outputs that the metric does not read, that which keeps least first."""
        batches = [inputs for inputs, _ in first_batches(getattr(self.workload, part), _COMPARED_BATCHES)]
        kept = [each for each in fidelity(base, onnx_bytes, batches) if not each.judged]
        return sorted(kept, key=lambda each: each.worst_db)
