"""The studio's addresses: what a browser may ask for, and what it has to bring for it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from compressor.errors import BudgetError, StorageError
from compressor.report.numbers import printable
from compressor.studio.access import SESSION_SECONDS, Access, Role, Session, TooManyTriesError, TooOftenError
from compressor.studio.desk import Desk, Visitor
from compressor.studio.doing import Doing, done
from compressor.studio.drafting.draft import ConflictError
from compressor.studio.drafting.shelf import ForeignDraftError, NoDraftError
from compressor.studio.guard import OWN, App, Guard, RefusedError
from compressor.studio.pages import render, static
from compressor.studio.planning import NotReadyError
from compressor.studio.runs import RunRefusedError

_Result = TypeVar("_Result")

# As `secrets.token_urlsafe` writes them: nothing else is put into a page again.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,100}")


def studio_app(
    desk: Desk,
    access: Access,
    *,
    hosts: frozenset[str],
    scheme: str = "http",
    origin: str = "",
    prefix: str = "",
    cookie: str = "compressor_studio",
    entered: Callable[[Role], object] = lambda role: role,
    changed: Callable[[Session, str], object] = lambda session, _: session,
) -> App:
    """The studio of `desk` as an ASGI application, for those whom `access` lets in.

    `hosts`, `scheme`, `origin` and `prefix` as in `Guard`; `cookie` is the session's name in a browser, which tells the
    studios of one machine apart; `entered` is called when a link was used, for its token is spent, and `changed` before
    something is changed, or refused to a viewer, with whose session and what; it raises StorageError to keep it from
    being done.
    """
    secure = scheme == "https" or origin.startswith("https:")
    jar = {"key": cookie, "path": f"{prefix}/", "httponly": True, "samesite": "strict", "secure": secure}
    doors = _Doors(desk, access, jar=jar, entered=entered, changed=changed)
    routes = [
        Route("/", doors.page),
        Route("/enter", doors.enter),
        Route("/leave", doors.leave, methods=["POST"]),
        Route("/events", doors.events),
        Route("/latest", doors.latest),
        Route("/static/{name}", doors.static),
        Route("/part/{name}", doors.part),
        Route("/draft", doors.draft),
        Route("/run", doors.run, methods=["POST"]),
        Route("/runs/{name}/{what}", doors.runs, methods=["POST"]),
        Route("/take/{name}/{file}", doors.take),
        *(Route(f"/{name}", doors.doing(name), methods=["POST"]) for name in Doing),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={404: _not_found, 405: _not_found, RefusedError: _refused, StorageError: _not_kept},
    )
    # A redirect would name this server as it is called here, behind whatever proxy.
    app.router.redirect_slashes = False
    return Guard(app, hosts=hosts, scheme=scheme, origin=origin, prefix=prefix)


class _Doors:
    def __init__(
        self,
        desk: Desk,
        access: Access,
        *,
        jar: dict[str, Any],
        entered: Callable[[Role], object],
        changed: Callable[[Session, str], object],
    ) -> None:
        self._desk, self._access, self._jar, self._entered = desk, access, jar, entered
        self._changed = changed

    def _session(self, request: Request, *, changes: bool = False, edits: bool = False) -> Session:
        """The session of `request`; what changes something brings the session's word, and an editor alone edits."""
        session = self._known(request)
        if session is None:
            raise RefusedError(401, "this page is for those who have its link; it stands in the terminal")
        if changes and not session.brings(request.headers.get("x-csrf-token")):
            raise RefusedError(403, "the page is older than your session; load it again")
        refused = edits and session.role is not Role.EDITOR
        what = printable(request.scope["path"].strip("/"))
        if changes and what != Doing.TRY:
            self._changed(session, f"refused: {what}" if refused else what)
        if refused:
            raise RefusedError(403, "you came in to watch; the link to edit stands in the terminal")
        return session

    def _known(self, request: Request) -> Session | None:
        try:
            return self._access.session(request.cookies.get(self._jar["key"]))
        except TooOftenError as error:
            raise RefusedError(429, "that is more than a page asks for; wait a moment") from error

    async def page(self, request: Request) -> Response:
        session = self._known(request)
        if session is None:
            return HTMLResponse(render("door", sentence="Open the link that stands in the terminal.", link=""), 401)
        draft = request.query_params.get("draft", "")
        return HTMLResponse(render("page", session=session, draft=draft, **self._desk.page()))

    async def enter(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if "prefetch" in request.headers.get("sec-purpose", ""):
            raise RefusedError(503, "a link is spent when somebody opens it, and not before")
        if request.headers.get("sec-fetch-site", "none") not in OWN:
            # Another site's page, which neither spends a link nor makes everybody wait by wrong ones: one more click,
            # which that page cannot do, and without which the browser would keep the cookie to itself.
            link = f"enter?token={token}" if token is not None and _TOKEN.fullmatch(token) else ""
            return HTMLResponse(render("door", sentence="You come from another page.", link=link))
        try:
            session = self._access.enter(token)
        except TooManyTriesError as error:
            sentence = f"Too many wrong links. Wait {error.seconds:.0f} seconds."
            after = {"retry-after": f"{error.seconds:.0f}"}
            return HTMLResponse(render("door", sentence=sentence, link=""), 429, headers=after)
        if session is None:
            sentence = "This link was used or is an old one. The terminal shows the next one."
            return HTMLResponse(render("door", sentence=sentence, link=""), 401)
        self._changed(session, "enter")
        self._entered(session.role)
        # Relative, so that it holds behind a proxy's prefix; the address without the token takes its place.
        response = RedirectResponse("./", 303)
        response.set_cookie(value=session.cookie, max_age=int(SESSION_SECONDS), **self._jar)
        return response

    async def leave(self, request: Request) -> Response:
        self._access.leave(self._session(request, changes=True))
        response = Response(status_code=204)
        response.delete_cookie(**self._jar)
        return response

    async def events(self, request: Request) -> Response:
        session = self._session(request)

        if not self._access.may_stream(session):
            raise RefusedError(429, "more pages listen than one browser shows; close some")

        async def told() -> AsyncIterator[bytes]:
            with self._access.streaming(session):
                async for event in self._desk.events.stream(partial(self._access.lives, session)):
                    yield event

        # The header tells nginx to hand on what comes as it comes.
        return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def latest(self, request: Request) -> Response:
        self._session(request)
        return JSONResponse(self._desk.events.latest())

    async def static(self, request: Request) -> Response:
        found = static(request.path_params["name"])
        if found is None:
            raise RefusedError(404, "there is no such file")
        content, media = found
        return Response(content, media_type=media)

    async def draft(self, request: Request) -> Response:
        visitor, query = _visitor(self._session(request)), dict(request.query_params)

        def edited() -> dict[str, Any]:
            return self._desk.planning.edited(self._desk.draft(query, visitor))

        return JSONResponse(await _worked(edited))

    def doing(self, what: str) -> Callable[[Request], Awaitable[Response]]:
        """What answers a request to do something with the draft."""

        async def answer(request: Request) -> Response:
            session = self._session(request, changes=True, edits=True)
            given = await _given(request)
            return JSONResponse(await _worked(partial(done, self._desk.planning, Doing(what), given, session.person)))

        return answer

    async def run(self, request: Request) -> Response:
        self._session(request, changes=True, edits=True)
        given = await _given(request)
        draft, version = given.get("draft"), given.get("version")
        if type(version) is not int or not isinstance(draft, str):
            raise RefusedError(400, "a run says which draft it is of, and which version")
        return JSONResponse({"run": await _worked(partial(self._desk.run, draft, version))})

    async def runs(self, request: Request) -> Response:
        self._session(request, changes=True, edits=True)
        runs, name = self._desk.runs, request.path_params["name"]
        known = {"pause": runs.pause, "resume": runs.resume, "discard": runs.discard}
        if request.path_params["what"] not in known:
            raise RefusedError(404, "there is nothing here")
        await _worked(partial(known[request.path_params["what"]], name))
        return JSONResponse({"run": name})

    async def take(self, request: Request) -> Response:
        self._session(request)
        name, wanted = request.path_params["name"], request.path_params["file"]
        found = self._desk.runs.file(name, wanted)
        if found is None:
            raise RefusedError(404, "there is no such file")
        path, media = found
        # To be kept and not shown: a report has styles of its own, which this page's policy forbids.
        return FileResponse(path, media_type=media, filename=f"{name}-{wanted}")

    async def part(self, request: Request) -> Response:
        session = self._session(request)
        name, query = request.path_params["name"], dict(request.query_params)
        html = await _worked(partial(self._desk.part, name, query, _visitor(session)))
        if html is None:
            raise RefusedError(404, "there is no such part of the page")
        return HTMLResponse(html)


def _visitor(session: Session) -> Visitor:
    return Visitor(person=session.person, may_edit=session.role is Role.EDITOR)


async def _not_found(_: Request, __: Exception) -> Response:
    return PlainTextResponse("there is nothing here\n", 404)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return PlainTextResponse(f"{error.sentence}\n", error.status)


async def _not_kept(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 507)


async def _given(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings. Raises RefusedError for anything else."""
    try:
        data = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the request is no JSON") from error
    if not isinstance(data, dict):
        raise RefusedError(400, "the request is no JSON object")
    return data


async def _worked(work: Callable[[], _Result]) -> _Result:
    """What `work` gives, computed beside the server; its refusals as a person reads them. Raises RefusedError."""
    try:
        return await asyncio.to_thread(work)
    except ConflictError as error:
        raise RefusedError(409, "somebody else has edited this draft since; the page shows it as it is now") from error
    except RunRefusedError as error:
        raise RefusedError(409, str(error)) from error
    except NoDraftError as error:
        raise RefusedError(404, str(error)) from error
    except ForeignDraftError as error:
        raise RefusedError(403, str(error)) from error
    except NotReadyError as error:
        raise RefusedError(503, str(error)) from error
    except BudgetError as error:
        raise RefusedError(422, "that cannot be reached: what is locked takes longer; ask for less") from error
    except StorageError as error:
        raise RefusedError(507, str(error)) from error
    except ValueError as error:
        raise RefusedError(400, f"that cannot be chosen: {error}") from error
