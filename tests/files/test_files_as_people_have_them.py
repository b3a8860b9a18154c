"""Files as exporters and converters write them: functions, old opsets, other precisions, fixed batches, odd outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from compressor import Budget, Pipeline, Workload, read_onnx
from compressor.cli.app import app
from compressor.errors import OnnxFileError, StageError
from compressor.files.carrying import reading_notes
from compressor.files.export import export_onnx
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.file.compact_graph import kernels
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import OnnxModule, layout_of, open_session
from compressor.stage import Context
from compressor.stages import Quantize
from workbench.onnx_graphs import calibrated_on

SAME = [1, 1, 1, 1]
FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16


def _value(name: str, shape: Sequence[Any] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _weight(*shape: int, kind: str = "f") -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / 4).astype(kind)


def _saved(
    folder: Path,
    nodes: list,
    constants: dict[str, Any],
    *,
    inputs: list,
    outputs: list,
    opset: int = 17,
    others: tuple = (),
    functions: tuple = (),
) -> Path:
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", opset), *others]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def _same(path: Path, module: OnnxModule, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    wanted = open_session(path).run(None, feeds)
    for ours, theirs in zip(module.session.run(None, feeds), wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=tolerance * float(np.abs(theirs).max()))


def _quantized(module: OnnxModule, inputs: torch.Tensor) -> tuple[bytes, float]:
    made = quantized_file(module.onnx_bytes, QuantizationSettings(), calibrated_on(inputs), Context(progress=False))
    name = module.session.get_inputs()[0].name
    kind = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(module.session.get_inputs()[0].type)
    feeds = {name: inputs.numpy().astype(kind or np.float32)}
    wanted, got = (open_session(file).run(None, feeds)[0].astype(np.float64) for file in (module.onnx_bytes, made))
    return made, sqnr_db(wanted, got)


def _block(opset: int) -> onnx.FunctionProto:
    nodes = [helper.make_node("Conv", ["a", "k"], ["t"], pads=SAME), helper.make_node("Relu", ["t"], ["c"])]
    return helper.make_function("my", "Block", ["a", "k"], ["c"], nodes, [helper.make_opsetid("", opset)])


@pytest.mark.parametrize(("opset", "own"), [(17, 17), (20, 20), (17, 13), (13, 13)])
@pytest.mark.parametrize("inside", [False, True], ids=["in the graph", "in a branch"])
def test_layers_in_functions_are_quantized(tmp_path: Path, opset: int, own: int, *, inside: bool) -> None:
    """Functions that a file defines are written out, in branches too, and the convolution inside runs on integers."""
    call = helper.make_node("Block", ["x", "w"], ["a"], domain="my")
    nodes = [call, helper.make_node("Conv", ["a", "v"], ["y"])]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1)}
    if inside:
        nodes = [
            helper.make_node("Conv", ["x", "u"], ["s"], pads=SAME),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "never"], ["c"]),
            helper.make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=helper.make_graph([helper.make_node("Relu", ["s"], ["t"])], "t", [], [_value("t")]),
                else_branch=helper.make_graph(
                    [helper.make_node("Block", ["s", "w"], ["e"], domain="my")], "e", [], [_value("e")]
                ),
            ),
        ]
        constants = {"u": _weight(3, 3, 3, 3), "w": _weight(3, 3, 3, 3), "never": np.float32(1e9)}
    path = _saved(
        tmp_path,
        nodes,
        constants,
        inputs=[_value("x", ["n", 3, 8, 8])],
        outputs=[_value("y")],
        opset=opset,
        others=(helper.make_opsetid("my", 1),),
        functions=(_block(own),),
    )
    module = read_onnx(path)
    assert not onnx.load_from_string(module.onnx_bytes).functions
    inputs = torch.randn(32, 3, 8, 8)
    _same(path, module, {"x": inputs.numpy()})
    made, decibels = _quantized(module, inputs)
    assert decibels > 20
    assert kernels(made)["QLinearConv"] >= (1 if inside else 2)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
def test_old_upsampling_counts_pixels_as_it_did(tmp_path: Path, opset: int, mode: str) -> None:
    """Upsample counts from the corner; the Resize that takes its place does so, too."""
    constants: dict[str, Any] = {"w": _weight(4, 3, 3, 3)}
    scales = [1.0, 1.0, 2.0, 2.0]
    if opset == 7:
        upsample = helper.make_node("Upsample", ["a"], ["y"], mode=mode, scales=scales)
    else:
        upsample = helper.make_node("Upsample", ["a", "s"], ["y"], mode=mode)
        constants["s"] = np.array(scales, np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=SAME), upsample]
    path = _saved(tmp_path, nodes, constants, inputs=[_value("x", ["n", 3, 8, 8])], outputs=[_value("y")], opset=opset)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    _same(path, read_onnx(path), feeds)


@pytest.mark.parametrize(("kind", "name"), [(DOUBLE, "double"), (HALF, "half")])
@pytest.mark.parametrize("edges", [True, False], ids=["throughout", "inside alone"])
def test_other_precisions_become_single(tmp_path: Path, kind: int, name: str, *, edges: bool) -> None:
    """Doubles and halves are computed in float32 and quantized; inputs and outputs keep their types; it is said."""
    numpy_kind = np.float64 if kind == DOUBLE else np.float16
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["b"], pads=SAME),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"]),
    ]
    outside = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Identity", ["d"], ["y"])]
    if not edges:
        outside = [
            helper.make_node("Cast", ["x"], ["a"], to=kind),
            helper.make_node("Cast", ["d"], ["y"], to=FLOAT),
        ]
    shown = kind if edges else FLOAT
    path = _saved(
        tmp_path,
        [outside[0], *nodes, outside[1]],
        {"w": _weight(16, 3, 3, 3, kind=numpy_kind), "v": _weight(8, 16, 1, 1, kind=numpy_kind)},
        inputs=[_value("x", ["n", 3, 8, 8], shown)],
        outputs=[_value("y", None, shown)],
    )
    module = read_onnx(path)
    inputs = torch.randn(32, 3, 8, 8)
    feeds = {"x": inputs.numpy().astype(numpy_kind if edges else np.float32)}
    wanted = ReferenceEvaluator(str(path)).run(None, feeds)[0]
    got = module.session.run(None, feeds)[0]
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, atol=(1e-4 if kind == DOUBLE else 2e-2) * float(np.abs(wanted).max()))
    made, decibels = _quantized(module, inputs)
    assert decibels > 25
    assert kernels(made)["QLinearConv"] == 2
    assert [value.type.tensor_type.elem_type for value in onnx.load_from_string(made).graph.input] == [shown]
    targets = module(inputs).float()
    workload = Workload.from_datasets(module, train=(inputs, targets), test=(inputs, targets), metric="mse")
    # ONNX Runtime has no convolution of doubles, so that there is nothing to compare with.
    told = "no kernels for it in double precision" if kind == DOUBLE else "computed in half precision before"
    assert told in export_onnx(module, workload).notes[0]


def test_what_needs_double_precision_keeps_it(tmp_path: Path) -> None:
    """Whole numbers beyond float32 would be others: the file stays as it is, says so, and is not quantized."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "far"], ["b"]),
        helper.make_node("Sub", ["b", "far"], ["y"]),
    ]
    constants = {"w": _weight(8, 4, kind="d"), "far": np.array(1e12)}
    path = _saved(
        tmp_path, nodes, constants, inputs=[_value("x", ["n", 8], DOUBLE)], outputs=[_value("y", None, DOUBLE)]
    )
    module = read_onnx(path)
    assert "something else in single precision" in reading_notes(onnx.load_from_string(module.onnx_bytes))[0]
    _same(path, module, {"x": np.random.default_rng(0).normal(size=(4, 8))}, 1e-9)
    with pytest.raises(StageError, match="nothing to quantize: 1 nodes: its weights are double"):
        _quantized(module, torch.randn(32, 8))


