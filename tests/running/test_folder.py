"""What a finished run left is taken as it was written, or refused with the reason; files of others are left alone."""

import errno
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from compressor import Budget, Effect, Pipeline, Workload
from compressor.errors import RunFolderError, StorageError, WriteError
from compressor.running import applying
from compressor.running import run as running
from compressor.running.folder import RunFolder
from compressor.storage import read_json, sha256, temporary_name, write_json, write_sealed
from compressor.structure.checkpoint import PLAN_FILE, WEIGHTS_FILE
from workbench.mutations import damaged, edited

STAGE = "stages/01-scale"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Multiplies all weights."""

    effect: ClassVar[Effect] = Effect.VALUES
    factor: float = 0.5

    def apply(self, model: nn.Module, workload, context) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.factor)
        context.folder.mkdir(parents=True)
        (context.folder / "half-done").write_text("")
        context.details["told"] = [1]
        return model


class WorkedError(BaseException):
    """Something was worked anew."""


def small_workload() -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return Workload.from_datasets(model, train=(inputs, (inputs[:, 0] > 0).long()), test=(inputs, inputs.argmax(1) % 2))


def run(out: Path, *, seed: int = 3, accept_changes: bool = False) -> Any:
    pipeline = Pipeline([Scale()])
    return pipeline.run(small_workload(), out=out, seed=seed, progress=False, accept_changes=accept_changes)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run(out)
    return out


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    """A copy of a finished run of Scale, with seed 3."""
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


@pytest.fixture
def no_export(monkeypatch):
    """Whatever works anew raises WorkedError; the code of the stage stays what it was."""

    def refuse(*_, **__):
        raise WorkedError

    for name in ("export_onnx", "measure", "timed_against"):
        monkeypatch.setattr(applying, name, refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_taken_from_disk(finished, no_export) -> None:
    """The same call does no work, and gives the same files but for the report's date and load."""
    before = contents(finished)
    result = run(finished)
    after = contents(finished)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} <= {
        "report.json",
        "report.md",
        "report.html",
        "manifest.json",
    }
    assert torch.equal(result.model[0].weight, small_workload().model[0].weight * 0.5)
    assert result.report.steps[1].details["told"] == [1]
    assert [path.name for path in (finished / STAGE).iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["model.onnx", WEIGHTS_FILE, PLAN_FILE])
@pytest.mark.parametrize("stage", [STAGE, "stages/00-reference"])
def test_a_flipped_bit_in_a_finished_stage_is_found(finished, no_export, stage, name) -> None:
    """The file is named, with the folder to delete; nothing is made of it."""
    path = finished / stage / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RunFolderError, match=rf"{name} is not the file that was written; delete .*{stage} to run"):
        run(finished)
    path.unlink()
    with pytest.raises(RunFolderError, match=rf"{name} cannot be read .*delete"):
        run(finished)


def set_score(outcome: dict[str, Any]) -> None:
    outcome["measurement"]["score"]["value"] = 0.999


@pytest.mark.parametrize(
    "edit",
    [
        set_score,
        lambda outcome: outcome["versus_base"].update(value=9.0),
        lambda outcome: outcome.update(drop=None),
        lambda outcome: outcome["details"].update(told=[2]),
        lambda outcome: outcome["files"].pop("model.onnx"),
        lambda outcome: outcome.pop("sha256"),
        lambda outcome: outcome.pop("whole_plan"),
        lambda outcome: outcome.update(more=1),
    ],
)
def test_an_edited_outcome_is_found(finished, no_export, edit: Callable[[dict[str, Any]], Any]) -> None:
    """No number of a finished stage can be changed by hand without a word."""
    path = finished / STAGE / "outcome.json"
    outcome = read_json(path)
    edit(outcome)
    write_json(path, outcome)
    told = r"outcome\.json is not as it was written; delete .*01-scale to run"
    with pytest.raises(RunFolderError, match=told):
        run(finished)
    # Nor may a budget pass over it by leaving the stage out.
    with pytest.raises(RunFolderError, match=told):
        Pipeline([Scale()], budget=Budget()).run(
            small_workload(), out=finished, seed=3, progress=False, accept_changes=True
        )


