"""What a choice costs, as the page shows it: held against the models that come of it, and asked for by requests."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("httpx")


from compressor.errors import BudgetError
from compressor.files.export import export_onnx
from compressor.inspection.inspection import look
from compressor.kept_state import private_copy
from compressor.latency.table import LatencyTable
from compressor.measuring.macs import count_macs
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
from compressor.studio import planning
from compressor.studio.access import Access, Role
from compressor.studio.app import studio_app
from compressor.studio.choice import Choice
from compressor.studio.desk import Desk
from compressor.studio.foresight import sensitivities
from compressor.studio.outcomes.program import program
from compressor.studio.planning import NotReadyError
from compressor.studio.whatif import WhatIf
from compressor.target import Isa, Target
from workbench.tiny import TinyResNet, make_workload, synthetic_images
from workbench.visitors import HOST, Visitor


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A small residual CNN on the table, with all that planning needs."""
    torch.manual_seed(0)
    model = TinyResNet(32)
    with torch.no_grad():
        # It answers every class, so that answers change with its channels.
        model.linear.bias -= model(synthetic_images(256, seed=1)[0]).mean(dim=0)
    workload = make_workload(model.eval())
    target = Target(isa=Isa.X86_AVX2)
    desk = Desk(workload, "small", target, tmp_path_factory.mktemp("studio"))
    looked = look(workload, target=target, seconds=0.05)
    desk.inspection = looked.inspection
    with pytest.MonkeyPatch.context() as patch:
        # It only fills the latency table ahead of time.
        patch.setattr(WhatIf, "warm", lambda _: None)
        desk.planning.begin(looked, export_onnx(workload.model, workload).onnx_bytes)
        assert desk.planning.settle(300)
    assert not desk.planning.unmeasured
    yield desk
    desk.planning.end()


@pytest.fixture(autouse=True)
def settled(desk):
    """What the test before it woke is measured to its end: it works on the same desk, beside the page."""
    assert desk.planning.settle(60)


CHOICES = [
    Choice(widths={"layer1.0.conv1": 16}),
    Choice(widths={"conv1": 16, "layer2.1.conv1": 24}),
    Choice(drop=("layer2.1",)),
    Choice(widths={"conv1": 24, "layer1.0.conv1": 8}, drop=("layer2.2",)),
]


@pytest.mark.parametrize("choice", [CHOICES[1], CHOICES[3]], ids=["widths", "widths and a block"])
def test_predictions_are_those_of_the_model_that_comes_of_it(desk, choice):
    """The recipe's first stage is applied, exported and counted: parameters and products are equal, bytes near."""
    whatif, workload = desk.planning.whatif, desk.workload
    numbers = whatif.numbers(choice)
    stage = choice.recipe(whatif.free, desk.target).stages[0]
    model = stage.apply(private_copy(workload.model), workload, Context(progress=False, target=desk.target))
    assert numbers.parameters == sum(parameter.numel() for parameter in model.parameters())
    file = export_onnx(model, workload).onnx_bytes
    assert numbers.macs == count_macs(file, workload.example_inputs)
    assert numbers.size_bytes == pytest.approx(len(file), rel=0.1)
    assert numbers.ms < whatif.reference.ms


def test_eight_bits_are_smaller(desk):
    """The file in 8 bits has less than half of the bytes, and its products are as many."""
    numbers = desk.planning.whatif.numbers(Choice(form="int8"))
    assert numbers.size_bytes < 0.5 * desk.planning.whatif.reference.size_bytes
    assert numbers.macs == desk.planning.whatif.reference.macs


def test_a_choice_is_judged_on_validation_data(desk):
    """The whole model loses nothing; without most of its channels an interval says what it loses."""
    whole = desk.planning.whatif.judged(Choice())
    assert (whole.drop.value, whole.drop.low, whole.drop.high) == (0, 0, 0)
    weights = [value.clone() for value in desk.planning.whatif._model.state_dict().values()]
    judged = desk.planning.whatif.judged(Choice(widths={"conv1": 8, "layer2.0.conv2": 8}, drop=("layer1.0",)))
    assert judged.drop.low <= judged.drop.value <= judged.drop.high
    assert judged.drop.low < judged.drop.high
    after = desk.planning.whatif._model.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))