@pytest.mark.parametrize("kind", ["sequence", "map", "strings"])
def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    """Sequences, maps and strings cannot be compared: the message names the output and the way out."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    constants: dict[str, Any] = {"w": _weight(8, 4)}
    others: tuple = ()
    floats = helper.make_tensor_type_proto(FLOAT, None)
    match kind:
        case "sequence":
            nodes.append(helper.make_node("SplitToSequence", ["a"], ["y"], axis=1))
            output = helper.make_value_info("y", helper.make_sequence_type_proto(floats))
        case "map":
            others = (helper.make_opsetid("ai.onnx.ml", 1),)
            nodes.append(helper.make_node("ZipMap", ["a"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]))
            pairs = helper.make_map_type_proto(TensorProto.INT64, floats)
            output = helper.make_value_info("y", helper.make_sequence_type_proto(pairs))
        case _:
            nodes += [
                helper.make_node("ArgMax", ["a"], ["i"], axis=1, keepdims=0),
                helper.make_node("Gather", ["labels", "i"], ["y"]),
            ]
            constants["labels"] = np.array(["a", "b", "c", "d"], object)
            output = _value("y", None, TensorProto.STRING)
    path = _saved(tmp_path, nodes, constants, inputs=[_value("x", ["n", 8])], outputs=[output], others=others)
    wanted = "holds strings, and only numbers" if kind == "strings" else "is a sequence, and only tensors of numbers"
    with pytest.raises(OnnxFileError, match=f"the output 'y' of .*{wanted}"):
        read_onnx(path)


def test_inputs_of_strings_are_refused(tmp_path: Path) -> None:
    """Strings are fed to no network: the message says where to cut the file."""
    path = _saved(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        {},
        inputs=[_value("x", ["n"], TensorProto.STRING)],
        outputs=[_value("y", None, TensorProto.STRING)],
    )
    with pytest.raises(OnnxFileError, match=r"the input 'x' of .* holds strings, and only numbers can be fed"):
        read_onnx(path)


@pytest.mark.parametrize("inside", [False, True], ids=["in the graph", "in a branch"])
def test_a_quantized_file_is_said_to_be_one(tmp_path: Path, *, inside: bool) -> None:
    """A file on integers is read, measured, and told of; quantizing it again is refused."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    nodes = [*pair, helper.make_node("MatMul", ["d", "w"], ["y"])]
    if inside:
        branches = {
            "then_branch": helper.make_graph(pair, "t", [], [_value("d")]),
            "else_branch": helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "e", [], [_value("e")]),
        }
        nodes = [helper.make_node("If", ["yes"], ["i"], **branches), helper.make_node("MatMul", ["i", "w"], ["y"])]
    constants = {"w": _weight(8, 4), "s": np.float32(0.05), "z": np.uint8(128), "yes": np.array(True)}
    path = _saved(tmp_path, nodes, constants, inputs=[_value("x", ["n", 8])], outputs=[_value("y")])
    module = read_onnx(path)
    assert "quantized already" in reading_notes(onnx.load_from_string(module.onnx_bytes))[0]
    with pytest.raises(StageError, match="quantized already"):
        _quantized(module, torch.randn(32, 8))


