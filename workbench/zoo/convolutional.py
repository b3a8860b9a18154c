"""Convolutional classifiers, written by hand as in their papers, a few channels wide."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo.architecture import Architecture, floats


class ConvNorm(nn.Sequential):
    """Convolution, batch normalization and an activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, act=nn.ReLU):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            act(),
        )


def head(width: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def lenet() -> nn.Module:
    """LeCun et al. 1998."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 16, 24),
        nn.Tanh(),
        nn.Linear(24, 10),
    )


def alexnet() -> nn.Module:
    """Krizhevsky et al. 2012, with local response normalization over neighbouring channels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


def vgg(*, norm: bool) -> nn.Module:
    """Simonyan & Zisserman 2014."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (8, "M", 16, "M", 24, 24, "M"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Linear(32, 5))


def network_in_network() -> nn.Module:
    """Lin et al. 2013: the classes are channels, averaged over the map."""
    return nn.Sequential(
        ConvNorm(3, 16, 5), ConvNorm(16, 16, 1), nn.MaxPool2d(2), ConvNorm(16, 16), nn.Conv2d(16, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.gate: nn.Module = nn.Identity()
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(y + self.shortcut(x))


def resnet(gate=lambda _: nn.Identity()) -> nn.Module:
    """He et al. 2015, basic blocks; `gate` makes what stands at the end of each (SE, ECA, CBAM)."""
    blocks = [BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16)]
    for block, width in zip(blocks, (8, 16, 16), strict=True):
        block.gate = gate(width)
    return nn.Sequential(ConvNorm(3, 8), *blocks, head(16))


class PadShortcut(nn.Module):
    """Shortcut A of He et al. 2015: every second pixel, and channels of zeros around."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


def resnet_with_padded_shortcut() -> nn.Module:
    blocks = [BasicBlock(8, 8), BasicBlock(8, 16, 2)]
    blocks[1].shortcut = PadShortcut(8, 16)
    return nn.Sequential(ConvNorm(3, 8), *blocks, head(16))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, middle, 1),
            ConvNorm(middle, middle, 3, stride, groups=groups),
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, act=nn.Identity) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def bottleneck_resnet(groups: int = 1) -> nn.Module:
    """He et al. 2015; with groups, ResNeXt (Xie et al. 2016)."""
    return nn.Sequential(
        ConvNorm(3, 16),
        Bottleneck(16, 8, 32, 1, groups),
        Bottleneck(32, 8, 32, 1, groups),
        Bottleneck(32, 16, 48, 2, groups),
        head(48),
    )


class PreActivation(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.dropout(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x)))))))


def wide_resnet() -> nn.Module:
    """Zagoruyko & Komodakis 2016: pre-activation blocks with dropout."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), PreActivation(16), PreActivation(16), nn.ReLU(), head(16))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


def densenet() -> nn.Module:
    """Huang et al. 2016."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), DenseLayer(8, 4), DenseLayer(12, 4), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2),
        DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.ReLU(), head(16),
    )  # fmt: skip


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.one = ConvNorm(inputs, 8, 1)
        self.three = nn.Sequential(ConvNorm(inputs, 8, 1), ConvNorm(8, 12))
        self.wide = nn.Sequential(
            ConvNorm(inputs, 8, 1),
            nn.Conv2d(8, 8, (1, 7), padding=(0, 3)),
            nn.Conv2d(8, 8, (7, 1), padding=(3, 0)),
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.wide(x), self.pool(x)], dim=1)


def inception() -> nn.Module:
    """Szegedy et al. 2014 and 2015, with factorized convolutions."""
    return nn.Sequential(ConvNorm(3, 8), InceptionBlock(8), nn.MaxPool2d(2), InceptionBlock(32), head(32))


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """Iandola et al. 2016; the classes are channels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), Fire(16, 6, 12), nn.MaxPool2d(2), Fire(24, 8, 16), nn.Conv2d(32, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017."""
    separable = [
        layer
        for inputs, outputs, stride in ((8, 16, 1), (16, 24, 2), (24, 24, 1))
        for layer in (ConvNorm(inputs, inputs, 3, stride, groups=inputs), ConvNorm(inputs, outputs, 1))
    ]
    return nn.Sequential(ConvNorm(3, 8, act=nn.ReLU6), *separable, head(24))


