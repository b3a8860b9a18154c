"""Cross-validation: a run for each fold in a folder of its own, resumed like any other, and one report of them all."""

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.batches import Batches
from compressor.checks import check_count, check_one_of
from compressor.errors import FoldsError
from compressor.estimate import Estimate
from compressor.progress.bars import say, showing
from compressor.report.folds.page import conclusions, folds_html, folds_markdown, print_folds, table
from compressor.report.folds.record import FoldRow, FoldsRecord
from compressor.report.notebook import flat, frame, table_html
from compressor.report.record import describe_workload
from compressor.report.report import Report
from compressor.report.view import total_seconds
from compressor.running.folds.fold import Fold
from compressor.running.folds.given import check_held_back, check_unseen, workload_of
from compressor.running.lock import refuse_files_of_others
from compressor.runtime import OnnxModule
from compressor.scoring.agreement import Decisions
from compressor.scoring.relative import Signal
from compressor.storage import sha256, write_atomic, write_json
from compressor.tensor_files import raw_bytes
from compressor.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

Reference = Literal["anew", "given"]
OfFold = Callable[[Fold], Workload]
# What a run of one fold is asked: the workload, the seed and the folder; it gives the report.
RunFold = Callable[[Workload, int, Path], Report]
# Draws take seeds of 32 bits, and every fold one more than the fold before it.
_SEEDS = 1 << 32
_DATA, _PAGES = "folds.json", ("folds.md", "folds.html")
_NOT_ANEW = (
    "was trained on its own training samples, and would be tested on some of them in every fold. Give a function of "
    "the fold that trains it anew (def workload(fold): ..., docs/folds.md), or say that this one reference stands in "
    "all folds, which then part what it has not seen: reference='given' (--reference given)"
)


@dataclass(frozen=True, kw_only=True)
class CrossValidation(FoldsRecord):
    """What `Pipeline.cross_validate` gives: the record, and the record as people read it."""

    def __repr__(self) -> str:
        return f"<CrossValidation of {self.workload.get('name')}: {' '.join(conclusions(self)[:2])}>"

    def _repr_html_(self) -> str:
        rows = table(self)
        return table_html(rows, [""] * len(rows), title="fold", caption=" ".join(conclusions(self)[:2]))

    def to_frame(self) -> Any:
        """The folds as a pandas DataFrame; estimates have three columns, such as `drop`, `drop_low` and `drop_high`.

        Raises WrongUseError where pandas is not installed; the extra `frame` brings it along.
        """
        return frame([flat(vars(row)) for row in self.rows])

    def print(self, console: "Console | None" = None) -> None:
        """Prints the table and what the folds say together to `console`, by default the terminal."""
        print_folds(self, console)


def cross_validated(
    run: RunFold,
    workload: Workload | OfFold,
    *,
    folds: int,
    repeats: int,
    seed: int,
    run_seed: int,
    reference: Reference,
    out: Path,
    progress: bool,
    budgeted: bool,
    stages: tuple[str, ...],
) -> CrossValidation:
    """`run` in every fold, and the report of all in `out`. See `Pipeline.cross_validate`."""
    _check(workload, folds=folds, repeats=repeats, reference=reference, seeds={"seed": seed, "run_seed": run_seed})
    given = reference == "given"
    refuse_files_of_others(out, _DATA, _PAGES, keys={"schema_version", "rows", "folds"})
    rows: list[FoldRow] = []
    known: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for index in range(folds * repeats):
        fold = Fold(
            number=index % folds + 1,
            folds=folds,
            repeat=index // folds + 1,
            repeats=repeats,
            seed=seed,
            folder=out / _name(index, folds, repeats),
        )
        with showing(progress):
            say(f"fold {index + 1} of {folds * repeats}: {fold.name}", shown=progress)
            own = workload_of(fold, workload) if isinstance(workload, Workload) else _made(workload, fold)
        _check_scored(own)
        if not given:
            _check_anew(own, fold, known)
        report = run(own, run_seed + index, out / fold.name)
        facts = facts or describe_workload(own)
        rows.append(_row(fold, report))
    found = CrossValidation(
        workload=facts,
        folds=folds,
        repeats=repeats,
        seed=seed,
        given=given,
        budgeted=budgeted,
        stages=stages,
        rows=tuple(rows),
    )
    write_json(out / _DATA, found.to_json())
    write_atomic(out / _PAGES[0], folds_markdown(found))
    write_atomic(out / _PAGES[1], folds_html(found))
    return found


