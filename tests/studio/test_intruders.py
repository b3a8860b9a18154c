"""What lies beyond the sixteen: odd requests, links that others click, pages that ask for too much."""

import asyncio
import socket
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
import uvicorn

from compressor.studio import access as doors
from compressor.studio import serving
from compressor.studio.access import Access, Role
from compressor.studio.app import studio_app
from compressor.studio.desk import Desk
from compressor.target import Target
from workbench.tiny import TinyResNet, make_workload
from workbench.visitors import HOST, OWN, Visitor


@pytest.fixture
def ask(desk, access):
    """Requests of one browser, that came in to edit."""
    visitor = Visitor(studio_app(desk, access, hosts=frozenset({HOST})))
    visitor.enters(access)
    return visitor


def test_another_site_spends_no_link_and_makes_nobody_wait(ask, access):
    """A link that is clicked elsewhere asks for one more click; wrong ones that a page opens do not count."""
    elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    token = access.token(Role.VIEWER)
    answer = ask("GET", f"/enter?token={token}", headers=elsewhere)
    assert answer.status_code == 200
    assert f'href="enter?token={token}"' in answer.text
    assert "set-cookie" not in answer.headers
    for wrong in ["x" * 30] * 20 + ["<script>", '"><img src=x>', "javascript:alert(1)"]:
        answer = ask("GET", "/enter", params={"token": wrong}, headers=elsewhere)
        assert answer.status_code == 200
        assert "<script>" not in answer.text
        assert "<img" not in answer.text
    assert ask("GET", f"/enter?token={token}").status_code == 303


@pytest.mark.parametrize("headers", [{"sec-purpose": "prefetch"}, {"sec-purpose": "prefetch;prerender"}])
def test_a_browser_that_looks_ahead_spends_no_link(ask, access, headers):
    """Nor does a program that asks for the head of the page alone."""
    token = access.token(Role.VIEWER)
    assert ask("GET", f"/enter?token={token}", headers=headers).status_code == 503
    assert ask("HEAD", f"/enter?token={token}").status_code == 405
    assert access.token(Role.VIEWER) == token


def test_one_session_does_not_take_the_others_time(ask, access, clock):
    """More requests than any page makes are refused, for as long as they come; others are served meanwhile."""
    (cookie,) = access._sessions
    other = access.enter(access.token(Role.VIEWER))
    clock.now += 10
    for _ in range(200):
        assert access.session(cookie) is not None
    with pytest.raises(doors.TooOftenError):
        access.session(cookie)
    assert ask("GET", "/").status_code == 429
    assert access.session(other.cookie) is other
    clock.now += 1
    assert sum(ask("GET", "/").status_code == 200 for _ in range(60)) == doors.REQUESTS_A_SECOND


def test_streams_of_one_session_have_an_end(access):
    """A page that opens them by the hundred gets six; one that was closed makes room, and so does another session."""
    one, other = (access.enter(access.token(role)) for role in Role)
    held = [access.streaming(one) for _ in range(doors.MOST_STREAMS)]
    for stream in held:
        assert access.may_stream(one)
        stream.__enter__()
    assert not access.may_stream(one)
    assert access.may_stream(other)
    held[0].__exit__(None, None, None)
    assert access.may_stream(one)


def test_a_page_that_only_listens_is_no_use_of_its_session(access, clock):
    """A stream of events does not keep a session alive for ever; nor is it used up by what is told."""
    session = access.enter(access.token(Role.EDITOR))
    for _ in range(13):
        assert access.lives(session) or clock.now > 100.0 + doors.SESSION_SECONDS
        clock.now += 3600
    assert not access.lives(session)


def test_what_is_taken_away_is_taken_whole(ask, desk, tmp_path):
    """Ranges, of which thousands in one request have made servers slow, are not read."""
    desk.runs._out.mkdir(exist_ok=True)
    (desk.runs._out / "run-001.yaml").write_text("name: studio\nstages: [quantize]\n")
    ranges = "bytes=" + ",".join(f"{number}-{number}" for number in range(2000))
    answer = ask("GET", "/take/run-001/recipe.yaml", headers={"range": ranges})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="run-001-recipe.yaml"'


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.1"},
        {"forwarded": "host=evil.example;proto=https"},
        {"x-original-url": "/take/run-001/model.onnx", "x-rewrite-url": "/leave"},
        {"x-http-method-override": "POST", "x-method-override": "DELETE"},
    ],
)
def test_words_of_proxies_are_not_believed(ask, headers):
    """The page is the page, and its cookie that of this origin, whatever somebody says of the way here."""
    answer = ask("GET", "/", headers=headers)
    assert answer.status_code == 200
    assert "evil.example" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "//evil.example/",
        "/static/",
        "/static/studio.js/",
        "/edit/",
        "/take/run-001/",
        "/%2e%2e/",
        "/\\evil",
        "/%00",
    ],
)
def test_no_path_leads_elsewhere(ask, path):
    """Nothing is mended by a redirect, which could name another server."""
    for method, headers in (("GET", {}), ("POST", OWN)):
        answer = ask(method, httpx.URL(f"http://{HOST}").copy_with(raw_path=path.encode()), headers=headers)
        assert answer.status_code in {404, 405}
        assert "location" not in answer.headers


