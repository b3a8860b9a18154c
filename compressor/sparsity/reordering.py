"""A network whose inner channels change places, so that n of every m lose less, and which computes what it computed.

The channels that hang together are those of the structure's groups: what makes a channel, what normalizes it and what
reads it are reordered alike. Pool & Yu 2021, "Channel Permutations for N:M Sparsity" (NeurIPS), sec. 5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.notes.training import ChannelOrder
from compressor.progress.bars import progress_bar
from compressor.sparsity.layers import SparseWeight
from compressor.sparsity.patterns import SemiStructured
from compressor.sparsity.permutation import best_order
from compressor.stage import Context
from compressor.structure.calling.shown import shown_by
from compressor.structure.couplings import Coupled, Part
from compressor.structure.graph import trace_structure
from compressor.structure.plan import Entry, apply_plan_
from compressor.structure.tensor_ids import tensors_of
from compressor.structure.trials import evaluating, outputs_at, same_outputs
from compressor.workload import Workload, batch_size_of


def reorder_(
    model: nn.Module, weights: Sequence[SparseWeight], pattern: SemiStructured, workload: Workload, context: Context
) -> list[ChannelOrder]:
    """Reorders the channels of `model` in place, group by group, and plans it; what came of each group.

    `weights` are those that get the pattern; they are others afterwards. An order after which the network computes
    something else is taken back.
    """
    told = []
    inputs = workload.example_inputs
    sizes = (batch_size_of(inputs),)
    with evaluating(model):
        groups = trace_structure(model, shown_by(workload), settled=False).groups
        wanted = outputs_at(model, inputs, sizes)
        for group in progress_bar(groups, desc="channel order", shown=context.progress):
            reason = _fixed(group)
            lines = [] if reason else _readers(group, weights, pattern)
            if not lines:
                told.append(
                    ChannelOrder(group=group.name, reason=reason or "nothing with the pattern reads it in a row")
                )
                continue
            own = tensors_of(model)
            read = torch.cat([_lines(own[weight.name], weight, part) for weight, part in lines])
            found = best_order(read, n=pattern.n, m=pattern.m, escapes=pattern.escapes, seed=context.seed)
            if found.kept <= found.before:
                told.append(ChannelOrder(group=group.name, reason="no other order keeps more"))
                continue
            order = found.order.tolist()
            apply_plan_(model, [_entry(group, order, model)])
            changed = outputs_at(model, inputs, sizes)
            if any(same_outputs(changed[size], output) is not None for size, output in wanted.items()):
                apply_plan_(model, [_entry(group, found.order.argsort().tolist(), model)])
                told.append(
                    ChannelOrder(group=group.name, reason="in another order the network computes something else")
                )
                continue
            context.plan.append(_entry(group, order, model))
            told.append(ChannelOrder(group=group.name, before=found.before, kept=found.kept))
    return told


def _fixed(group: Coupled) -> str:
    if group.locked is not None:
        return group.locked
    if group.makes_output:
        return "it makes the model's output"
    return "it is coupled to a layer whose own order is fixed" if group.opaque else ""


def _readers(
    group: Coupled, weights: Sequence[SparseWeight], pattern: SemiStructured
) -> list[tuple[SparseWeight, Part]]:
    """The weights that read the channels in a row, each with its part; none where one reads them in another way."""
    by_name = {weight.name: weight for weight in weights}
    found = []
    for part in group.parts:
        for name, dim in part.tensors:
            weight = by_name.get(name)
            if weight is None or dim != weight.inputs_dim:
                continue
            first, line = part.indices[0], tuple(range(group.width))
            each, rest = divmod(len(part.indices), group.width)
            in_order = part.indices == tuple(range(first, first + len(part.indices)))
            flattened = tuple(channel for channel in line for _ in range(each))
            if not each % pattern.m and not rest and not first % pattern.m and in_order and part.channels == flattened:
                continue  # each channel is whole groups of inputs, which stay together wherever it goes
            row = part.channels == line and in_order
            if not row or first % pattern.m or group.width % pattern.m:
                return []
            found.append((weight, part))
    return found


def _lines(values: Tensor, weight: SparseWeight, part: Part) -> Tensor:
    """The sizes of the weights that read the channels, (outputs * kernel positions, channels)."""
    inputs = weight.arranged(values.detach().cpu().abs()).flatten(0, 1)
    return inputs[:, part.indices[0] : part.indices[-1] + 1]


def _entry(group: Coupled, order: list[int], model: nn.Module) -> Entry:
    """The plan entry that puts channel `order[i]` of `group` into the place of channel i, in every tensor."""
    own = tensors_of(model)
    moves: dict[str, dict[str, list[int]]] = {}
    for part in group.parts:
        places: dict[int, list[int]] = {}
        for index, channel in zip(part.indices, part.channels, strict=True):
            places.setdefault(channel, []).append(index)
        for name, dim in part.tensors:
            line = moves.setdefault(name, {}).setdefault(str(dim), list(range(own[name].shape[dim])))
            for channel, source in enumerate(order):
                for to, origin in zip(places.get(channel, ()), places.get(source, ()), strict=True):
                    line[to] = origin
    return {
        "kind": "slice",
        "tensors": moves,
        "shapes": {name: list(own[name].shape) for name in moves},
        "why": {"reordered": group.name},
    }
