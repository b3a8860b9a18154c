"""Drafts of several people: each has some by name, changes its own alone, and finds them again after a kill."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")


from compressor.errors import WrongUseError
from compressor.estimate import Estimate
from compressor.studio.access import Access, Role
from compressor.studio.app import studio_app
from compressor.studio.choice import Choice, Free
from compressor.studio.desk import Desk
from compressor.studio.drafting import shelf as shelves
from compressor.studio.drafting.draft import ConflictError
from compressor.studio.drafting.shelf import ForeignDraftError, NoDraftError, Shelf, distinct_people
from compressor.studio.whatif import Numbers
from compressor.target import Target
from workbench.visitors import HOST, Visitor

FREE = Free(widths={"conv1": (64, 32, 16)}, blocks=("layer1",), forms=("float32", "int8"))
NARROW, SHORT = Choice(widths={"conv1": 32}), Choice(drop=("layer1",), form="int8", epochs=3)


def _shelf(out, *people):
    return Shelf(out, "net", people or ("",), lambda data: Choice.from_json(data, FREE))


def test_everybody_has_a_draft_to_begin_with(tmp_path):
    """One each, empty, under a key that says whose it is; one person needs no name."""
    shelf = _shelf(tmp_path, "ada", "ben")
    assert [(draft.key, draft.person, draft.name) for draft in shelf.all()] == [
        ("ada.1", "ada", "Draft 1"),
        ("ben.1", "ben", "Draft 1"),
    ]
    assert [draft.key for draft in _shelf(tmp_path).all()] == ["1"]
    assert shelf.first("ben").key == "ben.1"
    assert shelf.first("who watches").key == "ada.1"


def test_drafts_are_found_again(tmp_path):
    """With names, choices and versions; drafts of other models and other people stay where they are."""
    shelf = _shelf(tmp_path, "ada", "ben")
    draft = shelf.add("ada", "  half the time ", NARROW)
    draft.edit(SHORT, draft.version)
    draft.rename("half", draft.version)
    for other in ("draft-000000000000-ada.7.jsonl", "draft-x.jsonl"):
        (tmp_path / other).write_text("{}\n")
    again = _shelf(tmp_path, "ada")
    assert [(each.name, each.choice, each.version) for each in again.all()] == [
        ("Draft 1", Choice(), 0),
        ("half", SHORT, 4),
    ]
    # A long journal that is written anew keeps the name.
    draft._compact()
    kept = _shelf(tmp_path, "ada").get(draft.key)
    assert (kept.name, kept.version, kept.choice, kept.can_undo) == ("half", 4, SHORT, True)


def test_a_draft_is_changed_by_its_own_person(tmp_path):
    """Another one's may be looked at; one that is gone is none."""
    shelf = _shelf(tmp_path, "ada", "ben")
    assert shelf.own("ada.1", "ada") is shelf.get("ada.1")
    with pytest.raises(ForeignDraftError, match="ada's"):
        shelf.own("ada.1", "ben")
    for key in ("", "7", "ada", "ada.9", "../ada.1", "cleo.1"):
        with pytest.raises(NoDraftError):
            shelf.get(key)


