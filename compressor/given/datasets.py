"""Datasets and arrays as people have them: tensors in the usual types, float64 told once for all sets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from compressor.batches import Augment, Batches, all_targets, sample_count, split_batch
from compressor.checks import check_count, check_fraction
from compressor.errors import WorkloadError
from compressor.given.loaders import Loaders
from compressor.given.models import is_short
from compressor.given.numbers import as_usual, holds_float64, is_usual, tell_of_float64
from compressor.given.rows import in_rows
from compressor.given.samples import check_function, samples_of
from compressor.given.splits import parted, strata_of
from compressor.streams.passes import Mapped


def sets_of_datasets(
    given: Mapping[str, Any],
    *,
    model: nn.Module,
    stratified: bool,
    batch_size: int,
    transform: Callable[[Any], Any] | None,
    augment: Augment | None,
    validation_fraction: float,
    calibration_samples: int,
    seed: int,
) -> Loaders:
    """The sets of the datasets `given` for `model`: train, validation (None: a part of train is held out) and test.

    Calibration is a part of what trains. Raises ValueError where nothing can be held out.
    """
    check_count(batch_size, "batch_size is the number of samples of a batch")
    check_count(calibration_samples, "calibration_samples counts the samples of train that calibrate")
    check_function(transform, "transform", "a function of a batch's inputs")
    check_function(augment, "augment", "a function of (inputs, generator)")
    train, validation, test = usual_samples(
        {name: in_rows(model, samples) for name, samples in given.items()}, halves=is_short(model)
    )
    rest = list(range(sample_count(train)))
    strata = strata_of(all_targets(train)) if stratified else None
    if validation is None:
        check_fraction(validation_fraction, "validation_fraction is the fraction of train held out", within="(0, 1)")
        rest, held_out = parted(rest, max(1, round(len(rest) * validation_fraction)), strata, seed)
        validation_batches = Batches(train, indices=held_out, batch_size=batch_size, transform=transform)
    else:
        validation_batches = Batches(validation, batch_size=batch_size, transform=transform)
    calibration = rest
    if calibration_samples < len(rest):
        _, calibration = parted(rest, calibration_samples, strata, seed + 1)
    calibration_batches = Batches(train, indices=calibration, batch_size=min(batch_size, 32), transform=transform)
    training = Batches(
        train,
        indices=rest,
        batch_size=batch_size,
        shuffle=True,
        transform=transform,
        augment=augment,
        drop_last=True,
    )
    return Loaders(
        train=training,
        calibration=calibration_batches,
        validation=validation_batches,
        test=Batches(test, batch_size=batch_size, transform=transform),
        first=split_batch(next(iter(calibration_batches))),
    )


def usual_samples(given: Mapping[str, Any], *, halves: bool) -> list[Any]:
    """The samples of the sets `given` by name, None for those that are None; float64 becomes float32, with one notice.

    With `halves` float16 and bfloat16 do, too, as those of a model in half precision.

    Raises WorkloadError for sets without samples, and as `samples_of` does.
    """
    found: list[Any] = []
    converted = []
    for name, data in given.items():
        samples = data if data is None else samples_of(name, data)
        if samples is None:
            found.append(None)
            continue
        if sample_count(samples) == 0:
            raise WorkloadError(
                f"{name} has no samples; a workload needs data to train, decide and report on: give it some"
            )
        example = samples if isinstance(samples, tuple) else samples[0]
        if holds_float64(example):
            converted.append(name)
        if not is_usual(example, halves=halves):
            made = partial(as_usual, halves=True) if halves else as_usual
            samples = made(samples) if isinstance(samples, tuple) else Mapped(samples, made)
        found.append(samples)
    tell_of_float64(converted)
    return found
