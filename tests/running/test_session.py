"""Stages that other runs have finished: taken where every input is the same, made again where one is not."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor import Pipeline, Workload
from compressor.estimate import Estimate
from compressor.measuring.session_times import Times
from compressor.measuring.timing import Timing
from compressor.running import applying
from compressor.running import session as sessions
from compressor.running.folder import RunFolder
from compressor.running.session import Session, reused_sentence
from compressor.storage import read_json
from compressor.store.kept import Store, StoreWarning
from workbench.two_layers import INPUTS, TARGETS, Scale, export, small_workload


@pytest.fixture(autouse=True)
def _exported_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(applying, "export_onnx", export)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "stages")


@pytest.fixture(autouse=True)
def timed(monkeypatch) -> list[tuple[bytes, bytes]]:
    """Nothing is timed in earnest; the pairs that are asked for are listed, and every time is another one."""
    asked: list[tuple[bytes, bytes]] = []

    def take(candidate: bytes, reference: bytes, *_: Any, **__: Any) -> Timing:
        asked.append((candidate, reference))
        found = Estimate(len(asked), len(asked), len(asked))
        return Timing(reference_ms=found, candidate_ms=found, speedup=found)

    monkeypatch.setattr("compressor.measuring.measure.time_interleaved", take)
    return asked


def run(out: Path, store: Store | None, *stages: Any, workload: Workload | None = None, seed: int = 0) -> Any:
    session = Session(store=store)
    pipeline = Pipeline(stages or (Scale(), Scale(by=2.0)))
    result = pipeline.run(workload or small_workload(), out=out, seed=seed, progress=False, session=session)
    return result, [one.how for one in session.worked]


def test_another_run_takes_what_is_the_same(store, tmp_path, monkeypatch) -> None:
    """In another folder nothing is exported or applied; file, scores, plan and details are the same to the bit."""
    first, made = run(tmp_path / "a", store)
    assert made == ["made"] * 3
    monkeypatch.setattr(applying, "export_onnx", None)
    second, taken = run(tmp_path / "b", store)
    assert taken == ["store"] * 3
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()
    for one, other in zip(first.report.steps, second.report.steps, strict=True):
        assert one.measurement.score == other.measurement.score
        assert one.details.get("told") == other.details.get("told")
        assert other.details["reused"]["spared"] == one.seconds == other.seconds
    with torch.no_grad():
        assert torch.equal(first.model(INPUTS), second.model(INPUTS))
    # The folder is a run's like any other.
    assert run(tmp_path / "b", None)[1] == ["folder"] * 3


def test_times_are_of_the_session_that_tells_them(store, tmp_path, timed) -> None:
    """What is taken is timed again: its numbers are those of the new session, the stored ones stand nowhere."""
    run(tmp_path / "a", store)
    count = len(timed)
    second, _ = run(tmp_path / "b", store)
    assert len(timed) == 2 * count
    told = [step.measurement.latency_ms.value for step in second.report.steps]
    assert min(told) > count
    assert second.report.steps[2].details["versus_base"]["value"] > count
    assert read_json(tmp_path / "b/stages/02-scale/outcome.json")["measurement"]["latency_ms"]["value"] > count


def test_one_session_times_a_pair_once(tmp_path, timed) -> None:
    """Runs of one session judge the same files by the same numbers, and a session that goes on keeps them."""
    session = Session(store=Store(tmp_path / "stages"), times=Times(tmp_path / "times.json"))
    for name in ("a", "b"):
        Pipeline([Scale()]).run(small_workload(), out=tmp_path / name, progress=False, session=session)
    count = len(timed)
    assert len(set(timed)) == count
    again = Session(store=session.store, times=Times(tmp_path / "times.json"))
    Pipeline([Scale()]).run(small_workload(), out=tmp_path / "c", progress=False, session=again)
    assert len(timed) == count
    (tmp_path / "times.json").write_text("{}")
    assert Times(tmp_path / "times.json")._known == {}


def doubled(outputs, targets):
    return 2 * nn.functional.cross_entropy(outputs, targets)


def relabelled() -> Workload:
    targets = TARGETS.clone()
    targets[5] = 1 - targets[5]
    return Workload.from_datasets(
        small_workload().model, train=(INPUTS, targets), test=(INPUTS, TARGETS), batch_size=16
    )


@pytest.mark.parametrize(
    ("change", "hows"),
    [
        ({"stages": (Scale(), Scale(by=3.0))}, ["store", "store", "made"]),
        ({"stages": (Scale(by=3.0), Scale(by=2.0))}, ["store", "made", "made"]),
        ({"stages": (Scale(),)}, ["store", "store"]),
        ({"seed": 1}, ["made", "made", "made"]),
        ({"workload": small_workload(7)}, ["made", "made", "made"]),
        ({"workload": relabelled()}, ["store", "made", "made"]),
        ({"workload": small_workload(loss=doubled)}, ["store", "made", "made"]),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_no_more(store, tmp_path, change, hows) -> None:
    """A parameter, weights, one label, the loss: what comes before stays, what comes after is made again."""
    run(tmp_path / "a", store)
    stages = change.pop("stages", ())
    assert run(tmp_path / "b", store, *stages, **change)[1] == hows


@pytest.mark.parametrize("what", ["package_code", "cpu_name"])
def test_other_code_and_another_processor_make_everything_again(store, tmp_path, monkeypatch, what) -> None:
    """The package's own code and the processor are inputs of every stage."""
    run(tmp_path / "a", store)
    monkeypatch.setattr(sessions, what, lambda: "another")
    assert run(tmp_path / "b", store)[1] == ["made"] * 3


