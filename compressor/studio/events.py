"""What happens, told to every open page as it happens: server-sent events, and the latest of each kind at first."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from compressor.storage import json_safe

# A page that is so far behind is better off with the latest of each kind, which it gets when it comes again.
_MOST_WAITING = 256
# What comes so soon behind an event waits for the end of it, and is sent in one piece.
_TOGETHER_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0


class Broadcast:
    """Events by kind; `publish` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._latest: dict[str, bytes] = {}
        self._counted: dict[str, tuple[int, Any]] = {}
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    @property
    def listeners(self) -> int:
        """How many pages listen."""
        return len(self._queues)

    def publish(self, kind: str, data: Any) -> None:
        """Tells every page, and those that come later until another event of this kind takes its place."""
        told = json_safe(data)
        event = f"event: {kind}\ndata: {json.dumps(told)}\n\n".encode()
        self._latest[kind] = event
        self._counted[kind] = self._counted.get(kind, (0, None))[0] + 1, told
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._deliver, event)

    def latest(self) -> dict[str, tuple[int, Any]]:
        """How many events of each kind there were, and the last one: for pages that no stream reaches."""
        return dict(self._counted)

    def _deliver(self, event: bytes) -> None:
        for queue in [*self._queues]:
            if queue.qsize() < _MOST_WAITING:
                queue.put_nowait(event)
            else:
                self._queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    async def stream(self, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The events for one page, in pieces of one or more, for as long as it is `allowed`, asked before each piece.

        One that comes alone is sent at once; of many in a row each page gets ten pieces a second.
        """
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for event in self._latest.values():
            queue.put_nowait(event)
        self._queues.add(queue)
        try:
            # At once, so that a page knows whether anything comes: some proxies hold a stream back until it ends.
            yield b"event: here\ndata: {}\n\n"
            while True:
                told: bytes | None = b": here\n\n"
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        told = await queue.get()
                waiting = [told, *(queue.get_nowait() for _ in range(queue.qsize()))]
                if None in waiting or not allowed():
                    return
                yield b"".join(filter(None, waiting))
                await asyncio.sleep(_TOGETHER_SECONDS)
        finally:
            self._queues.discard(queue)
