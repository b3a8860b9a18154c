"""Networks that answer with maps, signals and images, or read signals and videos: encoders, decoders, 1-D and 3-D."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo.architecture import Architecture, floats, tokens
from workbench.zoo.convolutional import ConvNorm, head


class UNet(nn.Module):
    """Ronneberger et al. 2015, with transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 8))
        self.down2 = nn.Sequential(ConvNorm(8, 16), ConvNorm(16, 16))
        self.bottom = ConvNorm(16, 24)
        self.up2, self.merge2 = nn.ConvTranspose2d(24, 16, 2, 2), ConvNorm(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, 2), ConvNorm(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([second, self.up2(x)], 1))
        return self.out(self.merge1(torch.cat([first, self.up1(x)], 1)))


class PyramidHead(nn.Module):
    """A feature pyramid (Lin et al. 2016) with one head for all levels and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([ConvNorm(3, 8, 3, 2), ConvNorm(8, 16, 3, 2), ConvNorm(16, 24, 3, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(width, 12, 1) for width in (8, 16, 24))
        self.tower, self.classes, self.boxes = ConvNorm(12, 12), nn.Conv2d(12, 3, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        tops = [lateral(found) for lateral, found in zip(self.lateral, maps, strict=True)]
        for index in (1, 0):
            tops[index] = tops[index] + F.interpolate(tops[index + 1], scale_factor=2.0, mode="nearest")
        towers = [self.tower(top) for top in tops]
        classes = [self.classes(tower).flatten(2) for tower in towers]
        return torch.cat(classes, 2), torch.cat([self.boxes(tower).flatten(2) for tower in towers], 2)


class AtrousPyramid(nn.Module):
    """DeepLabV3 (Chen et al. 2017): dilated branches beside an image-wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 8, 3, 2), ConvNorm(8, 16))
        self.branches = nn.ModuleList(
            [
                ConvNorm(16, 8, 1),
                *(
                    nn.Sequential(nn.Conv2d(16, 8, 3, padding=d, dilation=d), nn.BatchNorm2d(8), nn.ReLU())
                    for d in (2, 4)
                ),
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU())
        self.project, self.out = ConvNorm(32, 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.out(self.project(torch.cat([*(branch(x) for branch in self.branches), wide], 1)))
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class HighResolution(nn.Module):
    """HRNet (Wang et al. 2019): two resolutions that exchange what they found."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = ConvNorm(3, 8), ConvNorm(8, 16, 3, 2)
        self.high, self.low = ConvNorm(8, 8), ConvNorm(16, 16)
        self.up = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Upsample(scale_factor=2))
        self.down = ConvNorm(8, 16, 3, 2, act=nn.Identity)
        self.out = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.low(self.split(high))
        high = self.high(high)
        high, low = F.relu(high + self.up(low)), F.relu(low + self.down(high))
        return self.out(torch.cat([high, F.interpolate(low, scale_factor=2.0)], 1))


def sub_pixel() -> nn.Module:
    """ESPCN (Shi et al. 2016): channels become pixels twice, inside and at the end."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2),
    )  # fmt: skip


def convolutional_autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 6, 3, 1, 1), nn.ReLU(),
        nn.ConvTranspose2d(6, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )  # fmt: skip


class DeepAutoencoder(nn.Module):
    """A code of few numbers between a flattened map and its way back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12))
        self.decoder = nn.Sequential(
            nn.Linear(12, 8 * 16), nn.ReLU(), nn.Unflatten(1, (8, 4, 4)), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class VariationalAutoencoder(nn.Module):
    """Kingma & Welling 2013; in eval mode the code is its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_variance = nn.Linear(20, 16), nn.Linear(16, 6), nn.Linear(16, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.encoder(x))
        mean, log_variance = self.mean(x), self.log_variance(x)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decoder(code), mean, log_variance