def test_another_layout_under_a_good_digest_is_refused(finished, no_export) -> None:
    """What another version may have written is not read around: the missing part is named."""
    path = finished / STAGE / "outcome.json"
    outcome = read_json(path)
    del outcome["measurement"]["macs"], outcome["sha256"]
    write_sealed(path, outcome)
    with pytest.raises(RunFolderError, match=r"outcome\.json .*macs.*delete"):
        run(finished)


@pytest.mark.parametrize("content", ["[]", "3", '{"key": 3}'])
def test_a_marker_of_something_else_marks_nothing(finished, no_export, content) -> None:
    """A marker without the stage's key means that the stage is not finished."""
    (finished / STAGE / "outcome.json").write_text(content)
    with pytest.raises(WorkedError):
        run(finished)


def test_an_edited_note_of_what_was_asked_is_found(finished, no_export) -> None:
    """run.json is compared with what is asked now only where it is what was asked then."""
    asked = read_json(finished / "run.json")
    asked["seed"] = 4
    write_json(finished / "run.json", asked)
    with pytest.raises(StorageError, match=r"run\.json is not as it was written"):
        run(finished, seed=4)


def test_every_difference_is_named_with_both_values(finished, no_export) -> None:
    """Another seed is refused; accepted, the stages that draw from it run again, and the reference is kept."""
    with pytest.raises(RunFolderError, match=r"\n  seed: was 3, is 4\ngive another folder, or accept the changes"):
        run(finished, seed=4)
    reference = contents(finished / "stages/00-reference")
    with pytest.raises(WorkedError):
        run(finished, seed=4, accept_changes=True)
    assert contents(finished / "stages/00-reference") == reference
    assert not (finished / STAGE / "outcome.json").exists()


def test_a_folder_of_other_versions_is_refused(finished, no_export, monkeypatch) -> None:
    """What another torch made is not continued: the package is named with both versions."""
    monkeypatch.setattr(running, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(RunFolderError, match=r'versions\.torch: was "[^"]+", is "1\.0"'):
        run(finished)


def former_version_(folder: Path) -> None:
    """Makes `folder` what the version before wrote: fewer inputs, no digests."""
    asked = read_json(folder / "run.json")
    kept = ("stages", "budget", "seed", "target", "workload", "model", "versions")
    write_json(folder / "run.json", {key: asked[key] for key in kept} | {"data": "0" * 64})
    for marker in folder.glob("stages/*/outcome.json"):
        outcome = read_json(marker)
        onnx_sha256 = outcome["files"]["model.onnx"]
        del outcome["files"], outcome["sha256"]
        key = sha256(b"former")
        write_json(marker, {**outcome, "key": key, "onnx_sha256": onnx_sha256})
        (marker.parent / "key.txt").write_text(key)


def test_a_folder_of_a_former_version_is_refused_and_worked_anew_where_accepted(finished, no_export) -> None:
    """It looked at fewer inputs: its stages may be of others, and none is taken."""
    former_version_(finished)
    with pytest.raises(RunFolderError, match=r"run\.json is of a former version.*accept the changes"):
        run(finished)
    with pytest.raises(WorkedError):
        run(finished, accept_changes=True)
    assert not (finished / "stages/00-reference/model.onnx").exists()


def test_what_users_keep_in_a_run_folder_stays(finished, no_export) -> None:
    """Hidden .tmp files, notes beside the results and in stages' folders survive a resumed and a changed run."""
    kept = [
        "mail/deep/.draft.tmp",
        ".notes.tmp",
        ".cache.tmp/inside",
        f"{STAGE}/notes.md",
        f"{STAGE}/snapshots/mine.safetensors",
        f"stages/theirs/{temporary_name().replace('compressor', 'x')}",
    ]
    for name in kept:
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_text("theirs")
    run(finished)
    with pytest.raises(WorkedError):
        run(finished, seed=4, accept_changes=True)
    assert all((finished / name).read_text() == "theirs" for name in kept)


def left_over() -> str:
    """The name of a file that a killed writer on another machine left."""
    host, rest = temporary_name().removeprefix(".compressor-").split("-", 1)
    return f".compressor-{'0' * len(host)}-{rest}"


def test_what_killed_writers_left_is_removed_where_runs_write(tmp_path) -> None:
    """Only our own half-written files go, and only from the places where runs write."""
    gone = [f"{folder}/{left_over()}" for folder in (".", STAGE, f"{STAGE}/snapshots/0123456789abcdef")]
    kept = [f"{folder}/{left_over()}" for folder in ("notes", "stages/theirs", f"{STAGE}/deep/er")]
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    write_json(tmp_path / "run.json", {"stages": [], "seed": 0, "versions": {}})
    with RunFolder(tmp_path).locked():
        assert not any((tmp_path / name).exists() for name in gone)
        assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.parametrize("name", ["model.onnx", "report.html", "plan.json", "stages"])
def test_a_folder_of_other_peoples_files_is_refused(tmp_path, name) -> None:
    """A model.onnx that no run wrote is not replaced; a home folder full of other files may hold a run."""
    (tmp_path / "thesis.tex").write_text("theirs")
    with RunFolder(tmp_path).locked():
        pass
    theirs = tmp_path / name
    if name == "stages":
        theirs.mkdir()
    else:
        theirs.write_text("theirs")
    with pytest.raises(RunFolderError, match=rf"holds {name}, which no run wrote there.*move it away"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "thesis.tex"])


