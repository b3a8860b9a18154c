"""Convolutional classifiers with unusual joints: gates over channels, splits, shared and computed weights, refusals."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo.architecture import Architecture, floats
from workbench.zoo.convolutional import ConvNorm, head, resnet


class EfficientChannelAttention(nn.Module):
    """Wang et al. 2019: a convolution along the channels, which mixes neighbours."""

    def __init__(self, _: int):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3), keepdim=True)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class BlockAttention(nn.Module):
    """CBAM (Woo et al. 2018): a gate for each channel, then one for each pixel from the channels' mean and maximum."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(pooled))


class Ghost(nn.Module):
    """GhostNet (Han et al. 2019): half of the channels are cheap depthwise copies; the concatenation is cut to size."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.outputs = outputs
        half = (outputs + 1) // 2
        self.primary, self.cheap = ConvNorm(inputs, half, 1), ConvNorm(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)[:, : self.outputs]


def ghostnet() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 8), Ghost(8, 16), nn.MaxPool2d(2), Ghost(16, 24), ConvNorm(24, 16, 1), head(16))


class RepBlock(nn.Module):
    """RepVGG (Ding et al. 2021) while it trains: a sum of three branches."""

    def __init__(self, width: int):
        super().__init__()
        self.three = ConvNorm(width, width, 3, act=nn.Identity)
        self.one = ConvNorm(width, width, 1, act=nn.Identity)
        self.same = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(x) + self.one(x) + self.same(x))


def repvgg() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 12), RepBlock(12), ConvNorm(12, 16, 3, 2), RepBlock(16), head(16))


class Res2Block(nn.Module):
    """Res2Net (Gao et al. 2019): slices of the channels, each added to the result of the one before."""

    def __init__(self, width: int, scale: int = 4):
        super().__init__()
        self.scale, self.part = scale, width // scale
        self.enter, self.leave = ConvNorm(width, width, 1), ConvNorm(width, width, 1, act=nn.Identity)
        self.convs = nn.ModuleList(ConvNorm(self.part, self.part) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *slices = torch.split(self.enter(x), self.part, 1)
        outputs, carried = [first], torch.zeros_like(first)
        for piece, conv in zip(slices, self.convs, strict=True):
            carried = conv(piece + carried)
            outputs.append(carried)
        return F.relu(x + self.leave(torch.cat(outputs, 1)))


def res2net() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 16), Res2Block(16), nn.MaxPool2d(2), ConvNorm(16, 24), head(24))


class CrossStage(nn.Module):
    """The C2f block of YOLOv8: chunks, a residual bottleneck on one, everything concatenated."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.enter, self.leave = ConvNorm(width, width, 1, act=nn.SiLU), ConvNorm(3 * half, width, 1, act=nn.SiLU)
        self.inner = nn.Sequential(ConvNorm(half, half, act=nn.SiLU), ConvNorm(half, half, act=nn.SiLU))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        return self.leave(torch.cat(parts, 1))


def cross_stage() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 16, act=nn.SiLU), CrossStage(16), ConvNorm(16, 24, 3, 2), CrossStage(24), head(24))


class SelectiveKernel(nn.Module):
    """SKNet (Li et al. 2019): a softmax over two branches for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.small, self.large = ConvNorm(width, width, 3), ConvNorm(width, width, 5)
        self.squeeze, self.excite = nn.Linear(width, 6), nn.Linear(6, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.small(x), self.large(x)], dim=1)
        gate = self.excite(F.relu(self.squeeze(branches.sum(1).mean((2, 3)))))
        gate = gate.view(x.shape[0], 2, x.shape[1], 1, 1).softmax(dim=1)
        return (branches * gate).sum(dim=1)


def selective_kernels() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 12), SelectiveKernel(12), nn.MaxPool2d(2), ConvNorm(12, 16), head(16))


class ConvNextBlock(nn.Module):
    """Liu et al. 2022, with the channels last for LayerNorm and a scale for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 2, 2), ConvNextBlock(12), ConvNextBlock(12), head(12))


