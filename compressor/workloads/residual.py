"""Residual CNNs in the form of He et al. 2016 (arXiv:1512.03385), sec. 4.2, for small images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution without bias or norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / stride, width / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """`blocks[k]` basic blocks of `widths[k]` channels in stage k, halving the map between stages.

    Input (batch, channels, height, width), output (batch, classes). `ResNet(blocks=[9, 9, 9])` is
    ResNet-56 for CIFAR-10.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            raise ValueError(f"blocks and widths describe the same stages, got {len(blocks)} and {len(widths)} of them")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.depth = len(blocks)
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers: list[nn.Module] = []
            for number in range(count):
                layers.append(BasicBlock(inputs, width, 2 if stage > 0 and number == 0 else 1))
                inputs = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, classes) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.depth):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
