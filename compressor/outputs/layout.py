"""Where samples lie in a file's inputs and outputs, and which output is judged: noted in the file's own metadata.

Everywhere else in this package samples come first. A file that has them elsewhere keeps its own layout: what it is fed
and what it gives is turned at its session alone. The note goes wherever the file goes, into copies, quantized forms and
folders, and stands under a key of ours, which other programs pass over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

# Of a file's metadata.
LAYOUT_KEY = "compressor.layout"
# The outputs that are judged where nothing else is said, the first of these that a file has; else its first output.
_USUAL = ("output", "logits")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """In which dimension of each input and output samples lie, where that is not the first; None where in none.

    `judged` is the output that metrics read, None for the usual one. A file that is `single` has no batch: every call
    is one sample. `streams` names the input that the next step of a stream is given each of these outputs for: a
    sample is then a sequence of steps.
    """

    judged: str | None = None
    inputs: Mapping[str, int | None] = field(default_factory=dict)
    outputs: Mapping[str, int | None] = field(default_factory=dict)
    single: bool = False
    streams: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> "Layout":
        """The layout that a file's `metadata` note; samples first where there is no note."""
        noted = metadata.get(LAYOUT_KEY)
        return cls(**json.loads(noted)) if noted else cls()

    def noted(self) -> str:
        """The note, as `of_metadata` reads it."""
        said: dict[str, Any] = {"judged": self.judged, "inputs": dict(self.inputs), "outputs": dict(self.outputs)}
        said |= {"single": self.single, "streams": dict(self.streams)}
        return json.dumps({name: value for name, value in said.items() if value}, sort_keys=True)

    def judging(self, judged: str | None) -> "Layout":
        """The same with another judged output."""
        return replace(self, judged=judged)

    @property
    def plain(self) -> bool:
        """Whether samples come first in every input and output, each a call's."""
        return not (self.inputs or self.outputs or self.single or self.streams)

    def axis_of(self, name: str) -> int | None:
        """The dimension of the input `name` in which samples lie."""
        return None if self.single else self.inputs.get(name, 0)


def judged_name(names: Sequence[str], layout: Layout | None = None) -> str:
    """The output of a file with the outputs `names` that is judged.

    As its layout says; else the one called "output" or "logits", else the first.
    """
    if layout is not None and layout.judged is not None:
        return layout.judged
    return next((name for name in _USUAL if name in names), names[0])


class NamedOutputs(tuple[Any, ...]):  # noqa: SLOT001 - its entries have names, which are no slots
    """The outputs of a file in its order, a tuple whose entries have the names `_fields`; `judged` is the one of them
    that loss and metric read.
    """

    _fields: tuple[str, ...]
    judged: Any

    def __new__(cls, names: Sequence[str], values: Sequence[Any], judged: str) -> Self:
        """The `values` by their `names`."""
        made = super().__new__(cls, values)
        made._fields = tuple(names)
        made.judged = values[list(names).index(judged)]
        return made
