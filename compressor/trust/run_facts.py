"""What a manifest says of how a run's files were made: from its report and from what was asked of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.trust.manifest import Manifest, described, write_manifest

# Of the workload, `run.json` has a digest of each of these by content and code.
_WORKLOAD = ("model", "example_inputs", "train", "calibration", "validation", "test", "loss", "metric")
# What a run writes into its folder; whatever else is there is somebody's own.
_WRITTEN = (
    "model.onnx",
    "plan.json",
    "weights.safetensors",
    "report.json",
    "report.md",
    "report.html",
    "run.json",
    "stages",
)
# What changes from call to call and says nothing of the files.
_PASSING = {"load_average", "busy"}


def write_run_manifest(
    folder: Path, *, report: Mapping[str, Any], asked: Mapping[str, Any], given: Mapping[str, str] | None
) -> None:
    """Lists what the run in `folder` wrote, once all of it is there, and says how it was made.

    `report` is what report.json holds, `asked` what run.json does; `given` has the name and the SHA-256 of the file
    that the model was read from, where it was one.
    """
    files = described(folder, only=_WRITTEN)
    reference = files.get("stages/00-reference/model.onnx")
    made = facts_of_run(report, asked, plan_sha256=files["plan.json"].sha256)
    parents = parents_of_run(asked, reference_sha256=reference.sha256 if reference else None, given=given)
    write_manifest(folder, Manifest(files=files, parents=parents, made=made))


def facts_of_run(report: Mapping[str, Any], asked: Mapping[str, Any], *, plan_sha256: str) -> dict[str, Any]:
    """How the files came about: recipe, stages, plan, workload, target, seed, machine, versions, measurements."""
    shipped = report["steps"][report["final"]]
    return {
        "by": "run",
        "artifact": report["artifact"],
        "recipe": report["recipe"],
        "stages": asked["stages"],
        "kept": [step["stage"] for step in report["steps"] if step["kept"]],
        "budget": report["budget"],
        "budget_met": report["budget_met"],
        "plan_sha256": plan_sha256,
        "workload": {**report["workload"], "fingerprint": {name: asked[name] for name in _WORKLOAD if name in asked}},
        "target": report["target"],
        "seeds": {"run": report["seed"]},
        "machine": {name: fact for name, fact in report["environment"].items() if name not in {*_PASSING, "versions"}},
        "versions": {**report["environment"].get("versions", {}), **asked["versions"]},
        "measurements": {
            "stage": shipped["stage"],
            "test": shipped["measurement"],
            "drop": shipped["drop"],
            "validation": shipped["validation"],
        },
    }


def parents_of_run(
    asked: Mapping[str, Any], *, reference_sha256: str | None, given: Mapping[str, str] | None
) -> tuple[dict[str, Any], ...]:
    """What the run's file was made from: the model as it was given, and the same as an ONNX file."""
    model = {"is": "the model as it was given", "content": asked.get("model")}
    return (
        model | ({"file": given["file"], "sha256": given["sha256"]} if given else {}),
        {"is": "the model as an ONNX file, before any stage", "sha256": reference_sha256},
    )