@pytest.mark.parametrize("content", [b'{"a": 1}', b"mine", b""])
def test_a_folder_of_other_peoples_files_in_the_place_of_a_stage_is_refused(finished, no_export, content) -> None:
    """Whoever put it there keeps it, and is told which folder is in the way; nothing of it is replaced."""
    (stage,) = finished.glob("stages/01-*")
    shutil.rmtree(stage)
    stage.mkdir()
    for name in ("outcome.json", "model.onnx"):
        (stage / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"{stage.name} holds outcome.json, model.onnx, which no run wrote there"):
        run(finished)
    assert [(stage / name).read_bytes() for name in ("outcome.json", "model.onnx")] == [content, content]


@pytest.mark.parametrize("where", ["open", "iterdir", "unlink"])
def test_what_this_process_has_no_rights_to_is_named(finished, no_export, monkeypatch, where) -> None:
    """A folder or file of another user's: a sentence with its path, no error of the system's."""
    (stage,) = finished.glob("stages/01-*")
    (stage / "outcome.json").unlink()
    (stage / "key.txt").write_text("another" if where == "unlink" else "0" * 64)

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os if where == "open" else Path, where, refuse)
    with pytest.raises(RunFolderError, match=r"cannot be used: Permission denied; see to the rights to read and write"):
        run(finished)


@pytest.mark.parametrize("content", ['{"name": "training", "seed": 1}', "[]", '{"stages": []}'])
def test_a_run_json_of_something_else_is_refused_even_with_changes_accepted(tmp_path, content) -> None:
    """Another tool's run.json is not taken for ours."""
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json is not what a run writes"):
        run(tmp_path, accept_changes=True)
    assert (tmp_path / "run.json").read_text() == content


def test_a_run_json_that_is_no_json_is_not_advised_to_be_deleted(tmp_path) -> None:
    """It may be the user's own: moving it is advice that harms nobody."""
    (tmp_path / "run.json").write_text("// theirs")
    with pytest.raises(StorageError, match=r"run\.json is not readable JSON .*; move it away, or give another"):
        run(tmp_path)
    assert (tmp_path / "run.json").read_text() == "// theirs"


def test_an_out_that_can_be_no_folder_is_named(tmp_path) -> None:
    """A file, something below a file, a link to nothing, a name that no file can have."""
    with pytest.raises(RunFolderError, match="embedded null byte; give another one"):
        run(tmp_path / "a\0b")
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(RunFolderError, match=f"{out} cannot be a folder: .*give another one"):
            run(out)
    assert (tmp_path / "file").read_text() == "theirs"


