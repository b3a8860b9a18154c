"""Files and arrays as strangers bring them: what ONNX Runtime runs is read, and computes the same."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import OnnxFileError, WorkloadError
from compressor.files.carrying import carried_over, noted_layout
from compressor.files.converting.inputs import example_feeds
from compressor.files.graphs import opset_of, parse
from compressor.files.limits import Limits
from compressor.files.preparing import prepare
from compressor.files.reading import read_onnx
from compressor.running.preflight import check_workload
from compressor.runtime import judged_output, open_session
from compressor.workloads import load
from compressor.workloads.unlabelled import answers

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(6, 8)).astype(np.float32)


def value(name: str, shape: list | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: NDArray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def drawn(name: str, *shape: int) -> onnx.TensorProto:
    return constant(name, (RANDOM.normal(size=shape) / 3).astype(np.float32))


def model_of(nodes: list, inputs: list, outputs: list, constants: list, opset: int = 20, **more) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "odd", inputs, outputs, constants, **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "odd.onnx"
    onnx.save(model, str(path))
    return path


def same_after_reading(model: onnx.ModelProto, folder: Path, feeds: dict[str, NDArray]) -> onnx.ModelProto:
    """What is made of the file when it is read; it gives the file's own outputs for `feeds`."""
    data = prepare(written(model, folder), feeds, limits=Limits()).onnx_bytes
    before, after = (open_session(each).run(None, feeds) for each in (model.SerializeToString(), data))
    for wanted, found in zip(before, after, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return parse(data)


@pytest.mark.parametrize("places", ["counted through", "by dimension"])
@pytest.mark.parametrize("inside", ["initializer", "Constant"])
def test_sparse_constants_are_written_out(places: str, inside: str, tmp_path: Path) -> None:
    """A weight stored as its values other than zero becomes a whole one, of which every layer can be quantized."""
    weight = np.zeros((8, 4), np.float32)
    weight[[0, 3, 7], [1, 0, 3]] = [2.0, -1.0, 0.5]
    rows, columns = np.nonzero(weight)
    where = 4 * rows + columns if places == "counted through" else np.stack([rows, columns], axis=1)
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], weight[rows, columns])
    sparse = helper.make_sparse_tensor(values, constant("", where.astype(np.int64)), [8, 4])
    stored = inside == "initializer"
    model = model_of(
        [
            *([] if stored else [helper.make_node("Constant", [], ["w"], sparse_value=sparse)]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [value("x", ["n", 8])],
        [value("y", ["n", 4])],
        [],
        sparse_initializer=[sparse] if stored else [],
    )
    read = same_after_reading(model, tmp_path, {"x": X})
    assert not read.graph.sparse_initializer
    held = read.graph.initializer[0] if stored else read.graph.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(held), weight)


@pytest.mark.parametrize("name", ["RMSNormalization", "RotaryEmbedding", "Attention"])
def test_operators_of_later_opsets_are_written_out(name: str, tmp_path: Path) -> None:
    """What came with opset 23 becomes the operators of its own definition: the file is read as one of opset 20."""
    shapes = {"RMSNormalization": [(6, 8), (8,)], "RotaryEmbedding": [(6, 2, 3, 4), (3, 2), (3, 2)]}
    feeds = {"x": X}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"])]
    constants = [drawn("w", 8, 8)]
    if name == "RMSNormalization":
        nodes.append(helper.make_node(name, ["p", "scale"], ["y"]))
        constants.append(drawn("scale", *shapes[name][1]))
    else:
        # (n, heads, steps, width) of every sample's 8 numbers.
        nodes.append(helper.make_node("Reshape", ["p", "split"], ["q"]))
        constants.append(constant("split", np.array([0, 2, 2, 2])))
        if name == "Attention":
            nodes.append(helper.make_node(name, ["q", "q", "q"], ["y"]))
        else:
            nodes.append(helper.make_node(name, ["q", "cosines", "sines", "steps"], ["y"]))
            constants += [drawn("cosines", 2, 1), drawn("sines", 2, 1)]
            constants.append(constant("steps", np.tile(np.arange(2), (6, 1))))
    model = model_of(nodes, [value("x", ["n", 8])], [value("y", None)], constants, opset=23)
    read = same_after_reading(model, tmp_path, feeds)
    assert opset_of(read) == 20
    assert name not in {node.op_type for node in read.graph.node}


def test_rows_are_turned_where_nothing_else_fits() -> None:
    """A state (layers, batch, units) whose samples come first is turned, and the steps beside it are, too."""
    model = model_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", ["steps", "batch", 3]), value("state", [1, "batch", 5]), value("rate", [], TensorProto.INT64)],
        [value("y", None)],
        [],
    )
    rows = {"x": RANDOM.normal(size=(7, 4, 3)), "state": RANDOM.normal(size=(7, 1, 5)), "rate": np.int64(3)}
    taken = example_feeds(model, {name: np.asarray(values) for name, values in rows.items()}, {})
    assert {name: values.shape for name, values in taken.items()} == {"x": (4, 7, 3), "state": (1, 7, 5), "rate": ()}
    np.testing.assert_array_equal(taken["x"][:, 2], rows["x"][2])
    # What fits as it is stays.
    whole = {"x": rows["x"], "state": RANDOM.normal(size=(1, 4, 5)), "rate": np.int64(3)}
    taken = example_feeds(model, {name: np.asarray(values) for name, values in whole.items()}, {})
    np.testing.assert_array_equal(taken["x"], whole["x"])


