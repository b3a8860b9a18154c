"""The package's own code as one digest: what it made is not taken for what other code would make."""

from functools import cache
from pathlib import Path

from compressor.storage import sha256

# What only asks for stages and shows what came of them.
_NO_WORK = {"cli", "report", "inspection", "recipe", "comparing", "store", "progress", "testing.py"}


@cache
def package_code(root: Path = Path(__file__).parents[1]) -> str:
    """A digest of every Python file of the package at `root` that can change what a stage makes."""
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    digests = [(path.as_posix(), sha256((root / path).read_bytes())) for path in files if path.parts[0] not in _NO_WORK]
    return sha256(repr(digests).encode())
