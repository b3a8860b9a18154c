"""A workload of files: a model in ONNX, and arrays to judge it on, or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.errors import OnnxFileError, WorkloadError
from compressor.files.converting.inputs import made_up
from compressor.files.declarations import without_rank
from compressor.files.preparing import Batch
from compressor.files.reading import judged_by, read_onnx_alone, read_onnx_on
from compressor.files.watching import Watcher
from compressor.metrics import Metric
from compressor.outputs.kinds import Numbers
from compressor.runtime import Feeds, OnnxModule, judged_output, layout_of
from compressor.workload import Workload, resize_batch
from compressor.workloads.arrays import read_arrays
from compressor.workloads.unlabelled import FEWEST_SAMPLES, answers, metric_without_labels

# The part of the samples that is kept for the report where the file names none for it.
_TEST_FRACTION = 0.4
# Of the others: files are quantized, for which some hundred samples do, and seldom trained.
_VALIDATION_FRACTION = 0.5
# Samples that are made up where there are no data.
_MADE_UP = 4
_CALIBRATION_SAMPLES = 512
_BATCH = 32

Samples = tuple[Tensor | dict[str, Tensor], Tensor]


def workload_of_files(
    model: Path,
    data: Path,
    *,
    batch: Batch = "free",
    metric: str | None = None,
    streams: Mapping[str, str] | None = None,
) -> Workload:
    """The ONNX file `model` on the arrays of `data`, an .npz file with a sample in every row.

    `targets` are classes where they are integers, judged by accuracy, and numbers judged by their mean squared error
    otherwise. Without any they are what the file itself gives, and the metric is "agreement", or "relative" where its
    output holds no decisions. `metric` names another one. The inputs have the names that the ONNX file gives them; a
    single one may be called `inputs`. Arrays `test_targets` and `test_` and each input's name are for the report;
    without them two fifths of the samples are. Half of the others decide, the rest calibrates and trains. A `batch`
    that is "fixed" stays as the file has it, as one does that cannot be free, and data comes in batches of that size:
    samples beyond the last whole one are left out. With `streams`, as for `read_onnx`, samples are sequences of steps,
    (samples, steps, ...), and states may be missing: they begin with zeros. Raises FileNotFoundError, OnnxFileError
    as `read_onnx` does, and WorkloadError for arrays that are missing or do not fit.
    """
    arrays = read_arrays(data)
    fitting = _Fitting(arrays, data, streams or {})
    try:
        module = read_onnx_on(model, arrays, fitting, batch=batch, streams=streams)
    except OnnxFileError:
        # A lone number may be what the file takes.
        if fitting.doubt is not None and not fitting.lone:
            raise fitting.doubt from None
        raise
    fitting.fit(module)
    size = 0 if streams or module.fixed_batch == 1 else module.fixed_batch
    usual = "mse" if fitting.parts[0][1].is_floating_point() else "accuracy"
    if metric is None and "targets" in arrays:
        _refuse_classes_as_numbers(module, *fitting.parts[0], data)
    if "targets" not in arrays:
        whole = size or 1
        cut = [_rows(part, slice(len(part[1]) // whole * whole)) for part in fitting.parts]
        module, fitting.parts = _answered(module, (cut[0], cut[1]), batch_size=size or _BATCH)
        usual = metric_without_labels(fitting.parts[0][1])
    train, test = fitting.parts
    if not size:
        return Workload.from_datasets(
            module,
            train=train,
            test=test,
            metric=metric or usual,
            validation_fraction=_VALIDATION_FRACTION,
            name=model.stem,
        )
    half = round(len(train[1]) * _VALIDATION_FRACTION)
    parts = (_rows(train, slice(half)), _rows(train, slice(half, None)), test)
    validation, train, test = (_rows(part, slice(len(part[1]) // size * size)) for part in parts)
    return Workload.from_datasets(
        module,
        train=train,
        validation=validation,
        test=test,
        metric=metric or usual,
        batch_size=size,
        calibration_samples=_CALIBRATION_SAMPLES // size * size,
        name=model.stem,
    )


def _refuse_classes_as_numbers(
    module: OnnxModule, inputs: Tensor | dict[str, Tensor], targets: Tensor, path: Path
) -> None:
    """Raises WorkloadError for floating-point targets that are classes in all likelihood."""
    if not targets.is_floating_point():
        return
    if targets.ndim == 2 and targets.shape[1] > 1 and bool(((targets == 0) | (targets == 1)).all()):
        if bool((targets.sum(dim=1) == 1).all()):
            raise WorkloadError(
                f"the targets of {path} are numbers, and each has a single 1 among zeros, as classes are marked; store "
                "the classes, targets.argmax(1), or take them as numbers with --metric mse, as labels with --metric "
                "label_accuracy"
            )
    elif targets.ndim == 1 and bool((targets == targets.round()).all()):
        given = answers(module, inputs, count=1, batch_size=module.fixed_batch or 1)
        if given.ndim == 2 and given.shape[1] > 1:
            raise WorkloadError(
                f"the targets of {path} are whole numbers of type {str(targets.dtype).removeprefix('torch.')}, one a "
                f"sample, and the file gives {given.shape[1]} numbers: classes are stored as integers, "
                "targets.astype(numpy.int64)"
            )


def _answered(
    module: OnnxModule, parts: tuple[Samples, Samples], *, batch_size: int
) -> tuple[OnnxModule, tuple[Samples, Samples]]:
    """(`module`, the parts with its judged outputs as targets).

    An output that has no row for every sample, as boxes that are selected have none, makes room for the next one.
    """
    names = [value.name for value in module.session.get_outputs()]
    judged = judged_output(module.session)
    refused: WorkloadError | None = None
    for name in (judged, *(each for each in names if each != judged)):
        judging = module if name == judged else OnnxModule(judged_by(module.onnx_bytes, name))
        try:
            train, test = (
                (inputs, answers(judging, inputs, count=len(rows), batch_size=batch_size)) for inputs, rows in parts
            )
        except WorkloadError as error:
            refused = refused or error
        else:
            return judging, (train, test)
    raise refused or WorkloadError("the file has no outputs")


def workload_of_file(model: Path, *, batch: Batch = "free", streams: Mapping[str, str] | None = None) -> Workload:
    """The ONNX file `model` without data: sizes and times are measured on made-up inputs, and nothing is scored.

    A `batch` that is "fixed" stays as the file has it. Of `streams` one step is measured. Raises FileNotFoundError, and
    OnnxFileError as `read_onnx` does.
    """
    module, skipped = read_onnx_alone(model, batch=batch, streams=streams)
    # What takes one sample a call is given several calls.
    size = module.fixed_batch if module.fixed_batch > 1 else _MADE_UP
    feeds = _running(module, model, skipped)
    # What runs is one call, of which a file without a batch has one sample.
    count = 1 if layout_of(module.session).single else None
    rows = module.in_rows({name: torch.from_numpy(values) for name, values in feeds.items()}, count)
    inputs = resize_batch(next(iter(rows.values())) if len(rows) == 1 else rows, size)
    batches = [(inputs, torch.zeros(size))]
    return Workload(
        name=model.stem,
        model=module,
        example_inputs=resize_batch(inputs, module.fixed_batch or 2),
        train=batches,
        calibration=batches,
        validation=batches,
        test=batches,
        loss=_no_loss,
        metric=Metric.unscored(),
        output=Numbers(),
    )


def _running(module: OnnxModule, path: Path, skipped: int) -> Feeds:
    """Made-up inputs that the file runs on, as it takes them, of which the first are `skipped`.

    Raises OnnxFileError where none is found.
    """
    for feeds in made_up(onnx.load_from_string(module.onnx_bytes), path, skipped=skipped):
        try:
            module.session.run(None, feeds)
        except Exception:  # noqa: BLE001, S112  # ONNX Runtime's errors share no base class; others are tried
            continue
        return feeds
    raise OnnxFileError(
        f"{path} does not run on made-up inputs of more than one sample; give it some: model.onnx:data.npz"
    )


def _no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return 0 * outputs.nan_to_num().double().sum()


class _Fitting(Watcher):
    """Fits the arrays to the inputs of the file: what lacks is said before the file is run without it."""

    def __init__(self, arrays: dict[str, NDArray[Any]], path: Path, streams: Mapping[str, str]) -> None:
        self.arrays, self.path, self.states = arrays, path, set(streams.values())
        self.doubt: WorkloadError | None = None
        self.lone = any(not values.ndim for values in arrays.values())

    def found(self, dtypes: dict[str, str], outside_bytes: int) -> None:
        """Splits the samples for the report from the others; whether rows agree may depend on the file's layout."""
        del outside_bytes
        kept = {name for name in dtypes if name not in self.states or name in self.arrays}
        self.kinds = {name: np.dtype(dtype) for name, dtype in dtypes.items() if name in kept}
        try:
            self.parts = self._parted(None)
        except _RowsError as error:
            self.doubt = error

    def fit(self, module: OnnxModule) -> None:
        """Brings samples into rows where the file `module` has them elsewhere. Raises WorkloadError for others."""
        layout = layout_of(module.session)
        if layout.inputs or layout.single:
            self.parts = self._parted(module)
            if layout.single:
                self._check_single(module)
        elif self.doubt is not None:
            raise self.doubt

    def _check_single(self, module: OnnxModule) -> None:
        """Raises WorkloadError where a row is no whole input of a file that takes one sample at a time."""
        given = self.parts[0][0]
        tensors = given if isinstance(given, dict) else {next(iter(self.kinds)): given}
        unknown = without_rank(onnx.load_from_string(module.onnx_bytes))
        for node in module.session.get_inputs():
            if node.name not in tensors:
                continue
            row = tuple(tensors[node.name].shape[1:])
            known = len(row) == len(node.shape) and all(
                not isinstance(size, int) or size < 0 or size == own for own, size in zip(row, node.shape, strict=True)
            )
            if not known and node.name in unknown:
                raise WorkloadError(
                    f"the file does not say how many dimensions {node.name!r} has, so that no batch is known in it and "
                    f"every call is one sample: a row of {self.path}, {row}. Export it with the sizes of its inputs, "
                    f"such as {('batch', *row)}"
                )
            if not known:
                raise WorkloadError(
                    f"the file takes {node.name!r} of shape {tuple(node.shape)} at once, as one sample, and a row of "
                    f"{self.path} is {row}; give rows of that shape, or, where its first size is a batch whose samples "
                    'it mixes, keep that: --batch fixed, or read_onnx(path, batch="fixed")'
                )

    def _parted(self, module: OnnxModule | None) -> tuple[Samples, Samples]:
        samples = _samples(self.arrays, self.kinds, self.path, prefix="", module=module)
        if any(f"test_{name}" in self.arrays for name in ("targets", "inputs", *self.kinds)):
            return samples, _samples(self.arrays, self.kinds, self.path, prefix="test_", module=module)
        return _parts(samples, self.path, fewest=_RowsError if module is None else WorkloadError)


