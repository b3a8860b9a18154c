"""What operators that compute do to the axes of the tensors they meet: contraction, convolution, norms, reductions."""

import torch
from torch import Tensor

from compressor.structure.axes.axis import (
    Axis,
    IrreconcilableError,
    factors,
    is_locked,
    join,
    lock,
    name_role,
    product,
    regroup,
)
from compressor.structure.axes.calls import STRUCTURAL, Call, Dims, Rule, adding_to, broadcast
from compressor.structure.axes.matrices import MATRICES
from compressor.structure.axes.picks import PICKS
from compressor.structure.axes.views import VIEWS
from compressor.structure.axes.writes import WRITES

RULES: dict[str, Rule] = VIEWS | WRITES | PICKS | MATRICES
_rule = adding_to(RULES)


def _names(text: str) -> list[str]:
    return text.split()


_PLACE = "it is a place in a map"
_HEAD = f"{STRUCTURAL[1]} of an attention head, which the scores are scaled by"

# Operators that compute element by element without the tag that says so.
_ELEMENTWISE = _names(
    """
    alias detach _to_copy clone contiguous lift_fresh lift dropout native_dropout hardswish hardsigmoid hardtanh
    _prelu_kernel prelu copy copy_ fill zero bernoulli rrelu rrelu_with_noise threshold leaky_relu elu celu selu
    gelu silu mish relu relu6 softplus softshrink hardshrink log_sigmoid_forward masked_fill where clamp
    nan_to_num zeros_like ones_like full_like empty_like rand_like randn_like to type_as _conj isnan isinf
    fake_quantize_per_tensor_affine view_as_real_copy _assert_async resolve_conj resolve_neg view_dtype fill_ complex
    polar
    """
)

# A tensor of equal values may lose any of them: it follows whatever it meets.
_UNIFORM = _names(
    """
    zeros ones full empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided
    """
)
_PATTERNED = _names(
    """
    arange linspace logspace rand randn randint randperm eye scalar_tensor normal uniform random tril_indices
    exponential cauchy geometric log_normal normal_functional uniform_functional
    """
)


@_rule(*_ELEMENTWISE)
def elementwise(call: Call) -> list[Dims]:
    """The aligned axes of the arguments, joined."""
    every = [call.dims_of(tensor) for tensor in call.tensors()]
    return [broadcast(every, shape, join) for shape in call.shapes()]


@_rule(*_UNIFORM)
def _uniform(call: Call) -> list[Dims]:
    return [[Axis(size) for size in shape] for shape in call.shapes()]


@_rule(*_PATTERNED)
def _patterned(call: Call) -> list[Dims]:
    every = [call.dims_of(tensor) for tensor in call.tensors()]
    if every:  # numbers drawn into a tensor, or one for each of its elements
        return [broadcast(every, shape, join) for shape in call.shapes()]
    return [[Axis(size, "it is counted out or drawn in forward") for size in shape] for shape in call.shapes()]


def contract(call: Call, left: Tensor, right: Tensor) -> Dims:
    """The axes of (..., m, k) @ (..., k, n)."""
    *batch, rows, inner = call.dims_of(left)
    *other, inner_too, columns = call.dims_of(right)
    for mine, yours in zip(batch, other, strict=True):
        join(mine, yours)
    join(inner, inner_too)
    if call.computed(left) and call.computed(right):
        heads = [axis for axis in batch if not is_locked(axis)]
        for axis in heads:
            name_role(axis, "heads")
        for axis in (inner, rows, columns) if heads else ():
            call.lock(axis, _HEAD)
    for tensor, outer in ((right, right.ndim - 1), (left, left.ndim - 2)):
        if not call.computed(tensor):
            call.made_by(tensor, outer)
    return [*batch, rows, columns]


@_rule("mm", "bmm")
def _mm(call: Call) -> Dims:
    return contract(call, call["self"], call["mat2"])


@_rule("addmm")
def _addmm(call: Call) -> Dims:
    dims = contract(call, call["mat1"], call["mat2"])
    return broadcast([dims, call.dims("self")], call.shape(), join)


@_rule("baddbmm")
def _baddbmm(call: Call) -> Dims:
    dims = contract(call, call["batch1"], call["batch2"])
    return broadcast([dims, call.dims("self")], call.shape(), join)


@_rule("addbmm")
def _addbmm(call: Call) -> Dims:
    # The products of all batches are added up.
    _, *dims = contract(call, call["batch1"], call["batch2"])
    return broadcast([dims, call.dims("self")], call.shape(), join)


@_rule("mv")
def _mv(call: Call) -> Dims:
    rows, inner = call.dims("self")
    join(inner, call.dims("vec")[0])
    return [rows]


