"""What a run itself tells: of a stage, how its file was exported and how fast that is, and of what it was given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.estimate import Estimate
from compressor.notes.note import Note

# What reading writes into the metadata of a small file, as a share of it.
_NOTES = 0.01


@dataclass(frozen=True, kw_only=True)
class Exported(Note):
    """The exporter that made the file, its opset, and what the exporter had to do."""

    key: ClassVar[str] = "export"
    exporter: str
    opset: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GivenFile(Note):
    """The file that the user gave, and its bytes with weights in files of their own.

    Ratios of sizes are of the reference, that file as it was read: without sparse weights and in single precision it
    may be several times as large.
    """

    key: ClassVar[str] = "given_file"
    file: str
    size_bytes: int

    def is_exceeded(self, size_bytes: int) -> bool:
        """Whether a file of `size_bytes` is larger, by more than the notes that reading leaves in it."""
        return size_bytes > self.size_bytes * (1 + _NOTES)


@dataclass(frozen=True, kw_only=True)
class VersusBase(Note):
    """The speed-up over the model before the stage."""

    versus_base: Estimate


@dataclass(frozen=True, kw_only=True)
class SameStructure(Note):
    """The stage's file differs from the one before it in the values of weights alone, so that both take one time."""

    same_structure: bool


@dataclass(frozen=True, kw_only=True)
class JudgedAfter(Note):
    """The later stage, by name, after which this one is judged with it: until then it is kept for now."""

    judged_after: str


@dataclass(frozen=True, kw_only=True)
class RankingThreads(Note):
    """With how many threads a ranking was computed, in words; None where torch's own number stayed."""

    ranking_threads: str | None = None


@dataclass(frozen=True, kw_only=True)
class Loaders(Note):
    """What the loaders of the data keep themselves, by set, and what is done about it in every pass."""

    loaders: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reused(Note):
    """The stage was made before, when, in `spared` seconds, and taken from the store of stages; its times are new."""

    key: ClassVar[str] = "reused"
    made: str
    spared: float
