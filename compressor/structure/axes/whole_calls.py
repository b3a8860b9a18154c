"""Attention, linear layers and layer norms caught as one operator each, before torch takes them apart.

On tensors without numbers torch runs each of them as many small operators in Python, which take long to trace.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from compressor.structure.calling.coverage import unwatched

_FUNCTIONS = nn.functional
_DROPOUT = {
    _FUNCTIONS.dropout,
    _FUNCTIONS.dropout1d,
    _FUNCTIONS.dropout2d,
    _FUNCTIONS.dropout3d,
    _FUNCTIONS.alpha_dropout,
    _FUNCTIONS.feature_alpha_dropout,
}


class WholeCalls(TorchFunctionMode):
    """Hands attention, linear layers and layer norms to `take` as one operator each.

    Attention is one kernel on every device but the one without numbers; there the others are Python. Dropout is one
    operator with and without numbers, and hooks for gradients are called at once.
    """

    def __init__(self, take: Any, computed: Callable[[Tensor], bool], *, shapes_only: bool) -> None:
        super().__init__()
        self._take, self._computed, self._shapes_only = take, computed, shapes_only

    @unwatched
    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DROPOUT:
            return self._take(torch.ops.aten.dropout.default, function, args, kwargs)
        if function is Tensor.register_hook and not args[0].requires_grad:
            # Without gradients nobody would call it: it is given one of the same axes.
            args[1](torch.zeros_like(args[0]))
            return RemovableHandle(OrderedDict())
        if not self._shapes_only:
            return function(*args, **kwargs)
        if function is nn.functional.scaled_dot_product_attention:
            return self._take(torch.ops.aten.scaled_dot_product_attention.default, function, args, kwargs)
        if function is nn.functional.linear and _is_ordinary(args, kwargs) and self._computed(args[0]):
            return self._take(torch.ops.aten.linear.default, _linear_shape, args, kwargs)
        if function is nn.functional.layer_norm and len(args) == 2 and tuple(args[1]) == args[0].shape[-len(args[1]) :]:
            return self._take(torch.ops.aten.layer_norm.default, _norm_shape, args, kwargs)
        return function(*args, **kwargs)


def _is_ordinary(args: Any, kwargs: Any) -> bool:
    """Whether these are what nn.Linear gives: an input that fits, a weight and a bias or none."""
    if len(args) != 3 or kwargs or not isinstance(args[1], nn.Parameter) or args[1].ndim != 2:
        return False
    data, weight, bias = args
    fits = data.ndim > 0 and data.shape[-1] == weight.shape[1] and data.dtype == weight.dtype
    return fits and (bias is None or (isinstance(bias, nn.Parameter) and bias.shape == weight.shape[:1]))


def _linear_shape(data: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return data.new_empty((*data.shape[:-1], weight.shape[0]))


def _norm_shape(data: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return data.new_empty(data.shape)
