"""Updates of an optimizer: gradients of one batch or of several, clipped, at the rate of the moment, and checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.errors import StageError, first_said
from compressor.training.distributed.team import Team

# What is done to the weights after every update, given its rate as a fraction of the peak.
AfterStep = Callable[[float], None]


class DivergedError(Exception):
    """A loss, a gradient or a score that is no finite number."""


def check_finite(value: float, what: str) -> float:
    """`value`. Raises DivergedError naming `what` where it is not finite."""
    if not math.isfinite(value):
        raise DivergedError(f"{what} is {value}")
    return value


@dataclass(kw_only=True)
class Updates:
    """An `optimizer` that takes `accumulate` batches to an update; gradients longer than `clip` are shortened to it.

    What batches count is what `add_` is told; an update is divided by that of all its batches where it `divides`. Every
    member of a `team` adds its parts. The rates that its groups have at first are those at a fraction of 1.
    `before_step` may change gradients before they are clipped, `after_step` the weights.
    """

    optimizer: torch.optim.Optimizer
    clip: float | None
    accumulate: int = 1
    divides: bool = True
    team: Team | None = None
    before_step: Callable[[], None] | None = None
    after_step: AfterStep | None = None
    peaks: tuple[float, ...] = field(init=False)
    batches: int = field(init=False, default=0)
    counted: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.peaks = tuple(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def rate(self) -> float:
        """The rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def learn_(self) -> None:
        """Before the batches of an epoch: optimizers that learn with other weights than they end with take those.

        Schedule-free ones do (Defazio et al. 2024, arXiv:2405.15682, eq. 3 to 5), by methods `train` and `eval`.
        """
        _called(self.optimizer, "train")

    def rest_(self) -> None:
        """After them: the weights become those that are judged and kept."""
        _called(self.optimizer, "eval")

    def add_(self, loss: Tensor, counts: float, fraction: float, what: str) -> bool:
        """Adds the gradient of a batch that `counts` so much; whether that made an update, at `fraction` of the peak.

        Raises DivergedError naming `what` where the gradient is not finite.
        """
        # The mean over all of an update, whatever sizes its batches have.
        weighted = loss if self._is_whole else loss * counts
        if counts or self.team is None:
            weighted.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
        self.batches, self.counted = self.batches + 1, self.counted + counts
        return self.batches == self.accumulate and self.step_(fraction, what)

    def forget_(self) -> None:
        """Drops what was added since the last update."""
        self.optimizer.zero_grad()
        self.batches, self.counted = 0, 0.0

    def step_(self, fraction: float, what: str) -> bool:
        """The update that what was added gives; False where nothing was added since the last one."""
        if not self.batches:
            return False
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        counted = self.counted
        if self.team is not None:
            self.team.add_gradients_(trained)
            (counted,) = self.team.sums(counted)
        if not self._is_whole and self.divides and counted:
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.div_(counted)
        if self.before_step is not None:
            self.before_step()
        norm = nn.utils.clip_grad_norm_(trained, math.inf if self.clip is None else self.clip)
        check_finite(float(norm), f"gradient norm in {what}")
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * fraction
        self._move_()
        # At once: gradients beside the activations of the next batch would only take memory.
        self.forget_()
        if self.after_step is not None:
            with torch.no_grad():
                self.after_step(fraction)
        return True

    @property
    def _is_whole(self) -> bool:
        """Whether a batch is an update as it is."""
        return self.accumulate == 1 and self.team is None

    def _move_(self) -> None:
        if type(self.optimizer).__module__.startswith("torch."):
            self.optimizer.step()
            return
        try:
            self.optimizer.step()
        except Exception as error:
            raise StageError(
                f"{type(self.optimizer).__name__}, the optimizer of one's own, does not step: {first_said(error)}; "
                "take one whose steps need no closure, and no other call than train() and eval() around an epoch"
            ) from error


def _called(optimizer: torch.optim.Optimizer, name: str) -> None:
    method = getattr(optimizer, name, None)
    if callable(method):
        method()
