"""Weights of a chain of torch layers as Keras lays them out, channels last, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = list[NDArray[np.float32]]


def to_keras(model: nn.Sequential) -> Arrays:
    """The weights of convolutions and linear layers, with their biases, in the order of the chain.

    Keras flattens (height, width, channels) and torch (channels, height, width), so that what reads a flattened map has
    its inputs in another order.
    """
    found: Arrays = []
    for layer, channels in _readers(model):
        weight = layer.weight.detach()
        if isinstance(layer, nn.Conv2d):
            weight = weight.permute(2, 3, 1, 0)
        else:
            weight = _split(weight, channels).permute(2, 1, 0).flatten(0, 1)
        found += [weight.contiguous().numpy(), layer.bias.detach().numpy()]
    return found


def from_keras_(model: nn.Sequential, arrays: Sequence[NDArray[np.float32]]) -> nn.Sequential:
    """`model` itself with the weights of `arrays`, which are as `to_keras` gives them."""
    given = iter(arrays)
    with torch.no_grad():
        for layer, channels in _readers(model):
            weight, bias = torch.from_numpy(next(given)), torch.from_numpy(next(given))
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(weight.permute(3, 2, 0, 1))
            else:
                places = len(weight) // channels
                layer.weight.copy_(weight.view(places, channels, -1).permute(2, 1, 0).flatten(1))
            layer.bias.copy_(bias)
    return model


def _split(weight: Tensor, channels: int) -> Tensor:
    """A matrix (outputs, inputs) as (outputs, channels, places of the flattened map)."""
    return weight.view(len(weight), channels, -1)


def _readers(model: nn.Sequential) -> list[tuple[nn.Conv2d | nn.Linear, int]]:
    """The layers with weights, and the channels of the map that was flattened before them: 1 where none was."""
    found: list[tuple[nn.Conv2d | nn.Linear, int]] = []
    channels, flat = 1, 1
    for layer in model:
        if isinstance(layer, nn.Flatten):
            flat = channels
        elif isinstance(layer, nn.Conv2d):
            found.append((layer, 1))
            channels = layer.out_channels
        elif isinstance(layer, nn.Linear):
            found.append((layer, flat))
            flat = 1
    return found
