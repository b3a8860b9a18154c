"""BatchNorm re-estimation: running statistics measured anew on the compressed model's own activations.

After a structural change the stored means and variances describe activations that no longer occur. Plain averages over
batches replace them: "precise BatchNorm", Wu & Johnson 2021, arXiv:2105.07576, sec. 3.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.checks import check_count
from compressor.errors import StageError
from compressor.notes.training import NormsReestimated
from compressor.progress.bars import progress_bar
from compressor.stage import Context, Effect
from compressor.structure.calling.draws import kept_randomness
from compressor.training.freezing import still_modules
from compressor.training.passes.lone import unless_lone
from compressor.training.precision import Form
from compressor.training.replay import kept_modes, replayed
from compressor.training.streams import said_length
from compressor.workload import Workload, batches_of, call_model


@dataclass(frozen=True, kw_only=True)
class ReestimateBatchNorm:
    """Replaces running means and variances by their average over up to `batches` (>= 1) training batches.

    Every batch counts the same; those of one value a channel, such as a lone vector, are skipped. Only BatchNorm is in
    training mode (dropout is off), in float32, without gradients. Layers that no batch reaches keep what they had, and
    so do those that are frozen, or that came in eval mode by themselves in a model in training mode.
    """

    effect: ClassVar[Effect] = Effect.VALUES

    batches: int = 100

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the training batches to average over")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        }
        if not found:
            raise StageError(
                f"{type(model).__name__} has no BatchNorm with running statistics; leave re-estimation out for it"
            )
        outermost = still_modules(model, context.began_with(workload)).values()
        still = {part for outer in outermost for part in outer.modules()}
        norms = {name: norm for name, norm in found.items() if norm not in still}
        if not norms:
            raise StageError(
                f"every BatchNorm of {type(model).__name__} is frozen or was put into eval mode by itself; leave "
                "re-estimation out, or unfreeze what it may change"
            )
        former = {name: [buffer.clone() for buffer in norm.buffers()] for name, norm in norms.items()}
        momenta = {name: norm.momentum for name, norm in norms.items()}
        form = Form.of(model)
        used, total = 0, min(self.batches, said_length(workload.train) or self.batches)
        with kept_randomness(), kept_modes(model), form.applied(model):
            model.eval()
            for norm in norms.values():
                norm.reset_running_stats()
                # None is torch's cumulative average.
                norm.momentum = None
                norm.training = True
            try:
                with replayed(context.seed, 0), torch.no_grad():
                    batches = islice(batches_of(workload.train), self.batches)
                    for inputs, _ in progress_bar(
                        batches, desc="statistics", unit="batch", total=total, shown=context.progress
                    ):
                        run = partial(call_model, model, form.place(inputs))
                        used += unless_lone(model, inputs, run) is not None
            finally:
                for name, norm in norms.items():
                    norm.momentum = momenta[name]
        if not used:
            raise StageError(
                "statistics want batches with at least 2 values a channel, and the training data had none; raise its "
                "batch size"
            )
        unreached = [name for name, norm in norms.items() if not int(norm.num_batches_tracked or 0)]
        for name in unreached:
            for buffer, value in zip(norms[name].buffers(), former[name], strict=True):
                buffer.copy_(value)
        for name, norm in norms.items():
            if not all(bool(buffer.isfinite().all()) for buffer in norm.buffers()):
                raise StageError(
                    f"the activations before {name!r} are not finite for training data: the model was broken before "
                    "this stage; train it at a lower rate, or look for NaN and huge values in the data"
                )
        context.tell(
            NormsReestimated(
                layers=len(norms) - len(unreached),
                batches=used,
                unreached=tuple(unreached),
                frozen=tuple(name for name in found if name not in norms) or None,
            )
        )
        return model
