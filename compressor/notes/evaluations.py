"""What was asked of a file besides its score: rows of numbers, changes by class, flipped samples, removed parts."""

from dataclasses import dataclass
from typing import ClassVar

from compressor.estimate import Estimate
from compressor.notes.note import Note


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One question and its answer, of the file and of the reference, on test data.

    `value` is a score of the metric where `unit` is "score", else a fraction in [0, 1] ("points") or a drop as the
    metric has them ("drop"), better where smaller. `worse` is how much worse the file is than the reference, paired,
    with its interval. `why` says, instead of all that, why there is no answer.
    """

    evaluation: str = ""
    what: str = ""
    unit: str = "points"
    value: Estimate | None = None
    reference: Estimate | None = None
    worse: Estimate | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluations(Note):
    """The questions that were asked of a file, in the order of the recipe."""

    evaluations: tuple[Evaluated, ...]


@dataclass(frozen=True, kw_only=True)
class OneClass:
    """One class: how many samples test it, which fractions of them are right before and after, and what that means.

    `drop` is their paired difference with its interval; `p` the p-value of McNemar's exact test, adjusted after Holm
    for all classes; `lost` says that it is worse with p <= 0.05.
    """

    label: str = "?"
    samples: int
    before: float
    after: float
    drop: Estimate | None = None
    p: float
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample whose answer changed: its place in the test data, its label, both answers and, of images, a picture.

    `picture` is a PNG file in base64, "" for none.
    """

    index: int
    label: str = "?"
    before: str = "?"
    after: str = "?"
    picture: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassChanges(Note):
    """What became of each class, and which samples flipped: how many from right to wrong and back, and some of them."""

    key: ClassVar[str] = "class_changes"
    classes: tuple[OneClass, ...]
    lost: int
    won: int
    other: int
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RemovedPart:
    """Channels of a layer, or a block, that a stage took out, and what they did on calibration data before.

    Of channels `removed` of `of` went; `kept_size` and `removed_size` are the mean absolute values of what the kept and
    the removed ones gave, `kept_spread` and `removed_spread` the mean over channels of the standard deviation, and
    `silent` is the fraction of the removed ones that gave one and the same number always. Of a block `moved` is how far
    its output was from its input, as a fraction of the input's size.
    """

    part: str = "?"
    removed: int = 0
    of: int = 0
    kept_size: float | None = None
    removed_size: float | None = None
    kept_spread: float | None = None
    removed_spread: float | None = None
    silent: float | None = None
    moved: float | None = None


@dataclass(frozen=True, kw_only=True)
class RemovedParts(Note):
    """What the parts that a structural stage removed did before."""

    removed_parts: tuple[RemovedPart, ...]
