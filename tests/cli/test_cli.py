"""The command line: what it prints, what it refuses, and its exit codes."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import compressor.cli as command_line
from compressor import __version__
from compressor.cli.app import app
from compressor.errors import StageError, WorkloadError
from compressor.measuring import measure, timing
from compressor.running.pipeline import Pipeline
from workbench import ROOT

WORKLOAD = """\
import torch
from workbench.tiny import TinyResNet, make_workload

def tiny():
    torch.manual_seed(0)
    return make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)

def untrained_nan():
    workload = tiny()
    workload.model.linear.weight.data[0, 0] = float("nan")
    return workload

def wrong():
    return 5

def broken():
    raise RuntimeError("my own fault")
"""

RECIPE = """\
# Eight bits.
stages:
  - fine_tune: {epochs: 1, tail_epochs: 0}
  - quantize
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user: a module with workloads and a recipe; it is the current one."""
    (tmp_path / "mine.py").write_text(WORKLOAD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


class FakeReport:
    def __init__(self, *, budget_met: bool) -> None:
        self.budget_met = budget_met

    def print(self) -> None:
        sys.stdout.write("the table\n")


@pytest.fixture
def fake_run(monkeypatch):
    """Pipeline.run that does nothing and remembers what it was asked; `.met` and `.error` decide how it ends."""
    state = SimpleNamespace(asked={}, met=True, error=None)

    def run(self, workload, **asked):
        state.asked = {"stages": self.stages, "budget": self.budget, "workload": workload, **asked}
        if state.error is not None:
            raise state.error
        return SimpleNamespace(
            report=FakeReport(budget_met=state.met), artifact=SimpleNamespace(path=Path(asked["out"]) / "model.onnx")
        )

    monkeypatch.setattr(Pipeline, "run", run)
    return state


RUN = ("run", "recipe.yaml", "--workload", "mine:tiny", "--out", "runs/a")


def test_help_is_quick_and_loads_no_torch() -> None:
    """--help takes a second of work in a fresh process, and importing the command line loads no heavy library."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run([sys.executable, "-m", "compressor.cli", "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert shown.returncode == 0
        assert "run int8 --workload digits --out runs/first" in shown.stdout
    assert min(seconds) < 1
    code = (
        "import sys, compressor, compressor.cli\n"
        "print({'torch', 'onnx', 'onnxruntime', 'sklearn', 'torch_pruning', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()"


def test_version() -> None:
    """--version prints the version and nothing else."""
    assert call("--version") == (0, f"compressor {__version__}\n", "")


@pytest.mark.parametrize("command", ["run", "compare", "doctor", "stages"])
def test_every_command_has_help(command: str) -> None:
    """Each command explains itself."""
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_run_passes_on_what_was_asked(folder: Path, fake_run) -> None:
    """Settings, seed, threads and batch size reach the pipeline; the table and the path of the file are printed."""
    code, out, err = call(
        *RUN, "--set", "stages.0.epochs=3", "--set", "budget.max_drop=0.1", "--seed", "7", "--threads", "2",
        "--batch-size", "4", "--accept-changes",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out == f"the table\n{Path('runs/a/model.onnx')}\n"
    asked = fake_run.asked
    assert (asked["stages"][0].epochs, asked["budget"].max_drop, asked["seed"]) == (3, 0.1, 7)
    assert (asked["target"].threads, asked["target"].batch_size) == (2, 4)
    assert asked["accept_changes"]
    assert asked["workload"].name == "tiny"


def test_the_recipes_own_seed_and_load_are_the_defaults(folder: Path, fake_run) -> None:
    """Without options, seed, threads and batch size are the recipe's."""
    (folder / "recipe.yaml").write_text(RECIPE + "seed: 5\nthreads: 2\nbatch_size: 3\n")
    assert call(*RUN)[0] == 0
    asked = fake_run.asked
    assert (asked["seed"], asked["target"].threads, asked["target"].batch_size) == (5, 2, 3)


def test_quiet_prints_the_path_alone(folder: Path, fake_run) -> None:
    """--quiet leaves the path of the file, for scripts."""
    assert call(*RUN, "--quiet") == (0, f"{Path('runs/a/model.onnx')}\n", "")
    assert fake_run.asked["progress"] is False


def test_budget_not_met_is_exit_code_3(folder: Path, fake_run) -> None:
    """A run that ends beyond its budget says so and exits with 3."""
    fake_run.met = False
    code, _, err = call(*RUN)
    assert (code, err) == (3, "the budget is not met; the report says by how much\n")


def test_a_failing_stage_is_exit_code_1(folder: Path, fake_run) -> None:
    """A stage that fails gives its sentence, no traceback, and exit code 1; -v adds the traceback."""
    fake_run.error = StageError("nothing to prune in TinyResNet")
    assert call(*RUN) == (1, "", "error: nothing to prune in TinyResNet\n")
    code, _, err = call(*RUN, "-v")
    assert code == 1
    assert "Traceback (most recent call last)" in err


def test_an_error_of_another_packages_stage_is_told_like_our_own(folder: Path, fake_run) -> None:
    """A subclass of StageError is a sentence for people wherever it was defined: no class name, no hint."""

    class NothingToClip(StageError):  # noqa: N818 - another package's name
        pass

    fake_run.error = NothingToClip("no weight lies beyond 3 deviations")
    assert call(*RUN) == (1, "", "error: no weight lies beyond 3 deviations\n")


def test_a_workload_that_cannot_be_worked_with_is_exit_code_2(folder: Path, fake_run) -> None:
    """What is wrong with a workload is the caller's to put right."""
    fake_run.error = WorkloadError("test has no batches")
    assert call(*RUN) == (2, "", "error: test has no batches\n")


def test_an_unexpected_error_points_to_the_traceback(folder: Path, fake_run) -> None:
    """An error that the package did not foresee names its type and how to see more."""
    fake_run.error = KeyError("weights")
    assert call(*RUN) == (1, "", "error: KeyError: 'weights' (run again with -v for the traceback)\n")


def test_what_a_users_code_raised_in_a_stage_is_a_sentence_that_points_to_the_traceback(folder: Path, fake_run) -> None:
    """The stage is named; the traceback, the user's own error included, is there for who asks."""
    fake_run.error = StageError("KeyError: 'weights'; leave the stage out")
    fake_run.error.stage, fake_run.error.stage_number = "distill", 2
    fake_run.error.__cause__ = KeyError("weights")
    told = "error: stage 2, distill: KeyError: 'weights'; leave the stage out (run again with -v for the traceback)\n"
    assert call(*RUN) == (1, "", told)
    assert "direct cause of the following exception" in call(*RUN, "-v")[2]


def test_disk_errors_name_the_file(folder: Path, fake_run) -> None:
    """A full disk or a folder that cannot be written is told with its name and the way out."""
    for error, way_out in {
        OSError(
            28, "No space left on device", "a"
        ): "a: No space left on device; make room on its disk, or give a place",
        PermissionError(
            13, "Permission denied", "a"
        ): "a: Permission denied; see to your rights to it, or give another",
        OSError(5, "Input/output error", "a"): "a: Input/output error; give another file or folder",
    }.items():
        fake_run.error = error
        code, out, err = call(*RUN)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {way_out}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing", "-w", "digits", "--out", "x"), "no recipe 'nothing'"),
        (("run", "missing.yaml", "-w", "digits", "--out", "x"), "missing.yaml:1: no such file"),
        ((*RUN, "--set", "stages.0.epocs=1"), "--set stages.0.epocs=1: fine_tune has no 'epocs'; did you mean"),
        (("run", "recipe.yaml", "-w", "digit", "--out", "x"), "workload 'digit' cannot be had"),
        (("run", "recipe.yaml", "-w", "nowhere:f", "--out", "x"), "no module named 'nowhere'"),
        (("run", "recipe.yaml", "-w", "mine:nothing", "--out", "x"), "mine has no function 'nothing'"),
        (("run", "recipe.yaml", "-w", "mine:wrong", "--out", "x"), "must return a compressor.Workload"),
        (("run", "recipe.yaml", "-w", "mine:broken", "--out", "x"), "RuntimeError: my own fault"),
        (("run", "recipe.yaml", "-w", "mine:tiny"), "--out is missing"),
        (("run", "recipe.yaml"), "Missing option"),
        (("run", "recipe.yaml", "-w", "digits", "--threads", "0"), "Invalid value for '--threads'"),
        (("stages", "distil"), "unknown stage 'distil'; did you mean 'distill'?"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)  # fmt: skip
def test_wrong_use_is_exit_code_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    """What the caller can put right exits with 2 and says what, without a traceback."""
    code, _, err = call(*arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_all_mistakes_of_a_recipe_are_told(folder: Path) -> None:
    """Every error of a recipe is printed with its line."""
    (folder / "recipe.yaml").write_text("sed: 1\nstages:\n  - quantise\n")
    code, _, err = call(*RUN)
    assert code == 2
    assert "recipe.yaml:1: a recipe has no 'sed'; did you mean 'seed'?" in err
    assert "recipe.yaml:3: unknown stage 'quantise'; did you mean 'quantize'?" in err


def test_an_impossible_order_is_wrong_use(folder: Path) -> None:
    """Training after quantization is refused before the workload is loaded."""
    (folder / "recipe.yaml").write_text("stages: [quantize, fine_tune]\n")
    code, _, err = call("run", "recipe.yaml", "-w", "mine:broken", "--out", "x")
    assert code == 2
    assert "fine_tune cannot follow quantize" in err


def test_a_bad_order_is_a_warning(folder: Path) -> None:
    """Pruning without recovery before quantization is warned of on stderr."""
    (folder / "recipe.yaml").write_text("stages: [drop_blocks: {remove: 0.5}, quantize]\n")
    code, _, err = call("run", "recipe.yaml", "-w", "mine:tiny", "--dry-run")
    assert code == 0
    assert err.startswith("warning: quantize follows drop_blocks with no training between")


def test_dry_run_shows_the_plan_and_works_on_nothing(folder: Path, fake_run) -> None:
    """--dry-run prints stages, parameters, the budget and what is judged together, and checks the workload."""
    code, out, _ = call("run", "drop_blocks_distill_int8", "-w", "mine:tiny", "--dry-run", "--seed", "4")
    assert code == 0
    assert "seed 4, budget {max_drop: 0.02, " in out
    assert "segment 1 of 2, judged together\n  stages.0 drop_blocks: {" in out
    assert "segment 2 of 2, judged alone\n  stages.2 quantize\n" in out
    assert "workload tiny: TinyResNet, judged by accuracy; checks passed\nestimated on this machine: " in out
    assert fake_run.asked == {}
    assert not (folder / "runs").exists()


def test_dry_run_refuses_a_workload_that_cannot_work(folder: Path) -> None:
    """A model with NaN weights is refused with the weight's name and exit code 2."""
    code, _, err = call("run", "int8", "-w", "mine:untrained_nan", "--dry-run")
    assert code == 2
    assert "linear.weight" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_prints_how_to_go_on(folder: Path, number: int, code: int, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a real process with 130 and 143 and the command that resumes."""
    (folder / "slow.py").write_text(
        WORKLOAD + "def slow():\n    import time\n    print('here', flush=True)\n    time.sleep(60)\n"
    )
    command = ["-m", "compressor.cli", "run", "recipe.yaml", "-w", "slow:slow", "--out", "runs/my folder"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        # A shell that starts the tests in the background has interrupts ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads yet
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    # The workload was not even there.
    again = "compressor run recipe.yaml -w slow:slow --out 'runs/my folder'"
    assert err.endswith(f"stopped: nothing is kept yet. To begin again: {again}\n")
    assert "Traceback" not in err


def test_a_result_as_json(folder: Path) -> None:
    """`--json` prints the report that lies in the folder, alone on stdout; there is none of a dry run."""
    code, out, _ = call("run", "recipe.yaml", "-w", "mine:tiny", "--out", "runs/first", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "runs/first/report.json").read_text())
    code, _, err = call("run", "recipe.yaml", "-w", "mine:tiny", "--json", "--dry-run")
    assert code == 2
    assert "--json is about results, and --dry-run has none" in err
    code, out, _ = call("compare", "recipe.yaml", "-w", "mine:tiny", "--out", "runs/compared", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "runs/compared/comparison.json").read_text())


def test_the_handler_of_sigterm_is_put_back() -> None:
    """A program that runs commands in its own process keeps its own handler."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert call("stages", "distil")[0] == 2
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_stages_lists_the_catalogue() -> None:
    """`compressor stages` names every stage; with a name, its parameters with defaults and value objects."""
    code, out, _ = call("stages")
    assert code == 0
    assert all(name in out for name in ("prune_channels", "drop_blocks", "fine_tune", "distill", "quantize"))
    code, out, _ = call("stages", "quantize")
    assert code == 0
    assert "activations: symmetric" in out
    assert "distill" not in out


def test_stages_as_json() -> None:
    """`compressor stages distill --json` gives parameters, types and defaults, without what a recipe cannot set."""
    code, out, _ = call("stages", "distill", "--json")
    entry = json.loads(out)
    assert code == 0
    assert (entry["name"], entry["effect"]) == ("distill", "values")
    parameters = {parameter["name"]: parameter for parameter in entry["parameters"]}
    assert parameters["temperature"]["type"] == "float"
    assert parameters["temperature"]["default"] == 4.0
    assert "teacher" not in parameters
    assert {stage["name"] for stage in json.loads(call("stages", "--json")[1])} >= {"quantize", "distill"}


def test_stages_schema() -> None:
    """`compressor stages --schema` prints the JSON schema of recipes."""
    assert json.loads(call("stages", "--schema")[1])["required"] == ["stages"]


@pytest.fixture
def fake_compare(monkeypatch):
    """compare() that does nothing and remembers what it was asked; `.failures` and `.met` decide how it ends."""
    state = SimpleNamespace(asked={}, failures={}, met=True)

    def compare(recipes, workload, **asked):
        state.asked = {"recipes": recipes, "workload": workload, **asked}
        return SimpleNamespace(
            print=lambda: sys.stdout.write("the table\n"), failures=state.failures, any_budget_met=state.met
        )

    monkeypatch.setattr("compressor.comparing.comparison.compare", compare)
    return state


COMPARE = ("compare", "int8", "recipe.yaml", "-w", "mine:tiny", "--out", "runs/all")


def test_compare_passes_on_what_was_asked(folder: Path, fake_compare) -> None:
    """Every recipe is read, overrides reach all of them, and the path of the page is printed after the table."""
    code, out, err = call(*COMPARE, "--set", "seed=3", "--threads", "2")
    assert (code, err) == (0, "")
    assert out == f"the table\n{Path('runs/all/comparison.html')}\n"
    assert [(recipe.name, recipe.seed) for recipe in fake_compare.asked["recipes"]] == [("int8", 3), ("recipe", 3)]
    assert (fake_compare.asked["target"].threads, fake_compare.asked["seed"]) == (2, None)
    call(*COMPARE)
    assert fake_compare.asked["target"] is None


def test_compare_exit_codes(folder: Path, fake_compare) -> None:
    """A failed recipe is told and exits with 1; no recipe within its budget exits with 3; a bad recipe with 2."""
    fake_compare.failures = {"int8": "StageError: nothing to do"}
    assert call(*COMPARE)[::2] == (1, "int8 failed: StageError: nothing to do\n")
    fake_compare.failures, fake_compare.met = {}, False
    assert call(*COMPARE)[::2] == (3, "no recipe met its budget\n")
    assert call("compare", "int9", "-w", "mine:tiny", "--out", "x")[0] == 2


def test_run_end_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run writes a model and a report, and the same command again takes the finished stage from disk."""
    quick = functools.partial(timing.time_interleaved, seconds=0.1)
    monkeypatch.setattr(measure, "time_interleaved", quick)
    (folder / "recipe.yaml").write_text("stages: [quantize]\n")
    code, out, err = call(*RUN)
    assert code == 0, err
    assert out.endswith(f"{Path('runs/a/model.onnx')}\n")
    report = json.loads((folder / "runs/a/report.json").read_text())
    assert [step["stage"] for step in report["steps"]] == ["reference", "quantize"]
    first = (folder / "runs/a/model.onnx").read_bytes()
    code, _, err = call(*RUN)
    assert code == 0
    assert "taken from disk" in err
    assert (folder / "runs/a/model.onnx").read_bytes() == first
    code, _, err = call(*RUN, "--seed", "9")
    assert code == 1
    assert "seed: was 0, is 9" in err


def test_doctor_looks_into_a_model(folder: Path) -> None:
    """With a workload the doctor tells what of its model can shrink, and writes a recipe that `run` takes."""
    code, out, err = call("doctor", "-w", "mine:tiny", "--batch-size", "2", "--recipe", "found.yaml")
    assert code == 0, err
    assert "TinyResNet of tiny" in out
    assert "(batch 2 of 3x8x8, 1 thread" in out
    assert "layer1.* (2)" in out
    assert "compressor run found.yaml -w mine:tiny --out runs/found" in err
    written = (folder / "found.yaml").read_text()
    assert written in out.replace("\n\n", "\n")
    code, out, err = call("run", "found.yaml", "-w", "mine:tiny", "--dry-run")
    assert code == 0, err
    assert "quantize" in out


def test_doctor_on_a_model_as_json(folder: Path) -> None:
    """--json gives the groups, the blocks, the shares and the recipe as data."""
    code, out, err = call("doctor", "-w", "mine:tiny", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [block["name"] for block in found["blocks"]] == ["layer1.0", "layer1.1", "layer2.1", "layer2.2"]
    assert {"name", "kind", "width", "time_fraction", "parameter_fraction", "locked"} < set(found["groups"][0])
    assert 0 < found["remaining"]["blocks"] < 1
    assert found["target"]["threads"] == 1
    assert "stages:" in found["recipe"]


def test_doctor_refuses(folder: Path) -> None:
    """A broken workload is told as such; what is about a model needs one."""
    code, _, err = call("doctor", "-w", "mine:untrained_nan")
    assert code == 2
    assert "linear.weight" in err
    for option in (("--recipe", "found.yaml"), ("--threads", "2"), ("--batch-size", "8")):
        code, _, err = call("doctor", *option)
        assert code == 2
        assert "name one with --workload" in err


FOLDED = """\

def of_fold(fold):
    fold.split([0, 1] * 10)
    return tiny()
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("mine:of_fold", "--folds", "1"), "at least 2; got 1"),
        (("mine:of_fold", "--folds", "30"), "30 folds need at least as many samples, got 20"),
        (("mine:tiny", "--folds", "3"), "was trained on its own training samples"),
        (("mine:tiny", "--folds", "3", "--reference", "old"), "anew or given"),
        (("mine:of_fold", "--folds", "3", "--metric", "mse"), "--metric has no say"),
        (("mine:of_fold", "--folds", "3", "--dry-run"), "has no --dry-run"),
        (("mine:tiny", "--repeats", "3"), "about --folds, which is missing"),
        (("mine:of_fold",), "--folds 5"),
        (("mine:nothing", "--folds", "3"), "no function 'nothing'"),
    ],
)
def test_folds_that_cannot_be_are_wrong_uses(folder: Path, options, says) -> None:
    """Each is answered with what to do and exit code 2, and leaves no run behind."""
    (folder / "mine.py").write_text(WORKLOAD + FOLDED)
    ended = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", "out", "-w", *options])
    assert ended.exit_code == 2
    assert says in ended.stderr
    assert not list(folder.glob("out/*/run.json"))


def test_folds_are_asked_for_and_told(folder: Path, monkeypatch) -> None:
    """The options reach the pipeline; a budget that a fold missed is exit code 3; --json is the record."""
    asked = {}

    def cross_validate(self, workload, **settings):
        asked.update(settings, workload=workload)
        return SimpleNamespace(budgets_met=2, rows=[1, 2, 3], to_json=lambda: {"folds": 3}, print=lambda: None)

    monkeypatch.setattr(Pipeline, "cross_validate", cross_validate)
    (folder / "mine.py").write_text(WORKLOAD + FOLDED)
    command = [
        "run",
        "recipe.yaml",
        "--out",
        "out",
        "-w",
        "mine:of_fold",
        "--folds",
        "3",
        "--repeats",
        "2",
        "--seed",
        "7",
    ]
    ended = CliRunner().invoke(app, [*command, "--json"])
    assert ended.exit_code == 3
    assert json.loads(ended.stdout) == {"folds": 3}
    assert "met in 2 of 3 folds" in ended.stderr
    assert asked["workload"].__name__ == "of_fold"
    assert {name: asked[name] for name in ("folds", "repeats", "seed", "reference")} == {
        "folds": 3,
        "repeats": 2,
        "seed": 7,
        "reference": "anew",
    }


@pytest.mark.parametrize("said", [None, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_waiting_threads_sleep_soon_unless_the_environment_says_otherwise(monkeypatch, said):
    """What a user set stays, and nothing is set beside it."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("compressor.machine.others_running", lambda: 0)
    if said is not None:
        monkeypatch.setenv(said, "17")

    command_line._wait_briefly_()

    now = {name: os.environ[name] for name in names if name in os.environ}
    assert now == ({said: "17"} if said else {"GOMP_SPINCOUNT": command_line.SPINS})


@pytest.mark.parametrize(("others", "spins"), [(0, "20000"), (1, "20000"), (2, "1000"), (9, "1000"), (None, "20000")])
def test_threads_hardly_wait_where_others_want_every_core(monkeypatch, others, spins):
    """With two cores: one more program leaves one to wait on, two leave none; what nobody tells is quiet."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("compressor.machine.others_running", lambda: others)
    monkeypatch.setattr("compressor.machine.core_count", lambda: 2)
    command_line._wait_briefly_()
    assert os.environ["GOMP_SPINCOUNT"] == spins
    monkeypatch.delenv("GOMP_SPINCOUNT")
    looks = iter([9, 0])
    monkeypatch.setattr("compressor.machine.others_running", lambda: next(looks))
    command_line._wait_briefly_()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"  # a moment is no load
