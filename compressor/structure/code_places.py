"""Where code stands, said as shortly as it is clear, so that no report holds the paths of the machine that made it."""

import sys
from pathlib import Path


def short_path(path: Path) -> str:
    """`path` from here, from a folder of modules, or from its outermost package: the shortest of them."""
    package = path.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    roots = [Path.cwd(), package, *(Path(entry) for entry in sys.path if entry)]
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return str(min(inside, key=lambda found: len(found.parts), default=path))
