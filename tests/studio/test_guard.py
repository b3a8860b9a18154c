"""Sixteen ways to get into the studio, or to make somebody's browser do it: none passes."""

import asyncio
import json
import logging
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")


from compressor.errors import StorageError
from compressor.studio import desk as desks
from compressor.studio import guard
from compressor.studio.access import SESSION_SECONDS, Access, Role
from compressor.studio.app import studio_app
from compressor.studio.desk import Desk
from compressor.target import Target
from workbench.visitors import HOST, OWN, Visitor


@pytest.fixture
def app(desk, access):
    return studio_app(desk, access, hosts=frozenset({HOST}))


@pytest.fixture
def browser(app):
    return Visitor(app)


def test_the_link_lets_in_and_is_gone_from_the_address(browser, access):
    """The token becomes a cookie that no script and no other site can use, and the page's address is without it."""
    answer = browser.enters(access)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.headers["location"] == "./"
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert browser("GET", "/").status_code == 200


def test_without_a_token_there_is_a_door(browser):
    """1. Nobody sees the page, a part of it, or an event without having come in."""
    for path in ("/", "/part/overview", "/events", "/latest", "/draft", "/take/run-001/model.onnx"):
        answer = browser("GET", path)
        assert answer.status_code == 401
        assert "tiny" not in answer.text


@pytest.mark.parametrize("token", ["", "wrong", "ä" * 10, "x" * 50_000])
def test_a_wrong_token_opens_nothing(browser, token):
    """2. Whatever stands in the token's place; no cookie comes back."""
    answer = browser("GET", "/enter", params={"token": token})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_used_token_and_one_of_another_start_open_nothing(browser, access, app):
    """3. and 16. A token is good once: out of a history, or sent again, it is refused."""
    token = access.token(Role.EDITOR)
    browser.enters(access)
    other = Visitor(app)
    assert other("GET", f"/enter?token={token}").status_code == 401
    assert other("GET", f"/enter?token={Access().token(Role.EDITOR)}").status_code == 401


def test_the_token_goes_nowhere(browser, access, caplog):
    """4. No Referer carries the address on, and no log holds the token."""
    token = access.token(Role.EDITOR)
    with caplog.at_level(logging.DEBUG):
        answer = browser.enters(access)
    assert answer.headers["referrer-policy"] == "no-referrer"
    # httpx is the browser here, and logs for itself.
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any(token in line for line in ours)
    assert token not in browser("GET", "/").text


def test_guessing_is_slowed_down(browser, access, clock):
    """5. After some wrong tokens even the right one has to wait, longer each time, and a minute at most."""
    waits = []
    for _ in range(20):
        answer = browser("GET", "/enter?token=guess")
        if answer.status_code == 429:
            waits.append(float(answer.headers["retry-after"]))
            assert browser("GET", f"/enter?token={access.token(Role.EDITOR)}").status_code == 429
            clock.now += waits[-1]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == 60
    clock.now += 60
    browser.enters(access)


def test_another_site_cannot_post(browser, access):
    """6. and 7. Without our Origin, or with another's, or sent for another site's page, nothing is changed."""
    browser.enters(access)
    word = {"x-csrf-token": browser.csrf}
    for headers in (
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {**OWN, "sec-fetch-site": "cross-site"},
        {**OWN, "sec-fetch-site": "same-site"},
    ):
        assert browser("POST", "/leave", headers={**word, **headers}).status_code == 403
    assert browser("GET", "/").status_code == 200


@pytest.mark.parametrize("word", [None, "", "wrong"])
def test_what_changes_something_brings_the_sessions_word(browser, access, word):
    """A cookie alone changes nothing."""
    browser.enters(access)
    headers = OWN if word is None else {**OWN, "x-csrf-token": word}
    assert browser("POST", "/leave", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["evil.example:8765", "127.0.0.1", "127.0.0.1:80", "", "localhost.evil.example:8765"])
def test_a_foreign_host_is_not_served(app, access, host):
    """8. A name that was bound to 127.0.0.1 by somebody else (DNS rebinding) gets nothing, not even the door."""
    answer = Visitor(app)("GET", "/", headers={"host": host})
    assert answer.status_code == 400
    assert "link" in answer.text


