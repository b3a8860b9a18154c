"""The optimizers that a training can be told to take, each with the rate that is used, and one that finds it.

SGD with Nesterov momentum (Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning"),
AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), or one's own. A rate is the peak of the schedule, and the number
that is used: nothing is multiplied to it but the schedule, `layer_rates`, and halvings where a training diverged.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.checks import as_imported, check_fraction, check_positive
from compressor.errors import StageError
from compressor.storage import sha256

MOMENTUM = 0.9
# What the penalties of sparse training take for a step of optimizers that say nothing of one: SGD's at a rate of 0.01.
STEP_LENGTH = 0.01 / (1 - MOMENTUM)

Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent at `rate` (> 0), with Nesterov momentum `momentum` in [0, 1)."""

    rate: float
    momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        check_fraction(self.momentum, "momentum is the part of the last step that is taken again", least_meant=0.5)

    def __str__(self) -> str:
        return "SGD with Nesterov momentum" if self.momentum else "SGD"

    @property
    def step_length(self) -> float:
        """How far a constant gradient of 1 moves a weight in an update at the peak, once momentum has built up."""
        return self.rate / (1 - self.momentum)

    def make(self, groups: Groups, *, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of these groups of parameters, with the rate in each group's "lr"."""
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.momentum > 0, fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW at `rate` (> 0), with means over gradients and their squares that decay by `betas`, each in [0, 1)."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if len(self.betas) != 2:
            raise ValueError(f"betas are two factors, such as (0.9, 0.999); got {self.betas!r}")
        for beta in self.betas:
            check_fraction(beta, "betas are factors by which means decay", least_meant=0.5)

    def __str__(self) -> str:
        return "AdamW"

    @property
    def step_length(self) -> float:
        """The length of a step at the peak for penalties: AdamW's own says nothing of what a gradient means."""
        return STEP_LENGTH

    def make(self, groups: Groups, *, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of these groups of parameters, with the rate in each group's "lr"."""
        return torch.optim.AdamW(groups, betas=(self.betas[0], self.betas[1]), fused=fused)


@dataclass(frozen=True, kw_only=True)
class OwnOptimizer:
    """What `factory(groups)` makes: a torch.optim.Optimizer over all parameters of these groups, at peak `rate` (> 0).

    Each group is a dict of "params", "lr" and "weight_decay", as torch's optimizers take them. `factory` is a callable,
    or `package.module:function`, where the current folder is importable. An optimizer whose `step` needs a closure is
    refused.
    """

    factory: str | Callable[[Groups], torch.optim.Optimizer]
    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if isinstance(self.factory, str):
            module, _, function = self.factory.partition(":")
            if not function.isidentifier() or not all(map(str.isidentifier, module.split("."))):
                raise ValueError(f"factory is a callable, or package.module:function; got {self.factory!r}")
        elif not callable(self.factory):
            raise ValueError(f"factory is a callable, or package.module:function; got {self.factory!r}")

    def __str__(self) -> str:
        return f"the optimizer of {self._name()}"

    def __repr__(self) -> str:
        # The address of a function is another one in every process; what it does is not.
        code = getattr(self.factory, "__code__", None)
        does = "" if code is None else f" {sha256(code.co_code)[:12]}"
        return f"{type(self).__name__}(factory={self._name() + does!r}, rate={self.rate!r})"

    @property
    def step_length(self) -> float:
        """The length of a step at the peak for penalties, to which nothing is known of this optimizer."""
        return STEP_LENGTH

    def make(self, groups: Groups, *, fused: bool) -> torch.optim.Optimizer:
        """The optimizer of these groups. Raises StageError where the factory gives something else."""
        del fused  # its own affair
        given = {id(parameter) for group in groups for parameter in group["params"]}
        made = self._function()(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise StageError(f"{self._name()} must return a torch.optim.Optimizer, it returned {type(made).__name__}")
        if isinstance(made, torch.optim.LBFGS) or _needs_closure(made):
            raise StageError(
                f"{self._name()} returns an optimizer, {type(made).__name__}, whose steps need a closure; take one "
                "that steps without"
            )
        if {id(parameter) for group in made.param_groups for parameter in group["params"]} != given:
            raise StageError(
                f"{self._name()} must take all parameters of the groups that it is given, and no others: "
                "layer_rates and freeze say what is trained, and how fast"
            )
        return made

    def _name(self) -> str:
        if isinstance(self.factory, str):
            return self.factory
        kind = self.factory if hasattr(self.factory, "__qualname__") else type(self.factory)
        return f"{kind.__module__}:{kind.__qualname__}"

    def _function(self) -> Callable[[Groups], torch.optim.Optimizer]:
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(":")
        if meant := as_imported(module, name):
            raise StageError(f"factory: a function is package.module:function, got {self.factory!r}; {meant}")
        folder = str(Path.cwd())
        if folder not in sys.path:
            # Last: installed packages go first, whatever files are called in the current folder.
            sys.path.append(folder)
        try:
            function = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # the user's module exists and lacks an import of its own
            raise StageError(f"factory: no module {module!r} in {folder} or among the installed packages") from error
        if not callable(function):
            raise StageError(f"factory: {module} has no function {name!r}")
        return function  # type: ignore[no-any-return] # what it gives is checked


@dataclass(frozen=True, kw_only=True)
class AutoOptimizer:
    """SGD for convolutions with BatchNorm, else AdamW, at a rate that a short range test finds before the training.

    The test runs some dozens of batches of the training data, a small share of the training, and leaves the model as it
    was: Smith 2017, arXiv:1506.01186, sec. 3.3. The report says which optimizer was taken, at which rate, and why.
    """

    @property
    def step_length(self) -> float:
        """The length of a step at the peak for penalties: that of a usual rate, as none is known before the test."""
        return STEP_LENGTH


Known = SGD | AdamW | OwnOptimizer
Optimizer = AutoOptimizer | SGD | AdamW | OwnOptimizer


def _needs_closure(made: torch.optim.Optimizer) -> bool:
    """Whether `step` cannot be called without arguments."""
    try:
        inspect.signature(made.step).bind()
    except TypeError:
        return True
    except ValueError:  # compiled code tells no signature
        return False
    return False


def _check_rate(rate: float) -> None:
    check_positive(rate, "rate is the peak of the schedule")
