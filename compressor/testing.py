"""The contract that every stage keeps, as a function that a stage's author can call in a test.

from compressor.testing import check_stage
check_stage(MyStage(), workload)
"""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.errors import ContractError, StageError
from compressor.files.export import export_onnx
from compressor.kept_state import private_copy
from compressor.runtime import OnnxModule
from compressor.stage import Context, Effect, Stage, replacement, stage_name, stage_parameters
from compressor.structure.plan import apply_plan_
from compressor.structure.tensor_ids import tensors_of
from compressor.structure.trials import evaluating
from compressor.training.snapshots import digest
from compressor.workload import Workload, first_batches, predict


class Untouchable:
    """Data that nobody may read: iterating over it raises ContractError."""

    def __iter__(self) -> Iterator[Any]:
        raise ContractError("the stage read workload.test, which only the report may read")


def check_stage(stage: Stage, workload: Workload, *, seed: int = 0) -> nn.Module:
    """The model that `stage` makes of the workload's; raises ContractError where the stage breaks the contract.

    It leaves `workload.model` untouched, never reads `workload.test`, gives the same bits for the same seed twice in
    one process, keeps the judged output's shape, tells the report JSON values only, exports to ONNX with agreement, and
    refuses a model without anything to compress (StageError). Structure stages leave a plan that rebuilds the shapes.
    The stage itself is a frozen dataclass that its own repr makes again.
    """
    _check_form(stage)
    guarded = replace(workload, test=Untouchable())
    before = digest(workload.model)
    first, context = _applied(stage, guarded, seed)
    second, _ = _applied(stage, guarded, seed)
    name = stage_name(stage)
    _require(digest(workload.model) == before, f"{name} changed workload.model; work on the copy it is given")
    _require(_same_bits(first, second), f"{name} gave different weights for the same seed; draw from context.seed only")
    inputs, _ = first_batches(workload.calibration, 1)[0]
    expected = _output_of(workload, inputs)
    with torch.no_grad():
        given = predict(first.eval(), inputs)
    _require(
        given.shape == expected.shape,
        f"{name} changed the output's shape from {tuple(expected.shape)} to {tuple(given.shape)}",
    )
    _require(bool(torch.isfinite(given).all()), f"{name} gave a model whose outputs are not finite")
    try:
        json.dumps([context.details, context.plan], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{name} told the report something that is not JSON: {error}") from error
    if stage.effect is Effect.STRUCTURE:
        began = replacement(stage)
        rebuilt = apply_plan_(private_copy(workload.model if began is None else began), context.plan)
        _require(
            _shapes(rebuilt) == _shapes(first), f"{name} made a plan that does not rebuild the shapes of its model"
        )
    export_onnx(first, workload)  # raises ExportError where ONNX Runtime does not agree with torch
    if replacement(stage) is None:  # which has something to do whatever the model is
        _check_refusal(stage, workload, seed)
    return first


def _applied(stage: Stage, workload: Workload, seed: int) -> tuple[nn.Module, Context]:
    context = Context(seed=seed, progress=False, details={}, plan=[])
    torch.manual_seed(seed)
    return stage.apply(private_copy(workload.model), workload, context), context


def _check_form(stage: Stage) -> None:
    name = type(stage).__name__
    parameters = getattr(type(stage), "__dataclass_params__", None)
    _require(is_dataclass(stage) and parameters is not None and parameters.frozen, f"{name} must be a frozen dataclass")
    _require(isinstance(getattr(type(stage), "effect", None), Effect), f"{name} needs `effect: ClassVar[Effect]`")
    names = {kind.__name__: kind for kind in _value_objects(stage)}
    _require(eval(repr(stage), names) == stage, f"{stage!r} must make an equal stage again")  # noqa: S307 - the stage's own repr
    json.dumps(stage_parameters(stage))


def _value_objects(value: Any) -> set[type]:
    kinds = {type(value)}
    for item in fields(value):
        part = getattr(value, item.name)
        if is_dataclass(part) and not isinstance(part, type):
            kinds |= _value_objects(part)
    return kinds


def _check_refusal(stage: Stage, workload: Workload, seed: int) -> None:
    """A model with nothing to compress: it returns a constant, the shape of the real output."""
    inputs, _ = first_batches(workload.calibration, 1)[0]
    shape = _output_of(workload, inputs).shape[1:]
    empty = replace(workload, model=_Constant(shape).eval(), test=Untouchable())
    try:
        _applied(stage, empty, seed)
    except StageError:
        return
    raise ContractError(
        f"{stage_name(stage)} found something to do in a model without weights; raise StageError when there is nothing"
    )


def _output_of(workload: Workload, inputs: Inputs) -> Tensor:
    """What the workload's model gives in eval mode; each of its modules is back in its own mode afterwards."""
    with torch.no_grad(), evaluating(workload.model):
        return predict(workload.model, inputs)


class _Constant(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        first = inputs[0] if inputs else next(iter(named.values()))
        batch = first.flatten(1).float().mean(dim=1)
        return batch.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


def _same_bits(first: nn.Module, second: nn.Module) -> bool:
    if isinstance(first, OnnxModule) and isinstance(second, OnnxModule):
        return first.onnx_bytes == second.onnx_bytes
    return digest(first) == digest(second)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def _require(holds: bool, message: str) -> None:  # noqa: FBT001 - a condition is what it is about
    if not holds:
        raise ContractError(message)
