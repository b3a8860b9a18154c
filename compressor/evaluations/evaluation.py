"""What an evaluation is: data plus one method that asks a file something, and what it may know of the file.

Evaluations are for the report alone: they read test data, and nothing that a run decides reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compressor.errors import first_said
from compressor.measuring.scores import predictions, score_rows
from compressor.notes.evaluations import Evaluated, Evaluations
from compressor.notes.note import Note
from compressor.outputs.kinds import IGNORED
from compressor.scoring.classes import ByClass
from compressor.stage import stage_name
from compressor.storage import sha256
from compressor.training.passes.threads import Threads
from compressor.training.replay import replayed
from compressor.workload import Workload


@dataclass(frozen=True)
class Answers:
    """What a file answers to samples of one class each: (samples,) answers, their confidences in [0, 1], the labels.

    `places` are those of the samples in the test data, of which those whose label is ignored are left out.
    """

    answers: Tensor
    confidences: Tensor
    labels: Tensor
    places: Tensor

    @property
    def right(self) -> Tensor:
        """Which answers are right, 0 or 1 each."""
        return (self.answers == self.labels).double()


class Known:
    """What files of one run gave on the data of `workload`, computed once each."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.threads = workload, Threads()
        self._rows: dict[tuple[str, str], Tensor] = {}
        self._answers: dict[str, Answers] = {}

    def rows(self, onnx_bytes: bytes, name: str, data: Any) -> Tensor:
        """The metric's rows on `data`, which `name` names."""
        key = sha256(onnx_bytes), name
        if key not in self._rows:
            self._rows[key] = score_rows(onnx_bytes, data, self.workload.metric, threads=self.threads)
        return self._rows[key]

    def answers(self, onnx_bytes: bytes) -> Answers:
        """The answers on test data. Raises ValueError where outputs are not one of several classes for each sample."""
        key = sha256(onnx_bytes)
        if key not in self._answers:
            self._answers[key] = _answers(onnx_bytes, self.workload, self.threads)
        return self._answers[key]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that is asked: itself, the reference's, and what the stage that made it did to which model.

    `before` is the model that the stage was given, None where that cannot be called by layers; `plan` is what the stage
    added to the structure plan. `seed` draws samples and intervals.
    """

    onnx_bytes: bytes
    reference: bytes
    workload: Workload
    known: Known
    seed: int = 0
    before: nn.Module | None = None
    plan: Sequence[dict[str, Any]] = field(default_factory=list)

    @property
    def is_reference(self) -> bool:
        """Whether the file is the reference itself, which is compared with nothing."""
        return self.onnx_bytes == self.reference


@runtime_checkable
class Evaluation(Protocol):
    """A frozen keyword-only dataclass with `evaluate`; its name in recipes is its class in snake case."""

    def evaluate(self, subject: Subject) -> Sequence[Evaluated | Note]:
        """What `subject` answers: rows, notes of other kinds, or nothing where there is nothing to ask.

        Raises ValueError, with the reason, where the question does not suit the workload.
        """


def evaluated(evaluations: Sequence[Evaluation], subject: Subject) -> dict[str, Any]:
    """What all of them say of `subject`, as entries of a step's details. What fails is told, and ends nothing."""
    rows: list[Evaluated] = []
    details: dict[str, Any] = {}
    for evaluation in evaluations:
        name = stage_name(type(evaluation))
        try:
            if not subject.workload.metric.scored:
                raise ValueError("there are no data to ask with")  # noqa: TRY301  # told like all others
            with torch.no_grad():
                found = evaluation.evaluate(subject)
        except Exception as error:  # noqa: BLE001  # the user's metric may raise anything, and the run must go on
            rows.append(Evaluated(evaluation=name, why=first_said(error)))
            continue
        rows += [each for each in found if isinstance(each, Evaluated)]
        for note in found:
            if isinstance(note, Note):
                details |= note.to_json()
    return details | (Evaluations(evaluations=tuple(rows)).to_json() if rows else {})


def _answers(onnx_bytes: bytes, workload: Workload, threads: Threads) -> Answers:
    judged = workload.metric.per_sample
    if not isinstance(judged, ByClass):
        raise ValueError(f"asked of classifiers alone, and {workload.metric.name} does not judge classes")
    found: list[tuple[Tensor, ...]] = []
    start = 0
    with replayed(0, 0), threads.kept():
        for outputs, targets in predictions(onnx_bytes, workload.test, threads):
            if outputs.ndim != 2 or targets.ndim != 1:
                raise ValueError("asked where a sample has one class alone, and these have several positions")
            shares = shares_of(outputs, judged)
            best = shares.max(dim=1)
            asked = ~torch.isin(targets, torch.tensor(judged.ignored or (IGNORED,)))
            found.append((best.indices[asked], best.values[asked], targets[asked], start + torch.where(asked)[0]))
            start += len(targets)
    return Answers(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def shares_of(outputs: Tensor, judged: ByClass) -> Tensor:
    """The shares that `outputs`, (samples, classes), give each class, in [0, 1] and in double precision."""
    return outputs.double() if judged.probabilities or _are_shares(outputs) else outputs.double().softmax(1)


def _are_shares(outputs: Tensor) -> bool:
    """Whether a file ends in Softmax: its outputs are not negative, and those of a sample add up to 1."""
    return bool((outputs >= 0).all()) and torch.allclose(outputs.sum(dim=1), torch.ones(len(outputs)), atol=1e-4)
