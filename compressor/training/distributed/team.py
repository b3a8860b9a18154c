"""The processes that torchrun started, as one team: what they add up, and what rank 0 tells the others.

Every member reads all of the data and computes a part of every batch (Goyal et al. 2017, arXiv:1706.02677, sec. 2.3:
the sum of the parts' gradients is that of the batch). What only one of them can know, because it is measured, drawn or
read from disk, rank 0 tells. Processes talk by torch.distributed, over gloo on processors and nccl on GPUs.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import cloudpickle
import torch
from torch import Tensor, distributed

from compressor.batches import Inputs, Targets, map_tensors, target_rows
from compressor.structure.calling.draws import kept_randomness
from compressor.workload import batch_size_of

Value = TypeVar("Value")

# What torchrun sets in every process that it starts.
_STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
# Fewer samples a member than this are computed by each as a whole: normalizations need two.
_FEWEST = 2
# How long one waits for the others: rank 0 may export, score and time between two trainings.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The member number `rank` of `size` (>= 2), which all call the same methods in the same order."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which alone writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor`, which becomes the sum over all members, the same bits in each."""
        distributed.all_reduce(tensor)
        return tensor

    def sums(self, *numbers: float) -> list[float]:
        """The sums over all members of each of `numbers`."""
        found: list[float] = self.sum_(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return found

    def told(self, value: Callable[[], Value]) -> Value:
        """What `value` gives in rank 0, in every member; what it raises there is raised in all."""
        if self.leads:
            try:
                found: Any = (True, value())
            except Exception as error:
                self._send((False, error))
                raise
            self._send(found)
            made: Value = found[1]
            return made
        fine, received = self._received()
        if not fine:
            raise received
        told: Value = received
        return told

    def part(self, inputs: Inputs, targets: Targets) -> "tuple[Inputs, Targets, bool]":
        """The part of a batch that is this member's, and whether it is one; each computes small batches as a whole."""
        samples = batch_size_of(inputs)
        if samples < _FEWEST * self.size:
            return inputs, targets, False
        own = slice(self.rank * samples // self.size, (self.rank + 1) * samples // self.size)
        return map_tensors(inputs, lambda tensor: tensor[own]), target_rows(targets, own, samples), True

    @contextmanager
    def own_draws(self, *numbers: int) -> Iterator[None]:
        """Random numbers of this member alone, by `numbers`; the global generators, from which data are drawn, stay."""
        with kept_randomness():
            torch.manual_seed(hash((*numbers, self.rank)) % 2**63)
            yield

    def add_gradients_(self, parameters: Sequence[Tensor]) -> None:
        """Every gradient becomes the sum over all members; one that no member has stays None."""
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        self.sum_(has)
        asked = [parameter for parameter, count in zip(parameters, has.tolist(), strict=True) if count]
        kinds = {(parameter.dtype, parameter.device) for parameter in asked}
        for dtype, device in sorted(kinds, key=str):
            own = [parameter for parameter in asked if (parameter.dtype, parameter.device) == (dtype, device)]
            # One message instead of one for each: a network has hundreds.
            flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in own])
            self.sum_(flat)
            for parameter, values in zip(own, torch.split(flat, [parameter.numel() for parameter in own]), strict=True):
                parameter.grad = torch.empty_like(parameter).copy_(values.reshape(parameter.shape))

    def _send(self, value: Any) -> None:
        data = torch.frombuffer(bytearray(cloudpickle.dumps(value)), dtype=torch.uint8)
        distributed.broadcast(torch.tensor([len(data)]), src=0)
        distributed.broadcast(data, src=0)

    def _received(self) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        distributed.broadcast(length, src=0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        distributed.broadcast(data, src=0)
        return pickle.loads(data.numpy().tobytes())  # noqa: S301 - of rank 0, which started as this process did


_each_alone: ContextVar[bool] = ContextVar("members work each by itself", default=False)


@contextmanager
def each_alone(*, alone: bool = True) -> Iterator[None]:
    """Within it there is no team, or one again where not `alone`: members do what not all of them do."""
    token = _each_alone.set(alone)
    try:
        yield
    finally:
        _each_alone.reset(token)


def present_team() -> Team | None:
    """The team of this process; None where torchrun has not started it, or as the only one.

    A process group that the user's program has begun is taken as it is.
    """
    if _each_alone.get() or not distributed.is_available():
        return None
    if not distributed.is_initialized():
        if _STARTED_BY_TORCHRUN not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    size = distributed.get_world_size()
    return Team(rank=distributed.get_rank(), size=size) if size > 1 else None


def told_by_first(team: Team | None, value: Callable[[], Value]) -> Value:
    """`value()`, which of a team rank 0 alone computes."""
    return value() if team is None else team.told(value)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