def test_a_deleted_draft_does_not_come_back(tmp_path):
    """The latest version alone is deleted, its key is not given again, and nobody is left without a draft."""
    shelf = _shelf(tmp_path)
    draft = shelf.first("")
    draft.edit(NARROW, 0)
    with pytest.raises(ConflictError):
        shelf.delete(draft, 0)
    shelf.delete(draft, 1)
    with pytest.raises(ConflictError):
        draft.edit(SHORT, 1)
    assert [(each.key, each.choice) for each in shelf.all()] == [("2", Choice())]
    assert list(tmp_path.glob("*.jsonl")) == []
    assert shelf.add("", "another", NARROW).key == "3"


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb", "\x1b[2J", None, 7, ["a"]])
def test_what_is_no_name_is_refused(tmp_path, name):
    """Names are short and printable: they stand in tables and terminals."""
    shelf = _shelf(tmp_path)
    for act in (lambda: shelf.add("", name, NARROW), lambda: shelf.first("").rename(name, 0)):
        with pytest.raises(ValueError, match="a draft's name"):
            act()
    assert len(shelf.all()) == 1
    assert shelf.first("").version == 0


def test_drafts_have_an_end(tmp_path, monkeypatch):
    """Whoever saves without end is told."""
    monkeypatch.setattr(shelves, "MOST_DRAFTS", 3)
    shelf = _shelf(tmp_path, "ada", "ben")
    shelf.add("ada", "two", NARROW)
    shelf.add("ada", "three", NARROW)
    with pytest.raises(ValueError, match="3 drafts are the most"):
        shelf.add("ada", "four", NARROW)
    shelf.add("ben", "two", NARROW)


@pytest.mark.parametrize("names", [["../x"], [""], ["a b"], ["x" * 33], ["ä"], ["ada", "Ada"], ["-x"]])
def test_what_is_no_person_is_refused(names):
    """Names of people become names of files, and are told apart on every system."""
    with pytest.raises(WrongUseError, match="--person"):
        distinct_people(names)
    assert distinct_people([]) == ("",)
    assert distinct_people(["ada", "ben-2"]) == ("ada", "ben-2")


class Costs:
    """What a model would cost, of a model that is not there: by the parameters alone."""

    free = FREE
    # Of sensitivities nothing is measured.
    items, done, total, revision = (), 0, 0, 0
    reference = Numbers(ms=2.0, parameters=1e6, macs=1e8, size_bytes=4e6, packed_bytes=3e6)

    def numbers(self, choice):
        part = 1 - 0.25 * len(choice.widths) - 0.5 * len(choice.drop)
        return Numbers(
            ms=2.0 * part, parameters=1e6 * part, macs=1e8 * part, size_bytes=4e6 * part, packed_bytes=3e6 * part
        )

    def sensitivities(self, criterion):
        return self

    def worth(self, name, width) -> float | None:
        return None

    def forecast(self, choice) -> Estimate | None:
        return None


def _visitor(desk, access, role=Role.EDITOR, person=""):
    visitor = Visitor(studio_app(desk, access, hosts=frozenset({HOST})))
    visitor.enters(access, role, person)
    return visitor


@pytest.fixture
def table(tiny_workload, tmp_path):
    """Ada, Ben and somebody who watches, at one model."""
    people = ("ada", "ben")
    desk, access = Desk(tiny_workload, "net", Target(), tmp_path, people=people), Access(people)
    desk.planning._ready = Costs(), _shelf(tmp_path, *people)
    return (*(_visitor(desk, access, person=person) for person in people), _visitor(desk, access, Role.VIEWER))


def test_people_work_beside_each_other(table):
    """Each edits a draft of one's own at the same time; what the other has can be looked at and copied, not changed."""
    ada, ben, watching = table
    assert ada.get("/draft").json()["draft"] == "ada.1"
    assert ada.post("/edit", {"draft": "ada.1", "version": 0, "choice": NARROW.to_json()}).status_code == 200
    assert ben.post("/edit", {"draft": "ben.1", "version": 0, "choice": SHORT.to_json()}).status_code == 200
    before = ben.get("/draft?draft=ada.1").json()
    assert before["choice"] == NARROW.to_json()
    for path in ("/edit", "/undo", "/rename", "/delete"):
        answer = ben.post(path, {"draft": "ada.1", "version": 1, "choice": SHORT.to_json(), "name": "mine"})
        assert answer.status_code == 403
        assert "ada's" in answer.text
    assert ada.get("/draft").json() == before
    copied = ben.post("/save", {"draft": "ada.1", "version": 1, "name": "like Ada's"}).json()
    assert (copied["draft"], copied["name"], copied["choice"]) == ("ben.2", "like Ada's", NARROW.to_json())
    assert 'fieldset class="plain-set" disabled' in ben.get("/part/plan?draft=ada.1").text
    assert 'fieldset class="plain-set" >' in ben.get("/part/plan?draft=ben.2").text
    # Who watches sees all of it, and saves nothing.
    assert watching.get("/draft?draft=ben.2").json()["choice"] == NARROW.to_json()
    assert watching.post("/save", {"draft": "ben.2", "version": 2, "name": "x"}).status_code == 403


def test_drafts_stand_side_by_side(table):
    """A row for each, with its numbers; before and after of the one that is open, layer by layer."""
    ada, ben, _ = table
    ada.post("/edit", {"draft": "ada.1", "version": 0, "choice": NARROW.to_json()})
    html = ben.get("/part/drafts?draft=ada.1").text
    assert html.count('scope="row"') == 1 + 2 + 1
    assert "1.5 ms" in html
    assert "75%" in html
    assert "Draft 1 (ada)" in html
    assert '<td class="n">64</td><td class="n"><b>32</b></td>' in html
    assert "before and after" not in ben.get("/part/drafts").text


def test_a_name_is_text_on_every_page(table):
    """11. A draft's name that is a script is shown as it is written."""
    ada, _, watching = table
    evil = "<img src=x onerror=alert(1)>\"'&"
    assert ada.post("/rename", {"draft": "ada.1", "version": 0, "name": evil}).json()["name"] == evil
    html = watching.get("/part/drafts?draft=ada.1").text
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_a_draft_that_is_gone_is_a_sentence(table):
    """A page that shows a deleted draft is told, and a key that is none is no path."""
    ada, *_ = table
    kept = ada.post("/save", {"draft": "ada.1", "version": 0, "name": "short-lived"}).json()
    assert ada.post("/delete", {"draft": kept["draft"], "version": kept["version"]}).json()["draft"] == "ada.1"
    for key in (kept["draft"], "../../x", "ada.1.jsonl", "%00"):
        assert ada.get(f"/draft?draft={key}").status_code == 404
        assert ada.get(f"/part/plan?draft={key}").status_code == 404
    assert ada.post("/edit", {"draft": kept["draft"], "version": 2, "choice": NARROW.to_json()}).status_code == 404
    assert ada.post("/run", {"draft": "nothing", "version": 0}).status_code == 404
