"""Structural pruning, distillation and quantization of PyTorch models, measured as the ONNX file you would ship."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.budget import Budget
    from compressor.comparing.comparison import compare
    from compressor.errors import (
        CompressorError,
        ExportError,
        FoldsError,
        OnnxFileError,
        RecipeError,
        RunFolderError,
        StageError,
        StorageError,
        WorkloadError,
    )
    from compressor.evaluations.by_class import ByClass
    from compressor.evaluations.calibration import Calibration
    from compressor.evaluations.generalisation import GeneralisationGap
    from compressor.evaluations.membership import MembershipInference
    from compressor.evaluations.removed import WhatWent
    from compressor.evaluations.robustness import Robustness
    from compressor.files.reading import read_onnx
    from compressor.metrics import Metric
    from compressor.outputs.kinds import Classes, Labels, Numbers, OtherOutput
    from compressor.recipe.recipe import Recipe
    from compressor.running.folds.fold import Fold
    from compressor.running.pipeline import Pipeline
    from compressor.running.run import Result
    from compressor.searching.search import search
    from compressor.stage import Context, Effect, Stage
    from compressor.structure.checkpoint import load_checkpoint
    from compressor.target import Isa, Target
    from compressor.workload import Workload
    from compressor.workloads.unlabelled import workload_of_inputs

__version__ = "0.1.0"

_HOMES = {
    "Budget": "budget",
    "ByClass": "evaluations.by_class",
    "Calibration": "evaluations.calibration",
    "Classes": "outputs.kinds",
    "CompressorError": "errors",
    "Context": "stage",
    "Effect": "stage",
    "ExportError": "errors",
    "Fold": "running.folds.fold",
    "FoldsError": "errors",
    "GeneralisationGap": "evaluations.generalisation",
    "Isa": "target",
    "Labels": "outputs.kinds",
    "MembershipInference": "evaluations.membership",
    "Metric": "metrics",
    "Numbers": "outputs.kinds",
    "OnnxFileError": "errors",
    "OtherOutput": "outputs.kinds",
    "Pipeline": "running.pipeline",
    "Recipe": "recipe.recipe",
    "RecipeError": "errors",
    "Result": "running.run",
    "Robustness": "evaluations.robustness",
    "RunFolderError": "errors",
    "Stage": "stage",
    "StageError": "errors",
    "StorageError": "errors",
    "Target": "target",
    "WhatWent": "evaluations.removed",
    "Workload": "workload",
    "WorkloadError": "errors",
    "compare": "comparing.comparison",
    "load_checkpoint": "structure.checkpoint",
    "read_onnx": "files.reading",
    "search": "searching.search",
    "workload_of_inputs": "workloads.unlabelled",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - the names are strings; ruff cannot see through the dict


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds: `compressor --help` must not wait for it.
    if name in _HOMES:
        return getattr(import_module(f"compressor.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
