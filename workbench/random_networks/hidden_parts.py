"""Parts that one example in eval mode does not show: branches on values and sizes, and what only training touches."""

from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.random_networks.parts import WIDTHS, Part, linear

# Inputs are normal, some of the calls far larger: there alone what is rare happens.
RARE = 6.0


class RareValue(Part):
    """A layer that only large values reach, found by a truth, by a number or by the size of what was picked."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.how = draw.choice(("any", "item", "nonzero", "select", "where"))
        self.layer = linear(places, inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        large = x.flatten(1).abs().amax(1) > RARE
        if self.how == "any":
            found = bool(large.any())
        elif self.how == "item":
            found = x.abs().max().item() > RARE
        elif self.how == "nonzero":
            found = len(large.nonzero()) > 0
        elif self.how == "select":
            found = x[large].shape[0] > 0
        else:
            found = torch.where(large)[0].numel() > 0
        return x + F.relu(self.layer(x)) if found else x


class OtherSize(Part):
    """One layer for few places and another one for many; without places by the size of the batch."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(draw.choice(WIDTHS))
        self.few, self.many = linear(places, inputs, self.width), linear(places, inputs, self.width, size=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.few(x) if (x.shape[-1] if x.ndim > 2 else len(x)) < 9 else self.many(x)


class RunningMean(Part):
    """Subtracts a mean that training alone updates, in one of several ways."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.how = draw.choice(("in place", "data", "new", "lerp", "branch"))
        self.places = places
        self.read = draw.random() < 0.5
        self.register_buffer("centre", torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().flatten(2).mean((0, 2)) if x.ndim > 2 else x.detach().mean(0)
            if self.how == "in place":
                self.centre.mul_(0.9).add_(mean, alpha=0.1)
            elif self.how == "data":
                self.centre.data.copy_(0.9 * self.centre.data + 0.1 * mean)
            elif self.how == "new":
                self.centre = 0.9 * self.centre + 0.1 * mean
            elif self.how == "lerp":
                with torch.no_grad():
                    self.centre.lerp_(mean, 0.1)
            elif float(mean.abs().sum()) > 0:
                self.centre.mul_(0.9).add_(mean, alpha=0.1)
        return x - self.centre.reshape(-1, *[1] * self.places) if self.read else x


class Memory(Part):
    """Keeps the mean features of past training batches in a queue, and adds the oldest to what it is given."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.places = places
        self.register_buffer("queue", torch.zeros(3, inputs))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                mean = x.flatten(2).mean((0, 2)) if x.ndim > 2 else x.mean(0)
                self.queue[self.next] = mean
                self.next.add_(1).remainder_(3)
        return x + 0.1 * self.queue[0].reshape(-1, *[1] * self.places)


class TrainingLayer(Part):
    """A layer that training alone goes through, and one that keeps a loss of its own."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.layer = linear(places, inputs, inputs)
        self.centre = nn.Parameter(torch.randn(inputs))
        self.loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.loss = ((x.flatten(2).mean(2) if x.ndim > 2 else x) - self.centre).square().mean()
            x = x + self.layer(x)
        return x


class Noise(Part):
    """Dropout or noise in training."""

    draws = True

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.by_dropout = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return F.dropout(x, 0.3) if self.by_dropout else x + 0.1 * torch.randn_like(x)


HIDDEN: tuple[type[Part], ...] = (RareValue, OtherSize, RunningMean, Memory, TrainingLayer, Noise)
