"""Eight kinds of small networks with small data, trained in seconds: what recovery training must do no harm to.

A seed says how a network begins, in which order it sees its data, and which samples of its problem those are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.workload import Workload
from workbench.data_files import data_file

_TRAIN, _VALIDATION, _TEST = 1280, 1000, 2000
_COUNT = _TRAIN + _VALIDATION + _TEST
_DIGITS = 60_000
_CLASSES, _LETTERS, _LENGTH = 8, 16, 20


@dataclass(frozen=True)
class Case:
    """A network on its data, and the hand loop that trains it: AdamW or SGD, and at which rate it begins.

    `remove` is the part of its channels that a mild pruning takes.
    """

    workload: Workload
    rate: float
    remove: float
    adaptive: bool = True


class Plain(nn.Module):
    """Convolutions with BatchNorm between, or nothing, on images of 14 x 14."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), norm(12), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, stride=2, padding=1), norm(24), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, padding=1), norm(24), nn.ReLU()),
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """Two residual blocks with GroupNorm at their ends, on images of 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.up, self.down = (nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.entry(x))
        for up, down, norm in zip(self.up, self.down, self.norms[1:], strict=True):
            x = x + norm(down(F.relu(up(x))))
        return self.head(F.relu(x).mean((2, 3)))


class Recurrent(nn.Module):
    """Rows of an image one after the other through an LSTM; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(14, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Block(nn.Module):
    """A transformer's block before which things are normalized (Xiong et al. 2020), with this normalization."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(width), norm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        weights = self.query(y) @ self.key(y).transpose(1, 2) / math.sqrt(x.shape[-1])
        x = x + self.out(weights.softmax(-1) @ self.value(y))
        return x + self.down(F.gelu(self.up(self.second(x))))


class RowTransformer(nn.Module):
    """Rows of an image as tokens, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(14, 32)
        self.places = nn.Parameter(torch.randn(1, 14, 32) * 0.1)
        self.blocks = nn.Sequential(Block(32, nn.LayerNorm), Block(32, nn.LayerNorm))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.entry(x) + self.places)).mean(1))


