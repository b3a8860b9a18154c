"""What was typed nearly right gets the way to what was meant: workloads, recipes, values, the plan of a run."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.cli.stage_listing import listing, value_objects
from compressor.running.time_estimate import estimated
from compressor.stages import SGD, FineTune, Quantize, SparseTraining
from workbench import ROOT
from workbench.tiny import TinyResNet, make_workload

MINE = """\
from workbench.tiny import TinyResNet, make_workload

def good():
    return make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)

def deep():
    return helped()

def helped():
    return 1 / 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module that works, one that lacks an import, and one that is no Python."""
    (tmp_path / "wl.py").write_text(MINE)
    (tmp_path / "lacks.py").write_text("import os\n\nimport nowhere_to_be_found\n")
    (tmp_path / "torn.py").write_text("def good(:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    for name in ("wl", "lacks", "torn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wl.py:good", r"did you mean 'wl:good'\?"),
        ("my/wl.py:good", r"did you mean 'my.wl:good'\?"),
        ("wl:god", r"wl has no function 'god'; did you mean 'good'\?; it has good, deep, helped"),
        ("wll:good", r"no module named 'wll'.*did you mean 'wl'\?"),
        ("digit", r"got 'digit'; did you mean 'digits'\?"),
        ("lacks:good", r"in \S*lacks.py, line 3: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("torn:good", r"in \S*torn.py, line 1: SyntaxError"),
        ("wl:deep", r"in \S*wl.py, line 10: ZeroDivisionError"),
    ],
)
def test_workloads_that_cannot_be_had(folder: Path, name: str, says: str) -> None:
    """The nearest name, or the file and line of the user's own that raised; exit code 2."""
    code, told = call("run", "int8", "-w", name, "--out", "runs/a")
    assert code == 2
    assert re.search(says, told), told


@pytest.mark.parametrize("asked", ["int8 -w wl.py:good --folds 5", "student_int8 -w wl:good --student wl.py:good"])
def test_files_in_place_of_modules(folder: Path, asked: str) -> None:
    """Wherever a function of the user's is named."""
    code, told = call("run", *asked.split(), "--out", "runs/a")
    assert code == 2
    assert "got 'wl.py:good'; did you mean 'wl:good'?" in told


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.onx:in.npz", r"did you mean 'net.onnx:in.npz'\? net.onnx lies in"),
        ("net.oxnn:in.npz", r"did you mean 'net.onnx:in.npz'\?"),
        ("net.onx", r"did you mean 'net.onnx'\?"),
        ("nett.onx:in.npz", r"did you mean 'net.onnx:in.npz'\?"),
        ("gone.onx:in.npz", r"did you mean 'gone.onnx:in.npz'\? no such file lies in"),
        ("odd.onx:in.npz", r"odd.onx is there: is it an ONNX file, rename it to odd.onnx"),
        ("net:in.npz", r"did you mean 'net.onnx:in.npz'\?"),
        ("net.onnx:inn.npz", r"no file inn.npz, the arrays `inputs` and `targets`; did you mean 'in.npz'\?"),
        ("net.onnx:x/in.npz", r"no file x/in.npz, .*: there is no folder x"),
        ("nett.onnx:in.npz", r"no file nett.onnx, the model; did you mean 'net.onnx'\?"),
        ("other.onnx", r"no file other.onnx, the model; \S+ has net.onnx"),
        ("net.pt:in.npz", r"net.pt is weights of torch without their class, .* returns compressor.Workload"),
        ("net.tflite", r"net.tflite is a model of TensorFlow, .*tf2onnx"),
        ("my.online:build", r"no module named 'my.online'"),
        ("my.nn:build", r"no module named 'my.nn'"),
        ("pt:build", r"no module named 'pt'"),
    ],
)
def test_files_that_are_not_there(folder: Path, name: str, says: str) -> None:
    """A misspelt file is answered as a file, with the one that is there; a module stays a module."""
    for file in ("net.onnx", "in.npz", "odd.onx"):
        (folder / file).write_bytes(b"")
    code, told = call("run", "int8", "-w", name, "--out", "runs/a")
    assert code == 2
    assert re.search(says, told), told


