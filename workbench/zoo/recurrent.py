"""Recurrent networks: classifiers, taggers, stacks, both directions, projections, cells, and mixtures."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workbench.zoo.architecture import Architecture, floats, several, tokens
from workbench.zoo.convolutional import ConvNorm


class SequenceClassifier(nn.Module):
    """A recurrent stack over projected features; the last step is classified."""

    def __init__(self, kind: type[nn.RNNBase], *, layers: int = 1, both: bool = False, projection: int = 0):
        super().__init__()
        settings = {"proj_size": projection} if projection else {}
        self.enter = nn.Linear(6, 10)
        self.memory = kind(10, 12, layers, batch_first=True, bidirectional=both, **settings)
        self.out = nn.Linear((projection or 12) * (1 + both), 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(F.relu(self.enter(x)))
        return self.out(states[:, -1])


class FinalState(nn.Module):
    """Classifies h_n of the last layer, both directions joined."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.memory = kind(8, 12, 2, batch_first=True, bidirectional=True)
        self.hidden, self.out = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, words: Tensor) -> Tensor:
        _, state = self.memory(self.embedding(words))
        state = state[0] if isinstance(state, tuple) else state
        return self.out(F.relu(self.hidden(torch.cat([state[-2], state[-1]], dim=1))))


class Tagger(nn.Module):
    """A label for each word, from both directions."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.memory = kind(12, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.memory(self.embedding(words))[0])


class PackedClassifier(nn.Module):
    """Sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.memory = nn.GRU(12, 10, batch_first=True)
        self.out = nn.Linear(10, 3)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.memory(packed)[0], batch_first=True)
        return self.out(states.amax(dim=1))


class CellLoop(nn.Module):
    """A cell called step by step in Python."""

    def __init__(self, *, gated: bool):
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.cell: nn.Module = nn.LSTMCell(8, 12) if gated else nn.GRUCell(8, 12)
        self.gated = gated
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        c = torch.zeros_like(h)
        for step in range(4):
            if self.gated:
                h, c = self.cell(x[:, step], (h, c))
            else:
                h = self.cell(x[:, step], h)
        return self.out(h)


class Transcriber(nn.Module):
    """CRNN (Shi et al. 2015): convolutions, then an LSTM along the image's width."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(ConvNorm(1, 8), nn.MaxPool2d(2), ConvNorm(8, 12), nn.MaxPool2d((2, 1)))
        self.memory = nn.LSTM(24, 10, bidirectional=True, batch_first=True)
        self.out = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.out(self.memory(x)[0]).log_softmax(-1)


class Translator(nn.Module):
    """Bahdanau et al. 2014, with dot products: a decoder that attends to an encoder, whose state it starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.encoder, self.decoder = nn.GRU(8, 12, batch_first=True), nn.GRU(8, 12, batch_first=True)
        self.join, self.out = nn.Linear(24, 16), nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        states, _ = self.decoder(self.target(target), state)
        weights = (states @ memory.transpose(1, 2)).softmax(dim=-1)
        return self.out(torch.tanh(self.join(torch.cat([states, weights @ memory], dim=-1))))


class Stacked(nn.Module):
    """LSTMs of their own widths, one above the other, with a residual and layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.LSTM(i, o, batch_first=True) for i, o in ((6, 12), (12, 16), (16, 12))
        )
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)[0]
        return self.out(self.norm(first + self.third(self.second(first)[0])[0])[:, -1])


class ConvLSTM(nn.Module):
    """Shi et al. 2015: four gates from one convolution, step by step."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(2 + width, 4 * width, 3, padding=1)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        b, steps, _, height, size = frames.shape
        h = frames.new_zeros(b, self.width, height, size)
        c = torch.zeros_like(h)
        for step in range(steps):
            i, f, g, o = self.gates(torch.cat([frames[:, step], h], 1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class TimeFirst(nn.Module):
    """Time before the batch, given first states that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.zeros(1, 1, 12))
        self.memory, self.out = nn.GRU(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.out(self.memory(x, self.state.expand(-1, x.shape[1], -1).contiguous())[0][-1])


def packed_inputs(n: int) -> tuple[Tensor, Tensor]:
    lengths = torch.full((n,), 7)
    lengths[1::2] = 5
    return torch.randint(30, (n, 7)), lengths


ARCHITECTURES = (
    Architecture(name="LSTM classifier", build=lambda: SequenceClassifier(nn.LSTM), sample=floats(7, 6)),
    Architecture(name="GRU classifier", build=lambda: SequenceClassifier(nn.GRU), sample=floats(7, 6)),
    Architecture(name="Elman network", build=lambda: SequenceClassifier(nn.RNN, layers=2), sample=floats(7, 6)),
    Architecture(name="LSTM, 3 layers", build=lambda: SequenceClassifier(nn.LSTM, layers=3), sample=floats(7, 6)),
    Architecture(
        name="LSTM, both directions",
        build=lambda: SequenceClassifier(nn.LSTM, layers=2, both=True),
        sample=floats(7, 6),
    ),
    Architecture(
        name="LSTM with projection",
        exports=False,
        build=lambda: SequenceClassifier(nn.LSTM, layers=2, projection=6),
        sample=floats(7, 6),
    ),
    Architecture(name="LSTM, final state", build=lambda: FinalState(nn.LSTM), sample=tokens(20, 7)),
    Architecture(name="GRU, final state", build=lambda: FinalState(nn.GRU), sample=tokens(20, 7)),
    Architecture(name="LSTM tagger", build=lambda: Tagger(nn.LSTM), sample=tokens(30, 7)),
    Architecture(name="GRU tagger", build=lambda: Tagger(nn.GRU), sample=tokens(30, 7)),
    Architecture(name="GRU, packed sequences", exports=False, build=PackedClassifier, sample=packed_inputs),
    Architecture(name="LSTM cell in a loop", build=lambda: CellLoop(gated=True), sample=floats(4, 6)),
    Architecture(name="GRU cell in a loop", build=lambda: CellLoop(gated=False), sample=floats(4, 6)),
    Architecture(name="GRU, learned first state", build=TimeFirst, sample=floats(7, 6)),
    Architecture(name="LSTM stack with LayerNorm", removes=0.3, build=Stacked, sample=floats(7, 6)),
    Architecture(name="CRNN", build=Transcriber, sample=floats(1, 8, 16)),
    Architecture(name="Seq2seq with attention", build=Translator, sample=several(tokens(20, 7), tokens(20, 5))),
    Architecture(name="ConvLSTM", build=ConvLSTM, sample=floats(3, 2, 6, 6)),
)
