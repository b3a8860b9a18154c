"""Where the recipes are that come with the package; importing it loads nothing, for the shell's completion."""

from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    # A wheel carries them inside the package; in a source tree they stand at the top, where people look for them.
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    folder = inside if inside.is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
