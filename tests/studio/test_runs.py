"""Runs of the studio: the same bytes as on the command line, paused and gone on with, and no paths for names."""

import json
import time
from dataclasses import replace

import pytest

pytest.importorskip("starlette")

from compressor.estimate import Estimate
from compressor.recipe.recipe import Recipe
from compressor.report.record import Step
from compressor.running.pipeline import Pipeline
from compressor.stages import Distill, SetStructure
from compressor.studio.choice import Choice, Free
from compressor.studio.events import Broadcast
from compressor.studio.outcomes.program import program
from compressor.studio.pages import render
from compressor.studio.runs import RunRefusedError, Runs
from compressor.target import Target
from compressor.workloads import load
from workbench.report_samples import narrowed, rollback

STRUCTURE = SetStructure(widths=("layer1.0.conv1=8",), drop=("layer2.1",))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of a workload of one's own, in a folder of its own; nothing is left going."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from compressor.workload import Workload\n"
        "from compressor.workloads.residual import BasicBlock as Block\n"
        "from torch.nn import functional as F\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)\n"
        "        self.bn1 = torch.nn.BatchNorm2d(16)\n"
        "        self.layer1 = torch.nn.Sequential(Block(16, 16), Block(16, 16))\n"
        "        self.layer2 = torch.nn.Sequential(Block(16, 32, 2), Block(32, 32))\n"
        "        self.linear = torch.nn.Linear(32, 4)\n"
        "    def forward(self, x):\n"
        "        return self.linear(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))).mean(dim=(2, 3)))\n"
        "def small():\n"
        "    torch.manual_seed(0)\n"
        "    x, y = torch.randn(128, 3, 8, 8), torch.arange(128) % 4\n"
        "    return Workload.from_datasets(Net().eval(), train=(x, y), test=(x[:64], y[:64]), batch_size=32)\n"
    )
    made = Runs("mine:small", tmp_path / "runs", Broadcast())
    yield made
    made.end()


def _until(runs, name, *states, seconds=300.0):
    end = time.monotonic() + seconds
    while runs.state(name) not in {*states, "failed"}:
        assert time.monotonic() < end, f"{name} is {runs.state(name)}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_is_the_command_lines_to_the_byte(runs, tmp_path):
    """The recipe that is taken away gives the same file, plan and weights; the page shows the run beside the model."""
    name = runs.begin(Recipe(stages=(STRUCTURE, Distill(epochs=2)), name="studio"))
    with pytest.raises(RunRefusedError, match="one at a time"):
        runs.begin(Recipe(stages=(STRUCTURE,)))
    _until(runs, name, "done", "failed")
    page = runs.page()
    assert page["runs"][0]["state"] == "done", page["runs"][0]["failed"]
    path, _ = runs.file(name, "recipe.yaml")
    recipe = Recipe.load(path)
    Pipeline.from_recipe(recipe).run(load("mine:small"), out=tmp_path / "again", seed=recipe.seed, progress=False)
    for wanted in ("model.onnx", "plan.json", "weights.safetensors"):
        assert runs.file(name, wanted)[0].read_bytes() == (tmp_path / "again" / wanted).read_bytes()
    html = render("runs", may_edit=True, busy=False, ready=True, **page)
    assert "plot-front" in html
    assert f"take/{name}/model.onnx" in html
    assert page["runs"][0]["command"].startswith("compressor run ")


