"""ONNX and .npz files that were changed at random: bytes flipped, cut, repeated, and facts replaced by other facts."""

import io
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper

from workbench.hostile_files import FLOAT, OUT, RELU, doubling_functions, file_of, integers
from workbench.mutations import damaged

# Numbers at which arithmetic on sizes goes wrong.
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    15,
    16,
    17,
    255,
    1 << 15,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    (1 << 62),
    (1 << 63) - 1,
    -(1 << 63),
)
_TEXTS = ("", "x", "y", "w", "Relu", "Loop", "If", "Reshape", "ConstantOfShape", "Expand", "QuantizeLinear", "../x",
          "com.microsoft", "\0", "n" * 300)  # fmt: skip
SAMPLE = np.linspace(-1, 1, 8 * 16, dtype=np.float32).reshape(8, 16)


def onnx_files() -> dict[str, bytes]:
    """Small sound files that between them have most of what a file can have; all take rows of 16 numbers."""
    return {name: model.SerializeToString() for name, model in _models().items()}


def _models() -> dict[str, ModelProto]:
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int, kind: type = np.float32) -> TensorProto:
        return numpy_helper.from_array(rng.integers(-3, 4, shape).astype(kind), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    convolution = file_of(
        [
            node("Reshape", ["x", "to"], ["image"]),
            node("Conv", ["image", "k", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            node("BatchNormalization", ["c", "s", "b", "b", "v"], ["n"]),
            node("Relu", ["n"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w"], ["y"], transB=1),
        ],
        [
            integers("to", -1, 1, 4, 4),
            constant("k", 2, 1, 3, 3),
            constant("b", 2),
            constant("s", 2),
            numpy_helper.from_array(np.ones(2, np.float32), "v"),
            constant("w", 3, 8),
        ],
        shape=["n", 16],
    )
    fixed = file_of(
        [
            node("Reshape", ["x", "to"], ["r"]),
            node("MatMul", ["r", "w"], ["m"]),
            node("Softmax", ["m"], ["y"], axis=-1),
        ],
        [integers("to", 4, 4, 4), constant("w", 4, 5)],
        shape=[4, 16],
    )
    old = file_of(
        [node("Gemm", ["x", "w", "b"], ["y"])], [constant("w", 16, 3), constant("b", 3)], shape=["n", 16], opset=9
    )
    old.graph.input.extend(helper.make_tensor_value_info(t.name, FLOAT, list(t.dims)) for t in old.graph.initializer)
    old.ir_version = 3
    states = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("s", "t")]
    body = helper.make_graph(
        [node("Identity", ["go"], ["goes"]), node("Add", ["s", "one"], ["t"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), states[0]],
        [value("goes", TensorProto.BOOL, []), states[1]],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )  # fmt: skip
    loop = file_of(
        [node("Loop", ["count", "", "x"], ["y"], body=body)],
        [numpy_helper.from_array(np.int64(3), "count")],
        shape=["n", 16],
    )
    branches = [
        helper.make_graph([node(op, ["x"], ["b"])], op, [], [helper.make_tensor_value_info("b", FLOAT, None)])
        for op in ("Relu", "Neg")
    ]
    branch = file_of(
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "zero"], ["yes"]),
         node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        [numpy_helper.from_array(np.float32(0), "zero")], shape=["n", 16],
    )  # fmt: skip
    quantized = file_of(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
         node("DequantizeLinear", ["w", "s", "zw"], ["dw"]), node("MatMul", ["d", "dw"], ["y"])],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(128), "z"),
         constant("w", 16, 4, kind=np.int8), numpy_helper.from_array(np.int8(0), "zw")], shape=["n", 16],
    )  # fmt: skip
    recurrent = file_of(
        [node("Reshape", ["x", "to"], ["r"]), node("LSTM", ["r", "w", "u"], ["all"], hidden_size=3),
         node("Squeeze", ["all", "one"], ["y"])],
        [integers("to", 4, -1, 4), constant("w", 1, 12, 4), constant("u", 1, 12, 3), integers("one", 1)],
        shape=["n", 16],
    )  # fmt: skip
    shapes = file_of(
        [node("Shape", ["x"], ["a"]), node("ConstantOfShape", ["a"], ["zeros"], value=constant("", 1)),
         node("Constant", [], ["pads"], value=integers("", 0, 1, 0, 1)), node("Add", ["x", "zeros"], ["s"]),
         node("Pad", ["s", "pads"], ["p"]), node("Slice", ["p", "from", "until", "axes"], ["l"]),
         node("Tile", ["l", "times"], ["y"])],
        [integers("from", 0), integers("until", 9), integers("axes", 1), integers("times", 1, 2)], shape=["n", 16],
    )  # fmt: skip
    functions = doubling_functions(3)
    functions.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", FLOAT, ["n", 16]))
    return {
        "convolution": convolution, "fixed": fixed, "old": old, "loop": loop, "branch": branch, "quantized": quantized,
        "recurrent": recurrent, "shapes": shapes, "functions": functions,
        "plain": file_of([RELU], shape=["n", 16], output=OUT),
    }  # fmt: skip


def mutated_onnx(seed: int) -> tuple[str, bytes]:
    """(what was done, a file) by `seed`."""
    rng = random.Random(seed)  # noqa: S311 - mutations, not secrets
    files = onnx_files()
    name = rng.choice(sorted(files))
    if rng.random() < 0.35:
        return f"{name}: bytes", damaged(files[name], rng)
    model = ModelProto.FromString(files[name])
    done = ", ".join(_change_fact(model, rng) for _ in range(rng.choice((1, 1, 2, 5))))
    return f"{name}: {done}", model.SerializeToString()


