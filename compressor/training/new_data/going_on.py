"""Incremental learning: a compressed model goes on learning from new data, and keeps what it knew.

    loss = lambda L_old(former answers, answers) + L_new(labels, answers) on new data,
    L_old = -sum y' log q', y' and q' softened at a temperature

Learning without Forgetting: Li and Hoiem 2016, arXiv:1606.09282, eq. 1 to 3 and fig. 3. The former model is the
teacher, and a share of old data is replayed beside the new ones where there are some. Structure stays, and so do zeros
and shared values that the plan holds.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.checks import check_fraction
from compressor.errors import CompressorError, StageError, StorageError, first_said
from compressor.notes.training import Learnt
from compressor.stage import Context
from compressor.storage import read_json
from compressor.structure.checkpoint import PLAN_FILE
from compressor.training.new_data.mixing import WANTED, Mixed, NewData
from compressor.training.precision import Form
from compressor.training.settings import TrainingSettings
from compressor.training.validation import Joined, of_parts, validation_score
from compressor.workload import Workload

_HELD = ("zeros", "clusters")


@dataclass(frozen=True, kw_only=True)
class GoesOn(TrainingSettings):
    """Settings of trainings that can go on with new data.

    `data`, batches with targets, or the name of a function that gives them, takes the place of the training data; a
    tenth is held out and chooses the epoch together with the old validation data, each as much, however many there
    are. `replay` in [0, 1) is the part of old
    batches among all. `held` is the folder of the run that made the model: zeros and shared values of its plan stay.
    """

    data: Iterable[Any] | str | None = field(default=None, repr=False, compare=False)
    replay: float = 0.5
    held: str | None = None
    new_data: NewData | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.replay, "replay is the part of old batches among all that a training on new data reads")
        object.__setattr__(self, "new_data", None)

    def read_data_(self, find: Callable[[str, str], Callable[..., Any]]) -> None:
        """Reads `data`; `find` gives the function of a name. Raises ValueError for what is no data with targets."""
        given = self.data
        if isinstance(given, str):
            try:
                given = find(given, WANTED)()
            except CompressorError as error:
                raise ValueError(error.sentence) from error
            except Exception as error:  # it is the user's own code
                raise ValueError(f"data: {given} raised {type(error).__name__}: {first_said(error)}") from error
        if given is not None:
            object.__setattr__(self, "new_data", NewData.of(given))

    def hold(self, context: Context, model: nn.Module) -> None:
        """Puts what `held` says is to stay into the plan.

        Raises StorageError where there is no plan to read, StageError where it is of another model.
        """
        if self.held is None:
            return
        path = Path(self.held) / PLAN_FILE
        plan = read_json(path, way_out="held is the folder of the run that made the model")
        if not isinstance(plan, list):
            raise StorageError(f"{path} must hold a plan, a list; got {type(plan).__name__}")
        known = [*context.plan_before, *context.plan]
        entries = [entry for entry in plan if isinstance(entry, dict) and entry.get("kind") in _HELD]
        names = {name for entry in entries for name in entry["tensors"]}
        if names and not names & dict(model.named_parameters(remove_duplicate=False)).keys():
            raise StageError(
                f"held: {path} holds zeros or shared values of {', '.join(sorted(names)[:3])}, and "
                f"{type(model).__name__} has no such weights; give the folder of the run that made this model"
            )
        context.plan.extend(entry for entry in entries if entry not in known)

    def on_new_data(self, workload: Workload) -> Workload:
        """`workload` as it is trained on: new data beside a share of old, its epochs chosen by both."""
        if self.new_data is None:
            return workload
        train = Mixed(self.new_data.train, workload.train, self.replay)
        validation = Joined(workload.validation, self.new_data.validation)
        return replace(workload, train=train, validation=validation, metric=of_parts(workload.metric))

    def scores(self, model: nn.Module, workload: Workload) -> tuple[float | None, float | None]:
        """The scores of `model` on the new data that are held out, and on the old validation data."""
        if self.new_data is None:
            return None, None
        form = Form.of(model)
        new, old = (
            validation_score(model, replace(workload, validation=data), form)
            for data in (self.new_data.validation, workload.validation)
        )
        return tuple(score if math.isfinite(score) else None for score in (new, old))  # type: ignore[return-value] # two

    def tell(
        self, context: Context, workload: Workload, before: tuple[float | None, float | None], model: nn.Module
    ) -> None:
        """Tells what a training on new data brought: `before` is what `scores` gave before it."""
        if self.new_data is None:
            return
        after = self.scores(model, workload)
        context.tell(
            Learnt(
                metric=workload.metric.name,
                replay=self.replay,
                new_before=before[0],
                new_after=after[0],
                old_before=before[1],
                old_after=after[1],
            )
        )
