"""How long an epoch is: right lengths, wrong ones, none, and streams without an end."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, WeightedRandomSampler

from compressor.errors import StageError
from compressor.training import streams
from compressor.training.replay import replayed
from compressor.training.streams import Stream, batches_in
from workbench.loaders import INPUTS, PAIRS, REPLAYED, TARGETS, Sharded

BATCHES = [(INPUTS[start : start + 16], TARGETS[start : start + 16]) for start in range(0, 96, 16)]


class Says:
    """Six batches, or batches without an end, and any length beside them."""

    def __init__(self, length: int, *, ends: bool = True) -> None:
        self.length, self.ends = length, ends

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(BATCHES) if self.ends else itertools.cycle(BATCHES)


class Unending:
    """Without a length or an end, in an order from Python's global generator."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            order = list(BATCHES)
            random.shuffle(order)
            yield from order


def passed(stream: Stream, epoch: int = 0, batches: int | None = None) -> list[float]:
    with stream.kept(), replayed(0, epoch):
        return [float(inputs.sum()) for inputs, _ in stream.epoch(epoch, epoch, batches or stream.batches or 0)]


@pytest.mark.parametrize("kind", [kind for kind in REPLAYED if kind != "a distributed sampler"])
def test_an_epoch_is_a_pass(kind: str) -> None:
    """96 samples in batches of 16 are six, told or counted."""
    stream = Stream.of(REPLAYED[kind](), 0)
    assert stream.batches == batches_in(REPLAYED[kind](), 0) == 6
    assert len(passed(stream)) == 6
    assert stream.begins


@pytest.mark.parametrize(
    ("data", "batches", "said"),
    [
        (Says(6), 6, ()),
        (Says(9), 6, ("the data say that they have 9 batches, and give 6, which is what counts",)),
        (Says(4), 6, ("the data say that they have 4 batches, and give 6, which is what counts",)),
        (Says(0), 6, ("the data say that they have 0 batches, and give 6, which is what counts",)),
        (
            Says(4, ends=False),
            4,
            ("the data say that they have 4 batches, and go on: an epoch ends after those",),
        ),
        (
            Says(100, ends=False),
            100,
            ("the data say that they have 100 batches, and go on: an epoch ends after those",),
        ),
        (DataLoader(Sharded(), batch_size=16), 6, ()),
        (BATCHES, 6, ()),
    ],
)
def test_wrong_lengths_are_found_and_told(data: Any, batches: int, said: tuple[str, ...]) -> None:
    """Too long, too short, nothing at all: what the data give counts; those without an end go by what they say."""
    stream = Stream.of(data, 0)
    assert (stream.batches, batches_in(data, 0)) == (batches, batches)
    assert len(passed(stream)) == batches
    assert tuple(stream.remarks) == said


def test_a_length_that_is_trusted_and_wrong_is_told_after_an_epoch(monkeypatch) -> None:
    """Long data of which only the beginning was counted: their end comes early, and the report says so."""
    monkeypatch.setattr(streams, "_COUNTED", 3)
    stream = Stream.of(Says(9), 0)
    assert stream.batches == 9
    assert len(passed(stream)) == 6
    assert stream.remarks == ["the data say that they have 9 batches, and give 6"]


class Worked(IterableDataset[Any]):
    """Every worker gives all samples, as people forget to share them out; the length is that of one."""

    def __len__(self) -> int:
        return 96

    def __iter__(self) -> Iterator[Any]:
        return iter(PAIRS)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_stream_that_every_worker_gives_is_counted() -> None:
    """Two workers give twelve batches where the length is six."""
    stream = Stream.of(DataLoader(Worked(), batch_size=16, num_workers=2), 0)
    assert stream.batches == 12


@pytest.mark.parametrize("limit", ["LONGEST", "PATIENCE_SECONDS"])
def test_streams_without_an_end_are_refused_within_a_limit(limit: str, monkeypatch) -> None:
    """Neither many batches nor slow ones hang; the way out is `steps`, a length, or an end."""
    monkeypatch.setattr(streams, limit, 0.01 if limit == "PATIENCE_SECONDS" else 200)
    assert Stream.of(Unending(), 0).batches is None
    with pytest.raises(StageError, match=r"set steps=, give them a __len__ .* or end them"):
        batches_in(Unending(), 0)


def test_a_stream_without_an_end_goes_on_from_epoch_to_epoch(monkeypatch) -> None:
    """Four batches an epoch: the second begins with the fifth, and begins there too where the first was not read."""
    monkeypatch.setattr(streams, "LONGEST", 50)
    stream, resumed = Stream.of(Unending(), 3), Stream.of(Unending(), 3)
    with stream.kept():
        with replayed(3, 0):
            first = [float(inputs.sum()) for inputs, _ in stream.epoch(0, 0, 4)]
        torch.manual_seed(5)
        random.seed(5)
        second = [float(inputs.sum()) for inputs, _ in stream.epoch(1, 1, 4)]
    assert second == passed(resumed, 1, 4)
    assert len(set(first + second[:2])) == 6
    assert sorted(first + second[:2]) == sorted(float(inputs.sum()) for inputs, _ in BATCHES)


def test_torchs_own_samplers_are_taken_at_their_word() -> None:
    """Nothing is read to count what a sampler of torch says; one of somebody's own is looked at."""
    reads: list[int] = []

    class Read(Dataset[Any]):
        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return PAIRS[index]

    class Short(SequentialSampler):
        def __len__(self) -> int:
            return 32

    weights = WeightedRandomSampler(torch.ones(96).tolist(), 96)
    assert batches_in(DataLoader(Read(), batch_size=16, sampler=weights), 0) == 6
    assert reads == []
    assert batches_in(DataLoader(Read(), batch_size=16, sampler=Short(Read())), 0) == 6
    assert len(reads) == 96