@pytest.mark.parametrize(
    ("stage", "settings", "says"),
    [
        (
            "quantize: {weights: int4}",
            (),
            r"unknown value .*'int4'; 4 bits are written weights: \{symmetric: \{bits: 4\}\}",
        ),
        ("quantize: {activations: uint8}", (), r"8 bits are written activations: \{"),
        ("quantize: {weights: fp16}", (), "weights stored as float16 are form: float16"),
        (
            "quantize",
            ("stages.0.bits=4",),
            r"quantize has no 'bits', but its weights has: .*--set stages.0.weights.symmetric.bits=4",
        ),
        (
            "quantize: {percentile: 99.9}",
            (),
            r"quantize has no 'percentile', but its calibration can be one: write calibration: \{percentile: 99.9\}",
        ),
    ],
)
def test_settings_that_lie_deeper_or_are_called_otherwise(folder: Path, stage: str, settings, says: str) -> None:
    """The hint is what a recipe, or --set, takes."""
    (folder / "mine.yaml").write_text(f"stages:\n  - {stage}\n")
    options = [part for setting in settings for part in ("--set", setting)]
    code, told = call("run", "mine.yaml", "-w", "wl:good", "--out", "runs/a", *options)
    assert code == 2
    assert re.search(says, told), told


def test_the_hints_are_right(folder: Path) -> None:
    """Recipes written as the hints say are recipes, and mean it."""
    from compressor.recipe.recipe import Recipe

    (folder / "mine.yaml").write_text("stages:\n  - quantize: {weights: {symmetric: {bits: 4}}}\n")
    (folder / "plain.yaml").write_text("stages:\n  - quantize\n")
    told = Recipe.load("mine.yaml").stages
    assert told[0].weights.bits == 4
    assert Recipe.load("plain.yaml", overrides=["stages.0.weights.symmetric.bits=4"]).stages == told


def test_values_are_explained() -> None:
    """`stages latency` tells what it is, what takes it and what it takes; as JSON, too."""
    code, told = call("stages", "latency")
    assert code == 0
    assert "taken by:" in told
    assert "shrink_structure.target" in told
    assert json.loads(CliRunner().invoke(app, ["stages", "latency", "--json"]).output)["name"] == "latency"
    code, told = call("stages", "latncy")
    assert code == 2
    assert "did you mean 'latency'?" in told


def test_every_value_object_says_what_it_is() -> None:
    """Each has a text whose sentences are whole, and is taken by something; every stage's choices are among them."""
    objects = value_objects()
    for name, entry in objects.items():
        assert entry.about.strip(), name
        assert entry.about.strip()[-1] in ".)", name
        assert entry.taken_by, name
    chosen = {choice for entry in listing().values() for parameter in entry.parameters for choice in parameter.choices}
    assert chosen <= objects.keys()


def test_every_setting_is_explained_in_whole_sentences() -> None:
    """Of stages and of values that they take, those that come from a class below included."""
    for entry in [*listing().values(), *value_objects().values()]:
        for parameter in entry.parameters:
            assert parameter.about.endswith((".", ")")), f"{entry.name}.{parameter.name}: {parameter.about!r}"
            assert not parameter.about[0].islower(), f"{entry.name}.{parameter.name}"


def test_a_plan_speaks_the_recipes_words(folder: Path) -> None:
    """What --dry-run prints of a stage is YAML that the recipe holds, and it says how long the run will take."""
    (folder / "mine.yaml").write_text(
        "budget: {max_drop: 0.02}\nstages:\n  - prune_channels: {remove: 0.3}\n  - fine_tune: {epochs: 2}\n"
        "  - quantize\n"
    )
    result = CliRunner().invoke(app, ["run", "mine.yaml", "-w", "wl:good", "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=1)[1] for line in result.output.splitlines() if line.startswith("  stages.")]
    assert [yaml.safe_load(line) for line in lines] == [
        {"prune_channels": {"remove": 0.3}},
        {"fine_tune": {"epochs": 2}},
        "quantize",
    ]
    assert "max_drop: 0.02" in result.output
    assert re.search(r"estimated on this machine: about .* of training \(fine_tune \d+ updates, at ", result.output)


def test_estimates_count_updates() -> None:
    """Two epochs of four batches and a tail of one are twelve updates; steps are steps; no training is said so."""
    workload = make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)
    length = len(workload.train)
    text = estimated(workload, [FineTune(epochs=2, tail_epochs=1), FineTune(steps=7)])
    assert f"fine_tune {3 * length} updates, fine_tune 7 updates" in text
    assert "no training, and about" in estimated(workload, [Quantize()])
    # Short ones that find their rate are run three times more before; not by a rate that is named, nor for zeros.
    tried = [FineTune(steps=40), FineTune(epochs=10, tail_epochs=0), FineTune(steps=400)]
    text = estimated(workload, [*tried, FineTune(steps=40, optimizer=SGD(rate=0.1)), SparseTraining(steps=40)])
    told = [40 * 4, 10 * length * 4, 400, 40, 40]
    assert re.findall(r"(\d+) updates", text) == [str(updates) for updates in told]


def test_estimates_leave_random_numbers_alone() -> None:
    """A run after a dry look has the bits of one without."""
    import torch

    workload = make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)
    state = torch.get_rng_state()
    estimated(workload, [FineTune(epochs=1)])
    assert torch.equal(torch.get_rng_state(), state)
