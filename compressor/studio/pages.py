"""The pages and their parts as HTML: everything in them is escaped, and no script or style stands inside."""

from functools import cache
from importlib.resources import files
from typing import Any

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


@cache
def templates() -> Environment:
    """The templates of the studio; whatever is put into them is escaped."""
    return Environment(
        # The report draws; its templates are found behind those of the studio.
        loader=ChoiceLoader([PackageLoader("compressor.studio"), PackageLoader("compressor.report")]),
        autoescape=True,
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