class SqueezeExcite(nn.Module):
    """Hu et al. 2017, with the gate's linear layers reshaped by a view."""

    def __init__(self, width: int, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), gate())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        return x * self.fc(x.mean((2, 3))).view(b, c, 1, 1).expand_as(x)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, expand: int = 4, act=nn.ReLU6, gate=None):
        super().__init__()
        middle = inputs * expand
        self.body = nn.Sequential(
            ConvNorm(inputs, middle, 1, act=act),
            ConvNorm(middle, middle, 3, stride, groups=middle, act=act),
            SqueezeExcite(middle, gate) if gate else nn.Identity(),
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def inverted_residuals(act=nn.ReLU6, gate=None) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); with gates MobileNetV3 (2019) or, with SiLU, EfficientNet (2019)."""
    settings = {"act": act, "gate": gate}
    return nn.Sequential(
        ConvNorm(3, 8, act=act),
        InvertedResidual(8, 8, **settings),
        InvertedResidual(8, 12, stride=2, **settings),
        InvertedResidual(12, 12, **settings),
        ConvNorm(12, 32, 1, act=act),
        head(32),
    )


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleUnitV1(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.first = ConvNorm(width, width, 1, groups=groups)
        self.depthwise = ConvNorm(width, width, 3, groups=width, act=nn.Identity)
        self.second = ConvNorm(width, width, 1, groups=groups, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.depthwise(shuffle(self.first(x), self.groups))))


def shufflenet_v1(width: int, groups: int) -> nn.Module:
    """Zhang et al. 2017: grouped convolutions and a shuffle of channels between them."""
    units = [ShuffleUnitV1(width, groups), ShuffleUnitV1(width, groups)]
    return nn.Sequential(ConvNorm(3, width), *units, head(width))


class ShuffleUnitV2(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half = outputs // 2
        self.stride = stride
        if stride > 1:
            self.short = nn.Sequential(
                ConvNorm(inputs, inputs, 3, stride, groups=inputs, act=nn.Identity), ConvNorm(inputs, half, 1)
            )
        self.body = nn.Sequential(
            ConvNorm(inputs if stride > 1 else half, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, act=nn.Identity),
            ConvNorm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            return shuffle(torch.cat([self.short(x), self.body(x)], 1), 2)
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat([left, self.body(right)], 1), 2)


def shufflenet_v2() -> nn.Module:
    """Ma et al. 2018: half of the channels pass by, then both halves are interleaved."""
    units = [ShuffleUnitV2(8, 16, 2), ShuffleUnitV2(16, 16, 1), ShuffleUnitV2(16, 16, 1)]
    return nn.Sequential(ConvNorm(3, 8), *units, ConvNorm(16, 24, 1), head(24))


ARCHITECTURES = (
    Architecture(name="LeNet-5", build=lenet, sample=floats(1, 28, 28)),
    Architecture(name="AlexNet", build=alexnet, sample=floats(3, 32, 32)),
    Architecture(name="VGG", build=lambda: vgg(norm=False), sample=floats(3, 16, 16)),
    Architecture(name="VGG with BatchNorm", build=lambda: vgg(norm=True), sample=floats(3, 16, 16)),
    Architecture(name="Network in Network", build=network_in_network, sample=floats(3, 16, 16)),
    Architecture(name="ResNet, basic blocks", build=resnet, sample=floats(3, 16, 16)),
    Architecture(name="ResNet, padded shortcuts", build=resnet_with_padded_shortcut, sample=floats(3, 16, 16)),
    Architecture(name="ResNet, bottlenecks", build=bottleneck_resnet, sample=floats(3, 16, 16)),
    Architecture(name="ResNeXt", build=lambda: bottleneck_resnet(groups=4), sample=floats(3, 16, 16)),
    Architecture(name="WideResNet", build=wide_resnet, sample=floats(3, 12, 12)),
    Architecture(name="SE-ResNet", build=lambda: resnet(SqueezeExcite), sample=floats(3, 16, 16)),
    Architecture(name="DenseNet", build=densenet, sample=floats(3, 12, 12)),
    Architecture(name="Inception", build=inception, sample=floats(3, 12, 12)),
    Architecture(name="SqueezeNet", build=squeezenet, sample=floats(3, 24, 24)),
    Architecture(name="MobileNetV1", build=mobilenet_v1, sample=floats(3, 16, 16)),
    Architecture(name="MobileNetV2", build=inverted_residuals, sample=floats(3, 16, 16)),
    Architecture(
        name="MobileNetV3",
        build=lambda: inverted_residuals(nn.Hardswish, nn.Hardsigmoid),
        sample=floats(3, 16, 16),
    ),
    Architecture(name="EfficientNet", build=lambda: inverted_residuals(nn.SiLU, nn.Sigmoid), sample=floats(3, 16, 16)),
    Architecture(name="ShuffleNetV1", build=lambda: shufflenet_v1(32, 4), sample=floats(3, 12, 12)),
    Architecture(
        # After the shuffle a group of the second convolution holds 8 channels of 3 groups: no equal numbers of each.
        name="ShuffleNetV1, 3 groups of 8",
        removes=0.3,
        build=lambda: shufflenet_v1(24, 3),
        sample=floats(3, 12, 12),
        locks="8 positions cannot be taken as 3 equal groups",
    ),
    Architecture(name="ShuffleNetV2", build=shufflenet_v2, sample=floats(3, 16, 16)),
)
