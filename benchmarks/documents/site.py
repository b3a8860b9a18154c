"""Whether a built site asks a network when it is looked at: `python -m benchmarks.documents.site FOLDER`."""

import re
import sys
from pathlib import Path

# What a browser fetches by itself: sources, style sheets and icons, and what styles name. Links wait for a person.
_IN_PAGES = re.compile(
    r"""<(?!a\b)\w+\b[^>]*?\b(?:src|href|srcset|data)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", re.IGNORECASE
)
_IN_STYLES = re.compile(r"""url\(\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


def remote_parts(folder: Path) -> list[str]:
    """What of the site in `folder` comes from another host, as "file: address"."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".html", ".css"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            patterns = (_IN_PAGES, _IN_STYLES) if path.suffix == ".html" else (_IN_STYLES,)
            parts = [part for pattern in patterns for part in pattern.findall(text)]
            found += [f"{path.relative_to(folder)}: {part}" for part in parts if "canonical" not in part]
    return found


def main() -> None:
    remote = remote_parts(Path(sys.argv[1]))
    print("\n".join(remote) or "nothing of the site comes from another host")
    sys.exit(1 if remote else 0)


if __name__ == "__main__":
    main()
