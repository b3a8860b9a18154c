"""In which order a space is tried: by chance, as it is written, or as Optuna asks for it.

A sampler is asked for the next candidate and told what came of all before it; it keeps nothing, so that a search which
was killed goes on as if it had not been.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

from compressor.errors import WrongUseError
from compressor.searching.front import Point
from compressor.searching.space import Candidate
from compressor.storage import sha256


class Sampler(Protocol):
    """What chooses the next candidate of the first rung.

    `listens` says that the choice heeds what it is told: it is then asked anew for every worker that is free.
    """

    @property
    def listens(self) -> bool:
        """Whether the order depends on what came of the trials."""

    def next(
        self, untried: Sequence[Candidate], told: Sequence[tuple[Candidate, Point]], space: Sequence[Candidate]
    ) -> Candidate:
        """One of `untried`, which is not empty; `told` are the points of those that gave a file, in order.

        `space` is the whole space. Coordinates of points are better where smaller.
        """
        ...


@dataclass(frozen=True)
class Grid:
    """The space in the order in which it is written."""

    listens: ClassVar[bool] = False

    def next(
        self, untried: Sequence[Candidate], told: Sequence[tuple[Candidate, Point]], space: Sequence[Candidate]
    ) -> Candidate:
        """The first."""
        del told, space
        return untried[0]


@dataclass(frozen=True)
class Random:
    """By chance, from `seed`: stem after stem, and the encodings of a stem together, for they share its training."""

    listens: ClassVar[bool] = False
    seed: int = 0

    def next(
        self, untried: Sequence[Candidate], told: Sequence[tuple[Candidate, Point]], space: Sequence[Candidate]
    ) -> Candidate:
        """The one whose stem comes first by a digest of the seed and the stem."""
        del told, space
        return min(untried, key=lambda each: sha256(f"{self.seed} {each.stem}".encode()))


@dataclass(frozen=True)
class Optuna:
    """As Optuna's multi-objective TPE asks for it (Ozaki et al. 2022, arXiv:2208.03507), from `seed`.

    The extra `search` brings Optuna along. Its study is made anew from the trials for every question.
    """

    listens: ClassVar[bool] = True
    seed: int = 0

    def __post_init__(self) -> None:
        if find_spec("optuna") is None:
            raise WrongUseError(
                'this sampler needs Optuna; pip install "torch-compressor[search]" brings it along, '
                "and `random` needs nothing"
            )

    def next(
        self, untried: Sequence[Candidate], told: Sequence[tuple[Candidate, Point]], space: Sequence[Candidate]
    ) -> Candidate:
        """The untried candidate that is asked for, or the one with most of the values that are."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        choices = {each.recipe.name: choices_of(each) for each in space}
        options: dict[str, list[str]] = {}
        for chosen in choices.values():
            for key, value in chosen.items():
                options.setdefault(key, [])
                options[key] += [value] if value not in options[key] else []
        spread: dict[str, Any] = {
            key: optuna.distributions.CategoricalDistribution(values) for key, values in options.items()
        }
        study = optuna.create_study(
            directions=["minimize"] * (len(told[0][1]) if told else 3),
            sampler=optuna.samplers.TPESampler(seed=self.seed + len(told), n_startup_trials=8),
        )
        for candidate, point in told:
            params = choices[candidate.recipe.name]
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions={key: spread[key] for key in params}, values=list(point)
                )
            )
        asked = study.ask(spread).params
        return max(
            untried, key=lambda each: sum(asked.get(key) == value for key, value in choices[each.recipe.name].items())
        )


def choices_of(candidate: Candidate) -> dict[str, str]:
    """What sweeps chose for a candidate, by place; its name alone where it was written out."""
    pairs = [choice.partition("=") for choice in candidate.recipe.choices]
    return {place: value for place, _, value in pairs} or {"recipe": candidate.recipe.name}


def sampler_of(name: str, seed: int) -> Sampler:
    """The sampler that is called `name`. Raises WrongUseError for another name."""
    match name:
        case "random":
            return Random(seed)
        case "grid":
            return Grid()
        case "optuna":
            return Optuna(seed)
    raise WrongUseError(f"unknown sampler {name[:100]!r} (known: random, grid, optuna)")
