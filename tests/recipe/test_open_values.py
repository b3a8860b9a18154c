"""Values that a recipe leaves open: refused with the way to give them, and given."""

import pytest

from compressor.errors import RecipeError
from compressor.recipe.recipe import Recipe

SMALL = "workbench.tiny:TinyResNet"
OPEN = "name: mine\nstages:\n  - distill: {epochs: 2}\n  - distill: {student: '<my_models:small>', epochs: 1}\n"


def refused(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        Recipe.loads(text, overrides=overrides)
    return error.value.errors


def test_what_is_left_open_is_refused_with_its_line_and_the_way_out() -> None:
    """A student by its own option, anything else by its path, in a list and in a sweep too; not what only looks so."""
    (student,) = refused(OPEN)
    assert student == (
        "recipe.yaml:4: stages.1.distill.student is left open, <my_models:small>, and nothing goes in its place; give "
        "the function of yours that makes it with --student my_models:small"
    )
    (data,) = refused("stages:\n- quantize\n- fine_tune: {data: <my_data:new>}\n")
    assert "recipe.yaml:3: stages.1.fine_tune.data is left open, <my_data:new>" in data
    assert data.endswith("give it with --set stages.1.fine_tune.data=...")
    (layer,) = refused("stages: [fine_tune: {freeze: ['layer1.*', <the first>]}]")
    assert "stages.0.fine_tune.freeze.1 is left open" in layer
    (swept,) = refused("stages: [fine_tune: {held: {sweep: [runs/a, <run>]}}]")
    assert "<run>" in swept
    assert Recipe.loads("description: <mine>\nstages: [fine_tune: {held: '<>'}]\n").description == "<mine>"


def test_a_value_that_is_given_is_no_longer_open() -> None:
    """By its path, which says where it stands, or as the student, which goes where one is asked for."""
    assert Recipe.loads(OPEN, overrides=[f"stages.1.student={SMALL}"]).stages[1].student == SMALL
    (wrong,) = refused(OPEN, "stages.1.student=<again>")
    assert wrong.startswith("--set stages.1.student=<again>: stages.1.distill.student is left open, <again>")


@pytest.fixture
def mine(tmp_path):
    def written(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return written


def test_a_student_goes_where_it_is_asked_for_or_into_the_first_distill(mine) -> None:
    """In every form in which a stage is written, and in every recipe that sweeps make."""

    def students(text: str) -> list[object]:
        return [getattr(stage, "student", None) for stage in Recipe.load(mine(text), student=SMALL).stages]

    assert students(OPEN) == [None, SMALL]
    assert students("stages: [quantize, distill, distill]") == [None, SMALL, None]
    assert students("stages:\n- distill:\n- quantize\n") == [SMALL, None]
    assert students("stages: [distill: {student: 'my_models:other', epochs: 3}]") == [SMALL]
    swept = Recipe.load_all(mine("stages: [distill: {student: <s>, epochs: {sweep: [1, 2]}}]"), student=SMALL)
    assert [(recipe.stages[0].epochs, recipe.stages[0].student) for recipe in swept] == [(1, SMALL), (2, SMALL)]
    for asking, text in ((True, OPEN), (False, "stages: [distill]"), (False, "description: <student>")):
        assert Recipe.asks_for_student(mine(text)) is asking


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [quantize]", "mine has quantize; take student_int8, or write one with distill"),
        ("name: other", "other has no stages"),
        ("stages: 3", "mine has no stages"),
        ("stages: [distill: 3]", "--student is one of the settings of distill, and mine has 3 there"),
    ],
)
def test_a_student_that_nothing_teaches_is_refused(mine, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(mine(text), student=SMALL)
