"""What an ONNX file declares is held against what it holds, before any library is asked to make it."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import OnnxFileError
from compressor.files.limits import Limits
from compressor.files.preparing import prepare
from workbench.hostile_files import FLOAT, RELU, doubling_functions, file_of, integers, outside, summed, weight, written

SEQUENCE = helper.make_tensor_sequence_value_info("x", FLOAT, None)


def _input(**changed: int) -> onnx.ModelProto:
    model = file_of([RELU])
    for name, value in changed.items():
        setattr(model.graph.input[0].type.tensor_type, name, value)
    return model


def _sequence() -> onnx.ModelProto:
    model = file_of([RELU])
    model.graph.input[0].CopyFrom(SEQUENCE)
    return model


def _in_a_branch() -> onnx.ModelProto:
    """A constant whose bytes are missing inside a branch inside a branch."""
    lacking = TensorProto(name="w", data_type=FLOAT, dims=[4], raw_data=b"1234")
    outputs = [helper.make_tensor_value_info("y", FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "inner", [], outputs, [lacking])
    for _ in range(2):
        node = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "outer", [], outputs)
    return file_of(graph.node, [numpy_helper.from_array(np.array(True), "yes")])


def _attribute() -> onnx.ModelProto:
    lacking = TensorProto(name="", data_type=FLOAT, dims=[1 << 40], raw_data=b"1234")
    node = helper.make_node("Constant", [], ["w"], value=lacking)
    return file_of([node, helper.make_node("Add", ["x", "w"], ["y"])])


HUGE = {
    "an input": file_of([RELU], shape=[1 << 30, 1 << 30]),
    "an output": file_of([RELU], output=helper.make_tensor_value_info("y", FLOAT, [1 << 40, 1 << 20])),
    "ConstantOfShape": summed("ConstantOfShape", ["s"], integers("s", 40_000, 40_000)),
    "Range": summed("Range", [*"abc"], *map(numpy_helper.from_array, map(np.float32, (0, 1e10, 1)), "abc")),
    "Expand": summed("Expand", ["x", "s"], integers("s", 10_000_000, 1000, 1, 4), shape=[1, 4]),
    "Tile": summed("Tile", ["x", "s"], integers("s", 50_000, 50_000), shape=[1, 4]),
    "Pad": summed("Pad", ["x", "p"], integers("p", 0, 0, 0, 10**10)),
}  # fmt: skip
DAMAGED = {
    "more values than bytes": (
        weight(dims=[5, 4]),
        r"constant 'w' .* holds 64 bytes, and its shape \(5, 4\) of float32",
    ),
    "fewer values than bytes": (weight(dims=[3, 4]), "holds 64 bytes"),
    "sizes that multiply to more than 64 bits": (weight(dims=[2**31, 2**31, 2**31]), "holds 64 bytes"),
    "sizes below zero": (weight(dims=[-4, -4]), r"the shape \(-4, -4\)"),
    "values of an unknown type": (weight(data_type=77), "values of type number 77"),
    "values of no type": (weight(data_type=0), "values of type number 0"),
    "bytes that are missing in a branch": (_in_a_branch(), r"holds 4 bytes, and its shape \(4,\)"),
    "bytes that are missing in an attribute": (_attribute(), "holds 4 bytes"),
    "an input of an unknown type": (_input(elem_type=99), r"the input 'x' .* has values of type number 99"),
    "an input of no type": (_input(elem_type=0), "has values of type number 0"),
    "a sequence": (_sequence(), "is a sequence, and only tensors can be fed"),
    "an input below zero": (file_of([RELU], shape=[1, -4]), r"the shape \(1, -4\)"),
    "text": (b"hello" * 100, "is no ONNX file, or is damaged"),
    "nothing": (b"", "has no graph"),
}


@pytest.mark.parametrize("model", HUGE.values(), ids=HUGE)
def test_declared_sizes_beyond_memory_are_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Shapes that are known from the start are refused with the tensor's name and the way to raise the limit."""
    with pytest.raises(OnnxFileError, match=r"takes more than 1536 MiB .*COMPRESSOR_OPEN_MIB to more: .*alone has"):
        prepare(written(model, tmp_path), None, limits=Limits())