def test_the_knapsack_keeps_the_target(desk):
    """At most 80 % of the time by the same prediction; what cannot be reached is an error."""
    whatif = desk.planning.whatif
    found = whatif.within(0.8, Choice(epochs=3))
    assert whatif.numbers(found).ms <= 0.8 * whatif.reference.ms
    assert found.epochs == 3
    with pytest.raises(BudgetError):
        whatif.within(0.0001, Choice())


def _visitor(desk, role=Role.EDITOR):
    access = Access()
    visitor = Visitor(studio_app(desk, access, hosts=frozenset({HOST})))
    visitor.enters(access, role)
    return visitor


def test_an_edit_is_kept_and_taken_back(desk):
    """By requests, as the page makes them: numbers and recipe come back, a later page is told, undo undoes."""
    browser = _visitor(desk)
    version = browser.get("/draft").json()["version"]
    choice = CHOICES[0].to_json()
    kept = browser.post("/edit", {"draft": "1", "version": version, "choice": choice}).json()
    assert kept["choice"] == choice
    assert "layer1.0.conv1=16" in kept["recipe"]
    late = _visitor(desk).post("/edit", {"draft": "1", "version": version, "choice": CHOICES[2].to_json()})
    assert late.status_code == 409
    assert "somebody else" in late.text
    again = browser.post("/edit", {"draft": "1", "version": version, "choice": choice})
    assert again.status_code == 409
    undone = browser.post("/undo", {"draft": "1", "version": version + 1}).json()
    assert undone["choice"] == Choice().to_json()
    assert undone["redo"] is True


def test_what_did_not_change_is_not_rendered_again(desk, monkeypatch):
    """The draft and its controls are made once for a version, and again when it is judged, and for a viewer."""
    made = []
    rendered = planning.render
    monkeypatch.setattr(planning, "render", lambda name, **values: made.append(name) or rendered(name, **values))
    draft, browser = desk.planning.shelf.first(""), _visitor(desk)
    desk.planning._judged[draft.key] = draft.version, None
    first = [browser.get(path).text for path in ("/draft", "/part/plan")]
    made.clear()
    assert [browser.get(path).text for path in ("/draft", "/part/plan")] == first
    assert made == []
    desk.planning._judged.pop(draft.key)
    assert [browser.get(path).text for path in ("/draft", "/part/plan")] != first
    assert made == ["tiles", "plan"]
    assert _visitor(desk, Role.VIEWER).get("/part/plan").text != first[1]
    desk.planning.wake()
    assert desk.planning.settle(60)


def test_what_the_page_runs_is_what_the_command_line_runs(desk, monkeypatch):
    """What was chosen, as the file to take away: the same text as on the page, the same stages, the same program."""
    monkeypatch.setattr(desk.runs, "_start", lambda _: None)
    browser, choice = _visitor(desk), replace(CHOICES[3], epochs=0)
    version = browser.get("/draft").json()["version"]
    shown = browser.post("/edit", {"draft": "1", "version": version, "choice": choice.to_json()}).json()
    name = browser.post("/run", {"draft": "1", "version": version + 1}).json()["run"]
    taken = browser.get(f"/take/{name}/recipe.yaml").text
    assert taken == shown["recipe"]
    words = shlex.split(desk.runs.page()["runs"][0]["command"])
    assert words[:2] == ["compressor", "run"]
    assert words[3:5] == ["--workload", "small"]
    loaded = Recipe.load(words[2])
    assert loaded == choice.recipe(desk.planning.whatif.free, desk.target)
    assert loaded.dump() == taken
    # The program beside it asks for the same stages; that equal ones give equal bytes a slow test of the runs shows.
    assert words[2] == str(desk.runs.file(name, "recipe.yaml")[0])
    assert browser.get(f"/take/{name}/run.py").text == program(
        loaded, "small", str(Path(words[2]).parent / f"{name}-again")
    )
    browser.post("/undo", {"draft": "1", "version": version + 1})
    assert desk.planning.settle(60)


