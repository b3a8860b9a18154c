"""The package as its folders and contracts have it: layers, files, and the first line of each."""

import ast
import tomllib
from pathlib import Path

from workbench import ROOT

PACKAGE = ROOT / "compressor"
PAGE = ROOT / "docs" / "architecture.md"
_MARKS = {"layers": ("<!-- layers -->\n", "<!-- /layers -->"), "files": ("<!-- files -->\n", "<!-- /files -->")}


def contract(containers: str = "compressor") -> list[list[str]]:
    """The layers of the import contract for `containers`, from the top; members of one line stand side by side."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (entry["layers"] for entry in settings["contracts"] if entry.get("containers") == [containers])
    return [[name.strip() for name in line.split("|")] for line in layers]


def modules(folder: Path = PACKAGE) -> list[Path]:
    """The Python files of `folder` itself, by name, without `__init__`."""
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def folders() -> list[Path]:
    """Every folder of the package with Python files, itself first, by path."""
    return sorted({path.parent for path in PACKAGE.rglob("*.py")})


def first_line(path: Path) -> str:
    """What `path`, a file or a folder with `__init__.py`, says it is for: the first line of its docstring."""
    source = path / "__init__.py" if path.is_dir() else path
    told = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    if not told:
        raise ValueError(f"{source.relative_to(ROOT)} has no docstring; its first line says what the module is for")
    return told.partition("\n")[0]


def page(text: str) -> str:
    """docs/architecture.md with the table of layers and the list of files made anew; the rest stays."""
    for name, made in (("layers", _layers()), ("files", _files())):
        begin, end = _MARKS[name]
        head, rest = text.split(begin, maxsplit=1)
        text = f"{head}{begin}{made}{end}{rest.split(end, maxsplit=1)[1]}"
    return text


def _layers() -> str:
    rows = [f"| {_shown(name)} | {first_line(_place(name))} |\n" for line in contract() for name in line]
    return "| from top to bottom | holds |\n|---|---|\n" + "".join(rows)


def _shown(name: str) -> str:
    return f"`{name}/`" if _place(name).is_dir() else f"`{name}.py`"


def _place(name: str) -> Path:
    folder = PACKAGE / name
    return folder if folder.is_dir() else folder.with_suffix(".py")


def _files() -> str:
    parts = []
    for folder in folders()[1:]:
        parts.append(f"**`{folder.relative_to(PACKAGE)}/`** {first_line(folder)}\n")
        parts += [f"- `{path.name}`: {first_line(path)}\n" for path in modules(folder)]
        parts.append("\n")
    return "".join(parts)