@_rule("dot")
def _dot(call: Call) -> Dims:
    join(call.dims("self")[0], call.dims("tensor")[0])
    return []


@_rule("linear")
def _linear(call: Call) -> Dims:
    *lead, inner = call.dims("input")
    outputs, inputs = call.dims("weight")
    join(inner, inputs)
    if call["bias"] is not None:
        join(outputs, call.dims("bias")[0])
    call.made_by(call["weight"], 0)
    return [*lead, outputs]


@_rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention",
)
def _attention(call: Call) -> list[Dims]:
    *batch, places, width = call.dims("query")
    for name in ("key", "value"):
        *other, _, features = call.dims(name)
        for mine, yours in zip(batch, other, strict=True):
            if mine.size == yours.size or not yours.size:
                join(mine, yours)
            elif yours.size > 1:
                join(mine, product([yours, Axis(mine.size // yours.size)]))
        call.lock(features, _HEAD)
    join(call.dims("key")[-2], call.dims("value")[-2])
    for axis in (width, places, call.dims("key")[-2]):
        call.lock(axis, _HEAD)
    for axis in batch:
        if not is_locked(axis):
            name_role(axis, "heads")
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    scores = [*batch, places, call.dims("key")[-2]]
    if isinstance(mask, Tensor):
        broadcast([scores, call.dims_of(mask)], [axis.size for axis in scores], join)
    first: Dims = [*batch, places, call.dims("value")[-1]]
    return [first, *([Axis(size, "it belongs to attention scores") for size in shape] for shape in call.shapes()[1:])]


@_rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable")
def _convolution(call: Call) -> Dims:
    images, weight = call.dims("input"), call.dims("weight")
    groups, flipped = call["groups"], call["transposed"]
    lead, channels, places = images[: -len(weight) + 1], images[-len(weight) + 1], images[-len(weight) + 2 :]
    for axis in (*places, *weight[2:]):
        call.lock(axis, "a convolution runs over it")
    if groups == 1:
        made, used = (weight[1], weight[0]) if flipped else (weight[0], weight[1])
        join(channels, used)
    else:
        try:
            group, width = regroup([channels], [groups, channels.size // groups])
        except IrreconcilableError as error:
            # What comes in is cut up otherwise: it stays, and each group may still make less.
            for axis in (channels, weight[0 if flipped else 1]):
                call.lock(axis, f"{error} of a grouped convolution")
            reason = "it counts groups whose inputs are cut up otherwise"
            group, width = Axis(groups, reason), weight[0 if flipped else 1]
            channels = product([group, Axis(channels.size // groups, reason)])
        if flipped:
            join(weight[0], channels)
            made = product([group, weight[1]])
        else:
            join(width, weight[1])
            made = weight[0]
            join(made, product([group, Axis(made.size // groups)]))
        call.counts(call["weight"], "groups", group)
    call.counts(call["weight"], "in_channels", channels)
    call.counts(call["weight"], "out_channels", made)
    call.made_by(call["weight"], int(flipped))
    if call["bias"] is not None:
        join(made, call.dims("bias")[0])
    return [*lead, made, *(Axis(size, _PLACE) for size in call.shape()[len(lead) + 1 :])]


@_rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(call: Call) -> list[Dims]:
    dims = call.dims("input")
    for tensor in call.tensors():
        if tensor.ndim == 1:
            join(dims[1], call.dims_of(tensor)[0])
    if call.arguments.get("training"):
        for axis in dims[2:]:
            call.lock(axis, "a norm takes statistics over it")
    rest = [[Axis(size, "it belongs to statistics") for size in shape] for shape in call.shapes()[1:]]
    return [dims, *rest]


@_rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(call: Call) -> list[Dims]:
    dims = call.dims("input")
    count = len(call["normalized_shape"])
    for axis in dims[-count:]:
        call.lock(axis, "LayerNorm mixes the channels" if "layer" in call.name else "RMSNorm mixes the channels")
    for tensor in call.tensors():
        if tensor is not call["input"]:
            broadcast([dims[-count:], call.dims_of(tensor)], [axis.size for axis in dims[-count:]], join)
    return [dims, *([Axis(size, "it belongs to statistics") for size in shape] for shape in call.shapes()[1:])]


@_rule("native_group_norm")
def _group_norm(call: Call) -> list[Dims]:
    dims = call.dims("input")
    if call["group"] != dims[1].size:
        call.lock(dims[1], "GroupNorm mixes the channels of a group")
    for axis in dims[2:]:
        call.lock(axis, "a norm takes statistics over it")
    for name in ("weight", "bias"):
        if call[name] is not None:
            join(dims[1], call.dims(name)[0])
    return [dims, *([Axis(size, "it belongs to statistics") for size in shape] for shape in call.shapes()[1:])]


@_rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(call: Call) -> list[Dims]:
    dims, scales = call.dims("v"), call.dims("g")
    for axis, scale in zip(dims, scales, strict=True):
        call.lock(axis, "weight normalization computes it")
        lock(scale, "weight normalization computes it")
    return [dims, *([Axis(size, "it belongs to statistics") for size in shape] for shape in call.shapes()[1:])]


def _reduced(call: Call) -> tuple[Dims, list[int]]:
    dims = call.dims("self")
    over = call.arguments.get("dim")
    every = range(len(dims)) if over is None or over == [] else [over] if isinstance(over, int) else over
    return dims, sorted({dim % len(dims) for dim in every}) if dims else []


def _is_heads(axis: Axis) -> bool:
    return any(factor.root.role == "heads" for factor in factors(axis))


def _without(dims: Dims, over: list[int], *, keep: bool) -> Dims:
    if keep:
        return [Axis(1) if number in over else axis for number, axis in enumerate(dims)]
    return [axis for number, axis in enumerate(dims) if number not in over]


@_rule("sum", "nansum")
def _sum(call: Call) -> Dims:
    # What is zero adds nothing: the summed axis may be narrowed.
    dims, over = _reduced(call)
    return _without(dims, over, keep=bool(call.arguments.get("keepdim")))


@_rule(
    *_names(
        """
    mean amax amin max min argmax argmin var std var_mean std_mean prod any all norm linalg_vector_norm logsumexp
    median nanmedian mode count_nonzero aminmax kthvalue nanmean
    """
    )
)
def _reduce(call: Call) -> list[Dims]:
    if "other" in call.arguments:  # max and min of two tensors
        return [broadcast([call.dims("self"), call.dims("other")], shape, join) for shape in call.shapes()]
    dims, over = _reduced(call)
    for dim in over:
        # The mean over heads is a by-product of attention layers that few models use: the trial tells.
        if not (call.name == "mean" and _is_heads(dims[dim])):
            call.lock(dims[dim], f"{call.name} runs over it")
    left = _without(dims, over, keep=bool(call.arguments.get("keepdim")))
    return [left for _ in call.outputs]


@_rule(
    *_names(
        """
    _softmax _log_softmax softmax log_softmax cumsum cumprod cummax cummin logcumsumexp sort argsort topk
    _cummax_helper renorm _safe_softmax
    """
    )
)
def _along(call: Call) -> list[Dims]:
    dims = list(call.dims("self"))
    dim = call["dim"] % max(len(dims), 1)
    if dims:
        call.lock(dims[dim], f"{call.name.strip('_')} runs over it")
        if call.shape()[dim] != dims[dim].size:
            dims[dim] = Axis(call.shape()[dim], f"{call.name} picks from it")
    return [dims for _ in call.outputs]


_POOLS = _names(
    """
    max_pool avg_pool adaptive_avg_pool adaptive_max_pool upsample _upsample reflection_pad replication_pad
    _adaptive_avg_pool grid_sampler fractional_max_pool max_unpool _pad_circular mkldnn_max_pool
    mkldnn_adaptive_avg_pool lp_pool
    """
)


def is_spatial(name: str) -> bool:
    """Whether the operator `name` works place by place of a map, each channel on its own."""
    return any(name.startswith(prefix) for prefix in _POOLS)


def spatial(call: Call) -> list[Dims]:
    """Batch and channels as they are, and a new map."""
    argument = next(name for name in ("self", "input") if name in call.arguments)
    dims = call.dims(argument)
    places = next((int(name) for name in call.name.partition("_with")[0] if name.isdigit()), 2)
    for axis in dims[-places:]:
        call.lock(axis, "pooling or resizing runs over it")
    for axis in call.dims("grid") if "grid" in call.arguments else ():
        call.lock(axis, "it says where to look in a map")
    return [[*dims[:-places], *(Axis(size, _PLACE) for size in shape[-places:])] for shape in call.shapes()]


def rule_of(name: str, function: torch._ops.OpOverload) -> Rule | None:
    """The rule for an operator, or None where none is known."""
    if name in RULES:
        return RULES[name]
    if is_spatial(name):
        return spatial
    return elementwise if torch.Tag.pointwise in function.tags else None


def head_count(axis: Axis) -> Axis | None:
    """The factor of `axis` that counts attention heads, if one does."""
    return next((factor for factor in factors(axis) if factor.root.role == "heads"), None)
