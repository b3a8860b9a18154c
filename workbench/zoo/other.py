"""Networks for sets, graphs, tables and pairs; shared parts, gates, and layers that the example does not reach."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo.architecture import Architecture, floats, several, tokens
from workbench.zoo.convolutional import ConvNorm, head


def multilayer_perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.BatchNorm1d(24), nn.Linear(24, 16), nn.SiLU(), nn.Linear(16, 3)
    )


class PointNet(nn.Module):
    """Qi et al. 2016: a transform that the points themselves predict, one network for each point, the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU())
        self.transform = nn.Linear(8, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 24, 1))
        self.out = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        turned = self.transform(self.predict(x.transpose(1, 2)).amax(-1)).view(-1, 3, 3)
        return self.out(self.points(torch.bmm(x, turned).transpose(1, 2)).amax(-1))


class Siamese(nn.Module):
    """One network for two images; the distance of what it says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(3, 8), nn.MaxPool2d(2), ConvNorm(8, 16), head(16, 12))
        self.out = nn.Linear(12, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.out((self.body(first) - self.body(second)).abs())


class TwoTowers(nn.Module):
    """CLIP's joint: embeddings of two towers, normalized, and their products."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 16), head(16, 12))
        self.words, self.text = nn.EmbeddingBag(20, 16), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 12))

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        left, right = F.normalize(self.images(images), dim=-1), F.normalize(self.text(self.words(words)), dim=-1)
        return (left * right).sum(-1, keepdim=True) * 10


class CollaborativeFilter(nn.Module):
    """Neural collaborative filtering (He et al. 2017): a product of embeddings beside a network on other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.user_deep, self.item_deep = nn.Embedding(20, 12), nn.Embedding(30, 12)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.out = nn.Linear(16, 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        users, items = users[:, 0], items[:, 0]
        wide = self.user(users) * self.item(items)
        deep = self.deep(torch.cat([self.user_deep(users), self.item_deep(items)], dim=-1))
        return self.out(torch.cat([wide, deep], dim=-1))


class Interactions(nn.Module):
    """DLRM (Naumov et al. 2019): products between all pairs of embeddings, the lower triangle by index."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(15, 8) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1))
        self.register_buffer("pairs", torch.tril_indices(4, 4, -1), persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        dense = self.bottom(dense)
        rows = torch.stack([dense, *(table(sparse[:, i]) for i, table in enumerate(self.tables))], dim=1)
        products = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([dense, products], dim=1))


class GraphConvolution(nn.Module):
    """Kipf & Welling 2016, on dense adjacency matrices, with attention's cousin: a normalized sum over neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges.abs()
        edges = edges / (edges.sum(-1, keepdim=True) + 1)
        x = F.relu(edges @ self.first(nodes))
        return self.third(F.relu(edges @ self.second(x)).mean(dim=1))


class Highway(nn.Module):
    """Srivastava et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.gates = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for gate, layer in zip(self.gates, self.layers, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(layer(x)) + (1 - t) * x
        return self.out(x)


class Modulated(nn.Module):
    """FiLM (Perez et al. 2017): a scale and a shift for each channel, from words."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = ConvNorm(3, 12), nn.Conv2d(12, 12, 3, padding=1)
        self.words, self.film = nn.Embedding(10, 8), nn.Linear(8, 24)
        self.out = head(12, 3)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        scale, shift = self.film(self.words(words).mean(1)).chunk(2, dim=-1)
        x = self.conv(self.stem(images))
        return self.out(F.relu(scale[:, :, None, None] * x + shift[:, :, None, None]))


class Experts(nn.Module):
    """A dense mixture of experts: all of them run, a softmax weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(6, 16), nn.Linear(16, 3)
        self.up, self.down = nn.Parameter(torch.zeros(3, 16, 24)), nn.Parameter(torch.zeros(3, 24, 16))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.up))
        y = torch.einsum("beh,eho,be->bo", hidden, self.down, self.gate(x).softmax(-1))
        return self.out(x + y)


class EarlyExit(nn.Module):
    """An exit that is used in training alone; in eval mode the example never reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(3, 8), ConvNorm(8, 16)
        self.exit, self.out = head(8), head(16)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(x)
        y = self.out(self.second(x))
        return (y, self.exit(x)) if self.training else y


class Branching(nn.Module):
    """A branch on the values of the input, of which the data show one side."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right, self.out = (
            nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.enter(x))
        y = self.left(y) if x.sum() > -1000 else self.right(y)
        return self.out(F.relu(y))


class Kernelized(nn.Module):
    """Distances to learned prototypes: the squared norm runs over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 8))
        self.prototypes = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return -(self.body(x)[:, None] - self.prototypes).square().sum(-1)


class ValueAndPolicy(nn.Module):
    """A dueling network (Wang et al. 2015): two heads on one body, joined by a mean over actions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
        self.value = nn.Sequential(nn.Linear(12 * 16, 16), nn.ReLU(), nn.Linear(16, 1))
        self.advantage = nn.Sequential(nn.Linear(12 * 16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Frozen(nn.Module):
    """A frozen body under a trained head: flags must survive."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 16)), head(16)
        self.body.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


ARCHITECTURES = (
    Architecture(name="MLP", build=multilayer_perceptron, sample=floats(16)),
    Architecture(name="PointNet", build=PointNet, sample=floats(10, 3)),
    Architecture(name="Siamese network", build=Siamese, sample=several(floats(3, 8, 8), floats(3, 8, 8))),
    Architecture(name="Two towers", build=TwoTowers, sample=several(floats(3, 8, 8), tokens(20, 5))),
    Architecture(name="Collaborative filter", build=CollaborativeFilter, sample=several(tokens(20, 1), tokens(30, 1))),
    Architecture(name="DLRM", build=Interactions, sample=several(floats(5), tokens(15, 3))),
    Architecture(name="Graph convolution", build=GraphConvolution, sample=several(floats(9, 6), floats(9, 9))),
    Architecture(name="Highway network", build=Highway, sample=floats(6)),
    Architecture(name="FiLM", build=Modulated, sample=several(floats(3, 8, 8), tokens(10, 4))),
    Architecture(name="Mixture of experts", removes=0.45, build=Experts, sample=floats(6)),
    Architecture(name="Early exit", build=EarlyExit, sample=floats(3, 8, 8)),
    Architecture(name="Prototypes", build=Kernelized, sample=floats(6)),
    Architecture(name="Dueling network", build=ValueAndPolicy, sample=floats(2, 8, 8)),
    Architecture(name="Frozen body", build=Frozen, sample=floats(3, 8, 8)),
    Architecture(name="Linear classifier", build=linear, sample=floats(4, 4), refuses="1: it makes the model's output"),
    Architecture(
        name="Branch on values", build=Branching, sample=floats(6), refuses="the program branches on a computed value"
    ),
)
