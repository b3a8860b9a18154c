"""How much time and memory a file from elsewhere may take to open, and how that is raised."""

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import WorkloadError

SECONDS, MEBIBYTES = "COMPRESSOR_OPEN_SECONDS", "COMPRESSOR_OPEN_MIB"
# Protocol buffers end at 2 GiB; the rest is room for the graph and for what quantization adds.
MAX_BYTES = 1_800_000_000
# A file is in memory as bytes, as a graph, as the session's own, and each once more while it is converted.
_COPIES = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What opening a file and running it once may take: seconds of computing, and bytes beside those of the file.

    By default 5 s and 1536 MiB; the environment variables COMPRESSOR_OPEN_SECONDS and COMPRESSOR_OPEN_MIB set others.
    """

    seconds: float = 5.0
    memory_bytes: int = 1536 << 20

    @classmethod
    def of_environment(cls) -> "Limits":
        """The limits that the environment sets. Raises WorkloadError for values that are no numbers above 0."""
        return cls(
            seconds=_number(SECONDS, cls.seconds), memory_bytes=int(_number(MEBIBYTES, cls.memory_bytes >> 20)) << 20
        )

    def memory_for(self, file_bytes: int) -> int:
        """The bytes of memory for a file of `file_bytes`."""
        return self.memory_bytes + _COPIES * file_bytes

    @property
    def too_slow(self) -> str:
        """The end of a sentence about a file that takes longer."""
        return (
            f"takes more than {self.seconds:g} s to open and run once; if it is to be trusted, set the environment "
            f"variable {SECONDS} to more seconds"
        )

    @property
    def too_large(self) -> str:
        """The end of a sentence about a file that takes more memory."""
        return (
            f"takes more than {self.memory_bytes >> 20} MiB beside its own bytes to open and run once; if it is to be "
            f"trusted, set the environment variable {MEBIBYTES} to more"
        )


def regular_size(path: Path) -> int:
    """The bytes of the file `path`. Raises FileNotFoundError, and ValueError where it is no regular file."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{str(path)[:200]!r} is no name of a file: {reason}") from error
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a device, a pipe or a socket"
        raise ValueError(f"{path} is {kind}, and a file is wanted")
    return facts.st_size


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise WorkloadError(f"the environment variable {name} is a number above 0, got {text!r}; set {default:g}")
    return value