@pytest.mark.slow
def test_a_run_is_paused_and_goes_on(runs):
    """It ends in order in the middle of a training, shows its curve, and a second start finishes it."""
    name = runs.begin(Recipe(stages=(STRUCTURE, Distill(epochs=40)), name="studio"))
    end = time.monotonic() + 300
    while sum(event["kind"] == "EpochFinished" for event in runs._told[name]) < 3:
        assert time.monotonic() < end
        assert runs.state(name) == "going on"
        time.sleep(0.05)
    shown = runs.page()["runs"][0]
    assert shown["charts"][0].title == "loss"
    assert "to go" in shown["to_go"]
    with pytest.raises(RunRefusedError, match="pause it first"):
        runs.discard(name)
    runs.pause(name)
    _until(runs, name, "paused")
    runs.resume(name)
    _until(runs, name, "done", "failed")
    assert runs.state(name) == "done"
    with pytest.raises(RunRefusedError, match="is done"):
        runs.resume(name)
    runs.discard(name)
    assert runs.names() == []


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker that does what the file `does` says, in the place of the one that imports torch."""
    (tmp_path / "stand_in.py").write_text("import pathlib, sys, time\nexec(pathlib.Path('does').read_text())\n")
    monkeypatch.setattr("compressor.studio.runs._WORKER", "stand_in")
    return tmp_path / "does"


def test_what_a_failed_process_wrote_is_shown(runs, worker):
    """Its last lines stand beside the reason, escaped; the log goes with the run when it is discarded."""
    worker.write_text("print('x' * 9000 + '<b>\\x1b[31mno memory', file=sys.stderr); sys.exit(3)")
    name = runs.begin(Recipe(stages=(STRUCTURE,)))
    _until(runs, name, "failed")
    row = runs.page()["runs"][0]
    assert row["failed"] == "its process ended with code 3"
    assert "no memory" in row["log"]
    assert "\x1b" not in row["log"]
    assert len(row["log"]) < 5000
    html = render("runs", may_edit=True, busy=False, ready=True, **runs.page())
    assert "&lt;b&gt;" in html
    assert 'data-do="resume"' in html
    runs.discard(name)
    assert not list(runs._out.iterdir())


def test_a_killed_process_is_offered_to_go_on(runs, worker):
    """SIGKILL in the middle, whoever sent it: the run says so, and a second start goes on in the same folder."""
    worker.write_text("time.sleep(60)")
    name = runs.begin(Recipe(stages=(STRUCTURE,)))
    runs._going[name].process.kill()
    _until(runs, name, "failed")
    row = runs.page()["runs"][0]
    assert "SIGKILL" in row["failed"]
    assert "goes on from there" in row["failed"]
    worker.write_text("folder = pathlib.Path(sys.argv[3]); folder.mkdir(); (folder / 'report.json').write_text('{}')")
    runs.resume(name)
    _until(runs, name, "done")


def test_the_program_of_a_draft_is_its_recipe():
    """Run in the place of Pipeline and load, it asks for the very stages, evaluations, target and seed."""
    choice = Choice(
        widths={"conv1": 16}, drop=("layer2.1",), form="int8", epochs=3, criterion="l1", bits={"linear": 4, "conv1": 32}
    )
    recipe = choice.recipe(Free(widths={"conv1": (32, 16)}, blocks=("layer2.1",), classes=True), Target(threads=2))
    assert Recipe.loads(recipe.dump()) == recipe
    text = program(recipe, "mine:small", "runs/again")
    asked = {}

    class Stand(Pipeline):
        def run(self, workload, **more):
            asked.update(more, workload=workload, stages=self.stages, evaluations=self.evaluations)

    text = text.replace("from compressor.workloads import load\n", "").replace("Pipeline, ", "")
    exec(text, {"load": lambda name: name, "Pipeline": Stand})
    assert tuple(asked["stages"]) == recipe.stages
    assert tuple(asked["evaluations"]) == recipe.evaluations
    assert asked["target"] == recipe.target()
    assert (asked["workload"], asked["out"], asked["seed"]) == ("mine:small", "runs/again", 0)


@pytest.mark.parametrize("name", ["run-1", "run-0001/../..", "../run-001", "run-001.yaml", "", "run-999", "run-١٢٣"])
def test_names_of_runs_are_no_paths(runs, tmp_path, name):
    """12. What is no run of this folder has no files and cannot be paused, gone on with, or deleted."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run-001.yaml").write_text("name: studio\n")
    (tmp_path / "precious").mkdir()
    assert runs.file(name, "recipe.yaml") is None
    assert runs.file("run-001", "../../precious") is None
    for act in (runs.resume, runs.pause, runs.discard):
        with pytest.raises(RunRefusedError):
            act(name)
    assert (tmp_path / "precious").is_dir()
    assert runs.names() == ["run-001"]


def test_a_damaged_report_is_no_result(runs, tmp_path):
    """A run whose report cannot be read is listed, without numbers."""
    folder = tmp_path / "runs" / "run-002"
    folder.mkdir(parents=True)
    (tmp_path / "runs" / "run-002.yaml").write_text("name: studio\nstages: [quantize]\n")
    for text in ("{", "[]", json.dumps({"final": 3}), "null"):
        (folder / "report.json").write_text(text)
        page = runs.page()
        assert page["runs"][0]["result"] is None
        assert page["panels"] == []
        assert "run-002" in render("runs", may_edit=False, busy=False, ready=True, **page)


def test_runs_are_told_stage_by_stage_and_beside_each_other(runs):
    """The waterfall of one; of two the rows of the longer one, with what differs; where there is no such run, none."""
    one, other = rollback(), narrowed()
    for number, record in enumerate((one, other), start=1):
        folder = runs._out / f"run-00{number}"
        folder.mkdir(parents=True)
        (runs._out / f"run-00{number}.yaml").write_text("name: studio\nstages: [quantize]\n")
        (folder / "report.json").write_text(json.dumps(record.to_json()))
    html = render("stages", **runs.stages("run-001"))
    assert html.count("<svg") == 3
    beside = runs.beside("run-001", "run-002")
    assert len(beside["rows"]) == max(len(one.steps), len(other.steps))
    assert beside["rows"][0]["cells"][0]["stage"] == "reference"
    both = [record.shipped.measurement for record in (one, other)]
    assert f"{both[0].speedup.value / both[1].speedup.value - 1:+.0%} time" in beside["whole"]
    assert "rolled back" in render("beside", **beside)
    page = render("runs", may_edit=True, busy=False, ready=True, **runs.page())
    assert 'id="compare"' in page
    assert runs.stages("run-009") is None
    assert runs.beside("run-001", "../run-002") is None


def test_runs_of_two_moments_are_compared_by_their_speed_ups(runs):
    """On a machine that was half as fast during the second run its file is no slower: so say picture and words."""
    one = rollback()

    def in_a_slow_moment(step: Step) -> Step:
        measured = step.measurement
        slow = replace(measured, latency_ms=Estimate(*(2 * value for value in vars(measured.latency_ms).values())))
        return replace(step, measurement=slow)

    other = replace(one, steps=tuple(in_a_slow_moment(step) if step.measurement else step for step in one.steps))
    for number, record in enumerate((one, other), start=1):
        folder = runs._out / f"run-00{number}"
        folder.mkdir(parents=True)
        (runs._out / f"run-00{number}.yaml").write_text("name: studio\nstages: [quantize]\n")
        (folder / "report.json").write_text(json.dumps(record.to_json()))
    assert runs.beside("run-001", "run-002")["whole"] == "+0% time, +0% bytes, +0.0000 score"
    by_time = runs.page()["panels"][0]
    places = [(point.x, point.y, point.best) for point in by_time.points if point.title != "as it is"]
    assert len(places) == 2
    assert places[0] == places[1]
