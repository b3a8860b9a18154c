"""Every free group of a model halved, beside the original with zeros: what tests of structure compare."""

import copy

import torch
from torch import nn

from compressor.batches import Inputs
from compressor.structure.calling.shown import Shown
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.tensor_ids import mask_


def free(graph: StructureGraph) -> dict[str, Coupled]:
    """The groups that can be narrowed, by name."""
    return {group.name: group for group in graph.groups if group.locked is None}


def locks(graph: StructureGraph) -> dict[str, str]:
    """Why the others cannot, by name."""
    return {group.name: group.locked for group in graph.groups if group.locked is not None}


def halves(model: nn.Module, shown: Inputs | Shown) -> tuple[nn.Module, nn.Module, StructureGraph]:
    """A copy of `model` without every second unit of its free groups, one with those at zero, and the structure."""
    graph = trace_structure(model.eval(), shown)
    gone = {group: list(range(0, group.width - 1, 2)) for group in free(graph).values()}
    with torch.no_grad():
        narrow = apply_plan_(copy.deepcopy(model), graph.entries(gone)).eval()
        masked = mask_(copy.deepcopy(model), graph.sizes_without(gone)).eval()
    return narrow, masked, graph
