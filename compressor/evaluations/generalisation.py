"""Generalisation: how much worse a model scores on samples that it has not seen than on those that trained it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from compressor.batches import Batches
from compressor.checks import check_count, explains_settings
from compressor.evaluations.evaluation import Subject
from compressor.intervals import gap_between, gap_change
from compressor.notes.evaluations import Evaluated
from compressor.workload import batch_size_of, batches_of


@explains_settings
@dataclass(frozen=True, kw_only=True)
class GeneralisationGap:
    """The score on `samples` (>= 1) training samples, drawn by the seed, less that on test data.

    Training samples are scored without their augmentations where the workload tells them apart (`from_datasets`), and
    the first ones as they come otherwise. A smaller gap is no better model: read it beside the score.
    """

    samples: int = 2000

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts the training samples that are scored")

    def evaluate(self, subject: Subject) -> Sequence[Evaluated]:
        """One row; see `Evaluation`."""
        metric = subject.workload.metric
        train, how = seen_samples(subject.workload.train, self.samples, subject.seed)
        parts = {"train": train, "test": subject.workload.test}

        def rows(file: bytes) -> list[torch.Tensor]:
            return [subject.known.rows(file, f"{name} of the gap", data) for name, data in parts.items()]

        own, base = rows(subject.onnx_bytes), rows(subject.reference)
        alone = subject.is_reference
        return [
            Evaluated(
                evaluation="generalisation_gap",
                what=f"worse on test data than on training data{how}",
                unit="drop",
                value=gap_between(own[0], own[1], metric, seed=subject.seed),
                reference=None if alone else gap_between(base[0], base[1], metric, seed=subject.seed),
                worse=None if alone else gap_change(own, base, metric, seed=subject.seed),
            )
        ]


def seen_samples(train: Iterable[Any], samples: int, seed: int) -> tuple[Iterable[Any], str]:
    """(that many training samples in batches, how they were read where that is not plainly), drawn by the seed."""
    if isinstance(train, Batches):
        order = torch.randperm(len(train.indices), generator=torch.Generator().manual_seed(seed))[:samples]
        indices = train.indices[order.sort().values].tolist()
        return Batches(train.samples, indices=indices, batch_size=train.batch_size, transform=train.transform), ""
    return _First(train, samples), ", read as training does"


@dataclass(frozen=True)
class _First:
    """The first batches of `data` that hold `samples` samples."""

    data: Iterable[Any]
    samples: int

    def __iter__(self) -> Any:
        seen = 0
        for batch in islice(batches_of(self.data), self.samples):
            yield batch
            seen += batch_size_of(batch[0])
            if seen >= self.samples:
                return