def test_another_site_hears_no_events(browser, access):
    """9. An event stream that another page opens is refused, with the cookie and all."""
    browser.enters(access)
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}):
        assert browser("GET", "/events", headers=headers).status_code == 403


def test_no_frame_holds_the_page(browser, access):
    """10. Every answer, refusals too, says that it may not be framed, and that no script of others may run."""
    browser.enters(access)
    for answer in (browser("GET", "/"), browser("GET", "/nothing"), browser("GET", "/", headers={"host": "evil"})):
        assert answer.headers["x-frame-options"] == "DENY"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


def test_names_are_shown_as_they_are_written(tiny_workload, access, tmp_path):
    """11. A workload's name that is a script is text on the page."""
    evil = "<script>alert(1)</script>\"'&"
    workload = replace(tiny_workload, name=evil)
    browser = Visitor(studio_app(Desk(workload, evil, Target(), tmp_path), access, hosts=frozenset({HOST})))
    browser.enters(access)
    page = browser("GET", "/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == page.count("<script src=") == 2


@pytest.mark.parametrize("name", ["../desk.py", "..%2fdesk.py", "%2e%2e%2fdesk.py", "/etc/passwd", "page.html.j2"])
def test_a_name_is_no_path(browser, access, name):
    """12. Files are served by the names that the studio knows, and by no path."""
    browser.enters(access)
    for place in ("static", "part"):
        assert browser("GET", f"/{place}/{name}").status_code == 404


def test_a_large_upload_is_not_read(app):
    """13. Two gigabytes are refused at the header, and what hides its length as soon as it is too much."""
    browser, read = Visitor(app), 0

    async def endless():
        nonlocal read
        while True:
            read += 65536
            yield b"x" * 65536

    assert browser("POST", "/leave", headers={**OWN, "content-length": str(2 * 2**30)}).status_code == 413
    assert browser("POST", "/leave", headers=OWN, content=endless()).status_code == 413
    assert read <= guard.MOST_BYTES + 2 * 65536


def test_a_body_that_trickles_is_given_up(app, monkeypatch):
    """14. A request that does not arrive is answered, and not waited for."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    sent = []

    async def never():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/leave",
        "headers": [(b"host", HOST.encode()), (b"origin", OWN["origin"].encode())],
    }
    asyncio.run(app(scope, never, send))
    assert sent[0]["status"] == 408


def test_a_session_ends(browser, access, clock):
    """Twelve hours after its last request, and at once where the person leaves."""
    browser.enters(access)
    assert browser("POST", "/leave", headers={**OWN, "x-csrf-token": browser.csrf}).status_code == 204
    assert browser("GET", "/").status_code == 401
    browser.enters(access)
    clock.now += SESSION_SECONDS + 1
    assert browser("GET", "/part/overview").status_code == 401


def test_the_cookie_of_an_ended_session_is_worth_nothing(browser, access, app):
    """16. A request that is sent again after its session ended is refused."""
    browser.enters(access)
    kept = dict(browser.client.cookies)
    browser("POST", "/leave", headers={**OWN, "x-csrf-token": browser.csrf})
    other = Visitor(app)
    other.client.cookies.update(kept)
    assert other("GET", "/").status_code == 401


def test_websockets_and_other_methods_are_not_spoken(browser, access, app):
    """What the studio does not know it does not answer."""
    browser.enters(access)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert browser(method, "/", headers=OWN).status_code == 405
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_twice_the_same_header_is_refused(app):
    """Two Hosts, of which a proxy reads one and the server the other, are no request."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", HOST.encode()), (b"host", b"evil.example")]
    asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, send))
    assert sent[0]["status"] == 400


def test_no_answer_is_kept_by_a_cache(browser, access):
    """What a session saw is nobody else's."""
    browser.enters(access)
    assert browser("GET", "/").headers["cache-control"] == "no-store"