def generator() -> nn.Module:
    """DCGAN (Radford et al. 2015): from noise to an image."""
    return nn.Sequential(
        nn.ConvTranspose2d(10, 24, 4, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.ConvTranspose2d(24, 12, 4, 2, 1, groups=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


class Adversarial(nn.Module):
    """A residual generator for images (Johnson et al. 2016): reflection padding, instance norm, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5), nn.InstanceNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16))
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(16, 8, 3, padding=1), nn.LeakyReLU(0.2))
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.enter(x))
        return torch.tanh(self.out(self.up(x + self.block(x))))


class Temporal(nn.Module):
    """A block of a TCN (Bai et al. 2018): causal dilated convolutions, the future cut off."""

    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.short = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[..., : -self.cut])
        return F.relu(F.relu(self.conv2(y)[..., : -self.cut]) + self.short(x))


class LastStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., -1]


def temporal() -> nn.Module:
    return nn.Sequential(Temporal(4, 12, 1), Temporal(12, 12, 2), LastStep(), nn.Linear(12, 5))


class WaveNet(nn.Module):
    """van den Oord et al. 2016: gates from halves of the channels, residual and skip paths."""

    def __init__(self, layers: int = 3, width: int = 12):
        super().__init__()
        self.enter = nn.Conv1d(2, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(width, 8, 1) for _ in range(layers))
        self.out = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), torch.zeros(())
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            filtered, gate = dilated(x).chunk(2, dim=1)
            y = torch.tanh(filtered) * torch.sigmoid(gate)
            x, total = x + residual(y), total + skip(y)
        return self.out(F.relu(total))


def audio_network() -> nn.Module:
    """M5 (Dai et al. 2016), on raw sound."""
    return nn.Sequential(
        nn.Conv1d(1, 12, 16, 4), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(12, 16, 3),
        nn.BatchNorm1d(16), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


class TextConvolution(nn.Module):
    """Kim 2014: windows of several lengths over words, the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.windows = nn.ModuleList(nn.Conv1d(16, 8, size) for size in (2, 3, 4))
        self.out = nn.Linear(24, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words).transpose(1, 2)
        return self.out(torch.cat([F.relu(window(x)).amax(-1) for window in self.windows], 1))


def video_network() -> nn.Module:
    """R(2+1)D (Tran et al. 2017): convolutions in space, then in time."""
    return nn.Sequential(
        nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 12, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(12, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def volume_autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv3d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose3d(12, 1, 4, 2, 1),
    )


def depth_estimator() -> nn.Module:
    return nn.Sequential(
        ConvNorm(3, 8, 3, 2), ConvNorm(8, 16, 3, 2), nn.Upsample(scale_factor=2, mode="bilinear"), ConvNorm(16, 8),
        nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(8, 1, 3, padding=1), nn.Softplus(),
    )  # fmt: skip


def space_to_depth() -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(12, 8), nn.PixelUnshuffle(2), ConvNorm(32, 16), head(16))


ARCHITECTURES = (
    Architecture(name="U-Net", build=UNet, sample=floats(3, 16, 16)),
    Architecture(name="Feature pyramid", build=PyramidHead, sample=floats(3, 32, 32)),
    Architecture(name="DeepLabV3", build=AtrousPyramid, sample=floats(3, 24, 24)),
    Architecture(name="HRNet", build=HighResolution, sample=floats(3, 16, 16)),
    Architecture(name="ESPCN (pixel shuffle)", build=sub_pixel, sample=floats(1, 8, 8)),
    Architecture(name="Space to depth", build=space_to_depth, sample=floats(3, 16, 16)),
    Architecture(name="Autoencoder, convolutional", build=convolutional_autoencoder, sample=floats(1, 16, 16)),
    Architecture(name="Autoencoder, flat code", build=DeepAutoencoder, sample=floats(1, 8, 8)),
    Architecture(name="Variational autoencoder", removes=0.4, build=VariationalAutoencoder, sample=floats(20)),
    Architecture(name="DCGAN generator", build=generator, sample=floats(10, 1, 1)),
    Architecture(name="Style transfer", build=Adversarial, sample=floats(3, 12, 12)),
    Architecture(name="Depth estimator", build=depth_estimator, sample=floats(3, 16, 16)),
    Architecture(name="TCN", build=temporal, sample=floats(4, 16)),
    Architecture(name="WaveNet", build=WaveNet, sample=floats(2, 16)),
    Architecture(name="M5 (raw audio)", build=audio_network, sample=floats(1, 256)),
    Architecture(name="TextCNN", build=TextConvolution, sample=tokens(30, 12)),
    Architecture(name="R(2+1)D (video)", build=video_network, sample=floats(3, 4, 8, 8)),
    Architecture(name="Volume autoencoder", build=volume_autoencoder, sample=floats(1, 8, 8, 8)),
)