class LetterTransformer(nn.Module):
    """Letters as tokens of an embedding, RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(_LETTERS, 32)
        self.places = nn.Parameter(torch.randn(1, _LENGTH, 32) * 0.1)
        self.blocks = nn.Sequential(Block(32, nn.RMSNorm), Block(32, nn.RMSNorm))
        self.norm, self.head = nn.RMSNorm(32), nn.Linear(32, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.letters(x) + self.places)).mean(1))


def tabular() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(196, 96), nn.ReLU(), nn.Linear(96, 16), nn.ReLU()),
        *(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 196), nn.Unflatten(1, (1, 14, 14))),
    )


def images(seed: int) -> tuple[Tensor, Tensor]:
    """One of 14 parts of MNIST's digits as (count, 1, 14, 14) in [0, 1], and their classes; no two share a digit."""
    with np.load(data_file("mnist.npz")) as file:
        pixels, targets = file["x_train"], file["y_train"]
    part = seed % (_DIGITS // _COUNT)
    taken = slice(part * _COUNT, (part + 1) * _COUNT)
    return F.avg_pool2d(torch.from_numpy(pixels[taken]).float()[:, None] / 255, 2), torch.from_numpy(
        targets[taken]
    ).long()


def clusters(seed: int) -> tuple[Tensor, Tensor]:
    """Twenty numbers a sample, six classes of four clusters each, a tenth of them labelled at random."""
    centres = torch.randn(24, 20, generator=torch.Generator().manual_seed(1)) * 1.1
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(24, (_COUNT,), generator=generator)
    targets = picks % 6
    wrong = torch.rand(len(picks), generator=generator) < 0.1
    targets[wrong] = torch.randint(6, (int(wrong.sum()),), generator=generator)
    return centres[picks] + torch.randn(len(picks), 20, generator=generator), targets


def letters(seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of letters, each from one of eight sources that say which letter follows which, and the source."""
    generator = torch.Generator().manual_seed(2)
    follows = torch.softmax(
        1.3 * torch.randn(_CLASSES, _LETTERS, _LETTERS, generator=generator)
        + 0.7 * torch.randn(_CLASSES, 1, _LETTERS, generator=generator),
        dim=-1,
    )
    generator.manual_seed(seed)
    targets = torch.randint(_CLASSES, (_COUNT,), generator=generator)
    sequence = [torch.randint(_LETTERS, (len(targets),), generator=generator)]
    for _ in range(_LENGTH - 1):
        sequence.append(torch.multinomial(follows[targets, sequence[-1]], 1, generator=generator)[:, 0])
    return torch.stack(sequence, dim=1), targets


def _rows(seed: int) -> tuple[Tensor, Tensor]:
    inputs, targets = images(seed)
    return inputs[:, 0], targets


def _same(seed: int) -> tuple[Tensor, Tensor]:
    inputs, _ = images(seed)
    return inputs, inputs


def _case(
    name: str,
    model: Callable[[], nn.Module],
    data: Callable[[int], tuple[Tensor, Tensor]],
    seed: int,
    *,
    metric: str = "accuracy",
    **how: float,
) -> Case:
    inputs, targets = data(seed)
    first, second = _TRAIN, _TRAIN + _VALIDATION
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model()
    workload = Workload.from_datasets(
        network,
        train=(inputs[:first], targets[:first]),
        validation=(inputs[first:second], targets[first:second]),
        test=(inputs[second:], targets[second:]),
        metric=metric,
        batch_size=64,
        name=name,
        seed=seed,
    )
    return Case(workload, **how)  # type: ignore[arg-type] # numbers by name


# By name: the network, its data, and how it is trained. Every seed has samples of its own of the same problem.
CASES: dict[str, Callable[[int], Case]] = {
    "CNN, BatchNorm": lambda seed: _case(
        "batch_norm", lambda: Plain(nn.BatchNorm2d), images, seed, rate=0.1, remove=0.2, adaptive=False
    ),
    "CNN, GroupNorm": lambda seed: _case("group_norm", Residual, images, seed, rate=1.5e-2, remove=0.3),
    "CNN, no norm": lambda seed: _case(
        "no_norm", lambda: Plain(lambda _: nn.Identity()), images, seed, rate=1e-2, remove=0.3
    ),
    "MLP, tabular": lambda seed: _case("mlp", tabular, clusters, seed, rate=1e-2, remove=0.3),
    "LSTM": lambda seed: _case("lstm", Recurrent, _rows, seed, rate=1.5e-2, remove=0.2),
    "Transformer, LayerNorm": lambda seed: _case("layer_norm", RowTransformer, _rows, seed, rate=5e-3, remove=0.3),
    "Transformer, RMSNorm": lambda seed: _case("rms_norm", LetterTransformer, letters, seed, rate=5e-3, remove=0.4),
    "Autoencoder": lambda seed: _case("autoencoder", autoencoder, _same, seed, metric="mse", rate=2e-3, remove=0.3),
}


def regression(offset: float, seed: int) -> Workload:
    """A trained network that adds up twelve numbers, around `offset`: targets vary by about 1 whatever it is."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3072, 12, generator=generator)
    targets = (inputs.sin().sum(dim=1, keepdim=True) / 2.2) + offset
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    with torch.no_grad():
        model[4].bias.fill_(offset)
    optimizer = torch.optim.AdamW(model[:4].parameters(), lr=2e-3)
    for _ in range(20):
        for rows in torch.randperm(2048, generator=generator).split(64):
            optimizer.zero_grad()
            F.mse_loss(model(inputs[rows]) - offset, targets[rows] - offset).backward()
            optimizer.step()
    return Workload.from_datasets(
        model.eval(),
        train=(inputs[:2048], targets[:2048]),
        validation=(inputs[2048:2560], targets[2048:2560]),
        test=(inputs[2560:], targets[2560:]),
        metric="mse",
        batch_size=64,
        name=f"offset-{offset:g}",
        seed=seed,
    )
