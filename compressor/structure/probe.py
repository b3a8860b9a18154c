"""Trials of cuts: the narrowed model must compute what the whole one computes with those weights at zero."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.progress.bars import tick, waiting
from compressor.structure.axes.decisions import Steps
from compressor.structure.axes.forced_paths import Forced
from compressor.structure.axes.groups import AxisStructure
from compressor.structure.calling.shown import TrainingStep
from compressor.structure.couplings import Coupled
from compressor.structure.model_copies import masked_copy, sharing_copy
from compressor.structure.plan import Entry, Slices, apply_plan_
from compressor.structure.settling import Settling
from compressor.structure.source_lines import told
from compressor.structure.tensor_ids import Sizes
from compressor.structure.training_trials import difference_in_training
from compressor.structure.trials import collector_paused, difference, difference_on, difference_within, evaluating


class ProbedStructure:
    """The structure of a model together with the private copy that cuts are tried on.

    `model` shares its parameters with the model, but for constant ones, which are `distinct_`. Outputs are compared for
    the first `samples` (1 or 2) of `inputs`: one says it all where the program does not look at values, and for
    `others` as they are; then for `inputs` on every one of `paths`, and in the first of `steps` that the model can be
    trained with, there on `training_paths` too. `slices` are what parameters became in the last trial, for the model
    itself.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: AxisStructure,
        inputs: Inputs,
        samples: int,
        *,
        others: Sequence[Inputs] = (),
        paths: Sequence[Steps] = (),
        steps: Sequence[TrainingStep] = (),
        training_paths: Sequence[Steps] = (),
    ) -> None:
        self._model, self._structure, self._inputs, self._samples = model, structure, inputs, samples
        self._others, self._paths = others, paths
        self._steps, self._training_paths = steps, training_paths
        self._settling: Settling | None = Settling(model, structure)
        self.settled = not self._settling.needed
        self._failed = False
        self.slices: Slices = {}

    @property
    def groups(self) -> tuple[Coupled, ...]:
        """Every group, locked ones with their reason."""
        return self._structure.groups

    @property
    def unreached(self) -> Mapping[str, str]:
        """The layers and tensors that no call reaches, each with why that is a danger."""
        return self._structure.unreached

    def entries(self, gone: dict[Coupled, list[int]]) -> list[Entry]:
        """One plan entry for each group, to be applied in order."""
        return self._structure.entries(gone)

    def sizes_without(self, gone: dict[Coupled, list[int]]) -> Sizes:
        """What is left of every tensor."""
        return self._structure.sizes_without(gone)

    @waiting("trying narrower copies", at_once=False)
    def settle(self) -> None:
        """Finds the attributes that keep sizes and the groups that go together, and locks the others; once."""
        settling, self._settling = self._settling, None
        if not self.settled and settling is not None:
            self.settled = True
            with evaluating(self._model), collector_paused():
                settling.run(partial(self._fault_without, backward=False))

    @waiting("trying what is left", at_once=False)
    def fault_without(self, gone: dict[Coupled, list[int]]) -> str | None:
        """Why these channels cannot go, or None: narrowed, the model must run at two batch sizes, backwards too
        where it brings derivatives of its own, and compute what it computes with the channels at zero.
        """
        if not gone:
            return None
        with evaluating(self._model), collector_paused():
            return self._fault_without(gone, backward=True)

    def _fault_without(self, gone: dict[Coupled, list[int]], *, backward: bool) -> str | None:
        tick()
        try:
            self.slices = {}
            narrow = apply_plan_(sharing_copy(self._model), self._structure.entries(gone), slices=self.slices)
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            return told(error)
        sizes = self._structure.sizes_without(gone)
        if not self._failed:
            # Zeros in activations cost no memory, but miss weights that are used in other ways and may not fit every
            # kind of tensor: zeros in the weights have the last word.
            with suppress(Exception):
                masked = masked_copy(self._model, sizes, by_activations=True)
                if self._difference(narrow, masked, sizes, backward=backward) is None:
                    return None
            self._failed = True
        return self._difference(narrow, masked_copy(self._model, sizes), sizes, backward=backward)

    def _difference(self, narrow: nn.Module, masked: nn.Module, sizes: Sizes, *, backward: bool) -> str | None:
        reason = difference(narrow, masked, self._inputs, samples=self._samples, backward=backward)
        for inputs in self._others:
            reason = reason or difference_on(narrow, masked, inputs)
        for path in self._paths:
            reason = reason or difference_within(narrow, masked, self._inputs, partial(Forced, path))
        reason = reason or difference_in_training(narrow, masked, sizes, self._steps)
        for path in self._training_paths:
            reason = reason or difference_in_training(narrow, masked, sizes, self._steps, partial(Forced, path))
        return reason


def constant_parameters(model: nn.Module) -> set[str]:
    """The names of the parameters whose values are all the same."""
    return {name for name, tensor in model.named_parameters(remove_duplicate=False) if _is_constant(tensor)}


def distinct_(model: nn.Module) -> nn.Module:
    """`model` itself with random numbers in every tensor that was constant, so that no two channels compute the same.

    Fresh norms and zeroed residual branches would otherwise hide what a wrong cut does. Values stay near what they were
    and keep their sign; buffers of norms are drawn as well.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [part for part in model.modules() if hasattr(part, "running_var")]
    tensors = [*model.parameters(), *(buffer for part in norms for buffer in part.buffers(recurse=False))]
    with torch.no_grad():
        for tensor in filter(_is_constant, tensors):
            value = float(tensor.flatten()[0])
            noise = torch.rand(tensor.shape, generator=generator).to(tensor)
            # Scales of residual branches start near zero, which would hide what they let through.
            tensor.copy_((noise + 0.5) * value if abs(value) > 0.01 else (noise - 0.5) * 0.2)
    return model


def _is_constant(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return False
    flat = tensor.detach().flatten()
    first = flat[0]
    return bool(first == flat[-1]) and bool((flat == first).all())
