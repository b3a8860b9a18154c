"""What about a model no stage could work with, found before any work: what cannot be copied, traced, run or stored."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from compressor.errors import StorageError, WorkloadError
from compressor.given.models import into_a_module
from compressor.kept_state import private_copy
from compressor.running.described import listed
from compressor.running.failures import FAULTS, in_short
from compressor.structure.extra_state import extra_states
from compressor.structure.tensor_ids import tensors_of

# Wrappers by class name, so that the packages that define them need not be imported.
_WRAPPERS = {
    "OptimizedModule": "model._orig_mod",
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "AveragedModel": "model.module",
    "FullyShardedDataParallel": "the module that was wrapped, its weights gathered on one process",
    "FSDPModule": "a module of your own class, its weights gathered on one process",
}
# Layers with integers in them, those that train for them, and what watches values for them; stubs do nothing.
_QUANTIZED = re.compile(
    r"torch\.ao\.(nn\.(intrinsic\.)?(quantized|qat)\b(?!.*\bFloatFunctional$)|quantization\.(observer|fake_quantize)\b)"
)

COPIES = "every stage works on copies: mend __deepcopy__, __getstate__ or __reduce__ of its class, or remove them"


def check_model(model: nn.Module) -> None:
    """Nothing, for a model that can be worked with. Raises WorkloadError with the module's path and the way out.

    Refused are wrappers, TorchScript, modules that torch has quantized, weights that are uninitialised, without values,
    of inference mode, not finite or not float32, and what cannot be copied: every stage works on a copy.
    """
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"model must be a torch.nn.Module, got {type(model).__name__}; {into_a_module(model)}")
    for path, module in model.named_modules():
        _check_kind(path, module)
    _check_weights(model)
    _check_extra_state(model)
    _check_memory(model)
    _check_copy(model)


def _check_kind(path: str, module: nn.Module) -> None:
    where = f"the submodule {path!r}" if path else "model"
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS:
            inner = _WRAPPERS[kind.__name__]
            raise WorkloadError(
                f"{where} is wrapped in {kind.__name__}, which hides the layers from the stages; pass the inner "
                f"module: {inner.replace('model', path, 1) if path and inner.startswith('model') else inner}"
            )
    if isinstance(module, torch.jit.ScriptModule):
        raise WorkloadError(
            f"{where} is TorchScript ({type(module).__name__}), whose layers no stage can take hold of; build it from "
            "its Python class and load the weights: own.load_state_dict(scripted.state_dict()). To quantize alone, "
            "export it and give the file: --workload model.onnx:data.npz"
        )
    if _QUANTIZED.match(f"{type(module).__module__}.{type(module).__name__}"):
        raise WorkloadError(
            f"{where} ({type(module).__name__}) is quantized, or prepared for it, by torch.ao; pass the float model "
            "and let Quantize() or QuantizationAwareTraining() make the integers"
        )


def _check_weights(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise WorkloadError(
            f"weights must have a shape, and lazy layers that were never called have none yet: {listed(lazy)}; call "
            "model(inputs) once, then load the trained weights"
        )
    for name, tensor in tensors:
        if tensor.is_meta:
            raise WorkloadError(f"{name} is on the meta device and has no values; load the trained weights first")
    for name, tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or type(tensor.data) is not Tensor:
            kind = str(tensor.layout if tensor.layout != torch.strided else type(tensor.data).__name__)
            raise WorkloadError(
                f"weights and buffers must be plain dense tensors, got {kind} of {tensor.dtype} in {name}; convert it "
                "with to_dense() or dequantize() before compression"
            )
    inferred = [name for name, tensor in tensors if tensor.is_inference()]
    if inferred:
        raise WorkloadError(
            f"weights must take gradients, and those made in torch.inference_mode() never do: {listed(inferred)}; pass "
            "copy.deepcopy(model), made outside of it"
        )
    odd = [name for name, tensor in tensors if isinstance(tensor, nn.Parameter) and _is_odd(tensor)]
    if odd:
        kind = str(model.get_parameter(odd[0]).dtype).removeprefix("torch.")
        raise WorkloadError(
            f"weights must be float32, which training, ONNX Runtime and its integers work with; got {kind} in "
            f"{listed(odd)}. Pass model.float() and data in float32"
        )
    # A mask of -inf that a model keeps is a constant; statistics are not.
    constants = {
        id(buffer)
        for module in model.modules()
        if not isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    }
    broken = [
        f"{name} ({count} of {tensor.numel()})"
        for name, tensor in tensors
        if tensor.is_floating_point() or tensor.is_complex()
        if (count := int((tensor.isnan() if id(tensor) in constants else ~tensor.isfinite()).sum()))
    ]
    if broken:
        raise WorkloadError(
            f"weights and buffers must be finite, got NaN or Inf in {listed(broken)}; "
            "load a checkpoint from before the training diverged"
        )


def _check_extra_state(model: nn.Module) -> None:
    try:
        extra_states(model)
    except StorageError as error:
        raise WorkloadError(error.sentence) from error


def _is_odd(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _check_memory(model: nn.Module) -> None:
    """Two parameters in one memory are trained as one, and a copy of each is a parameter of its own."""
    last: tuple[str, nn.Parameter, int] | None = None
    for name, weight in sorted(model.named_parameters(), key=lambda entry: entry[1].data_ptr()):
        if not weight.numel():
            continue
        start = weight.data_ptr()
        span = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
        if last is not None and start < last[2] and (weight.requires_grad or last[1].requires_grad):
            raise WorkloadError(
                f"{last[0]} and {name} are two parameters in one memory, which copies take apart; make them one, as in "
                "decoder.weight = encoder.weight, or use the other's in forward(), as in F.linear(x, encoder.weight.T)"
            )
        end = start + span * weight.element_size()
        if last is None or end > last[2]:
            last = name, weight, end


def _check_copy(model: nn.Module) -> None:
    """Every stage works on a copy: it must be there, hold the same, and hold it for itself."""
    try:
        copied = private_copy(model)
    except FAULTS as error:  # what cannot be copied raises anything
        path, value = _uncopyable(model)
        raise WorkloadError(
            f"every stage works on a copy of the model, and {path}, of type {type(value).__name__}, cannot be copied "
            f"({in_short(error)}); make it when it is first used, or leave it out of copies in __getstate__ and make "
            "it again in __setstate__"
        ) from error
    # Every GraphModule has a class of its own.
    if type(copied) is not type(model) and not (isinstance(copied, GraphModule) and isinstance(model, GraphModule)):
        raise WorkloadError(f"copy.deepcopy(model) gives {type(copied).__name__}, not {type(model).__name__}; {COPIES}")
    own, theirs = tensors_of(model), tensors_of(copied)
    if own.keys() != theirs.keys():
        differing = sorted(own.keys() ^ theirs.keys())
        raise WorkloadError(f"a copy of the model has other weights and buffers: {listed(differing)}; {COPIES}")
    changed = [name for name in own if own[name].shape != theirs[name].shape or not _equal(own[name], theirs[name])]
    if changed:
        raise WorkloadError(f"a copy of the model has another value in {listed(changed)}; {COPIES}")
    memory = {memory_of(tensor): name for name, tensor in own.items() if tensor.numel()}
    shared = [name for name, tensor in theirs.items() if memory_of(tensor) in memory and tensor.numel()]
    if shared:
        raise WorkloadError(
            f"a copy of the model shares the memory of {listed(shared)}, and a stage would change the original; "
            f"{COPIES}"
        )
    untied = sorted(name for names in _ties(own) ^ _ties(theirs) for name in names)
    if untied:
        raise WorkloadError(f"{listed(untied)} are one tensor in the model or in its copy, and not in both; {COPIES}")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def memory_of(tensor: Tensor) -> int:
    """Where the numbers of `tensor`, and of its views, stand."""
    return tensor.untyped_storage().data_ptr()


def _ties(tensors: Mapping[str, Tensor]) -> set[tuple[str, ...]]:
    """The names of every tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {tuple(sorted(several)) for several in names.values() if len(several) > 1}


def _uncopyable(model: nn.Module) -> tuple[str, Any]:
    """The innermost attribute, by its path from `model`, that cannot be copied, and its value."""
    import copy

    modules = {id(module): module for module in model.modules()}

    def fails(value: Any) -> bool:
        try:
            # Modules stand for themselves: it is about what they hold besides each other.
            copy.deepcopy(value, dict(modules))
        except FAULTS:
            return True
        return False

    for path, module in model.named_modules():
        where = f"model.{path}" if path else "model"
        own = {
            name: value for name, value in vars(module).items() if name not in {"_modules", "_parameters", "_buffers"}
        }
        for name, value in {**module._parameters, **module._buffers, **own}.items():  # noqa: SLF001 - each by its name
            if fails(value):
                return _innermost(f"{where}.{name}", value, fails)
    return "model", model


def _innermost(path: str, value: Any, fails: Any, depth: int = 5) -> tuple[str, Any]:
    for name, item in _parts(value) if depth else ():
        if fails(item):
            return _innermost(f"{path}{name}", item, fails, depth - 1)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module):
        yield from ((f".{name}", item) for name, item in vars(value).items())