def group_norm() -> nn.Module:
    """Group normalization over several channels, and one that is instance normalization by another name."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True), nn.PReLU(24),
        nn.Conv2d(24, 16, 3, padding=1), nn.ReLU(), head(16),
    )  # fmt: skip


class Maxout(nn.Module):
    """Goodfellow et al. 2013: the largest of several pieces is a channel."""

    def __init__(self, inputs: int, outputs: int, pieces: int):
        super().__init__()
        self.outputs, self.pieces = outputs, pieces
        self.conv = nn.Conv2d(inputs, outputs * pieces, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(x.shape[0], self.outputs, self.pieces, *x.shape[2:]).amax(dim=2)


class DoubledReLU(nn.Module):
    """CReLU (Shang et al. 2016): positive and negative parts, concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], dim=1)


class FixedView(nn.Module):
    """A classifier with the flattened size written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))).view(-1, 128))


class StandardizedConv(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019): the weight that is used is computed from the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


class RawWeights(nn.Module):
    """A network without layers: parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(8, 3, 3, 3))
        self.hidden, self.shift = nn.Parameter(torch.zeros(8, 16)), nn.Parameter(torch.zeros(16))
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, padding=1)).mean((2, 3))
        return self.last(F.relu(x @ self.hidden + self.shift))


class HyperConv(nn.Module):
    """Ha et al. 2016: one network writes the weights of another's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.writer = ConvNorm(3, 8), nn.Linear(4, 8 * 8 * 9)
        self.code = nn.Parameter(torch.zeros(4))
        self.last = head(8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.writer(self.code).view(8, 8, 3, 3)
        return self.last(F.relu(F.conv2d(self.stem(x), weight, padding=1)))


def maxout() -> nn.Module:
    return nn.Sequential(Maxout(3, 12, 2), nn.MaxPool2d(2), Maxout(12, 16, 3), head(16))


def doubled_relu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), DoubledReLU(), nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12), DoubledReLU(), head(24)
    )


def weight_normalized() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        ConvNorm(3, 8), norm(nn.Conv2d(8, 8, 3)), nn.ReLU(), ConvNorm(8, 16), ConvNorm(16, 16), head(16)
    )


def standardized() -> nn.Module:
    return nn.Sequential(
        StandardizedConv(3, 8, 3), nn.ReLU(), StandardizedConv(8, 8, 3), nn.ReLU(), ConvNorm(8, 16), head(16)
    )


ARCHITECTURES = (
    Architecture(
        name="ECA-Net", removes=0.4, build=lambda: resnet(EfficientChannelAttention), sample=floats(3, 16, 16)
    ),
    Architecture(name="CBAM", removes=0.4, build=lambda: resnet(BlockAttention), sample=floats(3, 16, 16)),
    Architecture(name="GhostNet", build=ghostnet, sample=floats(3, 12, 12)),
    Architecture(name="RepVGG", build=repvgg, sample=floats(3, 12, 12)),
    Architecture(name="Res2Net", build=res2net, sample=floats(3, 12, 12)),
    Architecture(name="C2f of YOLOv8", build=cross_stage, sample=floats(3, 12, 12)),
    Architecture(name="SKNet", build=selective_kernels, sample=floats(3, 12, 12)),
    Architecture(name="ConvNeXt, by hand", removes=0.25, build=convnext, sample=floats(3, 12, 12)),
    Architecture(name="GroupNorm and InstanceNorm", build=group_norm, sample=floats(3, 12, 12)),
    Architecture(name="Maxout", build=maxout, sample=floats(3, 12, 12)),
    Architecture(name="CReLU", build=doubled_relu, sample=floats(3, 12, 12)),
    Architecture(name="Weight normalization", build=weight_normalized, sample=floats(3, 12, 12)),
    Architecture(name="Weight standardization", build=standardized, sample=floats(3, 12, 12)),
    Architecture(name="Parameters without layers", build=RawWeights, sample=floats(3, 12, 12)),
    Architecture(
        name="Hypernetwork",
        build=HyperConv,
        sample=floats(3, 12, 12),
        refuses=r"shape '\[8, 8, 3, 3\]' is invalid",
    ),
    Architecture(name="Fixed view", locks="128", removes=0.35, build=FixedView, sample=floats(3, 4, 4)),
)
