"""The benchmark of evaluations: trainings that are cut, and its table."""

from benchmarks.documents import evaluations_page
from benchmarks.judging.evaluations import RECIPES, shortened, stored
from compressor.recipe.recipe import Recipe
from compressor.stages import Distill, Polynomial, Quantize, SparsifyWeights
from compressor.storage import write_json


def test_every_training_is_cut_and_nothing_else_is_changed() -> None:
    assert shortened(Quantize(), 2) == Quantize()
    assert shortened(Distill(epochs=8, temperature=2.0), 2) == Distill(epochs=2, tail_epochs=0, temperature=2.0)
    sparse = SparsifyWeights(sparsity=0.8, schedule=Polynomial(epochs=6, initial=0.5))
    assert shortened(sparse, 3) == SparsifyWeights(
        sparsity=0.8, schedule=Polynomial(epochs=3, tail_epochs=0, initial=0.5)
    )
    assert shortened(SparsifyWeights(sparsity=0.8), 3) == SparsifyWeights(sparsity=0.8)
    assert all(Recipe.load(name).stages for name in RECIPES)


def test_rows_of_other_settings_are_not_kept(tmp_path) -> None:
    """What is stored stays beside new rows only where epochs, images, severity and test images are the same."""
    made = {"epochs": 2, "images": 100, "severity": 3, "test_images": 50}
    path = tmp_path / "evaluations.json"
    assert stored(path, made) == {}
    write_json(path, {**made, "recipes": {"int8": {"score": 1}}})
    assert stored(path, made) == {"int8": {"score": 1}}
    assert stored(path, {**made, "epochs": 3}) == {}


def test_the_table_tells_changes_beyond_chance() -> None:
    """A question without an answer leaves its cell empty."""

    def answer(what: str, worse: tuple[float, float, float]) -> dict:
        value, low, high = worse
        return {
            "what": what,
            "reference": {"value": 0.5, "low": 0.4, "high": 0.6},
            "worse": {"value": value, "low": low, "high": high},
        }

    asked = [answer("gap", (0.02, 0.01, 0.03)), answer("noise", (0.0, -0.01, 0.01))]
    row = {"score": {"value": 0.9}, "answers": asked, "stages": ["Quantize(bits=8)"]}
    result = {
        "test_images": 5000,
        "epochs": 2,
        "images": 10_000,
        "recipes": {"int8": row, "int4": {**row, "answers": asked[:1]}},
    }
    trained = {**result, "recipes": {"int8": {**row, "stages": ["Distill(epochs=2)"]}}}
    assert "cut to 2 epochs over 10,000 images" in "\n".join(evaluations_page.section(trained))
    text = evaluations_page.page("before\n<!-- results -->\nstale words\n<!-- /results -->\nafter\n", result)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale words" not in text
    assert "No recipe here trains." in text
    assert "| none |  | 50.00 | 50.00 |" in text
    assert "| `int8` | 90.00 | **+2.00 [1.00, 3.00]** | +0.00 [-1.00, 1.00] |" in text
    assert "| `int4` | 90.00 | **+2.00 [1.00, 3.00]** |  |" in text
