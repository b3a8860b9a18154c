"""What operators that pick positions by their values, or count values, do to the axes of tensors."""

from compressor.structure.axes.axis import Axis
from compressor.structure.axes.calls import Call, Dims, Rule, adding_to

PICKS: dict[str, Rule] = {}
_rule = adding_to(PICKS)

_PICKED = "positions of it are picked by value"
_FOUND = "it counts what was found"
_OF_ALL = (
    "masked_select",
    "nonzero",
    "nonzero_static",
    "argwhere",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "histc",
)


@_rule(*_OF_ALL)
def _picked(call: Call) -> list[Dims]:
    for tensor in call.tensors():
        for axis in call.dims_of(tensor):
            call.lock(axis, _PICKED)
    return [[Axis(size, _FOUND) for size in shape] for shape in call.shapes()]


@_rule("repeat_interleave", "multinomial")
def _counted(call: Call) -> list[Dims]:
    for tensor in call.tensors():
        for axis in call.dims_of(tensor)[-1:]:
            call.lock(axis, _PICKED)
    return [[Axis(size, _FOUND) for size in shape] for shape in call.shapes()]
