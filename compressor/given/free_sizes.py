"""Which sizes of the inputs an exported file shall leave free, checked against the example."""

from collections.abc import Mapping
from typing import Any

from compressor.errors import WorkloadError

# Exporters take smaller sizes of an example for constants.
_LEAST_FREE = 3


def check_free_sizes(asked: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Nothing where `asked` is "all", "batch", or dimensions of inputs with these `shapes`. Raises WorkloadError."""
    if isinstance(asked, str) and asked in {"all", "batch"}:
        return
    if not isinstance(asked, Mapping):
        raise WorkloadError(
            'free_sizes says which sizes the file leaves free: "all", "batch", or dimensions by input, such as '
            f'{{"input": (2, 3)}}; got {asked!r}'
        )
    for name, axes in asked.items():
        if name not in shapes:
            raise WorkloadError(
                f"free_sizes names the input {name!r}, and the inputs are {', '.join(shapes)}; name one of them"
            )
        shape = shapes[name]
        if isinstance(axes, str | int) or not all(
            type(axis) is int and -len(shape) <= axis < len(shape) for axis in axes
        ):
            raise WorkloadError(
                f"free_sizes holds a tuple of dimensions from 0 (the batch) to {len(shape) - 1} for {name!r}, whose "
                f"example has the shape {shape}; got {axes!r}"
            )
        short = sorted(axis for axis in axes if axis % len(shape) and shape[axis] < _LEAST_FREE)
        if short:
            raise WorkloadError(
                f"free_sizes leaves dimension {short[0]} of {name!r} free, and the example {shape} has a size below "
                f"{_LEAST_FREE} there, which exporters take for a constant; give example_inputs that are larger there"
            )
