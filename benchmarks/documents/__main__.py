"""Writes the documents that hold results, their pictures and the README's table, from what is stored; and the layers.

    python -m benchmarks.documents

Nothing in them is typed.
"""

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
    if (harm := load("training-harm")) is not None:
        training = DOCS / "training.md"
        write_atomic(training, training_page.page(training.read_text(encoding="utf-8"), harm, load("soft-weight")))
    if (techniques := load("techniques")) is not None:
        write_atomic(DOCS / "techniques.md", techniques_page.page(techniques))
        techniques_page.draw(techniques, DOCS / techniques_page.PICTURE)
    if (classic := load("classic")) is not None:
        tutorial = DOCS / "classic.md"
        write_atomic(tutorial, techniques_page.classic_page(tutorial.read_text(encoding="utf-8"), classic))
    if (packing := load("packing")) is not None:
        packed = DOCS / "packing.md"
        small = (load("packing-lenets"), load("packing-residual"))
        write_atomic(packed, packing_page.page(packed.read_text(encoding="utf-8"), packing, *small))
    if (asked := load("evaluations")) is not None:
        evaluations = DOCS / "evaluations.md"
        write_atomic(evaluations, evaluations_page.page(evaluations.read_text(encoding="utf-8"), asked))
    if (teachers := load("teachers")) is not None:
        losses = DOCS / "losses.md"
        write_atomic(losses, teachers_page.page(losses.read_text(encoding="utf-8"), teachers))
    if (tried := load("trust")) is not None or load("membership") is not None:
        trust = DOCS / "trust.md"
        write_atomic(trust, trust_page.page(trust.read_text(encoding="utf-8"), tried, load("membership")))
    if (studio := load("studio")) is not None:
        sliders = DOCS / "studio.md"
        seen = load("studio_load"), load("studio_drawing")
        write_atomic(sliders, studio_page.page(sliders.read_text(encoding="utf-8"), studio, *seen))
    if (folds := load("folds")) is not None:
        crossed = DOCS / "folds.md"
        write_atomic(crossed, folds_page.page(crossed.read_text(encoding="utf-8"), folds))
    if (compared := load("compare")) is not None:
        comparing = DOCS / "comparing.md"
        write_atomic(comparing, comparing_page.page(comparing.read_text(encoding="utf-8"), compared))
    if (searched := load("search")) is not None:
        searching = DOCS / "searching.md"
        write_atomic(searching, searching_page.page(searching.read_text(encoding="utf-8"), searched))
    write_atomic(house.PAGE, house.page(house.PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