def _name(index: int, folds: int, repeats: int) -> str:
    return Fold(
        number=index % folds + 1, folds=folds, repeat=index // folds + 1, repeats=repeats, seed=0, folder=Path()
    ).name


def _check(workload: Workload | OfFold, *, folds: int, repeats: int, reference: str, seeds: Mapping[str, int]) -> None:
    try:
        check_count(
            folds,
            "folds counts the parts that the samples are cut into, each of which tests once",
            least=2,
            way_out="with one fold nothing is left to train on, and one split has no deviation",
        )
        check_count(repeats, "repeats counts the ways in which the samples are parted")
        for name, given in seeds.items():
            check_count(given, f"{name} decides every draw", least=0)
        check_one_of(reference, "reference says which model a fold is compared with", ("anew", "given"))
    except ValueError as error:
        raise FoldsError(str(error)) from error
    most = _SEEDS - folds * repeats
    for name, given in seeds.items():
        if given > most:
            raise FoldsError(f"{name} decides every draw, at most {most}; got {given}")
    if not isinstance(workload, Workload):
        if not callable(workload):
            raise FoldsError(f"a workload, or a function of the fold that returns one, is wanted; got {workload!r}")
        return
    _check_scored(workload)
    if reference != "given":
        raise FoldsError(f"the model of {workload.name} {_NOT_ANEW}")
    check_held_back(workload)


def _check_scored(workload: Workload) -> None:
    unlabelled = isinstance(workload.metric.per_sample, Decisions | Signal)
    if not workload.metric.scored or unlabelled:
        why = "its targets are what the model itself gives" if unlabelled else "it has no data to be scored on"
        raise FoldsError(
            f"folds need labels, and {workload.name} has none: {why}, so there is no score that folds could differ in; "
            "give targets, or measure it once without folds"
        )


def _made(function: OfFold, fold: Fold) -> Workload:
    workload = function(fold)
    if not isinstance(workload, Workload):
        raise FoldsError(f"the function of the fold must return a compressor.Workload, got {type(workload).__name__}")
    if fold.parts is None:
        raise FoldsError(
            "the function of the fold did not ask it for its samples, so that all folds would test on the same; begin "
            "with train, validation, test = fold.split(labels)"
        )
    count = _count(workload.test)
    if count is not None and count != len(fold.parts.test):
        raise FoldsError(
            f"{fold.name} tests on {len(fold.parts.test)} samples, and test of the workload has {count}; give it those "
            "of fold.split alone: test=(inputs[test], labels[test])"
        )
    check_unseen(workload, fold)
    return workload


def _count(data: Any) -> int | None:
    """How many samples a set has, where that is known without reading it."""
    if isinstance(data, Batches):
        return len(data.indices)
    dataset = getattr(data, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) and getattr(data, "sampler", None) is not None else None


def _check_anew(workload: Workload, fold: Fold, known: dict[str, str]) -> None:
    """Raises FoldsError where the reference of a fold is that of another, by its weights."""
    model = workload.model
    if isinstance(model, OnnxModule):
        digest = sha256(model.onnx_bytes)
    else:
        digest = sha256(b"".join(sha256(bytes(raw_bytes(each))).encode() for each in model.state_dict().values()))
    if digest in known:
        raise FoldsError(
            f"the reference of {fold.name} has the weights of that of {known[digest]}: it was not trained anew, and "
            f"has seen samples that it is tested on. {type(model).__name__} {_NOT_ANEW}"
        )
    known[digest] = fold.name


def _row(fold: Fold, report: Report) -> FoldRow:
    base, shipped = report.reference.measurement, report.shipped.measurement
    assert base is not None
    assert shipped is not None
    assert fold.parts is not None
    return FoldRow(
        name=fold.name,
        tested=len(fold.parts.test),
        rest=len(fold.parts.train) + len(fold.parts.validation),
        split=fold.digest,
        reference=base.score,
        score=shipped.score,
        drop=report.shipped.drop if report.final else Estimate(0.0, 0.0, 0.0),
        speedup=shipped.speedup,
        size_bytes=shipped.size_bytes,
        reference_bytes=base.size_bytes,
        seconds=total_seconds(report),
        budget_met=report.budget_met,
        kept=report.final > 0,
        report=f"{fold.name}/report.html",
    )
