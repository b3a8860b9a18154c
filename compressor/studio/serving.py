"""The studio's server on a socket: where it listens, which names it answers to, and the links that it prints."""

import asyncio
import gc
import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from compressor.errors import WrongUseError
from compressor.studio.access import Access, Role

# From the first byte of a request to the end of its headers.
HEADER_SECONDS = 10.0
# More are refused. A browser holds six for all its windows, and what it asks beyond these waits in it: that is thirty
# people, whose requests are slower then and not lost.
_MOST_CONNECTIONS = 200
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~@-]+)+")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the studio listens, and who it says it is.

    Only this machine reaches it, unless `host` is another address, which takes a certificate (`tls_cert`, `tls_key`) or
    `plain_http`, with which everybody on the network between can read along and take over a session. For a proxy in
    front: `origin` is what browsers call it, such as `https://lab.example.org`, `prefix` the path at which it has the
    studio, such as `/studio`, and `names` are further values of the header Host, `name` or `name:port`, that it may
    send. Raises WrongUseError.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    names: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    plain_http: bool = False
    origin: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.origin and not _ORIGIN.fullmatch(self.origin):
            raise WrongUseError(
                f"--public-origin {self.origin} is no origin: give scheme, name and port, in lower case and without a "
                "path, such as https://lab.example.org or http://localhost:8888"
            )
        if self.prefix and not _PREFIX.fullmatch(self.prefix):
            raise WrongUseError(f"--prefix {self.prefix} is no path: it begins with / and does not end with it")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise WrongUseError("a certificate needs its key: give --tls-cert and --tls-key, or neither")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise WrongUseError(f"{path}: there is no such file")
        if not self.is_local and self.tls_cert is None and not self.plain_http:
            raise WrongUseError(
                f"--host {self.host} opens the studio to other machines; give --tls-cert and --tls-key, or "
                "--plain-http if everybody on the network between may read along and take over a session; or leave "
                "--host out and forward the port: ssh -L 8765:127.0.0.1:8765 <this machine>"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def scheme(self) -> str:
        """What addresses begin with."""
        return "http" if self.tls_cert is None else "https"

    def hosts(self, port: int) -> frozenset[str]:
        """The values of the header Host that are served, where the server got `port`."""
        own = {"127.0.0.1", "localhost", "[::1]"} if self.is_local else {self.host}
        proxy = {self.origin.partition("://")[2]} if self.origin else set[str]()
        return frozenset({f"{name}:{port}" for name in own} | {name.lower() for name in self.names} | proxy)

    def link(self, port: int, token: str) -> str:
        """What a browser opens to come in."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        origin = self.origin or f"{self.scheme}://{host}:{port}"
        return f"{origin}{self.prefix}/enter?token={token}"

    def cookie(self, port: int) -> str:
        """The name of a session's cookie: browsers do not tell ports apart, and two studios must not share one."""
        return f"compressor_studio_{port}"


def listening_socket(address: Address) -> socket.socket:
    """A socket on `address`; raises WrongUseError where it is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((address.host, address.port))
    except OSError as error:
        opened.close()
        raise WrongUseError(
            f"cannot listen on {address.host}, port {address.port}: {error.strerror}; try --port 0"
        ) from error
    opened.listen(128)
    return opened


def serve(app: Any, address: Address, opened: socket.socket) -> None:
    """Serves `app` on the socket until Ctrl-C."""
    keep_memory()
    server(app, address).run(sockets=[opened])


def keep_memory() -> None:
    """What is in memory by now stays as long as the server: the collector need not go through it for every page."""
    gc.collect()
    gc.freeze()


def server(app: Any, address: Address) -> Any:
    """Uvicorn's server of `app`. No request is written to a log: an address may hold a token."""
    uvicorn = server_module()
    config = uvicorn.Config(
        app,
        http=_patient(),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )
    return uvicorn.Server(config)


def server_module() -> Any:
    """Uvicorn; raises WrongUseError where the extra is not installed."""
    try:
        import_module("starlette")
        return import_module("uvicorn")
    except ImportError as error:
        raise WrongUseError(f'the studio needs its extra ({error}): pip install "torch-compressor[studio]"') from error


def tell_links(access: Access, address: Address, port: int, tell: Callable[[str], object]) -> None:
    """Tells the link of everybody who edits, and of those who watch; each is good for one browser."""
    links = {
        f"to edit{f', {person}' if person else ''}:" if role is Role.EDITOR else "to watch:": access.token(role, person)
        for role, person in access.keys
    }
    width = max(map(len, links))
    for words, token in links.items():
        tell(f"{words:{width}} {address.link(port, token)}")


def _patient() -> type[Any]:
    """Uvicorn's protocol, with an end to connections whose headers do not come to an end (slowloris)."""
    protocol: Any = import_module("uvicorn.protocols.http.h11_impl").H11Protocol

    class Patient(protocol):  # type: ignore[misc]  # uvicorn is an extra
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop()
            elif self._waiting is None and (before is None or before.response_complete):
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._end)

        def _stop(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _end(self) -> None:
            self._waiting = None
            self.transport.close()

    return Patient
