"""Numbers that a program takes out of torch, as lists or arrays: read one by one, so that each is a decision."""

from typing import Any

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compressor.structure.calling.coverage import unwatched

_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
# Numbers of one tensor that are read by themselves; the others are taken as they are.
_READ = 8


class ReadOut(TorchFunctionMode):
    """Reads the first numbers of what leaves torch as `item` does, and hands out what that gave."""

    @unwatched
    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return _read(args[0], result) if function in _READERS else result


def _read(tensor: Tensor, result: Any) -> Any:
    """`result`, a list, a number or an array, with the numbers that reading `tensor` one by one gives."""
    flat = tensor.detach().reshape(-1)
    numbers = [flat[place].item() for place in range(min(_READ, flat.numel()))]
    values = np.array(result)
    read = values.reshape(-1).copy()
    read[: len(numbers)] = numbers
    if np.array_equal(read, values.reshape(-1), equal_nan=read.dtype.kind in "fc"):
        return result  # an array may share its memory with the tensor
    shaped = read.reshape(values.shape)
    return shaped if isinstance(result, np.ndarray) else shaped.tolist()
