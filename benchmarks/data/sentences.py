"""Sentences of film reviews, positive or negative, as word numbers (Socher et al. 2013), read from COMPRESSOR_DATA."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from compressor.workload import Workload
from workbench.data_files import data_file

LENGTH = 40  # words; 98 % of the sentences are shorter, longer ones are cut
PADDING, UNKNOWN = 0, 1


def sentiment(model: nn.Module, name: str) -> Workload:
    """The workload of a model (batch, LENGTH) -> (batch, 2)."""
    parts = {part: read(part) for part in ("train", "dev", "test")}
    return Workload.from_datasets(
        model, train=parts["train"], validation=parts["dev"], test=parts["test"], batch_size=64, name=name
    )


@cache
def vocabulary() -> dict[str, int]:
    """The number of every word that the training sentences hold at least twice, from 2 on."""
    counts = Counter(word for sentence in _column("train", "sentence") for word in sentence.split())
    words = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(words, start=2)}


def read(part: str) -> tuple[Tensor, Tensor]:
    """(sentences, LENGTH) word numbers and the labels of `part`: train, dev or test."""
    numbers = [encode(sentence) for sentence in _column(part, "sentence")]
    return torch.tensor(numbers), torch.tensor(_column(part, "label"))


def encode(sentence: str) -> Sequence[int]:
    """The numbers of the first LENGTH words, padded with zeros."""
    known = [vocabulary().get(word, UNKNOWN) for word in sentence.split()[:LENGTH]]
    return known + [PADDING] * (LENGTH - len(known))


@cache
def _column(part: str, name: str) -> list:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(data_file(f"sst2-{part}.parquet"))[name].to_pylist()
