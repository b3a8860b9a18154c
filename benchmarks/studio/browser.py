"""A browser as a server knows it: a few connections that stay open, one cookie, requests that wait for a free one.

Written on bare sockets: a client for every purpose takes more of the processor for a request than the server does, and
both share the machine that is measured.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Browsers hold so many connections to one origin, all windows together; one of them listens to the events.
CONNECTIONS = 6
# A connection that rested for longer may be closed by the server while the next request is on its way.
_REST_SECONDS = 4.0
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The status, the headers by their names in lower case, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(kw_only=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float = 0.0


class Browser:
    """Requests to the server at `host`:`port`; `headers` go with each that brings something."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.origin = f"http://{host}:{port}"
        self.headers: dict[str, str] = {}
        self._cookie = ""
        self._idle: list[_Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS - 1)
        self.heard = 0

    async def get(self, path: str) -> Answer:
        """What the server answers. Raises OSError, also where no answer comes in time."""
        return await self._ask(f"GET {path} HTTP/1.1\r\n{self._always()}\r\n".encode())

    async def post(self, path: str, data: Mapping[str, Any]) -> Answer:
        """What the server answers to `data` as JSON. Raises OSError as `get`."""
        body = json.dumps(data).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head = f"POST {path} HTTP/1.1\r\n{self._always()}{more}Content-Type: application/json\r\n"
        return await self._ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def listen(self, path: str) -> None:
        """Counts the events that come, in `heard`, until it is cancelled or the stream ends."""
        connection = await self._open()
        try:
            connection.writer.write(f"GET {path} HTTP/1.1\r\n{self._always()}\r\n".encode())
            rest = b""
            while piece := await connection.reader.read(1 << 16):
                lines = (rest + piece).split(b"\n")
                rest = lines.pop()
                self.heard += sum(line.startswith(b"event:") for line in lines)
        finally:
            connection.writer.close()

    def close(self) -> None:
        """Closes what is open."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    def _always(self) -> str:
        cookie = f"Cookie: {self._cookie}\r\n" if self._cookie else ""
        return f"Host: {self._host}:{self._port}\r\nAccept: */*\r\n{cookie}"

    async def _open(self) -> _Connection:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        return _Connection(reader=reader, writer=writer)

    async def _ask(self, request: bytes) -> Answer:
        async with self._free:
            now = time.monotonic()
            while self._idle and now - self._idle[-1].used > _REST_SECONDS:
                self._idle.pop().writer.close()
            connection = self._idle.pop() if self._idle else await self._open()
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    connection.writer.write(request)
                    answer = await _answer(connection.reader)
            except BaseException:
                connection.writer.close()
                raise
            connection.used = time.monotonic()
            if answer.headers.get("connection") == "close":
                connection.writer.close()
            else:
                self._idle.append(connection)
        if cookie := answer.headers.get("set-cookie"):
            self._cookie = cookie.partition(";")[0]
        return answer


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """One answer, of a length that it says. Raises ConnectionError where it ends early, ValueError for another kind."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        status = int(first.split(" ", 2)[1])
        if status != 204 and "content-length" not in headers:
            raise ValueError(f"an answer without a length: {first}")
        return Answer(
            status=status, headers=headers, body=await reader.readexactly(int(headers.get("content-length", 0)))
        )
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the connection ended before the answer did") from error
