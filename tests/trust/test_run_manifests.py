"""Every run leaves a manifest of what it wrote, goes on whatever became of it, and can be made again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import torch
from torch import nn

from compressor import Effect, Pipeline, Recipe, Workload, read_onnx
from compressor.errors import RunFolderError, StorageError, TrustError, WrongUseError
from compressor.running.again.rerun import rerun
from compressor.stages import Quantize
from compressor.storage import read_json, read_sealed, sha256, write_sealed
from compressor.trust.manifest import MANIFEST, Manifest, described, read_manifest, write_manifest
from compressor.trust.verification import check

RECIPE = "stages: [quantize]"


def workload(model=None, shift: float = 0.0) -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator) + shift
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return Workload.from_datasets(model, train=(inputs, (inputs[:, 0] > 0).long()), test=(inputs, inputs.argmax(1) % 2))


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    Pipeline.from_recipe(Recipe.loads(RECIPE)).run(workload(), out=out, seed=3, progress=False)
    return out


@pytest.fixture
def finished(once, tmp_path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "run"))


def test_a_run_lists_every_file_it_wrote_and_how(once) -> None:
    """Files, recipe, plan, workload, parents, versions, machine, seed and measurements; nothing is left over."""
    checked = check(once)
    assert checked.holds
    manifest = checked.manifest
    assert {path.relative_to(once).as_posix() for path in once.rglob("*") if path.is_file()} - {MANIFEST} == {
        *manifest.files
    }
    made, report = manifest.made, read_json(once / "report.json")
    assert made["recipe"] == report["recipe"]
    assert made["plan_sha256"] == sha256((once / "plan.json").read_bytes())
    assert made["kept"] == ["reference", "quantize"]
    assert made["seeds"] == {"run": 3}
    assert made["measurements"]["test"] == json.loads(json.dumps(report["steps"][1]["measurement"]))
    assert made["versions"]["onnx"] == onnx.__version__
    assert made["machine"]["cpu"] == report["environment"]["cpu"]
    assert made["workload"]["fingerprint"]["train"] == read_json(once / "run.json")["train"]
    given, reference = manifest.parents
    assert given["content"] == read_json(once / "run.json")["model"]
    assert reference["sha256"] == sha256((once / "stages/00-reference/model.onnx").read_bytes())


@pytest.mark.parametrize("state", ["as it was", "edited", "of another run"])
def test_a_run_goes_on_whatever_its_manifest_says(finished, state) -> None:
    """The old one is gone once the folder changes, and a new one stands there at the end."""
    path = finished / MANIFEST
    old = path.read_bytes()
    if state == "edited":
        path.write_bytes(old.replace(b'"version":1', b'"version":9') + b"\n")
    if state == "of another run":
        (finished / "stages/00-reference/plan.json").rename(finished / "plan.json")
        shutil.rmtree(finished / "stages")
    Pipeline.from_recipe(Recipe.loads(RECIPE)).run(workload(), out=finished, seed=3, progress=False)
    assert check(finished).holds


def test_a_run_that_is_refused_leaves_the_manifest(finished) -> None:
    """It changed nothing; the folder holds as before."""
    with pytest.raises(RunFolderError):
        Pipeline.from_recipe(Recipe.loads(RECIPE)).run(workload(), out=finished, seed=4, progress=False)
    assert check(finished).holds


def test_manifests_of_other_programs_are_not_replaced(tmp_path) -> None:
    """Before any work, and untouched."""
    (tmp_path / MANIFEST).write_text('{"manifest_version": 3}')
    with pytest.raises(RunFolderError, match=MANIFEST):
        Pipeline.from_recipe(Recipe.loads(RECIPE)).run(workload(), out=tmp_path, progress=False)
    assert (tmp_path / MANIFEST).read_text() == '{"manifest_version": 3}'


def test_notes_beside_the_results_are_nobody_elses(tmp_path) -> None:
    """A run neither reads nor lists them; verification says that they came along, and of a file that it is whole."""
    (tmp_path / "notes.txt").write_text("mine")
    Pipeline.from_recipe(Recipe.loads(RECIPE)).run(workload(), out=tmp_path, progress=False)
    assert [str(problem) for problem in check(tmp_path).problems] == ["notes.txt is not listed: it came along later"]
    assert check(tmp_path / "model.onnx").holds


def test_the_file_that_a_model_was_read_from_is_its_parent(once, tmp_path) -> None:
    """Name and digest of the ONNX file as it lay on disk, before anything was made of it."""
    path = tmp_path / "mine.onnx"
    path.write_bytes((once / "stages/00-reference/model.onnx").read_bytes())
    Pipeline([Quantize()]).run(workload(read_onnx(path)), out=tmp_path / "out", progress=False)
    given = read_manifest(tmp_path / "out").parents[0]
    assert (given["file"], given["sha256"]) == ("mine.onnx", sha256(path.read_bytes()))


def test_the_stage_that_shipped_made_again_gives_the_same_bytes(finished) -> None:
    """From the reference on disk; nothing in the folder changes."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    again = rerun(check(finished), workload())
    assert again.require().to_json() == {
        "stage": "01-quantize",
        "same": ["stages/01-quantize/model.onnx"],
        "others": [],
    }
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_stage_that_gives_other_bytes_is_told(finished) -> None:
    """A file that somebody else put there, with outcome and manifest to fit, is not what its recipe makes."""
    stage = finished / "stages/01-quantize"
    model = onnx.load(stage / "model.onnx")
    model.doc_string = "another"
    (stage / "model.onnx").write_bytes(model.SerializeToString())
    outcome = read_sealed(stage / "outcome.json", way_out="")
    outcome["files"]["model.onnx"] = sha256((stage / "model.onnx").read_bytes())
    write_sealed(stage / "outcome.json", outcome)
    write_manifest(finished, Manifest(files=described(finished)))
    with pytest.raises(TrustError, match="01-quantize, made again, gives another stages/01-quantize/model"):
        rerun(check(finished), workload()).require()


def test_what_cannot_be_made_again_says_why(finished, tmp_path) -> None:
    """Other data are named; stages of one's own have no recipe; a file alone is no run."""
    with pytest.raises(RunFolderError, match=rf"^{finished} cannot be made again from what (?s:.*)train") as told:
        rerun(check(finished), workload(shift=1.0))
    assert "accept" not in str(told.value)
    with pytest.raises(WrongUseError, match="whole folder"):
        rerun(check(finished / "model.onnx"), workload())

    @dataclass(frozen=True)
    class Same:
        effect: ClassVar[Effect] = Effect.VALUES

        def apply(self, model, workload, context):
            return model

    Pipeline([Same()]).run(workload(), out=tmp_path / "own", progress=False)
    with pytest.raises(WrongUseError, match="no recipe"):
        rerun(check(tmp_path / "own"), workload())
    for report, says in {"{}": "reads reports of schema_version", None: "lacks the stage 1 that its report"}.items():
        other = Path(shutil.copytree(finished, tmp_path / says[:5]))
        if report is None:
            (other / "stages/01-quantize").rename(other / "stages/02-quantize")
        else:
            (other / "report.json").write_text(report)
        write_manifest(other, Manifest(files=described(other)))
        with pytest.raises(StorageError, match=says):
            rerun(check(other), workload())