def test_what_is_not_known_is_never_taken(store, tmp_path) -> None:
    """A loss that holds an open file may be another one next time: the reference alone is taken, nothing else kept."""
    with (tmp_path / "open").open("w") as file:

        def loss(outputs, targets):
            file.write("x")
            return nn.functional.cross_entropy(outputs, targets)

        for name, hows in (("a", ["made"] * 3), ("b", ["store", "made", "made"])):
            assert run(tmp_path / name, store, workload=small_workload(loss=loss))[1] == hows
    assert [entry.stage for entry in store.entries()] == ["reference"]


def test_a_damaged_stage_is_made_again(store, tmp_path) -> None:
    """The damage is told by the file's name, and the stage is in the store again afterwards."""
    first, _ = run(tmp_path / "a", store)
    (key,) = [entry.key for entry in store.entries() if entry.stage == "reference"]
    path = store.folder / key[:2] / key / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(StoreWarning, match=r"model\.onnx is not the file that was written"):
        second, hows = run(tmp_path / "b", store)
    assert hows == ["made", "store", "store"]
    assert store.verify() == []
    assert first.artifact.path.read_bytes() == second.artifact.path.read_bytes()


def test_what_another_layout_left_is_made_again(store, tmp_path) -> None:
    """A whole entry that lacks what a state needs is no stage: it is told, and replaced."""
    run(tmp_path / "a", store, Scale())
    for entry in store.entries():
        kept = store.get(entry.key)
        facts = {name: value for name, value in kept.facts.items() if name != "measurement"}
        store.clean(most_bytes=0)
        store.put(entry.key, stage=entry.stage, seconds=1.0, facts=facts, contents=kept.contents)
        break
    with pytest.warns(StoreWarning, match="measurement"):
        run(tmp_path / "b", store, Scale())
    assert run(tmp_path / "c", store, Scale())[1] == ["store", "store"]


def test_a_store_that_fails_costs_no_run(tmp_path) -> None:
    """Where a file stands in the store's way, the run is made and ends, and what happened is told."""
    store = Store(tmp_path / "stages")
    (tmp_path / "stages").write_text("in the way")
    with pytest.warns(StoreWarning, match="stays in the folder of its run alone"):
        result, hows = run(tmp_path / "a", store)
    assert hows == ["made"] * 3
    assert result.artifact.path.is_file()


@pytest.mark.parametrize("name", ["write", "_finish"])
def test_a_run_that_ends_while_a_stage_is_put_on_disk(store, tmp_path, monkeypatch, name) -> None:
    """The one that goes on has the stage in its folder and in the store, and ends with the same file."""
    whole, _ = run(tmp_path / "whole", None)

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, name, ended)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", store)
    result, hows = run(tmp_path / "run", store)
    assert hows == ["store", "made", "made"]
    assert result.artifact.path.read_bytes() == whole.artifact.path.read_bytes()
    assert sorted(entry.stage for entry in store.entries()) == ["reference", "scale", "scale"]
    assert run(tmp_path / "run", None)[1] == ["folder"] * 3


def test_what_was_taken_is_said(store, tmp_path, capsys) -> None:
    """One line names what was taken from where and what was made."""
    run(tmp_path / "a", store)
    session = Session(store=store)
    Pipeline([Scale(), Scale(by=9.0)]).run(copy.deepcopy(small_workload()), out=tmp_path / "b", session=session)
    assert "taken: reference, scale from the store (0 s not spent again); made: scale" in capsys.readouterr().err
    assert reused_sentence([one for one in session.worked if one.how == "made"]) == ""
