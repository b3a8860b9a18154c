"""Writes the documents that hold results, their pictures and the README's table, from what is stored; and the layers.

    python -m benchmarks.documents

Nothing in them is typed.
"""

from collections.abc import Callable

from benchmarks.documents import (
    architectures_page,
    comparing_page,
    evaluations_page,
    first_page,
    folds_page,
    packing_page,
    quantization_page,
    searching_page,
    structure_page,
    studio_page,
    teachers_page,
    techniques_page,
    training_page,
    trust_page,
)
from benchmarks.stored import load, load_all
from compressor.storage import write_atomic
from workbench import ROOT, house

DOCS = ROOT / "docs"
# Pages that hold tables between marks: what writes those into the text, and the results it takes; the first has to be
# stored.
PAGES: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "training.md": (training_page.page, ("training-harm", "soft-weight")),
    "classic.md": (techniques_page.classic_page, ("classic",)),
    "packing.md": (packing_page.page, ("packing", "packing-lenets", "packing-residual")),
    "evaluations.md": (evaluations_page.page, ("evaluations",)),
    "losses.md": (teachers_page.page, ("teachers",)),
    "trust.md": (trust_page.page, ("trust", "membership")),
    "studio.md": (studio_page.page, ("studio", "studio_load", "studio_drawing")),
    "folds.md": (folds_page.page, ("folds",)),
    "comparing.md": (comparing_page.page, ("compare",)),
    "searching.md": (searching_page.page, ("search", "search-resnet20", "headline")),
}


def main() -> None:
    networks = first_page.stored_networks()
    if networks:
        first_page.draw(networks, DOCS / "benchmarks-cifar10.svg")
        write_atomic(ROOT / "README.md", first_page.readme(networks))
    write_atomic(DOCS / "benchmarks.md", first_page.page(networks))
    structure = load_all(list(structure_page.SECTIONS))
    if structure:
        write_atomic(DOCS / "structure.md", structure_page.page(structure))
    if "structure" in structure:
        structure_page.draw(structure["structure"]["networks"], DOCS / "structure.svg")
    quantized = load_all(list(quantization_page.SECTIONS))
    if quantized:
        write_atomic(DOCS / "quantization-results.md", quantization_page.page(quantized))
    if "quantization" in quantized:
        quantization_page.draw(quantized["quantization"]["networks"], DOCS / "quantization.svg")
    if (architectures := load("architectures")) is not None:
        write_atomic(DOCS / "architectures.md", architectures_page.page(architectures, load("hub")))
    if (techniques := load("techniques")) is not None:
        write_atomic(DOCS / "techniques.md", techniques_page.page(techniques))
        techniques_page.draw(techniques, DOCS / techniques_page.PICTURE)
    for name, (page, results) in PAGES.items():
        first, *others = map(load, results)
        if first is not None:
            path = DOCS / name
            write_atomic(path, page(path.read_text(encoding="utf-8"), first, *others))
    write_atomic(house.PAGE, house.page(house.PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