def test_one_value_a_sample_is_an_array() -> None:
    """A row of a flag that the file takes once is an array, which ONNX Runtime takes, and no bare number."""
    model = model_of(
        [helper.make_node("Identity", ["flag"], ["y"])], [value("flag", [], TensorProto.BOOL)], [value("y", None)], []
    )
    flag = example_feeds(model, {"flag": np.ones(4, bool)}, {})["flag"]
    assert isinstance(flag, np.ndarray)
    assert flag.shape == ()


def test_dimensions_of_one_name_and_two_sizes_are_left_whole() -> None:
    """Converters give one name to batch and features; rows are cut, and features of another size are not."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", ["n", "n"])], [value("y", None)], [])
    assert example_feeds(model, {"x": np.zeros((40, 64))}, {})["x"].shape == (16, 64)
    assert example_feeds(model, {"x": np.zeros((40, 40))}, {})["x"].shape == (16, 16)


def test_what_a_file_never_said_is_not_said_for_it() -> None:
    """A file without a version, a domain or a description gives one without, and an empty text stays one."""
    source = model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", ["n"])], [value("y", ["n"])], [])
    made = parse(source.SerializeToString())
    made.doc_string, made.model_version = "ours", 3
    source.domain = ""
    found = parse(carried_over(made.SerializeToString(), source.SerializeToString()))
    assert [found.HasField(name) for name in ("doc_string", "model_version", "domain")] == [False, False, True]


def test_sizes_without_a_name_get_none(tmp_path: Path) -> None:
    """Converting an opset infers shapes, and calls unknown sizes unk__0: programs would read what nobody said."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["r"], pads=[1] * 4), helper.make_node("Relu", ["r"], ["y"])]
    shape = ["n", 4, None, "unk__7"]
    model = model_of(nodes, [value("x", shape)], [value("y", shape)], [drawn("w", 4, 4, 3, 3)], 17)
    read = same_after_reading(model, tmp_path, {"x": RANDOM.normal(size=(3, 4, 8, 8)).astype(np.float32)})
    found = [dim.dim_param or dim.dim_value for dim in read.graph.output[0].type.tensor_type.shape.dim]
    assert found == ["n", 4, 0, "unk__7"]


