"""What the zoo knows of one network: how to build it, what it takes, and how much of it pruning must remove."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.batches import Inputs

Sampler = Callable[[int], Inputs]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network of the zoo.

    `sample(n)` draws inputs for n samples. Pruning to half must remove at least the fraction `removes` of the
    parameters, so that locking nearly everything does not pass for success; with `refuses` it must instead refuse with
    a message that this regular expression finds. `locks` is one for the reasons why layers were left alone. With
    `exports=False` the network itself, pruned or not, has no ONNX file.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Sampler
    removes: float = 0.5
    refuses: str | None = None
    locks: str | None = None
    exports: bool = True


def floats(*shape: int) -> Sampler:
    """Normal inputs of shape (n, *shape)."""
    return lambda n: torch.randn(n, *shape)


def tokens(vocabulary: int, length: int) -> Sampler:
    """Token numbers of shape (n, length)."""
    return lambda n: torch.randint(vocabulary, (n, length))


def several(*samplers: Sampler) -> Sampler:
    """A tuple of what each sampler draws, for models of several inputs."""

    def draw(n: int) -> tuple[Tensor, ...]:
        drawn = [sampler(n) for sampler in samplers]
        assert all(isinstance(value, Tensor) for value in drawn)
        return tuple(value for value in drawn if isinstance(value, Tensor))

    return draw


def named(**samplers: Sampler) -> Sampler:
    """A dict of what each sampler draws, for models that take keywords."""

    def draw(n: int) -> dict[str, Tensor]:
        drawn = {key: sampler(n) for key, sampler in samplers.items()}
        return {key: value for key, value in drawn.items() if isinstance(value, Tensor)}

    return draw


def padded(vocabulary: int, length: int) -> Sampler:
    """Token numbers with the mask that transformers take: the last tokens of every other sample are padding."""

    def draw(n: int) -> dict[str, Tensor]:
        mask = torch.ones(n, length, dtype=torch.long)
        mask[1::2, length - 2 :] = 0
        return {"input_ids": torch.randint(3, vocabulary, (n, length)), "attention_mask": mask}

    return draw
