"""Embeddings that shorten the rows they look up, by writing into their weights: torch's `max_norm`."""

import torch
from torch import nn


def bound_rows_(model: nn.Module) -> None:
    """Makes all rows of the embeddings of `model` as short as a look-up would make them; they write nothing any more.

    So a graph of `model` computes what it computed, without an operator that changes weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            weight = module.weight.detach()
            torch.embedding_renorm_(weight, torch.arange(len(weight)), float(module.max_norm), float(module.norm_type))
            module.max_norm = None
