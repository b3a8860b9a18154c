"""Runs stages one after the other, measures each as the file it would ship, and keeps those that pay."""

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from compressor.budget import Budget
from compressor.checks import as_folder
from compressor.errors import WorkloadError, WrongUseError
from compressor.evaluations.evaluation import Evaluation, Known
from compressor.files.export_memory import ExportMemory
from compressor.identity.workload import content, identify
from compressor.measuring.scores import FileScores
from compressor.progress.bars import showing
from compressor.progress.events import Listener, listening
from compressor.report.report import Report
from compressor.running.applying import Job
from compressor.running.failures import explained
from compressor.running.folder import RunFolder
from compressor.running.folds.crossing import CrossValidation, OfFold, Reference, cross_validated
from compressor.running.judging import unscored_outputs
from compressor.running.order import doubtful_orders, refuse_for_files, refuse_impossible_orders
from compressor.running.preflight import check_workload
from compressor.running.reference_base import without_base
from compressor.running.run import Artifact, Result, run_stages
from compressor.running.session import Session
from compressor.running.together.helping import Over, helped, leading, refuse_teams
from compressor.running.without_data import not_scored, stages_without_data
from compressor.runtime import OnnxModule
from compressor.stage import Stage, stage_name
from compressor.target import Target
from compressor.training.distributed.team import present_team
from compressor.workload import Workload

if TYPE_CHECKING:
    from compressor.recipe.recipe import Recipe


class PipelineWarning(UserWarning):
    """An order of stages that works but is known to disappoint."""