def test_trying_keeps_nothing(desk):
    """A slider on its way shows numbers, and the draft stays as it is."""
    browser = _visitor(desk)
    before = browser.get("/draft").json()
    tried = browser.post("/try", {"choice": CHOICES[2].to_json()})
    assert "milliseconds a call" in tried.json()["tiles"]
    assert browser.get("/draft").json()["version"] == before["version"]


def test_a_target_is_chosen_by_request(desk):
    """The knapsack's choice becomes the draft; one out of reach is a sentence."""
    browser = _visitor(desk)
    version = browser.get("/draft").json()["version"]
    chosen = browser.post("/choose", {"draft": "1", "version": version, "percent": 80})
    assert chosen.status_code == 200
    assert "set_structure" in chosen.json()["recipe"]
    assert browser.post("/choose", {"draft": "1", "version": version + 1, "percent": 1}).status_code == 422
    browser.post("/undo", {"draft": "1", "version": version + 1})


@pytest.mark.parametrize("path", ["/try", "/edit", "/undo", "/redo", "/choose", "/save", "/rename", "/delete"])
def test_who_watches_changes_nothing(desk, path):
    """15. The server refuses, whatever the page of a viewer sends."""
    browser = _visitor(desk, Role.VIEWER)
    before = browser.get("/draft").json()
    given = {"draft": "1", "version": before["version"], "choice": CHOICES[0].to_json(), "percent": 80}
    assert browser.post(path, given).status_code == 403
    assert browser.get("/draft").json() == before
    assert 'fieldset class="plain-set" disabled' in browser.get("/part/plan").text


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": "1"},
        {"version": True},
        {"draft": 1, "version": 0},
        {"draft": "1", "version": 10**30},
        [],
        3,
        None,
    ],
)
@pytest.mark.parametrize("path", ["/edit", "/choose"])
def test_what_is_no_edit_is_refused(desk, path, data):
    """With a sentence, and no change; never an error of the server's own."""
    browser = _visitor(desk)
    before = browser.get("/draft").json()["version"]
    assert browser.post(path, data).status_code in {400, 409}
    assert browser.get("/draft").json()["version"] == before


def test_the_page_shows_every_control(desk):
    """A slider for each free width, a switch for each free block, under names that a screen reader reads."""
    html = _visitor(desk).get("/part/plan").text
    free = desk.planning.whatif.free
    assert html.count('type="range"') == len(free.widths) > 3
    assert html.count("data-block=") == len(free.blocks) > 1
    assert html.count("aria-valuetext") == len(free.widths)


def test_before_anything_is_known_there_is_nothing_to_edit(tiny_workload, tmp_path):
    """Requests are answered by a sentence, and the page waits."""
    browser = _visitor(Desk(tiny_workload, "tiny", Target(), tmp_path))
    assert browser.post("/edit", {"version": 0, "choice": Choice().to_json()}).status_code == 503
    assert "Finding out" in browser.get("/part/plan").text


def test_a_slider_waits_for_no_measurement(desk, monkeypatch):
    """Numbers are there at once, roughly, where nothing was timed yet; they are timed beside, and then they stand."""
    whatif, choice = desk.planning.whatif, Choice(widths={"conv1": 8, "layer2.0.conv2": 24})
    with monkeypatch.context() as patch:
        patch.setattr(LatencyTable, "_measure", lambda *_: pytest.fail("measured"))
        patch.setattr(whatif._table, "_entries", {})
        first = whatif.numbers(choice)
        assert first.rough
        assert 0 < first.ms < whatif.reference.ms
    desk.planning.wake()
    assert desk.planning.settle(60)
    assert whatif.is_timed
    assert not whatif.numbers(choice).rough