def _fixed(folder: Path, middle: list, constants: dict[str, Any], channels: int, batch: int = 1) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=SAME),
        helper.make_node("Relu", ["a"], ["r"]),
        *middle,
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    weights = {"w": _weight(16, 3, 3, 3), "v": _weight(8, channels, 1, 1)}
    inputs, outputs = [_value("x", [batch, 3, 12, 12])], [_value("y", [batch, 8, "h", "b"])]
    return _saved(folder, nodes, {**weights, **constants}, inputs=inputs, outputs=outputs)


FIXED = {
    "a token of classes": (
        [helper.make_node("Concat", ["k", "r"], ["m"], axis=1)],
        {"k": _weight(1, 16, 12, 12)},
        32,
    ),
    "sizes of a Resize": (
        [helper.make_node("Resize", ["r", "", "", "sizes"], ["m"], mode="nearest")],
        {"sizes": np.array([1, 16, 24, 24])},
        16,
    ),
    "an expanded constant": (
        [helper.make_node("Expand", ["k", "shape"], ["e"]), helper.make_node("Concat", ["e", "r"], ["m"], axis=1)],
        {"k": _weight(1, 16, 1, 1), "shape": np.array([1, 16, 12, 12])},
        32,
    ),
    "a shape to reshape to": (
        [
            helper.make_node("Reshape", ["r", "flat"], ["f"]),
            helper.make_node("Reshape", ["f", "maps"], ["m"]),
        ],
        {"flat": np.array([1, 16, 144]), "maps": np.array([1, 16, 12, 12])},
        16,
    ),
    "a token that a node holds": (
        [
            helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(_weight(1, 16, 12, 12))),
            helper.make_node("Concat", ["r", "k"], ["m"], axis=1),
        ],
        {},
        32,
    ),
}


@pytest.mark.parametrize("kind", FIXED)
def test_a_batch_of_one_becomes_free(tmp_path: Path, kind: str) -> None:
    """Constants of one sample and sizes that begin with it follow the batch: four give what each gives alone."""
    path = _fixed(tmp_path, *FIXED[kind])
    module = read_onnx(path)
    values = np.random.default_rng(0).normal(size=(4, 3, 12, 12)).astype(np.float32)
    session = open_session(path)
    wanted = np.concatenate([session.run(None, {"x": values[row : row + 1]})[0] for row in range(4)])
    np.testing.assert_allclose(module.session.run(None, {"x": values})[0], wanted, atol=1e-4)
    assert _quantized(module, torch.from_numpy(values).repeat(8, 1, 1, 1))[1] > 20


