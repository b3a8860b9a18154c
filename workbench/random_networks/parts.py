"""What random networks are made of: parts that map tensors (batch, channels, places...) to one such tensor.

Every part is made by `Kind(draw, places, *widths)` for `places` (0, 1 or 2) dimensions behind the channels, and says
in `width` how many channels it gives. It raises LookupError where it cannot be made for these widths.
"""

from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (4, 6, 8, 12, 16)


def channel_wise(vector: Tensor, places: int) -> Tensor:
    """`vector`, one value a channel, as (channels, 1, ...), so that it meets the channels of a batch."""
    return vector.reshape(-1, *[1] * places)


def linear(places: int, inputs: int, outputs: int, *, size: int = 1, groups: int = 1, bias: bool = True) -> nn.Module:
    """A linear layer over the channels, or a convolution of `size` that keeps the places."""
    if places == 0:
        if groups > 1:
            raise LookupError("linear layers have no groups")
        return nn.Linear(inputs, outputs, bias=bias)
    if inputs % groups or outputs % groups:
        raise LookupError("the groups do not divide the channels")
    kind = (nn.Conv1d, nn.Conv2d)[places - 1]
    return kind(inputs, outputs, size, padding=size // 2, groups=groups, bias=bias)


class Part(nn.Module):
    """The base of all parts: what they take and give."""

    takes = 1
    # Whether training steps draw random numbers whose shape is that of channels, so that outputs cannot be compared.
    draws = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Layer(Part):
    """A layer, a norm and an activation; any of the last two may be missing."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(draw.choice(WIDTHS))
        bias = draw.random() < 0.6
        self.layer = linear(places, inputs, self.width, size=draw.choice((1, 3)), bias=bias)
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[places]
        self.norm = draw.choice((nn.Identity, batch_norm, batch_norm, lambda width: nn.GroupNorm(2, width)))(self.width)
        self.act = draw.choice((nn.ReLU, nn.GELU, nn.Sigmoid, nn.Identity, nn.PReLU, nn.Hardswish))()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(x)))


class Residual(Part):
    """Two layers beside the identity."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        inner = draw.choice(WIDTHS)
        self.first, self.second = linear(places, inputs, inner, size=3), linear(places, inner, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Grouped(Part):
    """A convolution of two groups, or of one group a channel."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.layer = linear(places, inputs, inputs, size=3, groups=draw.choice((2, inputs)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


class Functional(Part):
    """A matrix of its own, applied by a function in one of several ways."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(draw.choice(WIDTHS))
        self.how = draw.choice(("einsum", "matmul", "linear"))
        self.matrix = nn.Parameter(torch.randn(self.width, inputs) / inputs**0.5)
        self.shift = nn.Parameter(torch.randn(self.width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        if self.how == "einsum":
            x = torch.einsum("...i,oi->...o", x, self.matrix) + self.shift
        elif self.how == "matmul":
            x = x @ self.matrix.T + self.shift
        else:
            x = F.linear(x, self.matrix, self.shift)
        return F.silu(x).movedim(-1, 1)


class Gate(Part):
    """Squeeze and excitation: every channel scaled by what all of them say."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.places = places
        self.down = nn.Linear(inputs, draw.choice((2, 4)))
        self.up = nn.Linear(self.down.out_features, inputs)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(F.relu(self.down(x.flatten(2).mean(2) if x.ndim > 2 else x))))
        return x * scale.reshape(*scale.shape, *[1] * self.places)


class Halves(Part):
    """A gated linear unit: one half of the channels times the sigmoid of the other."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs // 2)
        self.by_chunk = draw.random() < 0.5
        if inputs % 2:
            raise LookupError("an odd width has no halves")

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, 1) if self.by_chunk else (x[:, : self.width], x[:, self.width :])
        return value * torch.sigmoid(gate)


class Partial(Part):
    """A layer for the first channels alone, the others as they are: kept sizes, or a slice by a share."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        first = draw.choice([size for size in (inputs // 4, inputs // 2) if size])
        self.sizes = [first, inputs - first]
        self.layer = linear(places, first, first, size=3)

    def forward(self, x: Tensor) -> Tensor:
        some, others = x.split(self.sizes, 1)
        return torch.cat([F.relu(self.layer(some)), others], 1)


class Shuffle(Part):
    """Channels of two groups put in turns."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        if inputs % 2:
            raise LookupError("an odd width has no two groups")

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *places = x.shape
        return x.view(batch, 2, channels // 2, *places).transpose(1, 2).reshape(batch, channels, *places)


class Reorder(Part):
    """Channels in another order: kept in a buffer, turned round, or rolled."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.how = draw.choice(("buffer", "flip", "roll"))
        self.register_buffer("order", torch.tensor(draw.sample(range(inputs), inputs)))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "buffer":
            return x[:, self.order]
        return x.flip(1) if self.how == "flip" else x.roll(1, 1)


class Scale(Part):
    """A learned scale and a kept shift for every channel."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.scale = nn.Parameter(channel_wise(torch.rand(inputs) + 0.5, places))
        self.register_buffer("shift", channel_wise(torch.randn(inputs), places))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Padded(Part):
    """Channels of zeros added behind."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs + 4)
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0) * self.places + (0, 4))


class OverChannels(Part):
    """What looks at all channels at once: softmax, a norm, a mean, a sort, a running sum."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.how = draw.choice(("softmax", "normalize", "mean", "layer_norm", "cumsum", "sort"))
        self.norm = nn.LayerNorm(inputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "softmax":
            return x * x.softmax(1)
        if self.how == "normalize":
            return F.normalize(x, dim=1)
        if self.how == "mean":
            return x - x.mean(1, keepdim=True)
        if self.how == "layer_norm":
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return x.cumsum(1) * 0.1 if self.how == "cumsum" else x.sort(1).values


class Tied(Part):
    """One layer, called twice."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.layer = linear(places, inputs, inputs, size=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


class Parametrized(Part):
    """A layer whose weight is computed: by weight norm, by spectral norm, or by a parametrization of its own."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(draw.choice(WIDTHS))
        self.how = draw.choice(("weight_norm", "spectral_norm", "own"))
        layer = linear(places, inputs, self.width, size=3)
        if self.how == "weight_norm":
            layer = nn.utils.parametrizations.weight_norm(layer)
        elif self.how == "spectral_norm":
            layer = nn.utils.parametrizations.spectral_norm(layer)
        else:
            nn.utils.parametrize.register_parametrization(layer, "weight", Centred())
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


class Centred(nn.Module):
    """Weights whose mean over the inputs is zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(1, keepdim=True)


class Attention(Part):
    """Attention over the places, heads as the module keeps them or computed from the width; one place without any."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(inputs)
        self.heads = 2
        if inputs % self.heads:
            raise LookupError("the heads do not fill the width")
        self.inwards, self.outwards = nn.Linear(inputs, 3 * inputs), nn.Linear(inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) if x.ndim > 2 else x[:, None]
        batch, length, width = tokens.shape
        query, key, value = (
            self.inwards(tokens).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        scores = (query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1)
        mixed = self.outwards((scores @ value).transpose(1, 2).reshape(batch, length, width))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Recurrent(Part):
    """A GRU or LSTM over the places, or over one step without any."""

    def __init__(self, draw: Random, places: int, inputs: int) -> None:
        super().__init__(draw.choice((4, 6)))
        if places == 2:
            raise LookupError("maps are no sequences")
        self.layer = draw.choice((nn.GRU, nn.LSTM))(inputs, self.width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.layer(x[:, None])[0][:, 0]
        return self.layer(x.transpose(1, 2))[0].transpose(1, 2)


class Add(Part):
    """Two tensors of one width, added or multiplied."""

    takes = 2

    def __init__(self, draw: Random, places: int, one: int, two: int) -> None:
        super().__init__(one)
        self.times = draw.random() < 0.3
        if one != two:
            raise LookupError("the widths differ")

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return one * two if self.times else one + two


class Larger(Part):
    """The larger of two tensors of one width."""

    takes = 2

    def __init__(self, draw: Random, places: int, one: int, two: int) -> None:
        super().__init__(one)
        if one != two:
            raise LookupError("the widths differ")

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([one, two]).amax(0)


class Concat(Part):
    """Two tensors beside each other."""

    takes = 2

    def __init__(self, draw: Random, places: int, one: int, two: int) -> None:
        super().__init__(one + two)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return torch.cat([one, two], 1)


PLAIN: tuple[type[Part], ...] = (
    Layer,
    Residual,
    Grouped,
    Functional,
    Gate,
    Halves,
    Partial,
    Shuffle,
    Reorder,
    Scale,
    Padded,
    OverChannels,
    Tied,
    Parametrized,
    Attention,
    Recurrent,
    Add,
    Larger,
    Concat,
)
