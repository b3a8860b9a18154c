"""The studio on a socket: whom it listens to, and for how long."""

import asyncio
import gc
import socket
import sys
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from compressor.errors import WrongUseError
from compressor.studio import access as doors
from compressor.studio import serving
from compressor.studio.access import Access, Role
from compressor.studio.events import Broadcast
from compressor.studio.guard import Guard, plain
from workbench.visitors import Clock


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_nothing(host):
    """Loopback, however it is written."""
    assert serving.Address(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])  # noqa: S104 - it is refused
def test_another_address_needs_tls_or_a_word(host, tmp_path):
    """It is refused with what it would mean, and both ways out work."""
    with pytest.raises(WrongUseError, match="read along and take over a session"):
        serving.Address(host=host)
    assert serving.Address(host=host, plain_http=True).scheme == "http"
    for name in ("cert", "key"):
        (tmp_path / name).write_text("")
    assert serving.Address(host=host, tls_cert=tmp_path / "cert", tls_key=tmp_path / "key").scheme == "https"
    with pytest.raises(WrongUseError, match="needs its key"):
        serving.Address(host=host, tls_cert=tmp_path / "cert")


def test_a_taken_port_is_a_sentence():
    """The second studio is told, and what to do."""
    with serving.listening_socket(serving.Address(port=0)) as first, pytest.raises(WrongUseError, match="--port 0"):
        serving.listening_socket(serving.Address(port=first.getsockname()[1]))


def test_headers_that_do_not_end_are_cut_off(monkeypatch):
    """15. A connection that sends its headers a byte at a time is closed, and others are served meanwhile."""
    monkeypatch.setattr(serving, "HEADER_SECONDS", 0.3)

    async def app(scope, receive, send):
        await plain(send, 200, "here")

    servers = []
    make = uvicorn.Server
    monkeypatch.setattr(uvicorn, "Server", lambda config: servers.append(make(config)) or servers[-1])
    opened = serving.listening_socket(serving.Address(port=0))
    port = opened.getsockname()[1]
    thread = threading.Thread(target=serving.serve, args=(app, serving.Address(port=0), opened))
    thread.start()
    try:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
        slow[0].sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        # A first request in full, and a second one that does not end.
        slow[1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET / HT")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as quick:
            quick.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert quick.recv(4096).startswith(b"HTTP/1.1 200")
        for connection in slow:
            while connection.recv(4096):
                pass
            connection.close()
    finally:
        servers[0].should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def test_the_end_of_the_server_is_no_error_in_the_terminal(capsys):
    """A page that listens when Ctrl-C comes is let go, and no traceback is written."""

    async def listening(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event: here\n\n", "more_body": True})
        await asyncio.sleep(60)

    servers = []
    make = uvicorn.Server
    opened = serving.listening_socket(serving.Address(port=0))
    port = opened.getsockname()[1]
    app = Guard(listening, hosts=frozenset({"a"}), scheme="http")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", lambda config: servers.append(make(config)) or servers[-1])
        thread = threading.Thread(target=serving.serve, args=(app, serving.Address(port=0), opened))
        thread.start()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as page:
            page.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            heard = b""
            while b"event: here" not in heard:
                heard += page.recv(4096)
            servers[0].should_exit = True
            thread.join(10)
    assert not thread.is_alive()
    assert "Traceback" not in capsys.readouterr().err


def test_a_page_that_sleeps_does_not_hold_the_others_up(monkeypatch):
    """A stream that nobody reads is ended before it grows; the others get everything, and late ones the latest."""
    events, heard = Broadcast(), []
    monkeypatch.setattr("compressor.studio.events._TOGETHER_SECONDS", 0.0)

    async def listens(count):
        async for piece in events.stream(lambda: True):
            heard.extend(each + b"\n\n" for each in piece.split(b"\n\n")[:-1])
            if len(heard) == count:
                return

    async def run():
        stuck = events.stream(lambda: True)
        events.publish("first", {})
        await anext(stuck)
        task = asyncio.create_task(listens(302))
        for number in range(300):
            events.publish("step", {"number": number})
            await asyncio.sleep(0)
        await task
        late = events.stream(lambda: True)
        return [await anext(late) for _ in range(2)], [event async for event in stuck]

    late, missed = asyncio.run(run())
    assert heard[0] == b"event: here\ndata: {}\n\n"
    assert len(heard) == 302
    assert events.latest() == {"first": (1, {}), "step": (300, {"number": 299})}
    assert late[1].endswith(b'event: step\ndata: {"number": 299}\n\n')
    assert b"".join(missed).count(b"event: step") < 300


def test_events_that_come_together_are_sent_together(monkeypatch):
    """The first at once, however long the others are waited for; those of the next moment in one piece, in order."""
    events = Broadcast()
    monkeypatch.setattr("compressor.studio.events._TOGETHER_SECONDS", 3600.0)

    async def run():
        stream = events.stream(lambda: True)
        await anext(stream)
        events.publish("step", 0)
        first = await anext(stream)
        monkeypatch.setattr("compressor.studio.events._TOGETHER_SECONDS", 0.1)
        rest = asyncio.create_task(anext(stream))
        for number in range(1, 10):
            events.publish("step", number)
            await asyncio.sleep(0)
        told = await rest
        await stream.aclose()
        return first, told

    first, rest = asyncio.run(run())
    assert first == b"event: step\ndata: 0\n\n"
    assert rest == b"".join(b"event: step\ndata: %d\n\n" % number for number in range(1, 10))


def test_memory_is_flat_over_an_hour_of_events(monkeypatch):
    """Pages come, listen and go, links are used, one page is asleep all the time: what is kept does not grow."""
    monkeypatch.setattr(doors, "_MOST_SESSIONS", 4)
    monkeypatch.setattr("compressor.studio.events._MOST_WAITING", 32)
    events, clock = Broadcast(), Clock()
    access = Access(clock=clock)

    async def page(session):
        with access.streaming(session):
            async for _ in events.stream(lambda: access.lives(session)):
                pass

    async def minutes(count):
        for minute in range(count):
            session = access.enter(access.token(Role.EDITOR))
            task = asyncio.create_task(page(session))
            for second in range(20):
                clock.now += 3
                events.publish(("ran", "drafted", "judged")[second % 3], {"minute": minute, "words": "x" * 200})
                await asyncio.sleep(0)
                assert access.session(session.cookie) is session
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gc.collect(1)  # what is older was there before
        return sys.getallocatedblocks()

    async def hour():
        asleep = events.stream(lambda: True)
        events.publish("first", {})
        await anext(asleep)
        # Sessions are kept up to a number of them, and events for the page that sleeps: that fills first.
        before = await minutes(10)
        after = await minutes(60)
        await asleep.aclose()
        return before, after

    before, after = asyncio.run(hour())
    # Of 1200 events in sixty pages: one kept object for each would be more.
    assert after - before < 500
    assert events.listeners == 0


def test_a_stream_ends_with_its_session():
    """Who has left hears nothing more."""
    events, inside = Broadcast(), [True]

    async def run():
        stream = events.stream(lambda: inside[0])
        events.publish("one", 1)
        here, first = await anext(stream), await anext(stream)
        assert here.startswith(b"event: here")
        inside[0] = False
        events.publish("two", 2)
        return first, [event async for event in stream]

    first, rest = asyncio.run(run())
    assert first.startswith(b"event: one")
    assert rest == []