def mutated_npz(seed: int) -> tuple[str, bytes]:
    """(what was done, a file of arrays) by `seed`."""
    rng = random.Random(seed)  # noqa: S311 - mutations, not secrets
    held = io.BytesIO()
    save = rng.choice((np.savez, np.savez_compressed))
    save(held, inputs=np.tile(SAMPLE, (4, 1)), targets=np.arange(32) % 3)
    whole = held.getvalue()
    kind = rng.choice(("bytes", "bytes", "numbers", "header", "members"))
    if kind == "bytes":
        return "bytes", damaged(whole, rng)
    if kind == "numbers":
        # The numbers of the archive's lists: sizes, offsets, counts, methods of compression, flags.
        signature = rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
        content, place = bytearray(whole), whole.index(signature) + rng.randrange(4, 22, 2)
        struct.pack_into("<H", content, place, rng.choice((0, 1, 8, 9, 12, 14, 99, 255, 65535)))
        return f"a number of {signature[2:]!r} at {place}", bytes(content)
    arrays = {"inputs.npy": _npy(np.tile(SAMPLE, (4, 1))), "targets.npy": _npy(np.arange(32) % 3)}
    name = rng.choice(sorted(arrays))
    if kind == "header":
        header = rng.choice(_HEADERS)
        arrays[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + arrays[name][128:]
        return f"the header {header[:60]!r} for {name}", _zip(arrays)
    other = rng.choice(
        (b"", b"text", _npy(np.array([{}, None], dtype=object)), _npy(np.float32(1)), _npy(np.zeros((0, 16))),
         _npy(np.array(["a"] * 32)), _npy(np.zeros(32, dtype=[("a", "f4")])), _npy(np.full(32, np.nan)),
         _npy(np.zeros(32, dtype=complex)), _npy(np.zeros((32, 16), dtype="M8[s]")))
    )  # fmt: skip
    arrays[rng.choice((name, "test_targets.npy", "../x.npy", "inputs", "a/b.npy"))] = other
    return f"another array of {len(other)} bytes", _zip(arrays)


_HEADERS = tuple(
    f"{{'descr':{descr},'fortran_order':{order},'shape':{shape},}}\n".encode()
    for descr, order, shape in (
        ("'<f4'", "False", "(9223372036854775807, 9223372036854775807)"),
        ("'<f4'", "False", "(-1, 16)"),
        ("'<f4'", "None", "(32, 16)"),
        ("'|O'", "False", "(32, 16)"),
        ("'<f4'", "False", "(32.0, 16)"),
        ("'<f4'", "False", "[32, 16]"),
        ("'<f999'", "False", "(32, 16)"),
        ("[('a', '<f4')]", "False", "(32, 16)"),
        ("'<f4'", "False", "(" * 500 + ")" * 500),
        ("'<f4'", "False", "()"),
        ("'<f4'", "True", "(16, 32)"),
        ("'V4'", "False", "(32, 16)"),
    )
)


def _npy(array: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, array, allow_pickle=True)
    return held.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return held.getvalue()


def _change_fact(model: ModelProto, rng: random.Random) -> str:
    """Replaces one value somewhere in the model, or drops or repeats a part of it."""
    message, field = rng.choice([*_fields(model)])
    label, value = f"{message.DESCRIPTOR.name}.{field.name}", getattr(message, field.name)
    if _repeated(field):
        if field.message_type is not None:
            position = rng.randrange(len(value))
            if rng.random() < 0.5:
                del value[position]
                return f"drops {label}[{position}]"
            value.add().CopyFrom(value[position])
            return f"repeats {label}[{position}]"
        position = rng.randrange(len(value))
        value[position] = _other(field, value[position], rng)
        return f"{label}[{position}] = {str(value[position])[:40]!r}"
    if field.message_type is not None:
        message.ClearField(field.name)
        return f"clears {label}"
    setattr(message, field.name, _other(field, value, rng))
    return f"{label} = {str(getattr(message, field.name))[:40]!r}"


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _fields(message: Message) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in value if _repeated(field) else (value,):
                yield from _fields(inner)


def _other(field: Any, value: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value + b"\0", value * 3, rng.randbytes(len(value))))
    if isinstance(value, str):
        return rng.choice(_TEXTS)
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("inf"), float("nan")))
    if field.enum_type is not None:
        return rng.choice([each.number for each in field.enum_type.values])
    narrow = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32)
    fitting = [number for number in _NUMBERS if not narrow or -(1 << 31) <= number < 1 << 31]
    return rng.choice(fitting if field.cpp_type != field.CPPTYPE_UINT64 else [abs(number) for number in fitting])


def outcomes(folder: Path, seeds: range, read: Callable[[Path], object]) -> Iterator[tuple[int, str, str]]:
    """(seed, what was done, "" or the untyped error) for mutated ONNX files that `read` is called with."""
    from compressor.errors import CompressorError

    for seed in seeds:
        done, content = mutated_onnx(seed)
        path = folder / f"{seed}.onnx"
        path.write_bytes(content)
        try:
            read(path)
        except CompressorError:
            yield seed, done, ""
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            yield seed, done, f"{type(error).__name__}: {error}"
        else:
            yield seed, done, ""
        path.unlink()


def _main() -> None:
    """Prepares files in this process, whose time and memory are limited, and prints a line before and after each."""
    from compressor.files.limits import Limits
    from compressor.files.preparing import prepare

    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    def say(*words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    def read(path: Path) -> None:
        say("begins", path.stem)
        prepare(path, [SAMPLE], limits=Limits())

    for seed, done, error in outcomes(folder, range(first, last), read):
        say("ends", seed, repr(done), repr(error))


if __name__ == "__main__":
    _main()
