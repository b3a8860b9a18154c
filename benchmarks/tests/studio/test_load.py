"""The benchmark of many people at one studio: what its browser sends and reads, and how a lost edit is seen."""

import asyncio
import random
import time

import pytest

pytest.importorskip("starlette")

from benchmarks.studio.browser import CONNECTIONS, Browser
from benchmarks.studio.load import Person


class Server:
    """Answers on a socket as it is told to; keeps what was asked, and how many connections there were at once."""

    def __init__(self, answer):
        self._answer = answer
        self.asked: list[bytes] = []
        self.open = self.most = 0

    async def __call__(self, reader, writer):
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.partition(b"Content-Length: ")[2].partition(b"\r")[0]
                self.asked.append(head + await reader.readexactly(int(length or 0)))
                await asyncio.sleep(0.01)
                writer.write(self._answer(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def _answer(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", body]).encode()


def _with(server, act):
    async def run():
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        browser = Browser("127.0.0.1", listening.sockets[0].getsockname()[1])
        try:
            return await act(browser)
        finally:
            browser.close()
            listening.close()

    return asyncio.run(run())


def test_it_is_a_browser_of_few_connections():
    """Its cookie goes with all later requests; forty questions at once wait for five connections, which stay open."""
    server = Server(lambda _: _answer("here", "Set-Cookie: key=word; HttpOnly"))

    async def act(browser):
        await browser.get("/enter")
        browser.headers = {"X-CSRF-Token": "c"}
        return await asyncio.gather(*(browser.post("/try", {"number": number}) for number in range(40)))

    answers = _with(server, act)
    assert {(answer.status, answer.text) for answer in answers} == {(200, "here")}
    assert server.most == CONNECTIONS - 1
    assert all(b"Cookie: key=word\r\n" in asked and b"X-CSRF-Token: c\r\n" in asked for asked in server.asked[1:])
    assert sorted(int(asked.rpartition(b": ")[2][:-1]) for asked in server.asked[1:]) == list(range(40))


def test_events_are_counted_however_they_are_cut():
    """Pieces end in the middle of a line."""
    stream = b"HTTP/1.1 200 OK\r\n\r\nevent: a\ndata: 1\n\nevent: b\ndata: event:\n\n: here\n\nevent: c\ndata: 2\n\n"

    async def handler(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(stream), 7):
            writer.write(stream[start : start + 7])
            await asyncio.sleep(0)
        writer.close()

    async def act(browser):
        await browser.listen("/events")
        return browser.heard

    assert _with(handler, act) == 3


def test_what_is_refused_or_ends_early_is_told():
    """By the question and the status; an edit counts only where it was answered."""
    person = Person(name="ada", browser=Browser("127.0.0.1", 1), draft="1", stops={"conv1": [8, 16]})
    answers = iter([_answer('{"version": 1}'), _answer("too often", status="429 no"), b"HTTP/1.1 200 OK\r\nConte"])

    async def handler(reader, writer):
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if not answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length"):
                break
        writer.close()

    async def act(browser):
        person.browser = browser
        for _ in range(3):
            await person.ask("edit", time.perf_counter(), random.Random(0))  # noqa: S311 - choices, not secrets

    _with(handler, act)
    assert person.edits == person.version == 1
    assert person.failed == ["edit: 429 too often", "edit: ConnectionError"]
    assert len(person.taken["edit"]) == 1
