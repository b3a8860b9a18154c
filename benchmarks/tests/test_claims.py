"""Claims are the stored results, the texts say what the claims say, and a missed goal has a reason."""

import json
from pathlib import Path

import pytest

from benchmarks import claims as command
from benchmarks import stored
from benchmarks.claims import FILE, Claims, check, main, read, rebuilt, table, text_of
from benchmarks.stored import values_at
from workbench import ROOT

RESULT = {
    "rows": [
        {"arm": "fp32", "size": 300, "seconds": 2.0},
        {"arm": "ours", "size": 100, "speedup": {"value": 2.5, "low": 2.4, "high": 2.6}, "seconds": 4.0},
    ],
    "drop": {"value": 0.012, "low": 0.01, "high": 0.02},
}
SPEED = {
    "id": "speed",
    "says": "It is so many times as fast.",
    "unit": "x",
    "command": "make bench",
    "result": "tiny.json",
    "path": ["rows", {"arm": "ours"}, "speedup"],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(RESULT), encoding="utf-8")
    return tmp_path


def claims_of(results: Path, *entries: dict, exemptions: tuple = ()) -> Claims:
    """Rebuilt claims from the fields that differ from those of the speed."""
    claims = Claims.model_validate({"claims": [{**SPEED, **entry} for entry in entries], "exemptions": exemptions})
    return claims.model_copy(update={"claims": [rebuilt(claim, results) for claim in claims.claims]})


def document(root: Path, text: str) -> None:
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs" / "speed.md").write_text(text, encoding="utf-8")


STATED = {"stated_in": [{"file": "docs/speed.md", "text": "runs {value:.1f} times as fast"}]}


def test_the_repository_claims_what_is_stored() -> None:
    """claims.json is what `make claims` makes of the stored results, and no text says anything else."""
    claims = read(FILE)
    made = claims.model_copy(update={"claims": [rebuilt(claim, stored.RESULTS) for claim in claims.claims]})
    assert FILE.read_text(encoding="utf-8") == text_of(made), "run make claims"
    assert check(made, ROOT) == []
    assert all(line.strip() for line in table(made.claims))


def test_other_tools_find_every_id_and_whether_it_is_met() -> None:
    """The file is an object with a list of claims, each with its id and with met: true, false or null."""
    claims = json.loads(FILE.read_text(encoding="utf-8"))["claims"]
    assert all(isinstance(claim["id"], str) for claim in claims)
    assert {claim["met"] for claim in claims} <= {True, False, None}


def test_a_value_is_the_stored_one(results: Path) -> None:
    """A speed-up of 2.5 with its interval, a size of a third, a drop of 1.2 points, and 3 s in the median."""
    sizes = {"path": ["rows", {"arm": "ours"}, "size"], "over": ["rows", 0, "size"]}
    speed, size, drop, median = claims_of(
        results,
        {},
        {**sizes, "id": "size", "minus": 1, "times": 300},
        {"id": "drop", "path": ["drop"], "times": 100},
        {"id": "seconds", "path": ["rows", {"each": {}}, "seconds"], "take": "median"},
    ).claims
    assert (speed.value, speed.interval) == (2.5, [2.4, 2.6])
    assert size.value == pytest.approx(-200)
    assert (drop.value, drop.interval) == (1.2, [1.0, 2.0])
    assert (median.value, median.interval) == (3.0, None)


def test_paths_lead_to_one_value_or_to_several() -> None:
    """Keys, positions and fields name one item; 'each' and 'named' pick all that match, pass over what lacks a key."""
    assert values_at(RESULT, ["rows", -1, "arm"]) == ["ours"]
    assert values_at(RESULT, ["rows", {"each": {}}, "speedup", "value"]) == [2.5]
    assert values_at(RESULT, [{"named": "^dr"}, "low"]) == [0.01]
    assert values_at(RESULT, ["rows", {"each": {"arm": "fp32"}}, "size"]) == [300]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": ["rows", {"arm": "peer"}, "speedup"]}, r"speed: tiny.json: .* ends before step 2, \{'arm': 'peer'\}"),
        ({"path": ["networks"]}, "ends before step 1, 'networks': there are rows, drop"),
        ({"path": ["rows", {}, "size"]}, r"2 items match \{\}"),
        ({"path": ["rows", {"each": {}}, "size"]}, "leads to 2 values; say with 'take'"),
        ({"result": "gone.json"}, "speed: gone.json: there is no such result"),
        ({"result": None}, "neither a stored result nor a value"),
    ],
)
def test_what_is_not_stored_is_named(results: Path, entry: dict, message: str) -> None:
    """A path that leads nowhere, or to several values, says which claim it is and how far it led."""
    with pytest.raises(ValueError, match=message):
        claims_of(results, entry)