class _RowsError(WorkloadError):
    """Arrays do not have a sample in every row, as far as is known before the file is."""


def _samples(
    arrays: dict[str, NDArray[Any]],
    kinds: dict[str, np.dtype[Any]],
    path: Path,
    *,
    prefix: str,
    module: OnnxModule | None,
) -> Samples:
    names = {name: f"{prefix}{name}" for name in kinds}
    if len(kinds) == 1 and f"{prefix}inputs" in arrays:
        names = dict.fromkeys(kinds, f"{prefix}inputs")
    labelled = "targets" in arrays
    wanted = (*names.values(), *([f"{prefix}targets"] if labelled else []))
    missing = [name for name in wanted if name not in arrays]
    if missing:
        alone = " (or inputs)" if len(kinds) == 1 and not prefix else ""
        raise WorkloadError(
            f"{path} has the arrays {', '.join(sorted(arrays))} and lacks {', '.join(missing)}{alone}: wanted are the "
            f"inputs of the model, {', '.join(kinds)}, and targets where there are labels"
        )
    used = {given: arrays[given] for given in wanted}
    for given, values in used.items():
        if values.dtype.kind not in "biuf" or (not values.ndim and module is None):
            refusal = WorkloadError if values.dtype.kind not in "biuf" else _RowsError
            raise refusal(
                f"{path} has in {given} {'one value' if not values.ndim else 'values'} of type {values.dtype}, and "
                "rows of real numbers are wanted"
            )
    for name, kind in kinds.items():
        _check_held(names[name], used[names[name]], kind, path)
    try:
        tensors = {name: torch.from_numpy(used[names[name]].astype(kind)) for name, kind in kinds.items()}
    except TypeError as error:
        told = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise WorkloadError(f"the inputs of the model are {told}, and torch has no such tensors") from error
    if module is not None:
        labels = used.get(f"{prefix}targets")
        tensors = module.in_rows(tensors, None if labels is None else len(labels))
    rows = len(next(iter(tensors.values())))
    # Without labels only their number is known as yet.
    values = used[f"{prefix}targets"] if labelled else np.zeros(rows)
    targets = torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))
    counts = {name: len(tensor) for name, tensor in (*tensors.items(), ("targets", targets))}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise _RowsError(f"{path} needs as many rows in every array, got {told}")
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors, targets


