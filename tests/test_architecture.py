"""The package keeps the shape that docs/architecture.md and the import contracts say it has."""

import ast

import pytest

from workbench import ROOT, house


def test_the_page_lists_the_layers_and_files_that_exist() -> None:
    """The table follows the contract from top to bottom and every file has its line: `make docs` changes nothing."""
    text = house.PAGE.read_text(encoding="utf-8")
    assert text == house.page(text), "run `make docs`"
    for line in house.contract():
        for name in line:
            assert f"`{name}/`" in text or f"`{name}.py`" in text


def test_every_child_of_the_package_is_a_layer() -> None:
    """Folders and files of the root are those of the contract, no more and no fewer."""
    children = [*(path.name for path in house.PACKAGE.iterdir() if (path / "__init__.py").is_file())]
    children += [path.stem for path in house.modules()]
    assert sorted(children) == sorted(name for line in house.contract() for name in line)


@pytest.mark.parametrize("folder", house.folders(), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_folder_can_be_taken_in_at_a_glance(folder) -> None:
    """At most 20 modules a folder, none above 400 lines."""
    assert len(house.modules(folder)) <= 20
    # What is copied out to where the package is not is one file, whatever it holds.
    alone = {"reader.py"} if folder.name == "packing" else set()
    long = {path.name: lines for path in folder.glob("*.py") if (lines := path.read_text().count("\n")) > 400}
    assert set(long) <= alone


@pytest.mark.parametrize(
    "folder",
    # These hand on what people import: main, the stages, load.
    [folder for folder in house.folders()[1:] if folder.name not in {"cli", "stages", "workloads"}],
    ids=lambda folder: folder.relative_to(ROOT).as_posix(),
)
def test_importing_a_folder_imports_nothing(folder) -> None:
    """`__init__` files hold a docstring, so that no circle and no slow import hides there."""
    assert (folder / "__init__.py").read_text().count("\n") == 1


# Packages that take a second to import, or are extras, and serve a few calls: imported by those.
_LATE = {"sklearn", "scipy", "pandas", "matplotlib", "torchvision", "optuna", "ray", "dask", "mlflow", "tensorboard"}


@pytest.mark.parametrize("folder", house.folders(), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_slow_packages_are_imported_where_they_are_used(folder) -> None:
    """Whoever runs a recipe does not wait for what it does not call."""
    early = set()
    for path in house.modules(folder):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            early |= {(path.name, name) for name in names if name.partition(".")[0] in _LATE}
    assert not early
