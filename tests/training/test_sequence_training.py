"""Transformers and recurrent networks that learn as integer graphs: torch against ONNX Runtime, and what learns."""

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.files.export import export_onnx
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, Symmetric
from compressor.quantization.learning.fake_quantization import FakeQuantizedGraph
from compressor.quantization.placement.forms import ByFamily, Dynamic, Static, WeightOnly
from compressor.quantization.post_training import Prepared, prepare
from compressor.stage import Context
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.workload import Workload
from workbench.cpu import exact_output


class Tagger(nn.Module):
    """Words, a recurrent layer that reads them in both directions, and four classes."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.recurrent = kind(16, hidden, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * hidden, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.recurrent(self.words(words))[0].mean(dim=1))


class Frames(nn.Module):
    """A convolution in front of an LSTM: calibrated ranges and those of a call in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.recurrent = nn.LSTM(16, 24, batch_first=True)
        self.last = nn.Linear(24, 4)

    def forward(self, words: Tensor) -> Tensor:
        x = F.relu(self.conv(self.words(words).transpose(1, 2)))
        return self.last(self.recurrent(x.transpose(1, 2))[0][:, -1])


class Transformer(nn.Module):
    """Two encoder layers; with `tied`, the output layer is the table of words."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(16, 20 if tied else 4, bias=not tied)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.encoder(self.words(words)).mean(dim=1))


def stage(bits: int, form: ByFamily | Static | Dynamic | None = None) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(weights=Symmetric(bits=bits), form=form or ByFamily())


def stored(weights: Symmetric | Asymmetric) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(weights=weights, form=WeightOnly())


SEQUENCES: dict[str, tuple[Callable[[], nn.Module], QuantizationAwareTraining]] = {
    "transformer": (Transformer, stage(8)),
    "transformer in few bits": (Transformer, stage(4)),
    "transformer, calibrated": (Transformer, stage(4, Static())),
    "LSTM": (lambda: Tagger(nn.LSTM), stage(4)),
    "convolution and LSTM": (Frames, stage(8)),
    "GRU as cells": (lambda: Tagger(nn.GRU), stage(8, Dynamic())),
    "GRU as cells of few bits": (lambda: Tagger(nn.GRU), stage(4, Dynamic())),
    "RNN as cells": (lambda: Tagger(nn.RNN), stage(4, Dynamic())),
    "GRU, stored": (lambda: Tagger(nn.GRU), stage(8)),
    "words twice": (lambda: Transformer(tied=True), stage(8)),
    "weights alone, in blocks": (Transformer, stored(Symmetric(bits=4, granularity=PerBlock(size=16)))),
    "weights alone, in blocks longer than a row": (Frames, stored(Symmetric(bits=3, granularity=PerBlock(size=32)))),
    "weights alone, gates in blocks": (
        lambda: Tagger(nn.GRU),
        stored(Symmetric(bits=4, granularity=PerBlock(size=16))),
    ),
    "weights alone, a channel": (lambda: Tagger(nn.GRU), stored(Symmetric(bits=4))),
    "weights alone, off centre": (lambda: Tagger(nn.LSTM), stored(Asymmetric(bits=4))),
    "weights alone, words twice": (lambda: Transformer(tied=True), stored(Symmetric())),
}
WORDS = torch.randint(0, 20, (64, 7), generator=torch.Generator().manual_seed(0))


@functools.cache
def prepared_of(name: str) -> Prepared:
    build, stage = SEQUENCES[name]
    torch.manual_seed(0)
    data = WORDS, WORDS[:, 0] % 4
    workload = Workload.from_datasets(
        build().eval(), train=data, validation=data, test=data, batch_size=16, calibration_samples=32, name="words"
    )
    return prepare(export_onnx(workload.model, workload).onnx_bytes, stage, workload, Context(progress=False))


def learner_of(prepared: Prepared) -> FakeQuantizedGraph:
    return FakeQuantizedGraph(
        prepared.graph,
        prepared.place(),
        prepared.activations,
        prepared.weights,
        static=prepared.static,
        example=WORDS[:2],
    )


def placed_by(learner: FakeQuantizedGraph, prepared: Prepared) -> onnx.ModelProto:
    graph, grids, weights = learner.learned(prepared.graph, prepared.activations)
    assert weights.keys() == prepared.weights.keys()
    return replace(prepared, graph=graph, activations=grids, weights=weights).place()


def disturb_(learner: FakeQuantizedGraph) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            size = 0.05 if "log_step" in name or "offset" in name else 0.05 * float(parameter.abs().mean())
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@pytest.mark.parametrize("name", SEQUENCES)
def test_torch_computes_what_the_file_computes(name: str) -> None:
    """After learning, torch and ONNX Runtime, fused and not, agree, and the file has the kernels that it had."""
    prepared = prepared_of(name)
    learner = learner_of(prepared)
    disturb_(learner)
    placed, before = serialize(placed_by(learner, prepared)), serialize(prepared.place())
    with torch.no_grad():
        ours = learner(WORDS).numpy()
    plain = exact_output(placed, WORDS, fused=False)
    spread = float(plain.std())
    # A tie that falls the other way moves one value by a step; most outputs see none.
    for theirs in (plain, exact_output(placed, WORDS, fused=True)):
        assert float(np.abs(ours - theirs).mean()) < 0.002 * spread
        assert float(np.abs(ours - theirs).max()) < 0.05 * spread
    # It has become another one meanwhile.
    assert float(np.abs(plain - exact_output(before, WORDS, fused=False)).mean()) > 0.02 * spread
    assert kernels(placed) == kernels(before)


@pytest.mark.parametrize("name", SEQUENCES)
def test_everything_learns(name: str) -> None:
    """Every float of the file has a parameter, every parameter a gradient; what learned nothing writes the same."""
    prepared = prepared_of(name)
    learner = learner_of(prepared)
    assert serialize(placed_by(learner, prepared)) == serialize(prepared.place())
    learner(WORDS).square().sum().backward()
    assert [key for key, parameter in learner.named_parameters() if parameter.grad is None] == []
    learned = {key.removeprefix("tensor ") for key in (*learner.weights, *learner.biases)}
    learned |= {name for name, _ in learner.inner.named_parameters()} | {key.replace(".", " ") for key in learner.tied}
    floats = {
        tensor.name.replace(".", " ")
        for tensor in prepared.graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and int(np.prod(tensor.dims)) > 1
    }
    # With calibrated ranges what is added to a product of three dimensions is an operand of integers of its own.
    missing = {key for key in floats - learned if not (prepared.static and "bias" in key)}
    assert missing == set()


def test_tied_table_of_words_stays_tied() -> None:
    """An output layer that reads the table of words turned around learns with it, and the file holds one of both."""
    prepared = prepared_of("words twice")
    learner = learner_of(prepared)
    assert len(learner.tied) == 1
    disturb_(learner)
    tables = [tensor for tensor in placed_by(learner, prepared).graph.initializer if sorted(tensor.dims) == [16, 20]]
    assert len(tables) == 1
