"""Weights that zeros make sense in, each seen as outputs, kernel positions and inputs, whatever layer it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.errors import StageError
from compressor.pruning.channel_slices import penalised_weights
from compressor.structure.preparing.matching import matching_glob


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseWeight:
    """One weight that may get zeros: its `name`, its `module` with that module's `layer` name, and its `parameter`.

    `inputs_dim` is the dimension along which it reads its inputs. `neurons` says whether its other first dimension
    counts filters or neurons: not in tables, nor in recurrent layers, whose units have several rows each. `constants`
    are what a row gives without its weights, by name, one value a row: they become zero with it.
    """

    name: str
    layer: str
    module: nn.Module
    parameter: nn.Parameter
    inputs_dim: int
    neurons: bool
    constants: Mapping[str, nn.Parameter] = field(default_factory=dict)

    def of(self, model: nn.Module) -> "SparseWeight":
        """The same weight of `model`, a copy of the one that it was found in."""
        parameter = dict(model.named_parameters(remove_duplicate=False))[self.name]
        return replace(self, module=model.get_submodule(self.layer), parameter=parameter)

    def arranged(self, values: Tensor) -> Tensor:
        """`values` of the weight's shape as (outputs, kernel positions, inputs)."""
        moved = values.movedim(self.inputs_dim, -1)
        return moved.reshape(moved.shape[0], -1, moved.shape[-1])

    def with_constants(self, model: nn.Module, norm: str | None) -> "SparseWeight":
        """The same with its bias, and with scale and shift of the batch normalization `norm` of `model` behind it."""
        found = {f"{self.layer}.bias" if self.layer else "bias": getattr(self.module, "bias", None)}
        if norm is not None:
            own = model.get_submodule(norm)
            found |= {f"{norm}.weight": own.weight, f"{norm}.bias": own.bias}
        return replace(self, constants={name: one for name, one in found.items() if isinstance(one, nn.Parameter)})

    def zero_(self, mask: Tensor) -> None:
        """Makes zero what is not in `mask`, of the weight's shape, and the constants of rows of which nothing is."""
        empty = ~self.arranged(mask).flatten(1).any(dim=1)
        with torch.no_grad():
            self.parameter.masked_fill_(~mask.to(self.parameter.device), 0.0)
            for constant in self.constants.values():
                constant.masked_fill_(empty.to(constant.device), 0.0)

    def as_weight(self, values: Tensor) -> Tensor:
        """What `arranged` made (outputs, kernel positions, inputs) of, in the weight's own shape."""
        shape = list(self.parameter.shape)
        inputs = shape.pop(self.inputs_dim)
        return values.reshape(*shape, inputs).movedim(-1, self.inputs_dim)


def sparse_weights(
    model: nn.Module, *, layers: Sequence[str], ignore: Sequence[str]
) -> tuple[list[SparseWeight], dict[str, str]]:
    """The trained weights of `model` in modules that match `layers` and not `ignore`, and why others are left alone.

    No biases and no normalizations; a tied weight comes once. Raises StageError where there are none.
    """
    names: dict[int, str] = {}
    for name, parameter in penalised_weights(model, tuple(layers)).items():
        names.setdefault(id(parameter), name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found, left = [], {}
    for name in names.values():
        layer = name.rpartition(".")[0]
        glob = matching_glob(layer, ignore)
        if glob is not None:
            left[layer] = f"ignored by {glob!r}"
            continue
        module = model.get_submodule(layer)
        transposed = isinstance(module, _ConvTransposeNd) or _is_linear_of_transformers(module)
        found.append(
            SparseWeight(
                name=name,
                layer=layer,
                module=module,
                parameter=parameters[name],
                inputs_dim=0 if transposed else 1,
                neurons=isinstance(module, _ConvNd | nn.Linear) or _is_linear_of_transformers(module),
            )
        )
    if not found:
        raise StageError(
            f"every weight of {type(model).__name__} that could get zeros is ignored, by {', '.join(ignore)}; ignore "
            "fewer layers"
        )
    return found, left


def _is_linear_of_transformers(module: nn.Module) -> bool:
    # GPT-2's `Conv1D`: a linear layer with its weight as (in, out).
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