@pytest.mark.parametrize("length", ["9" * 5000, "²", "+5", "-1", "0x10", "٣"])
def test_a_length_that_is_no_number_is_refused(desk, access, length):
    """With a sentence: no error of the server's own."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", HOST.encode()), (b"origin", OWN["origin"].encode())]
    headers.append((b"content-length", length.encode("latin-1", "ignore")))
    app = studio_app(desk, access, hosts=frozenset({HOST}))
    asyncio.run(app({"type": "http", "method": "POST", "path": "/leave", "headers": headers}, None, send))
    assert sent[0]["status"] == 413


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The studio on a socket; gives its port, and a cookie that is let in."""
    desk, access = (
        Desk(make_workload(TinyResNet(8).eval()), "tiny", Target(), tmp_path_factory.mktemp("runs")),
        Access(),
    )
    address = serving.Address(port=0)
    opened = serving.listening_socket(address)
    port = opened.getsockname()[1]
    servers = []
    make = uvicorn.Server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", lambda config: servers.append(make(config)) or servers[-1])
        app = studio_app(desk, access, hosts=address.hosts(port))
        thread = threading.Thread(target=serving.serve, args=(app, address, opened))
        thread.start()
        yield port, access.enter(access.token(Role.VIEWER)).cookie
        servers[0].should_exit = True
        thread.join(10)


def _said(port, raw):
    """What the server answers to these bytes, until it closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET / HTTP/1.1", "", 401),
        ("GET http://evil.example/ HTTP/1.1", "", 404),
        ("GET //evil.example/ HTTP/1.1", "", 404),
        ("GET /enter?token=a%0d%0aset-cookie:x=y HTTP/1.1", "", 401),
        ("GET / HTTP/1.1", "Cookie: " + "a" * 70000 + "\r\n", 431),
        ("GET / HTTP/1.1", "Cookie: compressor_studio=" + "a" * 30000 + "\r\n", 401),
        ("GET / HTTP/1.1", "X-Odd: a\rb\r\n", 400),
        ("GET / HTTP/1.1", "Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("POST /leave HTTP/1.1", "Content-Length: " + "9" * 5000 + "\r\n", 400),
        ("GET /events HTTP/1.1", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n", 401),
        ("CONNECT evil.example:443 HTTP/1.1", "", 405),
        ("PRI * HTTP/2.0", "", 405),
    ],
)
def test_odd_requests_are_answered_plainly(server, request_line, headers, status):
    """On a socket, byte by byte as they come: a refusal, and nothing of what was sent in its headers."""
    port, _ = server
    answer = _said(port, f"{request_line}\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"evil" not in head


@pytest.mark.parametrize("name", ["[::1]", "LOCALHOST", "127.0.0.1"])
def test_this_machine_by_its_names(server, name):
    """All of them are served with their port, and none without."""
    port, cookie = server
    ask = f"GET / HTTP/1.1\r\nCookie: compressor_studio={cookie}\r\nConnection: close\r\n"
    assert _said(port, f"{ask}Host: {name}:{port}\r\n\r\n".encode()).startswith(b"HTTP/1.1 200")
    for wrong in (
        name,
        f"{name}:{port}.",
        f"{name}:0{port}",
        f"x@{name}:{port}",
        f"{name}:{port}/",
        f"{name}\xb7:{port}",
    ):
        assert _said(port, f"{ask}Host: {wrong}\r\n\r\n".encode("latin-1")).startswith(b"HTTP/1.1 400")


def test_a_body_in_parts_has_an_end(server):
    """Parts that do not end are cut off by size, and not read at all where a request that only reads brings them."""
    port, _ = server
    part = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    own = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n"
    for ask, status in (("POST /leave", 413), ("GET /static/icon.svg", 400)):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"{ask} HTTP/1.1\r\n{own}\r\n".encode() + part * 12)
            assert connection.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
            with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
                connection.sendall(part * 1000)
