"""What an exported file must reproduce: a model's own outputs for real inputs of several shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_tensors
from compressor.calls.samples import as_tensor
from compressor.errors import ExportError, first_said, runtime_reason
from compressor.files.exported_outputs import NamedModel, OutputNames, compare, names_of_outputs
from compressor.kept_state import private_copy
from compressor.runtime import load_session, session_options
from compressor.structure.preparing.bounded_rows import bound_rows_
from compressor.structure.preparing.preparation import fold_
from compressor.workload import (
    Workload,
    first_batches,
    free_axes,
    input_names,
    input_tensors,
)

# Batch sizes that neither the example (2 or more) nor a power-of-two loader has.
BATCH_SIZES = (1, 3, 5)
# Samples shown one by one, so that a branch on the values of an input gets the chance to differ.
SINGLE_SAMPLES = 8
# By this part of themselves inputs are changed to see what rounding does to a model.
NUDGE = 1e-6
# Larger calibration batches are cut: verification shall not need more memory than training does.
LARGEST_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Inputs with the model's outputs; `required` where the data itself has this shape, so the file must take it."""

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    required: bool


@dataclass(frozen=True, kw_only=True)
class ExportTask:
    """One model ready for export, and what its file will have to reproduce."""

    model: NamedModel
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    batched: tuple[bool, ...]
    free: tuple[frozenset[int], ...]
    probes: tuple[Probe, ...]
    parameters: Mapping[str, Sequence[int]]

    @property
    def outputs(self) -> OutputNames:
        """The names of the file's outputs."""
        return self.model.outputs

    @property
    def free_of_outputs(self) -> dict[str, frozenset[int]]:
        """The dimensions of every output that vary with the inputs of the probes."""
        found = {}
        for place, name in enumerate(self.outputs.names):
            shapes = [probe.expected[place].shape for probe in self.probes]
            same = {len(shape) for shape in shapes} == {len(shapes[0])}
            varying = (
                [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1] if same else []
            )
            found[name] = frozenset(varying)
        return found

    def amplification(self) -> float:
        """By how much outputs change, of their scale, where the inputs of the first probe grow by `NUDGE` of them.

        0 where no input is a fraction, and where the model fails on them.
        """
        probe = self.probes[0]
        nudged = tuple(value * (1 + NUDGE) if value.is_floating_point() else value for value in probe.inputs)
        try:
            given = self.model(*nudged)
        except Exception:  # noqa: BLE001 - a model that takes these very inputs alone has another fault than this
            return 0.0
        changes = [0.0]
        for value, expected in zip(given, probe.expected, strict=True):
            if value.shape == expected.shape and expected.is_floating_point() and expected.numel():
                change = (value.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(
                    min=1e-6
                )
                changes.append(float(change) if change.isfinite() else 0.0)
        return max(changes)

    def with_outputs(self, outputs: OutputNames) -> "ExportTask":
        """The same for some of the outputs."""
        places = [self.outputs.names.index(name) for name in outputs.names]
        probes = tuple(
            replace(probe, expected=tuple(probe.expected[place] for place in places)) for probe in self.probes
        )
        return replace(self, model=NamedModel(self.model.model, self.model.keywords, outputs), probes=probes)


def export_task(model: nn.Module, workload: Workload) -> ExportTask:
    """A copy of `model` on the CPU in eval mode, with its outputs for real inputs of several shapes.

    Raises ExportError for an example of fewer than 2 samples, and for a model that fails or gives NaN on its own data.
    """
    # A copy: exporters fold constants, and tracing may leave symbolic values in a model that keeps state.
    own = private_copy(model).cpu().eval()
    # Weights that are computed would be at every call, by operators that ONNX may not have.
    fold_(own, map_tensors(workload.example_inputs, torch.Tensor.cpu))
    keywords = tuple(workload.example_inputs) if isinstance(workload.example_inputs, Mapping) else None
    own.requires_grad_(requires_grad=False)
    bound_rows_(own)
    tensors = tuple(tensor.detach().cpu() for tensor in input_tensors(workload.example_inputs))
    batch = tensors[0].shape[0]
    if batch < 2:
        raise ExportError(
            f"example_inputs must hold at least 2 samples, got {batch}: exporters take a size of 1 for a constant; "
            "stack a second sample"
        )
    batched = tuple(tensor.ndim > 0 and tensor.shape[0] == batch for tensor in tensors)
    names, asked = input_names(workload.example_inputs), free_axes(workload)
    judged = NamedModel(own, keywords, OutputNames())
    raw = judged.raw(tensors)
    judged.outputs = names_of_outputs(raw, judged.named(raw), names)
    free = _free_dimensions(judged, tensors, batched, asked)
    if asked is not None:
        _refuse_stubborn(judged, names, tensors, asked, free)
    real = _real_inputs(workload, batched)
    judged.outputs = _always_there(judged, real)
    probes = []
    place = judged.outputs.names.index(judged.outputs.judged)
    for inputs in real:
        try:
            expected = judged(*inputs)
        except Exception as error:
            raise ExportError(
                f"{type(model).__name__} fails on calibration inputs of shape {_shapes(inputs)}, in batches of 1 to "
                f"{LARGEST_BATCH}: {first_said(error)}. A model for ONNX must take any batch size"
            ) from error
        if expected[place].isnan().any():
            raise ExportError(
                f"{type(model).__name__} gives NaN for calibration inputs of shape {_shapes(inputs)}, so an ONNX file "
                "of it could not be verified; check the weights and the inputs for NaN, Inf and overflow"
            )
        probes.append(Probe(inputs=inputs, expected=expected, required=True))
    probes += _other_lengths(judged, real[1], free)
    return ExportTask(
        model=judged,
        tensors=tensors,
        names=names,
        batched=batched,
        free=free,
        probes=tuple(probes),
        parameters={
            name: tuple(value.shape) for name, value in judged.model.state_dict().items() if isinstance(value, Tensor)
        },
    )


def _always_there(model: NamedModel, inputs: Sequence[tuple[Tensor, ...]]) -> OutputNames:
    """The outputs that the model gives for all of `inputs`, under the same names."""
    outputs = model.outputs
    try:
        given = [model.named(model.raw(each)).keys() for each in inputs] if outputs.others else []
    except Exception:  # noqa: BLE001 - why it fails on them is told where they are asked for
        return outputs.alone
    if any(outputs.judged not in names for names in given):
        return outputs.alone
    return replace(outputs, names=tuple(name for name in outputs.names if all(name in names for names in given)))


def _free_dimensions(
    model: nn.Module, tensors: tuple[Tensor, ...], batched: Sequence[bool], asked: Sequence[frozenset[int]] | None
) -> tuple[frozenset[int], ...]:
    # A dimension may vary if it is among those `asked` for (None: all), and the eager model takes another length there,
    # alone or together with the same dimension of the other inputs (ids and their mask). Channels and features are
    # thereby fixed in the file.
    free: list[set[int]] = [{0} if is_batched else set() for is_batched in batched]
    sites = [
        (number, axis)
        for number, tensor in enumerate(tensors)
        for axis in range(1 if batched[number] else 0, tensor.ndim)
        if tensor.shape[axis] > 2  # shorter lengths are constants to exporters
        and (asked is None or axis in asked[number])
    ]
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, axis in sites:
        groups.setdefault((axis, tensors[number].shape[axis]), []).append((number, axis))
    for group in groups.values():
        alone = [[site] for site in group] if len(group) > 1 else []
        for together in [group, *alone]:
            if any(
                _attempt(model, _resized(tensors, together, length)) is not None
                for length in _lengths(tensors, together[0])
            ):
                for number, axis in together:
                    free[number].add(axis)
                if together is group:
                    break
    return tuple(frozenset(axes) for axes in free)


def _refuse_stubborn(
    model: NamedModel,
    names: Sequence[str],
    tensors: tuple[Tensor, ...],
    asked: Sequence[frozenset[int]],
    free: Sequence[frozenset[int]],
) -> None:
    """Raises ExportError where the model takes no other size along a dimension that was asked for by name."""
    for number, axes in enumerate(asked):
        for axis in sorted(axes - free[number] - {0}):
            length = _lengths(tensors, (number, axis))[0]
            try:
                model(*_resized(tensors, [(number, axis)], length))
            except Exception as error:
                raise ExportError(
                    f"free_sizes leaves dimension {axis} of {names[number]!r} free, and {type(model.model).__name__} "
                    f"takes no other size there than the example's {tensors[number].shape[axis]}; for {length} it "
                    f"raised {type(error).__name__}: {first_said(error)}. Leave it out, or name the dimensions of the "
                    "other inputs that vary with it as well"
                ) from error


def _lengths(tensors: tuple[Tensor, ...], site: tuple[int, int]) -> list[int]:
    # Odd lengths first; nets that halve their maps take multiples only.
    length = tensors[site[0]].shape[site[1]]
    return [other for other in (length - 1, length + 1, length // 2, 2 * length) if other > 1]


def _resized(tensors: tuple[Tensor, ...], sites: Sequence[tuple[int, int]], length: int) -> tuple[Tensor, ...]:
    resized = list(tensors)
    for number, axis in sites:
        # Longer inputs repeat real values, so that indices stay in range and masks stay masks.
        positions = torch.arange(length) % tensors[number].shape[axis]
        resized[number] = resized[number].index_select(axis, positions)
    return tuple(resized)


def _attempt(model: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    try:
        outputs: tuple[Tensor, ...] = model(*tensors)
    except Exception:  # noqa: BLE001 - whatever a model raises for a length it does not take
        return None
    return outputs


def _real_inputs(workload: Workload, batched: Sequence[bool]) -> list[tuple[Tensor, ...]]:
    batches = [
        tuple(
            (tensor[:LARGEST_BATCH] if is_batched else tensor).detach().cpu()
            for tensor, is_batched in zip(_ordered(inputs, workload.example_inputs), batched, strict=True)
        )
        for inputs, _ in first_batches(workload.calibration, 2)
    ]
    if not batches:
        raise ExportError("the calibration set is empty; exports are verified on its inputs")
    pool = batches[0]
    if len(batches) > 1 and all(a.shape[1:] == b.shape[1:] for a, b in zip(*batches, strict=True)):
        pool = tuple(
            torch.cat(pair) if is_batched else pair[0] for is_batched, *pair in zip(batched, *batches, strict=True)
        )
    total = pool[batched.index(True)].shape[0]

    def take(start: int, size: int) -> tuple[Tensor, ...]:
        rows = torch.arange(start, start + size) % total
        return tuple(value[rows] if is_batched else value for value, is_batched in zip(pool, batched, strict=True))

    starts = [sum(BATCH_SIZES[:index]) for index in range(len(BATCH_SIZES))]
    taken = [take(start, size) for start, size in zip(starts, BATCH_SIZES, strict=True)]
    singles = [take(row, 1) for row in range(1, min(total, SINGLE_SAMPLES))]
    return [*taken, *batches, *singles]


def _ordered(inputs: Inputs, example: Inputs) -> tuple[Tensor, ...]:
    if isinstance(example, Mapping) and isinstance(inputs, Mapping):
        return tuple(inputs[name] for name in example)
    return input_tensors(inputs)


def _other_lengths(model: nn.Module, real: tuple[Tensor, ...], free: Sequence[frozenset[int]]) -> list[Probe]:
    """For every dimension that may vary, two probes at lengths that the model takes and the data does not have."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, axes in enumerate(free):
        for axis in sorted(axes - {0}):
            groups.setdefault((axis, real[number].shape[axis]), []).append((number, axis))
    probes: list[Probe] = []
    for sites in groups.values():
        found = 0
        for length in _lengths(real, sites[0]):
            inputs = _resized(real, sites, length)
            expected = _attempt(model, inputs) if found < 2 else None
            # A length that the model does not take, or answers with NaN, is no promise of the file either.
            if expected is not None and not any(output.isnan().any() for output in expected):
                probes.append(Probe(inputs=inputs, expected=expected, required=False))
                found += 1
    return probes


def verified_bytes(proto: onnx.ModelProto, task: ExportTask) -> tuple[bytes, list[str]]:
    """The bytes of `proto` once it has reproduced every probe, and a note for each length that it fixes.

    Raises ExportError where an output differs, an input is missing, or the batch size is fixed.
    """
    # torch may have traced a length as a constant and still have written a graph that takes any (LSTM), or one unrolled
    # step by step (RNN). Running it at other lengths tells which.
    traced = [
        (value.name, axis, dimension)
        for value in (*proto.graph.input, *proto.graph.output)
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim)
        if dimension.dim_param.isdigit()
    ]
    lengths = [int(dimension.dim_param) for _, _, dimension in traced]
    for name, axis, dimension in traced:
        dimension.dim_param = "batch" if axis == 0 else f"{name}_dim{axis}"
    try:
        return _verified(proto, task), _frozen_notes(proto, task)
    except ExportError:
        if not traced:
            raise
        for (_, _, dimension), length in zip(traced, lengths, strict=True):
            dimension.dim_value = length
        return _verified(proto, task), _frozen_notes(proto, task)


def _frozen_notes(proto: onnx.ModelProto, task: ExportTask) -> list[str]:
    frozen = _frozen(proto)
    return [
        f"dimension {axis} of {name!r} is fixed at {frozen[name, axis]}, though the model takes other lengths"
        for name, axes in zip(task.names, task.free, strict=True)
        for axis in sorted(axes)
        if (name, axis) in frozen
    ]


def _frozen(proto: onnx.ModelProto) -> dict[tuple[str, int], int]:
    return {
        (value.name, axis): dimension.dim_value
        for value in proto.graph.input
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim)
        if not dimension.dim_param
    }


def _verified(proto: onnx.ModelProto, task: ExportTask) -> bytes:
    """The bytes of `proto` after ONNX Runtime gave the model's outputs for every probe it has the shape for."""
    present = {value.name for value in proto.graph.input}
    missing = [name for name in task.names if name not in present]
    if missing:
        raise ExportError(f"the exported graph lost the inputs {missing}; leave them out of example_inputs")
    frozen = _frozen(proto)
    for name, is_batched in zip(task.names, task.batched, strict=True):
        if is_batched and (name, 0) in frozen:
            raise ExportError(f"the batch dimension of {name!r} was frozen at {frozen[name, 0]}")
    onnx_bytes: bytes = proto.SerializeToString(deterministic=True)
    session = load_session(onnx_bytes, session_options())
    for probe in task.probes:
        feeds = dict(zip(task.names, probe.inputs, strict=True))
        if any(feeds[name].shape[axis] != length for (name, axis), length in frozen.items()):
            if probe.required:
                raise ExportError(f"a dimension was frozen, and the data has the shape {_shapes(probe.inputs)}")
            continue
        try:
            given = session.run(
                list(task.outputs.names), {name: tensor.contiguous().numpy() for name, tensor in feeds.items()}
            )
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            raise ExportError(
                f"for inputs of shape {_shapes(probe.inputs)} ONNX Runtime fails: {runtime_reason(error)}"
            ) from error
        for name, raw, expected in zip(task.outputs.names, given, probe.expected, strict=True):
            compare(name, as_tensor(np.array(raw)), expected, _shapes(probe.inputs))
    return onnx_bytes


def _shapes(inputs: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
