"""Keeps a quantized file exact on x86 CPUs that are not at hand: safe weights, a check of each CPU, and a note of it.

x86 CPUs without VNNI saturate pairs of 8-bit products (see `saturation`): the same file can be exact on one machine and
wrong on the next. Nothing here needs the other machine, since `cpu_emulation` computes what it would.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.batches import judged_target
from compressor.calls.samples import as_tensor
from compressor.checks import check_count, check_fraction
from compressor.files.carrying import OURS
from compressor.files.graphs import parse
from compressor.intervals import paired_drop
from compressor.notes.quantization import CheckedCpus, MadePortable
from compressor.progress.bars import progress_bar
from compressor.quantization.file.audit import OriginalNames
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.other_cpus.cpu_emulation import SaturatingModel, Saturation, emulated, exact_run
from compressor.quantization.other_cpus.pair_safety import safe_grids
from compressor.quantization.other_cpus.saturation import SATURATING
from compressor.quantization.post_training import Prepared
from compressor.runtime import Feeds, judged_output, open_session, run_on_samples
from compressor.stage import Context
from compressor.target import Isa
from compressor.workload import Workload, batches_of

METADATA_KEY = f"{OURS}checked_cpus"
# A measured set of layers at 7 bits moves the activations behind them, so that other layers may saturate.
_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class SafePairs:
    """Scales that grow, channel by channel, until no pair of neighbours can saturate for any activations.

    Needs no data and holds for every input.
    """


@dataclass(frozen=True, kw_only=True)
class SevenBits:
    """7-bit weights for the layers that saturate on calibration data: more than `wrong_sums` of their sums wrong.

    `wrong_sums` is a fraction of a layer's output sums, in [0, 1).
    """

    wrong_sums: float = 1e-4

    def __post_init__(self) -> None:
        check_fraction(self.wrong_sums, "wrong_sums is the fraction of a layer's sums")


@dataclass(frozen=True, kw_only=True)
class Portable:
    """Weights that give the same numbers on x86 CPUs without VNNI, and the check that they do.

    `cure` says how the weights are made so.
    `samples` of the validation data (>= 1) are run as such a CPU would run them.
    """

    cure: SafePairs | SevenBits = field(default_factory=SafePairs)
    samples: int = 256

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts validation samples that are emulated")


def emulated_outputs(
    onnx_bytes: bytes, data: Iterable[Any], *, samples: int | None = None, progress: bool = False
) -> tuple[Tensor, Tensor, dict[str, Saturation]]:
    """(outputs, targets, {node: saturation}) of the first `samples` of `data` on an x86 CPU without VNNI.

    Of several outputs the judged one.
    """
    model = emulated(onnx_bytes)
    outputs, targets = _outputs(onnx_bytes, model.run, data, samples=samples, progress=progress)
    return outputs, targets, model.saturation


def _outputs(
    onnx_bytes: bytes,
    run: Callable[[Feeds], list[NDArray[Any]]],
    data: Iterable[Any],
    *,
    samples: int | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    session = open_session(onnx_bytes)
    judged = [value.name for value in session.get_outputs()].index(judged_output(session))
    outputs, targets = [], []
    with progress_bar(total=samples, desc="emulating", unit="sample", shown=progress) as bar:
        for inputs, labels in _first(data, samples):
            outputs.append(as_tensor(run_on_samples(session, inputs, run)[judged]))
            targets.append(torch.as_tensor(labels))
            bar.update(len(outputs[-1]))
    if not outputs:
        raise ValueError("data has no batches; if it is a generator, pass something that can be iterated again")
    return torch.cat(outputs), torch.cat(targets)


def saturation_report(
    onnx_bytes: bytes, data: Iterable[Any], isa: Isa, *, samples: int | None = None, progress: bool = False
) -> dict[str, Saturation]:
    """{node: what saturated} for the file's products on the first `samples` of `data`, on CPUs of class `isa`.

    Empty for the classes whose kernels add in 32 bits: VNNI and Arm. Raises ValueError for `Isa.GENERIC`, of which
    nothing is known.
    """
    if isa is Isa.GENERIC:
        raise ValueError("the generic class says nothing about 8-bit products; name one of the other classes")
    if isa not in SATURATING:
        return {}
    return emulated_outputs(onnx_bytes, data, samples=samples, progress=progress)[2]


def seven_bit_nodes(
    place: Callable[[frozenset[str]], bytes],
    cure: SevenBits,
    workload: Workload,
    context: Context,
    *,
    samples: int,
    name_of: Callable[[str], str] = str,
) -> frozenset[str]:
    """The nodes whose weights need 7 bits: those that saturate on the first `samples` calibration samples.

    `place(nodes)` gives the file in which `nodes` have 7 bits; `name_of` the float graph's name of a fused node. After
    every choice the file is measured again, because other activations may make other layers saturate.
    """
    chosen: frozenset[str] = frozenset()
    for _ in range(_ROUNDS):
        seen = saturation_report(
            place(chosen), workload.calibration, SATURATING[0], samples=samples, progress=context.progress
        )
        bitten = {name_of(name) for name, share in seen.items() if share.sum_share > cure.wrong_sums}
        if bitten <= chosen:
            break
        chosen |= bitten
    return chosen


def made_portable(prepared: Prepared, portable: Portable, workload: Workload, context: Context) -> Prepared:
    """`prepared` with weights that are safe on CPUs without VNNI, and in its details which ones changed.

    Call it before learned rounding, and `repaired_grids` on what that gives.
    """
    if isinstance(portable.cure, SafePairs):
        weights = safe_grids(prepared.graph, prepared.weights, integer_nodes(prepared))
        changed = sum(int((weights[name].scale != grid.scale).sum()) for name, grid in prepared.weights.items())
        channels = sum(grid.scale.numel() for grid in prepared.weights.values())
        told = MadePortable(cure=repr(portable.cure), scales_grown=changed, scales=channels)
        return replace(prepared, weights=weights).noting(told)

    def placed(nodes: frozenset[str]) -> bytes:
        return serialize(_seven_bits(prepared, nodes).place())

    nodes = seven_bit_nodes(
        placed,
        portable.cure,
        workload,
        context,
        samples=portable.samples,
        name_of=OriginalNames(prepared.graph).of,
    )
    told = MadePortable(cure=repr(portable.cure), seven_bits=tuple(sorted(nodes)))
    return _seven_bits(prepared, nodes).noting(told)


def integer_nodes(prepared: Prepared) -> frozenset[str]:
    """The nodes that multiply integers: those of static and dynamic form."""
    return frozenset({*prepared.placement.static, *prepared.placement.dynamic})


def _seven_bits(prepared: Prepared, nodes: frozenset[str]) -> Prepared:
    scheme = replace(prepared.scheme, bits=min(7, prepared.scheme.bits))
    weights = nearest_grids(prepared.graph, dict.fromkeys(nodes & integer_nodes(prepared), scheme))
    return replace(prepared, weights={**prepared.weights, **weights})


def check_cpus(onnx_bytes: bytes, workload: Workload, context: Context, *, samples: int) -> CheckedCpus:
    """What every class of CPUs would compute, from the first `samples` of the validation data.

    For CPUs without VNNI it is either that no product can saturate, whatever the input, or the score they would have.
    """
    model = SaturatingModel(onnx_bytes)
    found = {Isa.X86_VNNI.value: "exact: sums in 32 bits", Isa.ARM_DOT.value: "exact: sums in 32 bits"}
    risky = {name: seen for name, seen in model.saturation.items() if seen.risky_pairs}
    note = CheckedCpus(products=len(model.saturation), products_that_may_saturate=tuple(sorted(risky)), cpus={})
    if model.not_emulated:
        verdict = "not checked: " + "; ".join(f"{name}: {reason}" for name, reason in model.not_emulated.items())
    elif not risky:
        verdict = "exact: no pair of products can exceed 16 bits"
    else:
        outputs, targets, seen = emulated_outputs(
            onnx_bytes, workload.validation, samples=samples, progress=context.progress
        )
        metric = workload.metric
        plain, _ = _outputs(
            onnx_bytes, exact_run(onnx_bytes), workload.validation, samples=samples, progress=context.progress
        )
        exact = metric.rows(plain, targets)
        saturated = metric.rows(outputs, targets)
        score, reference = metric.aggregate(saturated), metric.aggregate(exact)
        drop = paired_drop(saturated, exact, metric, seed=context.seed)
        layers = {name: seen[name].sum_share for name in risky if seen[name].saturated_sums}
        note = replace(
            note,
            samples=len(outputs),
            score_exact=reference,
            score_saturated=score,
            drop=drop.value,
            drop_interval=(drop.low, drop.high),
            wrong_sums=dict(sorted(layers.items(), key=lambda item: -item[1])),
        )
        verdict = (
            f"emulated: {metric.name} {score:.4f} against {reference:.4f} without saturation, on {len(outputs)} "
            f"validation samples; up to {max(layers.values(), default=0.0):.2%} of a layer's sums saturate"
        )
    found.update((isa.value, verdict) for isa in SATURATING)
    return replace(note, cpus=found)


def with_checked_cpus(onnx_bytes: bytes, found: Mapping[str, str]) -> bytes:
    """The file with the results of `check_cpus` in its metadata, under `compressor.checked_cpus`, as JSON."""
    model = parse(onnx_bytes)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(dict(sorted(found.items())))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def checked_cpus(onnx_bytes: bytes) -> dict[str, str]:
    """What `with_checked_cpus` wrote into the file; empty where it was never checked."""
    for entry in parse(onnx_bytes).metadata_props:
        if entry.key == METADATA_KEY:
            result: dict[str, str] = json.loads(entry.value)
            return result
    return {}


def _first(data: Iterable[Any], samples: int | None) -> Iterable[tuple[Any, Tensor]]:
    """The batches of `data` up to `samples` samples, the last one whole."""
    count = 0
    for inputs, targets in batches_of(data):
        judged = torch.as_tensor(judged_target(targets))
        yield inputs, judged
        count += len(judged)
        if samples is not None and count >= samples:
            return