@pytest.mark.parametrize(("model", "told"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_declared_is_there(model: onnx.ModelProto | bytes, told: str, tmp_path: Path) -> None:
    """Types, shapes and bytes that contradict each other are one typed error with the name of the tensor."""
    with pytest.raises(OnnxFileError, match=told):
        prepare(written(model, tmp_path), None, limits=Limits())


def test_packed_and_typed_values_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    """Four-bit numbers share bytes, halves stand in integers, complex numbers take two: none is called damaged."""
    tensors = [
        TensorProto(name="a", data_type=TensorProto.UINT4, dims=[3], raw_data=b"\x21\x03"),
        TensorProto(name="b", data_type=TensorProto.INT4, dims=[3], int32_data=[0x21, 0x03]),
        TensorProto(name="c", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[15360, 0]),
        TensorProto(name="d", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1.0, 2.0]),
        TensorProto(name="e", data_type=TensorProto.STRING, dims=[1], string_data=[b"label"]),
        TensorProto(name="f", data_type=TensorProto.FLOAT, dims=[0], raw_data=b""),
        TensorProto(name="g", data_type=TensorProto.FLOAT, dims=[], float_data=[1.0]),
    ]
    assert prepare(written(file_of([RELU], tensors, opset=21), tmp_path), None, limits=Limits()).dtypes == {
        "x": "float32"
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights, a link, a second name, a pipe, and a secret above it."""
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    inner = tmp_path / "inner"
    (inner / "deep").mkdir(parents=True)
    for name in ("weights.bin", "deep/weights.bin", "twice.bin"):
        (inner / name).write_bytes(bytes(64))
    (inner / "link.bin").symlink_to("weights.bin")
    (inner / "folder").symlink_to("deep")
    (inner / "away.bin").symlink_to("../secret.bin")
    os.link(inner / "twice.bin", inner / "again.bin")
    os.mkfifo(inner / "pipe.bin")
    return inner


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"location": "../secret.bin"}, "from the folder of the file alone"),
        ({"location": "deep/../../secret.bin"}, "from the folder of the file alone"),
        ({"location": "/etc/hostname"}, "from the folder of the file alone"),
        ({"location": "C:\\weights.bin"}, "from the folder of the file alone"),
        ({"location": "..\\secret.bin"}, "from the folder of the file alone"),
        ({"location": ""}, "from the folder of the file alone"),
        ({}, "from the folder of the file alone"),
        ({"location": "link.bin"}, "which is a link"),
        ({"location": "away.bin"}, "which is a link"),
        ({"location": "folder/weights.bin"}, "which is a link"),
        ({"location": "again.bin"}, "a second name of another file"),
        ({"location": "pipe.bin"}, "a device, a pipe or a socket"),
        ({"location": "deep"}, "is a folder"),
        ({"location": "nothing.bin"}, "not in the folder of the file"),
        ({"location": "x" * 5000}, "cannot be read"),
        ({"location": "weights.bin", "length": "128"}, "do not belong together"),
        ({"location": "weights.bin", "offset": "32"}, "do not belong together"),
        ({"location": "weights.bin", "offset": "-8", "length": "64"}, "do not belong together"),
        ({"location": "weights.bin", "offset": "first"}, "which are no numbers"),
    ],
)  # fmt: skip
def test_weights_are_read_from_the_files_own_folder_alone(facts: dict[str, str], told: str, folder: Path) -> None:
    """Nothing above it, no link, no second name of a file elsewhere, no device, and no bytes that are not there."""
    with pytest.raises(OnnxFileError, match=told) as caught:
        prepare(written(outside(**facts), folder), None, limits=Limits())
    assert len(str(caught.value)) < 12_000


@pytest.mark.parametrize("location", ["weights.bin", "deep/weights.bin"])
def test_weights_beside_the_file_are_read(location: str, folder: Path) -> None:
    """The usual layout, and a folder of weights below."""
    prepared = prepare(written(outside(location=location), folder), None, limits=Limits())
    assert prepared.outside_bytes == 64
    assert "external" not in str(onnx.load_from_string(prepared.onnx_bytes))


def test_a_file_that_cannot_be_a_file_is_named(tmp_path: Path) -> None:
    """A folder, a pipe, a name too long: one typed error; what is not there is FileNotFoundError."""
    os.mkfifo(tmp_path / "pipe.onnx")
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "pipe.onnx", "a pipe"), (Path("x" * 5000), "too long")):
        with pytest.raises(OnnxFileError, match=told):
            prepare(path, None, limits=Limits())
    with pytest.raises(FileNotFoundError, match="no file nothing"):
        prepare(Path("nothing.onnx"), None, limits=Limits())


def test_functions_that_call_each_other_are_looked_into(tmp_path: Path) -> None:
    """A constant inside of a function is checked like any other."""
    model = doubling_functions(2)
    lacking = TensorProto(name="", data_type=FLOAT, dims=[9], raw_data=b"1234")
    model.functions[1].node.append(helper.make_node("Constant", [], ["unused"], value=lacking))
    with pytest.raises(OnnxFileError, match="holds 4 bytes"):
        prepare(written(model, tmp_path), None, limits=Limits())
