"""The studio's addresses: what a browser may ask for, and what it has to bring for it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
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
from compressor.studio.access import SESSION_SECONDS, Access, Role, Session, TooManyTriesError
from compressor.studio.desk import Desk
from compressor.studio.doing import Doing, done
from compressor.studio.drafts import ConflictError
from compressor.studio.guard import App, Guard, RefusedError
from compressor.studio.pages import render, static
from compressor.studio.planning import NotReadyError
from compressor.studio.runs import RunRefusedError

_Result = TypeVar("_Result")

_COOKIE = "compressor_studio"


def studio_app(
    desk: Desk,
    access: Access,
    *,
    hosts: frozenset[str],
    scheme: str = "http",
    entered: Callable[[Role], object] = lambda role: role,
    changed: Callable[[Session, str], object] = lambda session, _: session,
) -> App:
    """The studio of `desk` as an ASGI application, for those whom `access` lets in.

    `hosts` and `scheme` as in `Guard`; `entered` is called when a link was used, for its token is spent, and
    `changed` before something is changed, or refused to a viewer, with whose session and what; it raises StorageError
    to keep it from being done.
    """
    doors = _Doors(desk, access, secure=scheme == "https", entered=entered, changed=changed)
    routes = [
        Route("/", doors.page),
        Route("/enter", doors.enter),
        Route("/leave", doors.leave, methods=["POST"]),
        Route("/events", doors.events),
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
    return Guard(app, hosts=hosts, scheme=scheme)


class _Doors:
    def __init__(
        self,
        desk: Desk,
        access: Access,
        *,
        secure: bool,
        entered: Callable[[Role], object],
        changed: Callable[[Session, str], object],
    ) -> None:
        self._desk, self._access, self._secure, self._entered = desk, access, secure, entered
        self._changed = changed

    def _session(self, request: Request, *, changes: bool = False, edits: bool = False) -> Session:
        """The session of `request`; what changes something brings the session's word, and an editor alone edits."""
        session = self._access.session(request.cookies.get(_COOKIE))
        if session is None:
            raise RefusedError(401, "this page is for those who have its link; it stands in the terminal")
        if changes and not session.brings(request.headers.get("x-csrf-token")):
            raise RefusedError(403, "the page is older than your session; load it again")
        refused = edits and session.role is not Role.EDITOR
        what = request.url.path.strip("/")
        if changes and what != Doing.TRY:
            self._changed(session, f"refused: {what}" if refused else what)
        if refused:
            raise RefusedError(403, "you came in to watch; the link to edit stands in the terminal")
        return session

    async def page(self, request: Request) -> Response:
        session = self._access.session(request.cookies.get(_COOKIE))
        if session is None:
            return HTMLResponse(render("door", sentence="Open the link that stands in the terminal."), 401)
        return HTMLResponse(render("page", session=session, **self._desk.page()))

    async def enter(self, request: Request) -> Response:
        try:
            session = self._access.enter(request.query_params.get("token"))
        except TooManyTriesError as error:
            sentence = f"Too many wrong links. Wait {error.seconds:.0f} seconds."
            after = {"retry-after": f"{error.seconds:.0f}"}
            return HTMLResponse(render("door", sentence=sentence), 429, headers=after)
        if session is None:
            sentence = "This link was used or is an old one. The terminal shows the next one."
            return HTMLResponse(render("door", sentence=sentence), 401)
        self._changed(session, "enter")
        self._entered(session.role)
        # Relative, so that it holds behind a proxy's prefix; the address without the token takes its place.
        response = RedirectResponse("./", 303)
        response.set_cookie(
            _COOKIE,
            session.cookie,
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
        return response

    async def leave(self, request: Request) -> Response:
        self._access.leave(self._session(request, changes=True))
        response = Response(status_code=204)
        response.delete_cookie(_COOKIE)
        return response

    async def events(self, request: Request) -> Response:
        session = self._session(request)

        def allowed() -> bool:
            return self._access.session(session.cookie) is not None

        return StreamingResponse(self._desk.events.stream(allowed), media_type="text/event-stream")

    async def static(self, request: Request) -> Response:
        found = static(request.path_params["name"])
        if found is None:
            raise RefusedError(404, "there is no such file")
        content, media = found
        return Response(content, media_type=media)

    async def draft(self, request: Request) -> Response:
        self._session(request)
        return JSONResponse(await _worked(self._desk.planning.edited))

    def doing(self, what: str) -> Callable[[Request], Awaitable[Response]]:
        """What answers a request to do something with the draft."""

        async def answer(request: Request) -> Response:
            self._session(request, changes=True, edits=True)
            given = await _given(request)
            return JSONResponse(await _worked(partial(done, self._desk.planning, Doing(what), given)))

        return answer

    async def run(self, request: Request) -> Response:
        self._session(request, changes=True, edits=True)
        version = (await _given(request)).get("version")
        if type(version) is not int:
            raise RefusedError(400, "a run says which version of the draft it is of")
        return JSONResponse({"run": await _worked(partial(self._desk.run, version))})

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
        html = await _worked(partial(self._desk.part, name, query, may_edit=session.role is Role.EDITOR))
        if html is None:
            raise RefusedError(404, "there is no such part of the page")
        return HTMLResponse(html)


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
    except NotReadyError as error:
        raise RefusedError(503, str(error)) from error
    except BudgetError as error:
        raise RefusedError(422, "that cannot be reached: what is locked takes longer; ask for less") from error
    except StorageError as error:
        raise RefusedError(507, str(error)) from error
    except ValueError as error:
        raise RefusedError(400, f"that cannot be chosen: {error}") from error
