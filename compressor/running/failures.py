"""What a stage, the user's code or a library raises in a run, as one typed error with stage, layer and the way out."""

import re

import torch

from compressor.errors import CompressorError, RunFolderError, StageError, WriteError, bounded, plain
from compressor.structure.calling.compiled import why_not_followed
from compressor.structure.source_lines import error_line, error_module, shortened

# How much of a foreign message is worth reading: C++ traces and whole graphs follow.
_LONGEST = 600
# What code of somebody else's raises where it fails: sys.exit() in it is a failure too, for the run is not its own.
FAULTS = (Exception, SystemExit)
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|failed to allocate", re.IGNORECASE
)


class explained:  # noqa: N801 - it reads like a function in a with statement, as contextlib's own do
    """Whatever is raised within becomes a CompressorError that names the stage and, where it can be known, the layer.

    What is one stays what it is; anything else, sys.exit() too, is the cause of a StageError. KeyboardInterrupt passes.
    """

    # Not by contextlib.contextmanager, which takes a RuntimeError that a StopIteration caused for its own.

    def __init__(self, stage: str | None = None, number: int | None = None) -> None:
        self.stage, self.number = stage, number

    def __enter__(self) -> None:
        """Nothing is done before something is raised."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CompressorError):
            if error.stage is None:
                error.stage, error.stage_number = self.stage, self.number
            error.layer = error.layer or layer_of(error.__cause__)
        elif isinstance(error, FAULTS):
            found = StageError(f"{in_short(error)}; {_way_out(error, is_stage=bool(self.number))}")
            found.stage, found.stage_number, found.layer = self.stage, self.number, layer_of(error)
            raise found from error


def ends_the_run(error: CompressorError) -> bool:
    """Whether no later stage could do better: the run's folder cannot be used, or a file there not be written."""
    return error.stage is None or isinstance(error, RunFolderError | WriteError)


def reason(error: CompressorError) -> str:
    """The sentence of `error` with the layer, for a report that names the stage already."""
    return shortened(f"{error.sentence}; it arose in {error.layer}" if error.layer else error.sentence)


def in_short(error: BaseException) -> str:
    """Type and message of `error` in one line."""
    text = why_not_followed(error) or " ".join(shortened(plain(_message(error))).split()) or "no message"
    return f"{type(error).__name__}: {bounded(text, _LONGEST)}"


def layer_of(error: BaseException | None) -> str | None:
    """Module and line that `error` arose in: of the first of its causes, the last of the chain, that tells one."""
    chain: list[BaseException] = []
    while error is not None and not any(error is known for known in chain):
        chain.append(error)
        error = error.__cause__
    for each in reversed(chain):
        parts = [part for part in (error_module(each), error_line(each)) if part]
        if parts:
            return ", ".join(parts)
    return None


def lacks_memory(error: BaseException) -> bool:
    """Whether `error` says that there was no memory left, in the words of Python, torch or ONNX Runtime."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_NO_MEMORY.search(_message(error)))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error of somebody's may not even say what it is
        return ""


def _way_out(error: BaseException, *, is_stage: bool) -> str:
    if lacks_memory(error):
        return (
            "the memory did not suffice: give the workload smaller batches and fewer calibration samples, or a machine "
            "with more; finished stages are kept"
        )
    theirs = error_line(error)
    if theirs is not None:
        right = f"put {theirs} right and run again, finished stages are kept"
        if isinstance(error, SystemExit):
            right = f"code inside a run must raise an error where it cannot go on, not exit: {right}"
        return f"{right}; or leave the stage out" if is_stage else right
    if is_stage:
        return "leave the stage out, or run it with fewer of its settings changed; finished stages are kept"
    return "no line of your own code is in it: please report it with the model and the traceback"
