"""SHA-256 of what is read, computed in a thread beside, while the reader does something else with the same bytes."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

# Handed over in blocks: each takes about a millisecond, and two of them are held at a time.
_BLOCK = 1 << 20


class HashingBeside:
    """A SHA-256 that lags at most two blocks of 1 MiB behind what it is given."""

    def __init__(self, start: bytes = b"") -> None:
        self._digest = hashlib.sha256(start)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._held: list[bytes] = []
        self._size = 0
        self._under_way: Future[None] | None = None

    def update(self, piece: bytes) -> None:
        """Goes on with `piece`."""
        self._held.append(piece)
        self._size += len(piece)
        if self._size >= _BLOCK:
            self._hand_over()

    def hexdigest(self) -> str:
        """The digest of all that was given, in hexadecimal; nothing more is taken."""
        self._hand_over()
        self._thread.shutdown()
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        if self._under_way is not None:
            self._under_way.result()
        self._under_way = self._thread.submit(self._hash, self._held)
        self._held, self._size = [], 0

    def _hash(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
