"""Every error of the package that a caller may want to catch, and other libraries' words in it; it loads nothing.

All are CompressorErrors, made with a sentence for people, and each is also what Python calls its like (ValueError for
what was given, RuntimeError for what went wrong), so that code that knows nothing of the package catches it too.
"""

import re
from collections.abc import Iterable

# Of a message as a whole: what nobody reads to the end is a dump of somebody's graph, not a reason.
LONGEST = 8000
# Of what one error of another library says inside a sentence.
LONGEST_REASON = 400
# ECMA-48: CSI sequences (colours, cursor), OSC strings (titles, links) up to BEL or ST, and other two-byte escapes.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]?")
# Control characters that are no white space: they ring, erase or overwrite.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def plain(text: str) -> str:
    """`text` without terminal escapes and control characters; line breaks and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def bounded(text: str, longest: int = LONGEST) -> str:
    """`text`, cut to `longest` (>= 4) characters where it is longer, the last three being dots then."""
    return text if len(text) <= longest else f"{text[: longest - 3].rstrip()}..."


def first_said(error: BaseException) -> str:
    """The first line of what `error` says, plain, bounded and without its full stop; its type where it says nothing."""
    lines = (line.strip() for line in plain(str(error)).splitlines())
    return bounded(next(filter(None, lines), type(error).__name__).rstrip("."), LONGEST_REASON)


def runtime_reason(error: BaseException) -> str:
    """What ONNX Runtime says of a run that failed, the node and its reason; of any other error, what it says first."""
    # The node stands in the first part of the message, the reason behind the condition that "was false".
    text = " ".join(plain(str(error)).split())
    node = re.search(r"running (\w+) node\. Name:'([^']*)'", text)
    if node is None:
        return first_said(error)
    reason = text.rpartition(" was false. ")[2].rpartition("Status Message: ")[2]
    return bounded(f"{node[1]} node {node[2]!r}: {reason}", LONGEST_REASON)


class CompressorError(Exception):
    """What the package explains itself, as opposed to a fault in it.

    Its message often quotes another library's: colours of a terminal and pages beyond the first are left out. Of what a
    run raises, `stage` is the name of the stage that it arose in and `stage_number` its place, 1 for the first and 0
    for the reference; `layer` says, where it can be known, in which module and on which line of the user's code. What
    somebody else's code raised is the `__cause__`.
    """

    stage: str | None = None
    stage_number: int | None = None
    layer: str | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*(bounded(plain(part)) if isinstance(part, str) else part for part in args))

    @property
    def sentence(self) -> str:
        """What was wanted, what was got and the way out, without the place."""
        return super().__str__()

    def __str__(self) -> str:
        number = f"stage {self.stage_number}, " if self.stage_number else ""
        parts = [f"{number}{self.stage}" if self.stage else "", f"in {self.layer}" if self.layer else ""]
        place = ", ".join(part for part in parts if part)
        return f"{place}: {self.sentence}" if place else self.sentence


class WrongUseError(CompressorError):
    """What the caller can put right before anything is worked on; the command line exits with 2."""


class RecipeError(WrongUseError, ValueError):
    """A recipe that cannot be used; `errors` holds every reason as "file:line: message"."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class WorkloadError(WrongUseError, ValueError):
    """A workload that no stage could work with; the message says what was wanted, what was got, and the way out."""


class FoldsError(WrongUseError, ValueError):
    """A cross-validation that would give no number, or one that says something else than it seems to."""


class ExecutorError(WrongUseError, RuntimeError):
    """Workers that are not there, have other versions, or cannot be sent what they should work on."""


class StageError(CompressorError, RuntimeError):
    """A stage that could not do its work: nothing to compress, nothing that the model survives, or a fault in its way.

    Whatever a stage, the user's code or a library raises inside a pipeline becomes one, with the cause chained.
    """


class NothingToImproveError(StageError):
    """An `improvement` of a stage that has nothing to work on in this model: the stage goes on without it."""

    def __init__(self, improvement: str, reason: str) -> None:
        super().__init__(reason)
        self.improvement, self.reason = improvement, reason


class BudgetError(CompressorError, ValueError):
    """A budget that no choice meets; `least` is the least cost that was found."""

    def __init__(self, budget: float, least: float) -> None:
        super().__init__(f"no choice costs at most {budget:.6g}: the cheapest costs {least:.6g}; raise the target")
        self.least = least


class OnnxFileError(CompressorError, ValueError):
    """An ONNX file from elsewhere that cannot be read, or not be made ready without computing something else."""


class ExportError(CompressorError, RuntimeError):
    """A model that no exporter could turn into an ONNX file that computes the same."""


class AmplifiedError(ExportError):
    """A model of which no file can be checked, for it makes rounding large: training may change that."""


class RunFolderError(CompressorError, RuntimeError):
    """The folder holds another run, or is being written by one."""


class StorageError(CompressorError, ValueError):
    """A model that cannot be stored, or a stored file that is damaged or belongs to another model."""


class PackError(StorageError):
    """A file that cannot be packed, or a packed one that is damaged, of another version, or beyond a limit."""


class TrustError(StorageError):
    """Files that are not what their manifest says, a signature that does not hold, a key that is not the right one.

    The command line exits with 4.
    """


class WriteError(StorageError, OSError):
    """A file that cannot be written: the disk is full, or the folder is not one to write in."""


class ContractError(CompressorError, AssertionError):
    """What a stage does that no stage may do."""


def reasons_of(tried: Iterable[tuple[str, str]]) -> str:
    """Why each of what was `tried` failed, as (what, why); what failed for one reason stands before it together."""
    found: dict[str, list[str]] = {}
    for what, why in tried:
        found.setdefault(why, []).append(what)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in found.items())
