"""Whether what the structure of a model calls free may have any width: random removals, each tried."""

import random

import torch
from torch import nn

from compressor.batches import Inputs
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure


def free(graph: StructureGraph) -> dict[str, Coupled]:
    """The groups that are not locked, by name."""
    return {group.name: group for group in graph.groups if group.locked is None}


def survives_everything(model: nn.Module, inputs: Inputs, rounds: int = 4) -> list[int]:
    """The widths of the free groups of `model`: whatever goes of them at random, the trial has to pass."""
    graph = trace_structure(randomized_(model).eval(), inputs)
    draw = random.Random(0)  # noqa: S311 - what a test removes is no secret
    groups = free(graph)
    for _ in range(rounds):
        gone = {
            group: sorted(draw.sample(range(group.width), draw.randrange(1, group.width)))
            for group in groups.values()
            if draw.random() < 0.7
        }
        assert graph.fault_without(gone) is None
        for group in groups.values():
            assert graph.fault_without({group: [draw.randrange(group.width)]}) is None
    return sorted(group.width for group in groups.values())


def randomized_(model: nn.Module) -> nn.Module:
    """`model` itself with normal weights, the same ones each time."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
