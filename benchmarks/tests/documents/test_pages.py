"""The documents show the stored results: none is typed."""

import re

from benchmarks.documents import (
    architectures_page,
    first_page,
    quantization_page,
    structure_page,
    techniques_page,
    training_page,
)
from benchmarks.documents.conclusions import CONCLUSIONS, IN_OWN_WORDS, concluded
from benchmarks.stored import load, load_all
from workbench import ROOT
from workbench.zoo import ARCHITECTURES


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_first_page_shows_what_is_stored():
    """docs/benchmarks.md and the README's table are what `make docs` makes of the stored results."""
    networks = first_page.stored_networks()
    assert networks, "the benchmark's results belong into the repository"
    assert text("docs/benchmarks.md") == first_page.page(networks)
    assert text("README.md") == first_page.readme(networks)


def test_the_page_of_structure_shows_what_is_stored():
    """docs/structure.md is what `make docs` makes of the stored results."""
    results = load_all(list(structure_page.SECTIONS))
    assert results, "the benchmark's results belong into the repository"
    assert text("docs/structure.md") == structure_page.page(results)


def test_the_page_of_quantization_shows_what_is_stored():
    """docs/quantization-results.md is what `make docs` makes of the stored results."""
    results = load_all(list(quantization_page.SECTIONS))
    assert results, "the benchmark's results belong into the repository"
    assert text("docs/quantization-results.md") == quantization_page.page(results)


def test_the_page_of_training_shows_what_is_stored():
    """The tables of docs/training.md are what `make docs` makes of the stored results."""
    stored = load("training-harm")
    assert stored is not None, "the benchmark's results belong into the repository"
    assert text("docs/training.md") == training_page.page(text("docs/training.md"), stored, load("soft-weight"))


def test_the_pages_of_techniques_show_what_is_stored():
    """docs/techniques.md and the tables of docs/classic.md are what `make docs` makes of the stored results."""
    rows, classic = load("techniques"), load("classic")
    assert rows is not None, "the benchmark's results belong into the repository"
    assert text("docs/techniques.md") == techniques_page.page(rows)
    assert text("docs/classic.md") == techniques_page.classic_page(text("docs/classic.md"), classic)


def test_the_page_of_architectures_shows_what_is_stored():
    """docs/architectures.md is made of the stored outcomes, one for each architecture, none of them failed."""
    stored = load("architectures")
    assert [row["name"] for row in stored["architectures"]] == [known.name for known in ARCHITECTURES]
    assert {row["outcome"] for row in stored["architectures"]} <= {"pruned", "refused"}
    assert text("docs/architectures.md") == architectures_page.page(stored, load("hub"))


def test_the_page_has_the_error_of_predictions():
    """The median and largest error of each form that was measured, in percent."""
    rows = [{"model": "a", "family": "cnn"}, {"model": "b", "family": "cnn"}]
    summary = {"fp32_error": {"median": 0.04, "largest": 0.125}}
    result = {"summary": summary, "rows": rows, "entries": 7, "seconds": 3.0, "environment": {}}
    page = structure_page.page({"latency_table": result})
    assert "| fp32 | absolute time | 4.0 | 12.5 |" in page
    assert "Models: 2, of families: 1;" in page


def test_pages_of_results_say_first_what_their_tables_show():
    """Every section of a page of results begins with its conclusion, in bold."""
    sections = {**structure_page.SECTIONS, **quantization_page.SECTIONS}
    assert sections.keys() == (sections.keys() & CONCLUSIONS.keys()) | IN_OWN_WORDS
    names = ("benchmarks", "structure", "quantization-results", "classic")
    found = [section for name in names for section in text(f"docs/{name}.md").split("\n## ")[1:]]
    told = [section.split("\n") for section in found if "(`make bench-" in section.split("\n")[0]]
    assert [lines[0] for lines in told if not re.fullmatch(r"\*\*.+\.\*\*", lines[2])] == []


def test_tables_on_other_pages_come_after_what_they_show():
    """Where `make docs` writes into a page that people write, and in the README."""
    for name in ("README.md", "docs/packing.md", "docs/evaluations.md"):
        block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", text(name), re.DOTALL)
        assert block is not None, name
        for table in re.split(r"\n(?=\*\*)", block[1]):
            assert re.match(r"\*\*.+\.\*\*\n", table), f"{name}: {table[:100]}"
    assert re.search(r"\n\n\*\*.+\.\*\*\n", text("docs/techniques.md").partition("\n|")[0])


def test_a_conclusion_counts_what_its_table_shows():
    """Two pairs, of which one is proved faster and one ties."""
    pairs = [{"latency_over_energy": {"value": 1.1, "low": low, "high": 1.2}} for low in (1.05, 0.9)]
    lines = concluded(["## Ranks", "", "text"], "low-rank", {"networks": {"transformer": {"pairs": pairs}}})
    assert lines[:2] == ["## Ranks", ""]
    assert "in 1 of 2 pairs, slower in 0, and tie in the others" in lines[2]
    assert lines[3:] == ["", "text"]