def test_links_to_files_of_others_are_replaced_and_not_followed(finished, tmp_path, no_export) -> None:
    """A result that was replaced by a link leaves what the link leads to alone."""
    theirs = tmp_path / "theirs.onnx"
    theirs.write_text("theirs")
    (finished / "model.onnx").unlink()
    (finished / "model.onnx").symlink_to(theirs)
    run(finished)
    assert theirs.read_text() == "theirs"


def test_results_can_be_read_by_whom_the_umask_lets(finished) -> None:
    """Another account of a shared machine reads model.onnx where the umask is 022."""
    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in finished.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask}


def test_a_stage_without_room_leaves_no_part(finished, monkeypatch, tmp_path) -> None:
    """The files of a stage are looked at together before the first is written."""
    folder = RunFolder(tmp_path / "full")
    usage = shutil.disk_usage(tmp_path)
    with folder.locked():
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1500))
        with pytest.raises(WriteError, match=r"model\.onnx needs 2,000 bytes, but 1,500 bytes are free"):
            folder.write(folder.stage(1, "scale"), {"model.onnx": bytes(1000), "plan.json": bytes(1000)})
        monkeypatch.undo()
    assert not (tmp_path / "full" / "stages").exists()


def test_a_disk_without_room_for_the_reference_is_found_before_any_work(tmp_path, monkeypatch) -> None:
    """What the model will take as a file and as a checkpoint is known before it is exported."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    folder = RunFolder(tmp_path)
    with pytest.raises(WriteError, match=r"model\.onnx needs 184 bytes, but 100 bytes are free"):
        folder.require_space(folder.stage(0, "reference"), small_workload().model)


def test_a_folder_that_was_replaced_is_not_written(tmp_path) -> None:
    """Where somebody moved the folder away and made another, its new content is not ours."""
    out = tmp_path / "out"
    folder = RunFolder(out)
    with folder.locked():
        out.rename(tmp_path / "moved")
        out.mkdir()
        with pytest.raises(RunFolderError, match="was moved, deleted or replaced"):
            folder.write(out, {"model.onnx": b""})
    assert not list(out.iterdir())


def check_mutations(finished: Path, seeds: range) -> None:
    """Each file of a finished run damaged in turn: the run ends as before or in a sentence of ours."""
    names = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    names = [name for name in names if name.startswith("stages/") or name == "run.json"]
    before = (finished / "model.onnx").read_bytes()
    report = read_json(finished / "report.json")
    found = 0
    for seed in seeds:
        chance = random.Random(seed)  # noqa: S311 - damage, no secrets
        path = finished / chance.choice(names)
        whole = contents(finished)
        raw = path.read_bytes()
        if path.suffix == ".json" and chance.random() < 0.5:
            path.write_text(json.dumps(edited(json.loads(raw), chance)))
        else:
            path.write_bytes(damaged(raw, chance))
        try:
            steps = run(finished).report.to_json()["steps"]
        except (RunFolderError, StorageError, WorkedError):
            found += 1
        else:
            assert (finished / "model.onnx").read_bytes() == before, f"seed {seed}: {path.name}"
            assert steps == report["steps"], f"seed {seed}: {path.name}"
        for name, content in whole.items():
            if not (finished / name).exists() or (finished / name).read_bytes() != content:
                (finished / name).parent.mkdir(parents=True, exist_ok=True)
                (finished / name).write_bytes(raw if finished / name == path else content)
    assert found > 0.5 * len(seeds)


def test_damaged_run_folders_are_refused_or_unchanged(finished, no_export) -> None:
    """A sample of those of `make test-mutations`."""
    check_mutations(finished, range(12))


@pytest.mark.mutations
def test_all_damaged_run_folders_are_refused_or_unchanged(finished, no_export, told_damage) -> None:
    """No damage to a finished run is given out as its result, and none ends in an error of another type."""
    told_damage("run folder", 500)
    check_mutations(finished, range(500))
