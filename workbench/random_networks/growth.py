"""A network grown at random from a seed: parts that read what earlier parts gave, and outputs of several forms."""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from workbench.random_networks.hidden_parts import HIDDEN
from workbench.random_networks.parts import PLAIN, WIDTHS, Layer, Part, linear

CLASSES = 5


@dataclass
class Answer:
    """An output with named tensors, as users write them."""

    logits: Tensor
    features: Tensor


class Slotted:
    """An output that is no container at all."""

    __slots__ = ("features", "logits")

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class RandomNetwork(nn.Module):
    """Maps (batch, 3, places...) to logits (batch, 5), in the form of output that was drawn.

    `parts` run in order; `reads` holds for each the numbers of the values that it reads: 0 is the stem's output.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Random(seed)  # noqa: S311 - networks are no secrets
        torch.manual_seed(seed)
        self.places = draw.choice((0, 1, 2, 2))
        self.stem = linear(self.places, 3, draw.choice(WIDTHS), size=3)
        widths = [int(self.stem.weight.shape[0])]
        self.parts, self.reads = nn.ModuleList(), []
        count = draw.randint(4, 9)
        while len(self.parts) < count:
            # Layers come first: between them there is something to prune in every network.
            kind = Layer if len(self.parts) < 2 else draw.choice(HIDDEN if draw.random() < 0.2 else PLAIN)
            # The newest is read most often: networks are deep rather than wide.
            reads = [len(widths) - 1 if draw.random() < 0.7 else draw.randrange(len(widths)) for _ in range(kind.takes)]
            try:
                part = kind(draw, self.places, *(widths[number] for number in reads))
            except LookupError:
                continue
            self.parts.append(part)
            self.reads.append(reads)
            widths.append(part.width)
        # Whatever nobody read goes into the head, so that every part counts.
        read = {number for numbers in self.reads for number in numbers}
        self.ends = [number for number in range(len(widths)) if number not in read]
        self.head = nn.Linear(sum(widths[number] for number in self.ends), CLASSES)
        self.form = draw.choice(("tensor", "tensor", "tuple", "dict", "dataclass", "object", "auxiliary"))
        self.auxiliary = nn.Linear(widths[-1], CLASSES) if self.form == "auxiliary" else None

    @property
    def draws(self) -> bool:
        """Whether training steps draw random numbers for channels."""
        return any(isinstance(part, Part) and part.draws for part in self.parts)

    def forward(self, x: Tensor) -> Any:
        values = [self.stem(x)]
        for part, reads in zip(self.parts, self.reads, strict=True):
            values.append(part(*(values[number] for number in reads)))
        pooled = [values[number].flatten(2).mean(2) if self.places else values[number] for number in self.ends]
        logits, features = self.head(torch.cat(pooled, 1)), values[-1]
        if self.form == "tuple":
            return logits, features
        if self.form == "dict":
            return {"logits": logits, "features": [features]}
        if self.form == "dataclass":
            return Answer(logits, features)
        if self.form == "object":
            return Slotted(logits, features)
        if self.auxiliary is not None and self.training:
            return logits, self.auxiliary(features.flatten(2).mean(2) if self.places else features)
        return logits

    def sample(self, batch: int, size: int, scale: float = 1.0) -> Tensor:
        """Normal inputs of `batch` samples and `size` places a side, `scale` times as large."""
        return scale * torch.randn(batch, 3, *[size] * self.places)

    def program(self) -> str:
        """What runs, a line a part."""
        lines = [f"{self.places} places, stem of {self.stem.weight.shape[0]}, output as {self.form}"]
        for number, (part, reads) in enumerate(zip(self.parts, self.reads, strict=True)):
            how = f" {part.how}" if hasattr(part, "how") else ""
            lines.append(f"  {number + 1} = parts.{number} {type(part).__name__}{how} of {reads}, {part.width} wide")
        return "\n".join([*lines, f"  head of {self.ends}"])
