"""What files score on a workload's data, computed once for each file."""

from typing import Literal

import torch
from torch import Tensor

from compressor.estimate import Estimate
from compressor.measuring.scores import paired_drop, score_estimate, score_rows
from compressor.storage import sha256
from compressor.workload import Workload

# Decisions read the validation data; the test data is for the report.
Part = Literal["validation", "test"]


class FileScores:
    """Scores of ONNX files on the validation and the test data of `workload`; `seed` draws the intervals."""

    def __init__(self, workload: Workload, *, seed: int) -> None:
        self.workload, self.seed = workload, seed
        self._known: dict[tuple[str, Part], Tensor] = {}

    def rows(self, onnx_bytes: bytes, part: Part) -> Tensor:
        """The metric's rows, one a sample."""
        key = (sha256(onnx_bytes), part)
        if key not in self._known:
            # Not bound to the target's threads: this is about the score, not the time.
            self._known[key] = score_rows(
                onnx_bytes, getattr(self.workload, part), self.workload.metric, threads=torch.get_num_threads()
            )
        return self._known[key]

    def score(self, onnx_bytes: bytes, part: Part) -> Estimate:
        """The score with its interval."""
        return score_estimate(self.rows(onnx_bytes, part), self.workload.metric, seed=self.seed)

    def drop(self, onnx_bytes: bytes, base: bytes, part: Part) -> Estimate:
        """How much the file scores below `base`, paired sample by sample."""
        metric = self.workload.metric
        return paired_drop(self.rows(onnx_bytes, part), self.rows(base, part), metric, seed=self.seed)
