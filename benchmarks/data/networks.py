"""The networks of the structure benchmark that the package does not hold, and how each reference comes about.

VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556) with BatchNorm and one classifier layer, and MobileNetV2 (Sandler
et al. 2018, arXiv:1801.04381) with the strides that 32x32 images leave room for; a recurrent classifier of frames; a
small transformer encoder (Vaswani et al. 2017, arXiv:1706.03762) over word numbers; a convolutional autoencoder.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.stage import Context
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.schedules import OneCycle
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload


class VGG16(nn.Module):
    """(batch, 3, 32, 32) -> (batch, 10) logits; 313 M multiply-accumulates at full `width`."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            outputs = round(stage * width)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


class InvertedResidual(nn.Module):
    """Widens by `expand`, filters each channel by itself, narrows again; adds its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)]
        layers += [nn.ReLU6(), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


# Expansion, channels, blocks and stride of every stage: table 2 of the paper, with stride 1 instead of 2 in the stem
# and in the second stage, so that 32x32 images end as 4x4 maps.
_MOBILENET = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class MobileNetV2(nn.Module):
    """(batch, 3, 32, 32) -> (batch, 10) logits; `blocks` limits how many blocks every stage has.

    With `early` the second stage halves the maps, as in the paper's table: 29 M multiply-accumulates in place of 88 M.
    """

    def __init__(self, blocks: int = 4, head: int = 1280, *, early: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        for position, (expand, outputs, count, stride) in enumerate(_MOBILENET):
            first = 2 if early and position == 1 else stride
            for number in range(min(count, blocks)):
                layers.append(InvertedResidual(inputs, outputs, expand, first if number == 0 else 1))
                inputs = outputs
        layers += [nn.Conv2d(inputs, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(head, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean(dim=(2, 3)))


class RecurrentClassifier(nn.Module):
    """(batch, frames, bands) -> (batch, classes) logits from the mean over time of a stacked LSTM or GRU."""

    def __init__(
        self, kind: type[nn.LSTM | nn.GRU], *, bands: int = 40, hidden: int = 128, layers: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        self.recurrent = kind(bands, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.recurrent(x)[0].mean(dim=1))


class TextTransformer(nn.Module):
    """(batch, length) word numbers, 0 for padding -> (batch, classes) logits from the mean over the words."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int = 128,
        heads: int = 4,
        feed_forward: int = 512,
        layers: int = 4,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        states = self.encoder(self.words(words) + self.positions)
        present = (words != 0).to(states.dtype).unsqueeze(2)
        return self.linear((states * present).sum(dim=1) / present.sum(dim=1).clamp(min=1))


class Autoencoder(nn.Module):
    """(batch, 1, 28, 28) images in [0, 1] -> the same, through `code` maps of 4x4."""

    def __init__(self, width: int = 32, code: int = 8) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width

        def narrow(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        def widen(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, 1, bias=False)
            return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.encoder = nn.Sequential(*narrow(1, a), *narrow(a, b), *narrow(b, c), nn.Conv2d(c, code, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(code, c, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            *widen(c, b, 3),
            *widen(b, a, 4),
            nn.ConvTranspose2d(a, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `build` makes with the weights that `seed` draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def trained(
    workload: Workload, *, epochs: int, optimizer: SGD | AdamW, folder: Path, schedule: OneCycle | None = None
) -> Workload:
    """`workload` with its model trained; `folder` keeps the result, so that a second call reads it.

    A `schedule` that is said keeps what was trained by it when the default changes.
    """
    train(
        workload.model,
        workload,
        TrainingSettings(epochs=epochs, optimizer=optimizer, schedule=schedule or OneCycle()),
        context=Context(seed=0, folder=folder / workload.name),
        label=f"reference {workload.name}",
    )
    workload.model.eval()
    return workload
