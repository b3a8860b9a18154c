"""What workers of a cluster do: read what all tasks share once, and work one task at a time."""

import threading
from collections.abc import Callable
from typing import Any

from compressor.running.executors.sending import received, worked

_shared: dict[str, Any] = {}
# Seeds, numbers of threads and modes of torch belong to the process.
_one = threading.Lock()


def work(key: str, data: bytes, token: str, shared: bytes | Callable[[], bytes]) -> bytes:
    """The end, as bytes, of the task that was sent as `data`; `token` names what is `shared`."""

    def value() -> Any:
        if token not in _shared:
            _shared.clear()
            _shared[token] = received(shared if isinstance(shared, bytes) else shared())
        return _shared[token]

    with _one:
        return worked(key, data, value)
