"""How the tensors and conversions that placements add are called: what learns, packs or times integers finds them so.

A weight `w` is stored as `w_quantized` or in blocks, on a grid of `w_scale` and `w_zero_point`, and read as
`w_DequantizeLinear_Output` or as the last step of its unpacking. An activation `x` is rounded by the node
`x_QuantizeLinear` and read as `x_DequantizeLinear_Output`.
"""

import re
from collections.abc import Container

# The last steps of unpacking a weight: which of them is the last depends on its grid.
_UNPACKED = ("float", "moved", "scaled")
_CONVERSION = re.compile(r"^(?P<tensor>.+)_(?P<kind>QuantizeLinear|DequantizeLinear)(_\w+)?$")


def scale_of(tensor: str) -> str:
    """The scale of the grid of an activation, a weight or a bias."""
    return f"{tensor}_scale"


def zero_point_of(tensor: str) -> str:
    """The zero point beside `scale_of`."""
    return f"{tensor}_zero_point"


def on_grid_of(scale: str) -> str:
    """The tensor whose `scale_of` it is."""
    return scale.removesuffix("_scale")


def integers_of(constant: str) -> str:
    """The stored integers of a weight, a bias or another constant."""
    return f"{constant}_quantized"


def stored_in(integers: str) -> str:
    """The constant whose `integers_of` they are."""
    return integers.removesuffix("_quantized")


def blocks_of(weight: str) -> str:
    """The integers of a matrix in blocks, as MatMulNBits reads them."""
    return f"{weight}_blocks"


def bias_of(product: str) -> str:
    """The bias that placement makes for a product."""
    return f"{product}_bias"


def dequantized(tensor: str) -> str:
    """The floats that are made of a tensor's integers, for those that read it."""
    return f"{tensor}_DequantizeLinear_Output"


def quantized(activation: str) -> str:
    """The integers that an activation is rounded to."""
    return f"{activation}_QuantizeLinear_Output"


def unrounded(output: str) -> str:
    """What an output of the graph was before it was rounded; its own name goes to what was."""
    return f"{output}_QuantizeLinear_Input"


def conversion(tensor: str, operator: str) -> str:
    """The node that turns a tensor to integers (QuantizeLinear) or to floats (DequantizeLinear)."""
    return f"{tensor}_{operator}"


def converted_by(node: str) -> tuple[str, str] | None:
    """(tensor, operator) of a node called by `conversion`, also as ONNX Runtime goes on with its name, else None."""
    found = _CONVERSION.match(node)
    return None if found is None else (found["tensor"], found["kind"])


def unpacking(weight: str, step: str) -> str:
    """What one `step` of unpacking a stored weight gives: "wide" after the cast, "scaled", "moved", "float"."""
    return f"{weight}_{step}"


def unpacked(weight: str, tensors: Container[str]) -> str:
    """The last step of unpacking the weight that is among `tensors`, "" where none is."""
    return next((name for step in _UNPACKED if (name := unpacking(weight, step)) in tensors), "")


def in_loop(loop: str, tensor: str) -> str:
    """A tensor inside of the Scan node `loop` that a placement writes."""
    return f"{loop}/{tensor}"
