"""What a stopped command says that is kept: what lies in its folder, and nothing else."""

from pathlib import Path

import torch

from compressor.cli.kept import kept_in
from compressor.training.snapshots import write_snapshot


def _run(folder: Path, *, finished: tuple[str, ...] = (), epochs: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    for number, name in enumerate(finished):
        (folder / "stages" / f"{number:02d}-{name}").mkdir(parents=True)
        (folder / "stages" / f"{number:02d}-{name}" / "outcome.json").write_text("{}")
    place = folder / "stages" / f"{len(finished):02d}-distill"
    place.mkdir(parents=True)
    (place / "key.txt").write_text("begun")
    if epochs:
        path = place / "snapshots" / "0123" / "distill.safetensors"
        path.parent.mkdir(parents=True)
        write_snapshot(path, {"best/weight": torch.zeros(2)}, {"logs": [{"epoch": each} for each in range(epochs)]})
    return folder


def test_nothing_is_kept_where_nothing_was_finished(tmp_path: Path) -> None:
    """No folder, an empty one, and a stage that has only begun."""
    assert kept_in(None) == ""
    assert kept_in(tmp_path / "absent") == ""
    assert kept_in(_run(tmp_path / "begun")) == ""


def test_stages_and_epochs_are_counted(tmp_path: Path) -> None:
    """What carries its marker is finished; a training in between says its epochs, read from its snapshot."""
    run = _run(tmp_path / "a", finished=("reference", "drop_blocks"), epochs=12)
    assert kept_in(run) == f"{run} keeps reference, drop_blocks, 12 epochs of distill"
    assert kept_in(_run(tmp_path / "b", epochs=1)) == f"{tmp_path / 'b'} keeps 1 epoch of distill"


def test_a_comparison_tells_of_every_recipe(tmp_path: Path) -> None:
    """Every recipe's folder is a run; those that keep nothing are not named."""
    _run(tmp_path / "int8", finished=("reference",))
    _run(tmp_path / "prune")
    assert kept_in(tmp_path) == f"{tmp_path / 'int8'} keeps reference"


def test_a_damaged_snapshot_counts_as_nothing(tmp_path: Path) -> None:
    """It is not continued either."""
    run = _run(tmp_path / "a", finished=("reference",), epochs=3)
    (path,) = run.glob("stages/*/snapshots/*/*.safetensors")
    for content in (b"", b"\xff" * 64, path.read_bytes()[:40]):
        path.write_bytes(content)
        assert kept_in(run) == f"{run} keeps reference"


def test_a_fold_tells_of_its_reference(tmp_path: Path) -> None:
    """A model that was trained for a fold is kept, before its run has begun and after."""
    _run(tmp_path / "fold-1", finished=("reference",))
    (tmp_path / "fold-2").mkdir()
    for fold in ("fold-1", "fold-2"):
        (tmp_path / fold / "reference.safetensors").touch()
    told = [f"{tmp_path / 'fold-1'} keeps a trained model, reference", f"{tmp_path / 'fold-2'} keeps a trained model"]
    assert kept_in(tmp_path) == "; ".join(told)


def test_a_search_keeps_its_trials(tmp_path) -> None:
    """How many have ended, not every stage of each."""
    (tmp_path / "asked.json").write_text("{}")
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "a-0123.json").write_text("{}")
    assert kept_in(tmp_path) == f"{tmp_path} keeps 1 trial, and the stages of one that was begun"
