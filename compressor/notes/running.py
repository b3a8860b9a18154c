"""What a run itself tells of a stage: how its file was exported, and how fast that is beside the one before."""

from dataclasses import dataclass
from typing import ClassVar

from compressor.estimate import Estimate
from compressor.notes.note import Note


@dataclass(frozen=True, kw_only=True)
class Exported(Note):
    """The exporter that made the file, its opset, and what the exporter had to do."""

    key: ClassVar[str] = "export"
    exporter: str
    opset: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VersusBase(Note):
    """The speed-up over the model before the stage."""

    versus_base: Estimate
