"""Random numbers under one seed, so that two models or two passes that draw some can be compared."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.structure.calling.coverage import unwatched


class Draws:
    """Whether anything was drawn while a seed was set: known at the end."""

    any = False


def seed_torch(seed: int) -> None:
    """`torch.manual_seed(seed)`, -2**63 to 2**64 - 1, in microseconds where there is no accelerator.

    For every kind that is not in use torch keeps the stack of the call, and looks for all its files on disk.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Leaves the global random states of torch, numpy and Python as they were."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - models draw from the global one
    with torch.random.fork_rng(devices=_cuda()):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002 - as above


@contextmanager
def seeded(seed: int = 0) -> Iterator[Draws]:
    """One `seed` (0 to 2**64 - 1) for torch, Python and numpy; their generators are as before afterwards."""
    draws = Draws()
    with kept_randomness():
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - as above
        before = _states()
        try:
            yield draws
        finally:
            draws.any = _states() != before


def _cuda() -> range:
    return range(torch.cuda.device_count())


def _states() -> list[bytes]:
    numbers = np.random.get_state()  # noqa: NPY002 - models draw from the global one
    return [
        torch.get_rng_state().numpy().tobytes(),
        *(torch.cuda.get_rng_state(device).numpy().tobytes() for device in _cuda()),
        repr(random.getstate()[1]).encode(),
        numbers[1].tobytes() + str(numbers[2]).encode(),  # type: ignore[index]  # the legacy form is a tuple
    ]


class EvenDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Gives every element of one draw the same number, whatever its shape, and the same call the same number.

    A narrowed model draws fewer numbers than the whole one, and would get others for the channels that it still has.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._calls = 0

    @unwatched
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **kwargs)
        self._calls += 1
        seed_torch(self._calls)
        schema = function._schema  # noqa: SLF001 - torch has no public name for it
        name = schema.name.partition("::")[2].strip("_")
        given = {argument.name: argument.default_value for argument in schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        if name == "native_dropout":
            return _dropout(given)
        if name.startswith("rrelu_with_noise"):
            return _leaky(given, in_place=schema.name.endswith("_"))
        if name == "bernoulli" or (name == "normal" and any(isinstance(given.get(key), Tensor) for key in _MOMENTS)):
            result = function(*args, **kwargs)
            even = _bernoulli(given, result) if name == "bernoulli" else _normal(given, result)
            return result.copy_(even)
        if name not in _ALIKE:
            return function(*args, **kwargs)
        one = function(*map(_single, args), **{key: _single(value) for key, value in kwargs.items()})
        seed_torch(self._calls)
        result = function(*args, **kwargs)
        return result.copy_(one.reshape(-1)[:1].expand_as(result)) if result.numel() else result


# Draws whose elements all come from the same distribution.
_ALIKE = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "uniform",
        "exponential",
        "cauchy",
        "geometric",
        "log_normal",
        "random",
        "normal_functional",
        "uniform_functional",
    ]
)
_MOMENTS = ("mean", "std")


def _single(value: Any) -> Any:
    """An argument of the same draw of one number."""
    if isinstance(value, Tensor):
        return value.new_empty(1)
    return [1] if isinstance(value, list | tuple | torch.Size) else value


def _dropout(given: dict[str, Any]) -> Any:
    # Nothing is dropped: zeros everywhere would hide what comes before.
    data, share = given["input"], float(given["p"])
    if not given["train"] or share >= 1:
        return (data.clone() if share < 1 else torch.zeros_like(data)), torch.ones_like(data, dtype=torch.bool)
    return data / (1 - share), torch.ones_like(data, dtype=torch.bool)


def _leaky(given: dict[str, Any], *, in_place: bool) -> Tensor:
    data, slope = given["self"], (float(given["lower"]) + float(given["upper"])) / 2
    factors = torch.where(data < 0, slope, 1.0).to(data.dtype)
    given["noise"].copy_(factors)
    result: Tensor = data.mul_(factors) if in_place else data * factors
    return result


def _bernoulli(given: dict[str, Any], result: Tensor) -> Tensor:
    # The more probable of both, for chance would zero a whole tensor.
    chance = given["self"] if given.get("p") is None else given["p"]
    if isinstance(chance, Tensor):
        return (chance >= 0.5).to(result.dtype).expand_as(result)
    return torch.full_like(result, float(chance >= 0.5))


def _normal(given: dict[str, Any], result: Tensor) -> Tensor:
    even: Tensor = given["mean"] + given["std"] * torch.randn(1, dtype=result.dtype, device=result.device)
    return even.expand_as(result)
