"""What a browser is given: no script or style inside of a page, nothing from elsewhere, and little of it."""

import json
import re
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from compressor.studio import pages

STUDIO = Path(str(files("compressor.studio")))
TEMPLATES = sorted((STUDIO / "templates").glob("*"))
MOST_SCRIPT_BYTES = 120 * 1024


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_a_script_or_style_inside(template):
    """The policy would refuse them: scripts are files, nothing listens in an attribute, nothing is marked as safe."""
    text = template.read_text()
    assert re.findall(r"<script(?! src=\"static/)", text) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", text) == []
    assert re.findall(r"\|\s*safe|autoescape|Markup", text) == []


@pytest.mark.parametrize("name", sorted(pages._STATIC))
def test_nothing_is_loaded_from_elsewhere(name):
    """No address of another server stands in what is served, but for the names of XML's own languages."""
    content, _ = pages.static(name)
    found = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"')]*", content.decode()))
    assert {address for address in found if "www.w3.org/" not in address} == set()
    assert re.findall(r"\beval\(|new Function|document\.write|setTimeout\([\"'`]", content.decode()) == []


def test_scripts_are_small():
    """All of them together, those of others too."""
    scripts = [pages.static(name)[0] for name in pages._STATIC if name.endswith(".js")]
    assert sum(map(len, scripts)) <= MOST_SCRIPT_BYTES


@pytest.mark.parametrize("folder", [STUDIO / "static", Path(__file__).parent / "vendored"], ids=["static", "tests"])
def test_what_others_wrote_is_as_they_wrote_it(folder):
    """Each file of another package has its version, its licence, and the digest that it was taken with."""
    known = json.loads((folder / "vendored.json").read_text())
    for name, facts in known.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
        assert facts["version"]
        assert facts["integrity"].startswith("sha512-")
        assert len((folder / facts["licence_file"]).read_text()) > 300
    ours = {"studio.js"}
    assert {path.name for path in folder.glob("*.js")} == {*known, *(ours if folder.name == "static" else ())}


def test_what_is_shown_again_is_made_once():
    """As long as what it shows is the same; the names that were made last are kept, as many as there may be."""
    kept, made = pages.Kept(2), []

    def make(word):
        return lambda: made.append(word) or word

    assert [kept.of("a", 1, make("old")), kept.of("a", 1, make("new"))] == ["old", "old"]
    assert kept.of("a", 2, make("new")) == "new"
    kept.of("b", 1, make("b"))
    kept.of("a", 3, make("newest"))
    kept.of("c", 1, make("c"))
    assert made == ["old", "new", "b", "newest", "c"]
    assert kept.of("a", 3, make("again")) == "newest"
    assert kept.of("b", 1, make("b again")) == "b again"
