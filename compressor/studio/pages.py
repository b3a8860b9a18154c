"""The pages and their parts as HTML: everything in them is escaped, and no script or style stands inside."""

import threading
from collections.abc import Callable, Hashable
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

_STATIC = {
    "idiomorph.js": ("compressor.studio", "static/idiomorph.js", "text/javascript; charset=utf-8"),
    "studio.js": ("compressor.studio", "static/studio.js", "text/javascript; charset=utf-8"),
    "studio.css": ("compressor.studio", "static/studio.css", "text/css; charset=utf-8"),
    # The report's own colours and letters: one look for both.
    "report.css": ("compressor.report", "templates/report.css", "text/css; charset=utf-8"),
    "scatter.css": ("compressor.report", "templates/scatter.css", "text/css; charset=utf-8"),
    "icon.svg": ("compressor.studio", "static/icon.svg", "image/svg+xml"),
}

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """What was made of something, by its name, for as long as that is the same; the `most` that were made last.

    May be used from any thread: two that ask at once may both make it.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values: dict[Hashable, tuple[Hashable, _Value]] = {}

    def of(self, name: Hashable, same: Hashable, make: Callable[[], _Value]) -> _Value:
        """What `make` gave for `name` when it was last asked for with an equal `same`, or gives now."""
        found = self._values.get(name)
        if found is not None and found[0] == same:
            return found[1]
        value = make()
        with self._lock:
            self._values.pop(name, None)
            self._values[name] = same, value
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        return value


@cache
def templates() -> Environment:
    """The templates of the studio; whatever is put into them is escaped."""
    return Environment(
        # The report draws; its templates are found behind those of the studio.
        loader=ChoiceLoader([PackageLoader("compressor.studio"), PackageLoader("compressor.report")]),
        autoescape=True,
        # They are as they were installed for as long as a server runs.
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, /, **values: Any) -> str:
    """The template of that name, filled with `values`."""
    return templates().get_template(f"{template}.html.j2").render(**values)


@cache
def static(name: str) -> tuple[bytes, str] | None:
    """The file of that name with its media type, None where there is no such file; names are no paths."""
    if name not in _STATIC:
        return None
    package, path, media = _STATIC[name]
    return files(package).joinpath(path).read_bytes(), media
