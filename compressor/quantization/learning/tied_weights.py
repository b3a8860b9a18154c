"""Weights that learn and keep what an earlier stage gave them: zeros stay zero, equal values stay equal."""

import torch
from torch import Tensor, nn

# More different values than an index of eight bits can name are not a codebook.
_MOST_VALUES = 256


class TiedWeight(nn.Module):
    """A weight tensor that learns within its structure.

    Zeros stay zero where there are any. Where a tensor has at most 256 different values, each of them shared by two
    weights on average or more, equal weights stay equal, in the whole tensor; where that holds within every index
    along `axis` only (as after BatchNorm was folded into clustered weights), they stay equal there. One value learns
    from the gradients of all weights that share it.
    """

    def __init__(self, weight: Tensor, *, axis: int | None) -> None:
        super().__init__()
        index = _shared_by(weight, axis)
        if index is None:
            self.values = nn.Parameter(weight.clone())
            self.register_buffer("index", None)
        else:
            book = torch.zeros(int(index.max()) + 1).scatter(0, index.flatten(), weight.flatten())
            self.values = nn.Parameter(book)
            self.register_buffer("index", index)
        zero = self.values.detach() == 0
        self.register_buffer("kept", (~zero).float() if bool(zero.any()) else None)

    def forward(self) -> Tensor:
        """The weight."""
        kept, index = self._buffers["kept"], self._buffers["index"]
        values: Tensor = self.values if kept is None else self.values * kept
        return values if index is None else values[index]


def _shared_by(weight: Tensor, axis: int | None) -> Tensor | None:
    """For every weight the number of the value that it shares; None where values are not shared."""
    found = _codebook(weight.flatten())
    if found is not None:
        return found.reshape(weight.shape)
    if axis is None:
        return None
    rows = weight.movedim(axis, 0)
    parts, first = [], 0
    for row in rows:
        book = _codebook(row.flatten())
        if book is None:
            return None
        parts.append(book.reshape(row.shape) + first)
        first += int(book.max()) + 1
    return torch.stack(parts).movedim(0, axis)


def _codebook(values: Tensor) -> Tensor | None:
    different, index = torch.unique(values, return_inverse=True)
    nonzero = int((values != 0).sum())
    books = int((different != 0).sum())
    # Zeros have their own rule: a pruned tensor of otherwise different values is no codebook.
    return index if len(different) <= _MOST_VALUES and 2 * books <= nonzero else None
