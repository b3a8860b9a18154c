"""What no request gets past: foreign hosts and origins, bodies too large or too slow; and what every answer says.

The headers follow OWASP's Secure Headers; Host is checked against DNS rebinding, Origin and Sec-Fetch-Site against
requests that another site makes a browser send.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Everything that the page sends is a few names and numbers.
MOST_BYTES = 256 * 1024
BODY_SECONDS = 10.0
_MOST_DIGITS = 20
# Cookies of other servers on this machine come along; more than these is no browser's.
MOST_HEADER_BYTES = 32 * 1024
# HEAD is not known: it would spend a link and open streams of events, for nothing.
READING = frozenset({"GET"})
_KNOWN = READING | {"POST"}
# Of a browser: asked for by a page of ours, or by the person.
OWN = frozenset({"same-origin", "none"})
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HEADERS = tuple((name.encode(), value.encode()) for name, value in HEADERS.items())


class RefusedError(Exception):
    """A request is not served: the HTTP `status`, and a sentence for the person at the browser."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Guard:
    """`app` behind the checks that need no session.

    `hosts` are the values of the header Host that are served, ports and all, in lower case; an Origin has to be one of
    them behind `scheme`, or `origin`, by which browsers know a proxy in front. A proxy may leave its `prefix` in paths.
    """

    def __init__(self, app: App, *, hosts: frozenset[str], scheme: str, origin: str = "", prefix: str = "") -> None:
        self._app, self._hosts, self._prefix = app, hosts, prefix
        self._origins = frozenset({f"{scheme}://{host}" for host in hosts} | ({origin} if origin else set()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves what is allowed, and answers the rest with a status and a sentence."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = {name for name, _ in message.get("headers", [])}
                more = [header for header in _HEADERS if header[0] not in own]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        try:
            self._check(scope)
            body = await _whole(receive) if scope["method"] not in READING else None
            await self._app(self._bare(scope), _replayed(body, receive) if body is not None else receive, answer)
        except RefusedError as refused:
            if begun:
                raise
            await plain(answer, refused.status, refused.sentence)
        except asyncio.CancelledError:
            # The server ends, and what was streaming with it: that is no error to be told in the terminal.
            if not begun:
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _bare(self, scope: Scope) -> Scope:
        """The request without the proxy's prefix, and without Range: what is taken away is taken whole."""
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
        path = scope["path"]
        if self._prefix and path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        return {**scope, "headers": headers, "path": path}

    def _check(self, scope: Scope) -> None:
        found: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise RefusedError(431, f"headers may have {MOST_HEADER_BYTES} bytes; delete this site's cookies")
        if any(len(found.get(name, ())) > 1 for name in ("host", "origin", "content-length", "sec-fetch-site")):
            raise RefusedError(400, "a header is given twice")
        (host,) = found.get("host", [""])
        if host.lower() not in self._hosts:
            raise RefusedError(400, "this server does not go by that name; open the link that it printed")
        if scope["method"] not in _KNOWN:
            raise RefusedError(405, "this server knows GET and POST alone")
        (origin,) = found.get("origin", [""])
        (site,) = found.get("sec-fetch-site", [""])
        if origin and origin.lower() not in self._origins:
            raise RefusedError(403, "another site sent this request")
        navigates = found.get("sec-fetch-mode") == ["navigate"] and scope["method"] in READING
        if site and site not in OWN and not navigates:
            raise RefusedError(403, "another site sent this request")
        if scope["method"] not in READING and not origin:
            raise RefusedError(403, "a request that changes something has to say its Origin")
        (length,) = found.get("content-length", ["0"])
        if scope["method"] in READING and (length != "0" or "transfer-encoding" in found):
            raise RefusedError(400, "a request that reads brings nothing with it")
        if not (length.isascii() and length.isdecimal() and len(length) < _MOST_DIGITS) or int(length) > MOST_BYTES:
            raise RefusedError(413, f"a request may have {MOST_BYTES} bytes")


async def _whole(receive: Receive) -> bytes:
    """The body, read within time and size."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "the request ended early")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise RefusedError(413, f"a request may have {MOST_BYTES} bytes")
    except TimeoutError as error:
        raise RefusedError(408, f"a request has to arrive within {BODY_SECONDS:g} s") from error
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def once() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return once


async def plain(send: Send, status: int, sentence: str) -> None:
    """Answers with `status` and `sentence` as text."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})