def test_a_drop_is_foretold_at_once_and_measured_where_one_lets_go(desk):
    """The forecast stands on the tile of what is tried, with its interval; the kept draft shows what was measured."""
    whatif, browser = desk.planning.whatif, _visitor(desk)
    told = whatif.forecast(CHOICES[3])
    assert told.low < told.value < told.high
    tried = browser.post("/try", {"choice": CHOICES[3].to_json()}).json()["tiles"]
    assert "foretold (90 %)" in tried
    assert "no run of this model has shown yet" in tried
    version = browser.get("/draft").json()["version"]
    browser.post("/edit", {"draft": "1", "version": version, "choice": CHOICES[3].to_json()})
    assert desk.planning.settle(60)
    assert ", measured" in browser.get("/draft").json()["tiles"]
    browser.post("/undo", {"draft": "1", "version": version + 1})


def test_what_was_measured_is_not_measured_again(desk, monkeypatch):
    """A studio that begins anew reads it; with other weights all of it is measured anew."""
    whatif = desk.planning.whatif
    known = whatif.sensitivities("taylor")
    assert known.done == known.total > 40

    def again():
        monkeypatch.setattr(whatif, "_sensitivities", {})
        return whatif.sensitivities("taylor")

    read = again()
    read.step()
    assert read.done == known.done
    state = whatif.state(CHOICES[3])
    assert read.loss(state) == pytest.approx(known.loss(state))
    assert read.forecast.drop(0.3) == known.forecast.drop(0.3)
    weight = whatif._model.get_submodule("linear").weight
    with torch.no_grad():
        weight.mul_(2)
        other = again()
        other.step()
        weight.div_(2)
    assert other.done == 0


def test_measuring_pauses_while_something_is_timed(desk, monkeypatch):
    """Before every batch, so that a run's times are its own."""
    known, batches = desk.planning.whatif.sensitivities("taylor"), []

    def between(items):
        for item in items:
            batches.append(item)
            yield item

    monkeypatch.setattr(sensitivities, "between", between)
    desk.planning.whatif.judged(CHOICES[0])
    assert len(batches) == len(known._data)
    batches.clear()
    known._losses._known.clear()
    known._single(known._asked[1])
    assert len(batches) == len(known._losses._data)


def test_a_target_waits_for_what_parts_are_worth(desk, monkeypatch):
    """That it is not known yet is another answer than that nothing is within reach."""
    monkeypatch.setattr(desk.planning.whatif, "_sensitivities", {})
    with pytest.raises(NotReadyError, match="still being measured; wait"):
        desk.planning.within(50, Choice())


def test_what_is_packed_is_told(desk):
    """The file as it is packs to less than its bytes, and half of it to about half of that."""
    whatif = desk.planning.whatif
    assert 0 < whatif.reference.packed_bytes < whatif.reference.size_bytes
    smaller = whatif.numbers(CHOICES[3])
    assert smaller.packed_bytes / whatif.reference.packed_bytes == pytest.approx(
        smaller.size_bytes / whatif.reference.size_bytes
    )


def test_bits_of_a_layer_change_bytes_and_float_changes_kernels(desk):
    """4 bits save half a byte a weight, float adds three and runs in float32; other layers and the float form stay."""
    whatif, layer = desk.planning.whatif, "layer2.0.conv1"
    assert layer in whatif.free.layers
    usual, few, floats = (whatif.numbers(Choice(form="int8", bits=bits)) for bits in ({}, {layer: 4}, {layer: 32}))
    weights = 64 * 32 * 9
    assert usual.size_bytes - few.size_bytes == weights / 2
    assert floats.size_bytes - usual.size_bytes == 3 * weights
    assert few.ms == usual.ms
    state = whatif._costed(Choice(form="int8", bits={layer: 32}))
    changed = [
        each
        for each, plain in zip(whatif._costs.operators(state), whatif._costs.operators({}), strict=True)
        if each != plain
    ]
    assert [each.precision for each in changed] == ["float32"]
    assert whatif.numbers(Choice(bits={layer: 4})) == whatif.numbers(Choice())
    stage = Choice(form="int8", bits={layer: 4}).recipe(whatif.free, desk.target).stages[-1]
    assert stage.mixed.layers == (f"{layer}=4",)
