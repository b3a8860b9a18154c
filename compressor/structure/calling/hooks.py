"""Hooks that are on a model for a while: whatever happens, they are off again afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooks() -> Iterator[list[RemovableHandle]]:
    """A list for the handles of hooks, which are removed at the end."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
