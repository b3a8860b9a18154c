"""Requests to the studio's application without a network, by somebody who comes in; and a clock that is set by hand."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from compressor.studio.access import Access, Role

HOST = "127.0.0.1:8765"
# What a page of the studio's own sends along.
OWN = {"origin": f"http://{HOST}"}


class Clock:
    """Seconds that pass where a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Visitor:
    """A browser with cookies of its own, at `base`; `csrf` is its session's word once it has entered."""

    csrf = ""

    def __init__(self, app: Any, base: str = f"http://{HOST}") -> None:
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=base)

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self.client.request(method, path, **more))

    def enters(self, access: Access, role: Role = Role.EDITOR, person: str = "") -> httpx.Response:
        """Comes in by a link for `role`; gives the answer to it."""
        answer = self("GET", f"/enter?token={access.token(role, person)}")
        assert answer.status_code == 303
        self.csrf = self.get("/").text.partition('data-csrf="')[2].partition('"')[0]
        return answer

    def get(self, path: str) -> httpx.Response:
        """The page or part at `path`."""
        return self("GET", path)

    def post(self, path: str, data: Mapping[str, Any], **headers: str) -> httpx.Response:
        """What the page itself would send, unless `headers` say otherwise."""
        return self("POST", path, json=data, headers={**OWN, "x-csrf-token": self.csrf, **headers})