def test_an_output_that_chooses_makes_room_for_one_with_rows(tmp_path: Path) -> None:
    """Boxes that are selected come first and have no row a sample: decisions are those of the scores behind them."""
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("NonZero", ["above"], ["places"]),
            helper.make_node("Greater", ["scores", "zero"], ["above"]),
            helper.make_node("Transpose", ["places"], ["picked"]),
        ],
        [value("x", ["n", 8])],
        [value("picked", ["m", 2], TensorProto.INT64), value("scores", ["n", 3])],
        [drawn("w", 8, 3), constant("zero", np.float32(0))],
    )
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[0], nodes[2], nodes[1], nodes[3]])
    np.savez(tmp_path / "data.npz", x=RANDOM.normal(size=(40, 8)).astype(np.float32))
    workload = load(f"{written(model, tmp_path)}:{tmp_path / 'data.npz'}")
    assert judged_output(workload.model.session) == "scores"
    chosen = read_onnx(tmp_path / "odd.onnx", example={"x": X}, judged="picked")
    with pytest.raises(WorkloadError, match=r"rows for 6 samples.*judge="):
        answers(chosen, chosen.in_rows({"x": np.asarray(X)}), count=6, batch_size=6)


UNSIGNED = {"uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64}


@pytest.mark.parametrize("kind", UNSIGNED)
def test_unsigned_numbers_go_in_and_come_out(kind: str, tmp_path: Path) -> None:
    """Depths, tokens and hashes of 16 to 64 bits without a sign are inputs and judged outputs, with data or without."""
    largest = int(np.iinfo(kind).max)
    nodes = [helper.make_node("BitwiseXor", ["x", "key"], ["y"])]
    constants = [constant("key", np.array([3], kind))]
    model = model_of(nodes, [value("x", ["n", 8], UNSIGNED[kind])], [value("y", ["n", 8], UNSIGNED[kind])], constants)
    x = np.random.default_rng(0).integers(0, largest, (40, 8), dtype=kind, endpoint=True)
    np.savez(tmp_path / "data.npz", x=x)
    workload = check_workload(load(f"{written(model, tmp_path)}:{tmp_path / 'data.npz'}"))
    assert workload.metric.name == "agreement"
    outputs = workload.model(torch.from_numpy(x))
    np.testing.assert_array_equal(outputs.numpy(), x ^ np.array([3], kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is scored
        check_workload(load(str(tmp_path / "odd.onnx")))


def test_numbers_that_a_type_does_not_hold_are_named(tmp_path: Path) -> None:
    """70,000 in 16 bits would be 4,464, without a word."""
    model = model_of(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [value("x", ["n", 8], TensorProto.UINT16)],
        [value("y", ["n", 8])],
        [],
    )
    np.savez(tmp_path / "data.npz", x=np.full((40, 8), 70_000))
    with pytest.raises(
        WorkloadError, match="in x numbers from 70000 to 70000, and the file takes uint16, from 0 to 65"
    ):
        load(f"{written(model, tmp_path)}:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": X[:, :7]}, r"takes 'x' of shape \(n, 8\), got \(6, 7\) of float32"),
        ({"x": X[:, None]}, r"takes 'x' of shape \(n, 8\), got \(6, 1, 8\) of float32"),
        ({"x": X.astype(int)}, "takes 'x' in float32, got .* of int64"),
        ({"x": X, "bias": np.zeros((6, 5), np.float32)}, r"does not run on x \(6, 8\), bias \(6, 5\): .*Add"),
    ],
)
def test_what_a_file_does_not_take_is_named(given: dict, says: str, tmp_path: Path, capfd) -> None:
    """Inputs of another size, rank or type are an error of ours with the input's name, and none of ONNX Runtime's."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "bias"], ["y"])]
    inputs = [value("x", ["n", 8]), value("bias", ["n", "width"])]
    model = model_of(nodes, inputs, [value("y", ["n", 3])], [drawn("w", 8, 3)])
    module = read_onnx(written(model, tmp_path), example={"x": X, "bias": X[:, :3]})
    tensors = {name: torch.from_numpy(values) for name, values in ({"bias": X[:, :3]} | given).items()}
    for call in (lambda: module(**tensors), lambda: answers(module, tensors, count=6, batch_size=6)):
        with pytest.raises(WorkloadError, match=says):
            call()
    capfd.readouterr()  # ONNX Runtime prints, too


def test_an_input_of_unknown_rank_has_no_shape_to_be_told(tmp_path: Path) -> None:
    """It is not said to be of shape (), nor are rows of that shape asked for: the file has to say its dimensions."""
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", None)], [value("y", None)], [drawn("w", 8, 3)]
    )
    path = written(model, tmp_path)
    np.savez(tmp_path / "data.npz", x=RANDOM.normal(size=(40, 8)).astype(np.float32))
    with pytest.raises(WorkloadError, match=r"not say how many dimensions 'x' has.*such as \('batch', 8\)") as caught:
        load(f"{path}:{tmp_path / 'data.npz'}")
    assert "shape ()" not in str(caught.value)
    with pytest.raises(OnnxFileError, match="does not say how many dimensions x has: export it with them"):
        read_onnx(path)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2])
def test_numbers_that_python_is_not_given_are_the_reason(kind: int, tmp_path: Path) -> None:
    """No example helps a file whose outputs ONNX Runtime makes no array of, nor one whose inputs it takes none for."""
    told = TensorProto.DataType.Name(kind).lower()
    cast = [helper.make_node("Cast", ["x"], ["y"], to=kind)]
    model = model_of(cast, [value("x", ["n", 8])], [value("y", ["n", 8], kind)], [])
    with pytest.raises(OnnxFileError, match=f"the output 'y' of .* holds {told}, .*end the file with a Cast to float"):
        prepare(written(model, tmp_path), {"x": X}, limits=Limits())
    cast = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    model = model_of(cast, [value("x", ["n", 8], kind)], [value("y", ["n", 8])], [])
    with pytest.raises(OnnxFileError, match=f"the input 'x' of .* holds {told}, .*begin the file with a Cast"):
        prepare(written(model, tmp_path), {"x": X}, limits=Limits())


def test_random_numbers_are_the_reason_that_is_told(tmp_path: Path) -> None:
    """A file that adds noise agrees with no copy of it; with a scale of 0 it does, and is read."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("RandomNormalLike", ["p"], ["noise"]),
        helper.make_node("Mul", ["noise", "scale"], ["scaled"]),
        helper.make_node("Add", ["p", "scaled"], ["y"]),
    ]
    model = model_of(nodes, [value("x", ["n", 8]), value("scale", [1])], [value("y", None)], [drawn("w", 8, 3)], 17)
    loud = {"x": X, "scale": np.ones(1, np.float32)}
    with pytest.raises(OnnxFileError, match=r"draws random numbers \(RandomNormalLike\).*noise scale of 0"):
        prepare(written(model, tmp_path), loud, limits=Limits())
    same_after_reading(model, tmp_path, loud | {"scale": np.zeros(1, np.float32)})


def test_steps_in_rows_of_their_own_are_outputs_of_one_sample(tmp_path: Path) -> None:
    """A judged output (samples * steps, classes) has no row a sample: the file is called sample by sample."""
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    constants = [constant("flat", np.array([-1, 8])), drawn("w", 8, 3)]
    model = model_of(nodes, [value("x", ["n", 5, 8])], [value("y", ["m", 3])], constants)
    x = RANDOM.normal(size=(4, 5, 8)).astype(np.float32)
    assert noted_layout(same_after_reading(model, tmp_path, {"x": x})).single
    # One step a sample is a row a sample.
    model = model_of(nodes, [value("x", ["n", 1, 8])], [value("y", ["n", 3])], constants)
    assert not noted_layout(same_after_reading(model, tmp_path, {"x": x[:, :1]})).single