class Pipeline:
    """A chain of stages with an optional budget.

    Raises ValueError for orders that cannot work (nothing trains or reshapes after quantization) and warns, with
    PipelineWarning, of those that are known to disappoint. Without a budget every stage is kept and the report marks
    what did not pay. `evaluations` are asked of the file of every stage, for the report alone (docs/evaluations.md).
    """

    def __init__(
        self, stages: Sequence[Stage], *, budget: Budget | None = None, evaluations: Sequence[Evaluation] = ()
    ) -> None:
        if isinstance(stages, str):
            raise TypeError(
                f"a pipeline takes stages, got the text {stages!r}; for a recipe: "
                f"Pipeline.from_recipe(Recipe.load({stages!r}))"
            )
        if not isinstance(stages, Iterable):
            kind = type(stages).__name__
            raise TypeError(f"a pipeline takes a list of stages, got a {kind} alone; write Pipeline([{kind}(...)])")
        if not stages:
            raise ValueError("a pipeline needs at least one stage, such as Quantize()")
        for stage in stages:
            if isinstance(stage, type) or not isinstance(stage, Stage):
                raise TypeError(
                    f"{stage!r} is not a stage: it needs an `effect` and apply(model, workload, context)"
                    + ("; it is a class, call it" if isinstance(stage, type) else "")
                    + (
                        "; for a name, write a recipe, or the class of compressor.stages"
                        if isinstance(stage, str)
                        else ""
                    )
                )
        refuse_impossible_orders(stages)
        for evaluation in evaluations:
            if isinstance(evaluation, type) or not isinstance(evaluation, Evaluation):
                raise TypeError(
                    f"{evaluation!r} is not an evaluation, such as Calibration(): it needs evaluate(subject)"
                    + ("; it is a class, call it" if isinstance(evaluation, type) else "")
                )
        self.stages, self.budget, self.evaluations = tuple(stages), budget, tuple(evaluations)
        self.recipe: dict[str, Any] | None = None
        self.order_warnings = doubtful_orders(stages)
        for text in self.order_warnings:
            warnings.warn(text, PipelineWarning, stacklevel=2)

    @classmethod
    def from_recipe(cls, recipe: "Recipe") -> "Pipeline":
        """The pipeline that `recipe` describes."""
        pipeline = cls(recipe.stages, budget=recipe.budget, evaluations=recipe.evaluations)
        pipeline.recipe = yaml.safe_load(recipe.dump())
        return pipeline

    def run(
        self,
        workload: Workload,
        *,
        target: Target | None = None,
        out: Path | str | None = None,
        seed: int = 0,
        progress: bool = True,
        accept_changes: bool = False,
        on_event: Listener | None = None,
        session: Session | None = None,
    ) -> Result:
        """Compresses `workload.model` (which stays as it is) and writes model.onnx and the report to the folder `out`.

        `out` defaults to a new temporary folder. A run that was killed goes on when called again with the same `out`.
        `on_event` is called with every event of `compressor.progress.events`; what it raises ends no run. `session` is
        what this run shares with others, such as a store of finished stages: `Session(store=users_store())`.
        Raises CompressorError alone: WorkloadError for a workload that cannot work (an ONNX file where a stage needs
        layers), RunFolderError where `out` holds another run, and, without a budget, StageError or ExportError, which
        name the stage, where a stage cannot do its work or a stage, the workload's code or a library raises anything;
        with a budget, that stage is rolled back, the report says why, and the next one is applied.

        Where torchrun has started this process as one of several, rank 0 runs all of it and the others help with its
        trainings (docs/scale.md); they get its report, and the model as its file.
        """
        check_asked("run", workload, target, seed)
        # A script that only evaluates is often under no_grad, inference_mode or autocast.
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            showing(progress),
            listening(on_event),
        ):
            stages = self.stages if workload.metric.scored else stages_without_data(self.stages)
            warned = self.order_warnings if workload.metric.scored else [not_scored(workload), *self.order_warnings]
            if isinstance(workload.model, OnnxModule):
                refuse_for_files(stages)
            workload = check_workload(workload, stages)
            warned = [*warned, *unscored_outputs(workload)]
            baseless = without_base(workload)
            if baseless and self.budget is not None and self.budget.max_drop is not None:
                raise WorkloadError(f"{baseless}. Budget(max_drop=None) does not look at the score")
            team = present_team()
            if team is not None and not team.leads:
                return _result_of(helped(team, workload))
            folder = RunFolder(_folder(out))
            with leading(team) as ends, folder.locked(), explained():
                session = session or Session()
                identity = identify(workload, stages, progress=progress)
                job = Job(
                    workload=workload,
                    target=target or Target(),
                    folder=folder,
                    seed=seed,
                    scores=FileScores(workload, seed=seed, based=not baseless, known=session.rows(identity)),
                    identity=identity,
                    exports=ExportMemory(workload=workload, identify=content),
                    session=session,
                    progress=progress,
                    evaluations=self.evaluations,
                    known=Known(workload),
                )
                result = run_stages(
                    job,
                    stages,
                    budget=self.budget,
                    recipe=self.recipe,
                    warnings=[*warned, *filter(None, [baseless])],
                    accept_changes=accept_changes,
                )
                ends.append(Over(report=result.report, path=result.artifact.path.absolute()))
                return result

    def cross_validate(
        self,
        workload: Workload | OfFold,
        *,
        folds: int,
        repeats: int = 1,
        seed: int = 0,
        run_seed: int | None = None,
        reference: Reference = "anew",
        target: Target | None = None,
        out: Path | str | None = None,
        progress: bool = True,
        accept_changes: bool = False,
        on_event: Listener | None = None,
    ) -> CrossValidation:
        """Runs the pipeline once for each of `folds` (>= 2) parts of the samples, which tests it; `repeats` times.

        `workload` is a function of the fold: it asks `fold.split(labels)` for its samples, trains the reference on
        those that train (`fold.trained`), and returns the workload. With `reference="given"` one trained model stands
        in all folds: a workload of `from_datasets` will do then, of which folds part what the model was not trained on,
        validation and test. `seed` decides how samples are parted, `run_seed` (None: as `seed`) is the seed of the
        first run; every further one adds 1. Each fold is a run in a folder of its own in `out`, by default a new
        temporary one; folds.html, .md and .json stand beside them. A cross-validation that was killed goes on where it
        was when called again with the same `out`.

        Raises FoldsError, before any work, for what would give no number or a wrong one: one fold, more folds than
        samples, a fold without a class, no labels, a reference that has seen what tests it; else as `run` does.
        """
        refuse_teams("a cross-validation", "run it without torchrun")

        def run(own: Workload, own_seed: int, folder: Path) -> Report:
            return self.run(
                own,
                target=target,
                out=folder,
                seed=own_seed,
                progress=progress,
                accept_changes=accept_changes,
                on_event=on_event,
            ).report

        return cross_validated(
            run,
            workload,
            folds=folds,
            repeats=repeats,
            seed=seed,
            run_seed=seed if run_seed is None else run_seed,
            reference=reference,
            out=_folder(out),
            progress=progress,
            budgeted=self.budget is not None,
            stages=tuple(map(stage_name, self.stages)),
        )


def check_asked(what: str, workload: Any, target: Any, seed: Any = 0) -> None:
    """Raises WrongUseError for what is no workload, no target or no seed; `what` is the function that takes them."""
    if not isinstance(workload, Workload):
        raise WrongUseError(
            f"{what} takes a Workload, got {type(workload).__name__}; make one: "
            "Workload.from_datasets(model, train=(inputs, targets), test=(inputs, targets))"
        )
    if target is not None and not isinstance(target, Target):
        raise WrongUseError(f"target is a Target, got {target!r}; write Target(batch_size=1, threads=1)")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise WrongUseError(f"seed is a whole number, at least 0; got {seed!r}")


def _result_of(over: Over) -> Result:
    """What a process that helped gives: rank 0's report and file."""
    assert over.report is not None  # of a run that ended well
    assert over.path is not None
    model = OnnxModule(over.path.read_bytes()) if over.path.is_file() else nn.Module()
    return Result(report=over.report, artifact=Artifact(over.path), model=model)


def _folder(out: str | Path | None) -> Path:
    """`out`, or a new folder of the system's."""
    return (
        Path(tempfile.mkdtemp(prefix="compressor-")) if out is None else as_folder(out, "out is the folder of the run")
    )