@pytest.mark.parametrize("scalar", [False, True], ids=["state", "state and rate"])
def test_states_have_their_batch_elsewhere(tmp_path: Path, *, scalar: bool) -> None:
    """A first dimension of 1 beside a batch that is free already is one of layers: nothing has to be freed."""
    nodes = [helper.make_node("GRU", ["x", "W", "R", "", "", "h"], ["", "y"], hidden_size=16)]
    constants = {"W": _weight(1, 48, 8), "R": _weight(1, 48, 16)}
    inputs = [_value("x", ["t", "n", 8]), _value("h", [1, "n", 16])]
    feeds = {"x": np.ones((5, 3, 8), np.float32), "h": np.ones((1, 3, 16), np.float32)}
    if scalar:
        nodes[0].output[1] = "last"
        nodes.append(helper.make_node("Mul", ["last", "rate"], ["y"]))
        inputs.append(_value("rate", []))
        feeds["rate"] = np.array(2.0, np.float32)
    path = _saved(tmp_path, nodes, constants, inputs=inputs, outputs=[_value("y")])
    module = read_onnx(path)
    assert [node.shape for node in module.session.get_inputs()][1] == [1, "n", 16]
    _same(path, module, feeds)


def _mixing(folder: Path) -> Path:
    """A file whose outputs mix the samples of its batch of 2."""
    middle = [
        helper.make_node("ReduceMean", ["r"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["r", "mean"], ["m"]),
    ]
    return _fixed(folder, middle, {}, 16, batch=2)


def test_a_batch_that_cannot_be_free_stays_where_that_is_asked_for(tmp_path: Path) -> None:
    """A batch of 2 that mixes is one sample, unless the switch says that it is a batch: then it is read as it is."""
    path = _mixing(tmp_path)
    assert layout_of(read_onnx(path).session).single
    module = read_onnx(path, batch="fixed")
    assert module.session.get_inputs()[0].shape == [2, 3, 12, 12]
    _same(path, module, {"x": np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)})
    with pytest.raises(ValueError, match="batch is what becomes of a batch that the file fixes"):
        read_onnx(path, batch="kept")  # type: ignore[arg-type]  # what a person may write


def test_a_fixed_batch_of_one_goes_through_the_pipeline(tmp_path: Path) -> None:
    """With batches of one sample, a file that keeps its batch is calibrated, verified and scored."""
    module = read_onnx(_fixed(tmp_path, *FIXED["a shape to reshape to"]), batch="fixed")
    inputs = torch.randn(40, 3, 12, 12)
    targets = torch.cat([module(inputs[row : row + 1]) for row in range(40)])
    targets += 0.1 * torch.randn(targets.shape)
    data = inputs, targets
    workload = Workload.from_datasets(module, train=data, test=data, metric="mse", batch_size=1)
    budget = Budget(max_drop=0.05, not_slower=False)
    step = Pipeline([Quantize()], budget=budget).run(workload, progress=False).report.steps[-1]
    assert step.kept, step.reason
    context = Context(progress=False)
    quantized_file(module.onnx_bytes, QuantizationSettings(rounding=GPTQ(samples=16)), workload, context)
    assert context.details["rounding"]["layers"] == 2


def test_the_command_line_keeps_a_batch(tmp_path: Path) -> None:
    """`--batch fixed` reads a file that is refused without it; anything else is refused with the two that there are."""
    path = _mixing(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz",
        inputs=rng.normal(size=(48, 3, 12, 12)).astype("f"),
        targets=rng.normal(size=(48, 8, 12, 12)),
    )
    command = ["run", "int8", "-w", f"{path}:{tmp_path / 'd.npz'}", "--dry-run"]
    run = CliRunner().invoke
    refused, kept, other = (
        run(app, command),
        run(app, [*command, "--batch", "fixed"]),
        run(app, [*command, "--batch", "2"]),
    )
    assert refused.exit_code != 0
    assert "--batch fixed" in refused.output
    assert kept.exit_code == 0, kept.output
    assert other.exit_code != 0
    assert "batch is free or fixed" in other.output