def test_the_overview_says_what_can_go(browser, access, desk, monkeypatch):
    """Once the model was looked at, the page tells blocks, widths and locks, and the event that says so is JSON."""
    monkeypatch.setattr(desk.planning, "begin", lambda *_: None)
    monkeypatch.setattr(desks, "look", partial(desks.look, seconds=0.02))
    monkeypatch.setattr(desk, "_times", lambda *_: ())
    desk._look()
    browser.enters(access)
    text = browser("GET", "/part/findings").text
    assert "Widths that can shrink" in text
    assert "conv1" in text
    assert "it makes the model" in text

    async def told():
        stream = desk.events.stream(lambda: True)
        await anext(stream)
        return (await anext(stream)).split(b"\n\n")

    pictured, looked, rest = asyncio.run(told())
    assert rest == b""
    assert pictured.startswith(b"event: pictured\n")
    kind, data, *_ = looked.decode().split("\n")
    assert kind == "event: looked"
    assert json.loads(data.removeprefix("data: ")) == {"failed": None}


@pytest.mark.parametrize("path", ["/edit", "/run", "/runs/run-001/pause", "/runs/run-001/discard"])
def test_who_watches_runs_nothing(browser, access, path):
    """15. A viewer's requests to begin, pause or delete a run are refused, and so are an editor's without the word."""
    browser.enters(access, Role.VIEWER)
    answer = browser("POST", path, headers={**OWN, "x-csrf-token": browser.csrf}, json={"version": 0})
    assert answer.status_code == 403
    assert "came in to watch" in answer.text
    browser.enters(access)
    assert browser("POST", path, headers=OWN, json={"version": 0}).status_code == 403


def test_a_run_needs_something_chosen(browser, access):
    """Before anything is known, and of runs that there are not, an editor is told so."""
    browser.enters(access)
    headers = {**OWN, "x-csrf-token": browser.csrf}
    assert browser("POST", "/run", headers=headers, json={"draft": "1", "version": 0}).status_code == 503
    assert browser("POST", "/run", headers=headers, json={}).status_code == 400
    assert browser("POST", "/run", headers=headers, content=b"{").status_code == 400
    assert browser("POST", "/runs/run-001/resume", headers=headers, json={}).status_code == 409
    assert browser("POST", "/runs/run-001/dance", headers=headers, json={}).status_code == 404
    assert browser("GET", "/take/run-001/..%2f..%2fsecret").status_code == 404
    assert browser("GET", "/take/run-001/model.onnx").status_code == 404


def test_who_asked_for_a_change_is_told_before_it_is_made(desk, access):
    """Who came in, every change but a trial, and what a viewer was refused; what cannot be told is not done."""
    told = []
    app = studio_app(
        desk,
        access,
        hosts=frozenset({HOST}),
        changed=lambda session, what: told.append((session.role, session.name, what)),
    )
    editor, viewer = Visitor(app), Visitor(app)
    editor.enters(access)
    viewer.enters(access, Role.VIEWER)
    for browser, paths in ((editor, ("/try", "/undo", "/runs/run-001/pause", "/leave")), (viewer, ("/run",))):
        for path in paths:
            browser("POST", path, headers={**OWN, "x-csrf-token": browser.csrf}, json={"version": 0})
    browser("POST", "/run", headers=OWN, json={"version": 0})
    assert [(role, what) for role, _, what in told] == [
        (Role.EDITOR, "enter"),
        (Role.VIEWER, "enter"),
        (Role.EDITOR, "undo"),
        (Role.EDITOR, "runs/run-001/pause"),
        (Role.EDITOR, "leave"),
        (Role.VIEWER, "refused: run"),
    ]
    names = [name for _, name, _ in told]
    assert names == [names[0], names[1], *[names[0]] * 3, names[1]]
    assert not any(name in str(browser.client.cookies) for name in names)

    def full(session, what):
        raise StorageError("the log is full")

    app = studio_app(desk, access, hosts=frozenset({HOST}), changed=full)
    answer = Visitor(app)("GET", f"/enter?token={access.token(Role.EDITOR)}")
    assert (answer.status_code, answer.text) == (507, "the log is full\n")
    assert "set-cookie" not in answer.headers
