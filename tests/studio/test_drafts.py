"""Drafts: what may be chosen, the recipe that comes of it, and edits that survive a kill and tell two pages apart."""

import pytest

pytest.importorskip("starlette")

from compressor.recipe.recipe import Recipe
from compressor.studio.choice import Choice, Free
from compressor.studio.drafting.draft import ConflictError, Draft
from compressor.target import Target

FREE = Free(
    widths={"conv1": (64, 48, 32, 16), "layer1.0.conv1": (64, 32)},
    blocks=("layer1.0", "layer1.1"),
    inside={"layer1.0": ("layer1.0.conv1",), "layer1.1": ()},
)


def _read(data):
    return Choice.from_json(data, FREE)


def _draft(folder):
    return Draft(folder / "draft.jsonl", _read)


ONE, TWO, THREE = Choice(widths={"conv1": 32}), Choice(drop=("layer1.1",)), Choice(form="int8", epochs=3)


def test_equal_choices_are_equal_texts():
    """In whatever order they were clicked; what is whole is left out."""
    one = {"widths": {"layer1.0.conv1": 32, "conv1": 64}, "drop": ["layer1.1", "layer1.0"], "form": "int8", "epochs": 2}
    found = _read(one)
    assert found.to_json() == {
        **one,
        "widths": {"layer1.0.conv1": 32},
        "drop": ["layer1.0", "layer1.1"],
        "criterion": "taylor",
        "bits": {},
    }
    assert _read(found.to_json()) == found


@pytest.mark.parametrize(
    "change",
    [
        {"widths": {"conv9": 3}},
        {"widths": {"conv1": 0}},
        {"widths": {"conv1": 65}},
        {"widths": {"conv1": True}},
        {"widths": {"conv1": "16"}},
        {"widths": [["conv1", 3]]},
        {"drop": ["layer9"]},
        {"drop": ["layer1.0", "layer1.0"]},
        {"drop": "layer1.0"},
        {"drop": [{}]},
        {"form": "int4"},
        {"form": None},
        {"epochs": -1},
        {"epochs": 1001},
        {"epochs": 2.5},
        {"more": 1},
    ],
)
def test_what_is_not_free_is_refused(change):
    """Whatever a page, or somebody in its place, sends."""
    with pytest.raises(ValueError, match=r"width|block|form|epochs"):
        _read({**Choice().to_json(), **change})
    with pytest.raises(ValueError, match="has widths"):
        _read([])


def test_the_recipe_says_what_was_chosen():
    """Structure, recovery, eight bits; widths inside of a block that goes are left out; nothing is no recipe."""
    choice = Choice(widths={"conv1": 32, "layer1.0.conv1": 32}, drop=("layer1.0",), form="int8", epochs=5)
    text = choice.recipe(FREE, Target(threads=2)).dump()
    recipe = Recipe.loads(text)
    structure, recovery, eight_bits = recipe.stages
    assert (structure.widths, structure.drop) == (("conv1=32",), ("layer1.0",))
    assert recovery.epochs == 5
    assert type(eight_bits).__name__ == "Quantize"
    assert recipe.threads == 2
    assert Choice(epochs=9).recipe(FREE, Target()) is None
    assert len(Choice(drop=("layer1.0",), epochs=0).recipe(FREE, Target()).stages) == 1


def test_steps_are_taken_back_and_once_more(tmp_path):
    """Undo and redo walk over the edits; an edit in the middle ends what was ahead."""
    draft = _draft(tmp_path)
    for number, choice in enumerate((ONE, TWO, THREE)):
        draft.edit(choice, number)
    draft.undo(3)
    draft.undo(4)
    assert draft.choice == ONE
    draft.redo(5)
    assert draft.choice == TWO
    draft.edit(ONE, 6)
    assert (draft.choice, draft.can_redo) == (ONE, False)
    for version in range(7, 12):
        draft.undo(version)
    assert (draft.choice, draft.can_undo, draft.version) == (Choice(), False, 12)


def test_the_later_of_two_pages_is_told(tmp_path):
    """Both saw version 0: the first edit counts, and the second one, or one sent again, is refused."""
    draft = _draft(tmp_path)
    draft.edit(ONE, 0)
    for act in (lambda: draft.edit(TWO, 0), lambda: draft.undo(0), lambda: draft.edit(ONE, 7)):
        with pytest.raises(ConflictError, match="version 1 is the latest"):
            act()
    assert (draft.choice, draft.version) == (ONE, 1)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_kill_in_the_middle_of_an_edit_loses_that_edit_alone(tmp_path, cut):
    """However much of the last line got to the disk: what was there before stands, and the next edit counts."""
    draft = _draft(tmp_path)
    draft.edit(ONE, 0)
    draft.edit(TWO, 1)
    path = tmp_path / "draft.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = _draft(tmp_path)
    assert (again.choice, again.version) == (ONE, 1)
    again.edit(THREE, 1)
    last = _draft(tmp_path)
    assert (last.choice, last.version) == (THREE, 2)
    last.undo(2)
    assert last.choice == ONE


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"null", b'{"version": 9}', b"\xff\xfe", b'{"version":"x","do":"undo"}']
)
def test_a_damaged_line_is_no_edit(tmp_path, line):
    """Nor is one of another model; the others count."""
    draft = _draft(tmp_path)
    draft.edit(ONE, 0)
    path = tmp_path / "draft.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert _draft(tmp_path).choice == ONE


def test_a_long_journal_is_written_anew(tmp_path, monkeypatch):
    """With the steps that can be undone, and no more lines than those; versions go on."""
    monkeypatch.setattr("compressor.studio.drafting.draft._MOST_LINES", 10)
    monkeypatch.setattr("compressor.studio.drafting.draft._MOST_STEPS", 6)
    draft = _draft(tmp_path)
    for number in range(40):
        draft.edit((ONE, TWO)[number % 2], number)
    draft.undo(40)
    assert (tmp_path / "draft.jsonl").read_bytes().count(b"\n") <= 11
    again = _draft(tmp_path)
    assert (again.version, again.choice, again.can_redo) == (41, ONE, True)