def test_a_misspelled_field_is_named(tmp_path: Path) -> None:
    """What the file cannot mean is refused with the claim and the field."""
    path = tmp_path / "claims.json"
    path.write_text(json.dumps({"claims": [{**SPEED, "gaol": 2}], "exemptions": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="speed: gaol: Extra inputs"):
        read(path)


def test_a_text_changed_by_hand_fails(results: Path) -> None:
    """2.5 is stored: the text that says 2.5 passes, one that says 2.7 fails, and one that says nothing fails."""
    claims = claims_of(results, STATED)
    document(results, "It runs 2.5\ntimes as fast.")
    assert check(claims, results) == []
    document(results, "It runs 2.7 times as fast.")
    (other, alone) = check(claims, results)
    assert "says 'runs 2.7 times as fast', the stored result 'runs 2.5 times as fast'" in other
    assert "states a figure that no claim holds" in alone
    document(results, "It is fast.")
    assert "does not say 'runs 2.5 times as fast'" in check(claims, results)[0]


def test_a_figure_in_words_holds_for_some_values(results: Path) -> None:
    """'Twice as fast' is true of 1.9 to 2.3, and 2.5 is stored."""
    document(results, "It is twice as fast.")
    statement = {"file": "docs/speed.md", "text": "twice as fast", "between": [1.9, 2.3]}
    (fault,) = check(claims_of(results, {"stated_in": [statement]}), results)
    assert "true from 1.9 to 2.3; stored is 2.5" in fault
    assert check(claims_of(results, {"stated_in": [{**statement, "between": [1.9, 2.6]}]}), results) == []


def test_a_figure_that_is_no_claim_is_found(results: Path) -> None:
    """3.7x belongs to nothing; code and written tables are left out; an exemption covers it, until it is gone."""
    table = "<!-- files -->\n9.9x\n<!-- /files -->\n"
    document(results, f"`Latency(0.5)` gives 3.7x more.\n```python\nwait(5)  # 5 seconds\n```\n{table}")
    (fault,) = check(claims_of(results, {}), results)
    assert "gives 3.7x more" in fault
    exemption = {"file": "docs/speed.md", "text": "gives 3.7x more", "why": "an example"}
    exempted = claims_of(results, {}, exemptions=(exemption,))
    assert check(exempted, results) == []
    document(results, "It gives more.")
    assert "nothing reads 'gives 3.7x more' any more" in check(exempted, results)[0]


@pytest.mark.parametrize("figure", ["7 %", "0.5 points", "12 KiB", "3 ms", "30 dB", "4.5 times", "5 minutes", "Half"])
def test_units_make_figures(results: Path, figure: str) -> None:
    """A number with a unit, or a figure in words, is a figure wherever it stands."""
    document(results, f"{figure} is what it takes in 8 bits with 16 channels.")
    assert len(check(claims_of(results, {}), results)) == 1


def test_a_missed_goal_is_printed_with_its_reason(results: Path) -> None:
    """A goal of 3 against 2.5 is missed: it is printed with the reason, numbers of other claims filled in."""
    goal = {"goal": {"at_least": 3}}
    missed = claims_of(results, {**goal, "reason": "Bound by {bound:.2f}x."}, {"id": "bound", "goal": {"at_most": 3}})
    assert [claim.met for claim in missed.claims] == [False, True]
    assert table(missed.claims) == ["speed: 2.5 x, goal at least 3", "    Bound by 2.50x."]
    assert check(missed, results) == []
    (fault,) = check(claims_of(results, goal), results)
    assert fault == "speed: misses its goal (at least 3), and no reason is given"


def test_a_goal_may_be_judged_by_an_end_of_the_interval(results: Path) -> None:
    """The lower end is 2.4: at least 2.45 is met by the value and not by it."""
    by_value, by_low = claims_of(
        results, {"goal": {"at_least": 2.45}}, {"id": "low", "goal": {"at_least": 2.45, "by": "low"}}
    ).claims
    assert (by_value.met, by_low.met) == (True, False)


def test_a_value_without_a_stored_result_says_where_it_comes_from(results: Path) -> None:
    """A typed value needs a note."""
    typed = {"result": None, "path": None, "value": 4.5}
    (fault,) = check(claims_of(results, typed), results)
    assert "no note says where its value comes from" in fault
    assert check(claims_of(results, {**typed, "note": "Measured by hand."}), results) == []


def test_ids_are_given_once(results: Path) -> None:
    """Two claims with one id are a mistake."""
    assert check(claims_of(results, {}, {}), results) == ["speed: there are 2 claims with this id"]


def test_the_command_writes_what_is_stored_and_fails_on_texts(results: Path, monkeypatch, capsys) -> None:
    """Values are filled in and shown; a text with another number ends the command with 1 and is named."""
    path = results / "claims.json"
    path.write_text(json.dumps({"claims": [{**SPEED, **STATED}], "exemptions": []}), encoding="utf-8")
    document(results, "It runs 2.5 times as fast.")
    for name, value in (("FILE", path), ("ROOT", results)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(stored, "RESULTS", results)
    main()
    assert "speed: None becomes 2.5" in capsys.readouterr().out
    assert read(path).claims[0].value == 2.5
    document(results, "It runs 2.7 times as fast.")
    with pytest.raises(SystemExit, match=r"the stored result 'runs 2\.5 times as fast'"):
        main()


def test_a_figure_without_a_goal_holds_where_its_result_is_stored() -> None:
    """The file says `met` of every claim: without a goal it is true for stored results and false for typed ones."""
    plain = [claim for claim in read(FILE).claims if claim.goal is None]
    assert {claim.met for claim in plain} == {True, False}
    assert all(claim.met is (claim.result is not None) for claim in plain)