def _check_held(given: str, values: NDArray[Any], kind: np.dtype[Any], path: Path) -> None:
    """Raises WorkloadError where whole numbers are beyond those of the type `kind` that the file takes."""
    if not values.size or {values.dtype.kind, kind.kind} - {*"iu"}:
        return
    low, high, limits = int(values.min()), int(values.max()), np.iinfo(kind)
    if low < limits.min or high > limits.max:
        raise WorkloadError(
            f"{path} has in {given} numbers from {low} to {high}, and the file takes {kind}, from {limits.min} to "
            f"{limits.max}; others would come back at its other end"
        )


def _parts(samples: Samples, path: Path, *, fewest: type[WorkloadError]) -> tuple[Samples, Samples]:
    """(what decisions read, what the report reads), drawn with a fixed seed; `fewest` is raised where they are few."""
    count = len(samples[1])
    if count < FEWEST_SAMPLES:
        raise fewest(
            f"{path} has {count} samples, and at least {FEWEST_SAMPLES} are needed for calibration, decisions and the "
            "report; some hundred are better"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    first = round(count * (1 - _TEST_FRACTION))

    return _rows(samples, order[:first]), _rows(samples, order[first:])


def _rows(samples: Samples, rows: Tensor | slice) -> Samples:
    inputs, targets = samples
    chosen = inputs[rows] if isinstance(inputs, Tensor) else {name: each[rows] for name, each in inputs.items()}
    return chosen, targets[rows]
