"""What a program must know to run the file that ships: names, types, sizes, opset, and what comes before its inputs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compressor.files.graphs import opset_of, parse
from compressor.report.numbers import printable
from compressor.runtime import feeds_of, open_session
from compressor.workload import Workload

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}

# Sizes that exporters compute from others: "floor(height/2) + 1", "2*s0".
_COMPUTED = re.compile(r"[()*+]| - |//|/ ?\d")
_FUNCTIONS = {"floor", "ceil", "ceiling", "max", "min", "mod", "abs", "int", "sqrt", "floordiv", "pow", "round"}
_MOST_SIGNS = 24
_UNNAMED = "?"


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a file: `shape` holds numbers, and names where a size may vary.

    A size that the file does not name is "?". `example` is a shape that works, with one sample where the batch is free,
    and of an output with such sizes what it has for the workload's example; `low` and `high` are the least and the
    largest value of that. Outputs have neither.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    example: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def sizes(self) -> str:
        """The shape as people write it: "(batch, 3, 32, 32)"."""
        told = [printable(_short(size) if isinstance(size, str) else str(size)) for size in self.shape]
        return f"({', '.join(told)}{',' if len(told) == 1 else ''})"

    @property
    def values(self) -> str:
        """What the example's values lie between, in words; "" where it is not known."""
        known = [bound for bound in (self.low, self.high) if isinstance(bound, int | float)]
        return f"values from {known[0]:.4g} to {known[1]:.4g} in the example" if len(known) == 2 else ""

    @property
    def free(self) -> tuple[str, ...]:
        """The names of the sizes that may vary, each once; of one that is computed, what it is computed from."""
        names = [name for size in self.shape if isinstance(size, str) and size != _UNNAMED for name in _names_in(size)]
        return tuple(printable(name) for name in dict.fromkeys(names))

    @property
    def variation(self) -> str:
        """Which sizes may vary, in words."""
        parts = [f"may vary: {', '.join(self.free)}"] if self.free else []
        if _UNNAMED in self.shape:
            example = f", {self.example} for the example" if self.example else ""
            parts.append(f"sizes that it does not name{example}")
        return "; ".join(parts) or "every size is fixed"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a file takes and gives; `preprocessing` is what the workload knows of how its inputs are made."""

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    preprocessing: str

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """What there is to know, as (name, text): a line for every input and output, then opset and preprocessing."""
        told = []
        for kind, ports in (("input", self.inputs), ("output", self.outputs)):
            for port in ports:
                known = [f"{port.dtype} {port.sizes}", port.variation, port.values]
                told.append((f"{kind} {port.name}", "; ".join(filter(None, known))))
        return [*told, ("opset", str(self.opset)), ("preprocessing", self.preprocessing or "not known")]

    @classmethod
    def from_json(cls, value: Mapping[str, Any], file: str) -> "Interface | None":
        """The interface of `to_json`; None where a report of another version tells none, or an odd one."""
        try:
            ports = {key: tuple(_port(entry) for entry in value[key]) for key in ("inputs", "outputs")}
            opset = int(value["opset"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if not (ports["inputs"] and ports["outputs"]):
            return None
        told = printable(str(value.get("preprocessing") or ""))
        return cls(file=file, inputs=ports["inputs"], outputs=ports["outputs"], opset=opset, preprocessing=told)


def interface_of(onnx_bytes: bytes, workload: Workload, file: str) -> Interface:
    """The interface of the ONNX file, called `file`, with the example of `workload`, which fits it."""
    session = open_session(onnx_bytes)
    feeds = feeds_of(session, workload.example_inputs)
    inputs = []
    for node in session.get_inputs():
        values = np.asarray(feeds[node.name])
        known = values.dtype != bool and values.size > 0
        inputs.append(
            Port(
                name=node.name,
                dtype=_dtype(node.type),
                shape=_shape(node.shape),
                example=_example(node.shape, values.shape),
                low=float(values.min()) if known else None,
                high=float(values.max()) if known else None,
            )
        )
    given = session.get_outputs()
    unnamed = any(not node.shape or None in node.shape for node in given)
    met = [np.shape(output) for output in session.run(None, feeds)] if unnamed else [()] * len(given)
    outputs = [_output(node, shape) for node, shape in zip(given, met, strict=True)]
    return Interface(
        file=file,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        opset=opset_of(parse(onnx_bytes)),
        preprocessing=_preprocessing(workload),
    )


def _preprocessing(workload: Workload) -> str:
    """What the workload knows of how its inputs are made."""
    transform = getattr(workload.test, "transform", None)
    if transform is None:
        return (
            "none that the workload knows: the file takes what its batches hold, so do whatever the loaders do before"
        )
    module, name = getattr(transform, "__module__", ""), getattr(transform, "__qualname__", type(transform).__name__)
    return f"{module}:{name}, the workload's transform, which the file does not hold: apply it to every batch before"


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(
        name=printable(str(entry["name"])),
        dtype=printable(str(entry["dtype"])),
        shape=tuple(size if isinstance(size, int) else printable(str(size)) for size in entry["shape"]),
        example=tuple(int(size) for size in entry.get("example") or ()),
        low=entry.get("low"),
        high=entry.get("high"),
    )


def _names_in(size: str) -> list[str]:
    """The names that a free size is computed from; itself where it is a name, or has none in it."""
    if not _COMPUTED.search(size):
        return [size]
    return [name for name in re.findall(r"[A-Za-z_][\w.]*", size) if name.lower() not in _FUNCTIONS] or [size]


def _short(size: str) -> str:
    """A free size as it is written, or what it is computed from where that is a formula of many signs."""
    if len(size) <= _MOST_SIGNS or not _COMPUTED.search(size):
        return size
    names = list(dict.fromkeys(_names_in(size)))
    return "computed" if names == [size] else f"computed from {' and '.join(names)}"


def _output(node: Any, met: tuple[int, ...]) -> Port:
    """An output, which is `met` in a shape where its own is not all named, or of no known rank."""
    shape = _shape(node.shape) if len(node.shape) == len(met) or not met else (_UNNAMED,) * len(met)
    return Port(name=node.name, dtype=_dtype(node.type), shape=shape, example=met if _UNNAMED in shape else ())


def _dtype(kind: str) -> str:
    return _DTYPES.get(kind, kind)


def _shape(shape: list[int | str | None]) -> tuple[int | str, ...]:
    return tuple(_UNNAMED if size is None else size for size in shape)


def _example(shape: list[int | str | None], values: tuple[int, ...]) -> tuple[int, ...]:
    """The example's shape with one sample in the first dimension where that may vary."""
    if not shape or isinstance(shape[0], int):
        return values
    return (1, *values[1:])
