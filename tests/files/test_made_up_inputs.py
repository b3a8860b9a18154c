"""Files that made-up inputs bring down, whose state fixes a batch that is free beside it, or whose samples mix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from compressor.errors import OnnxFileError
from compressor.files import opening
from compressor.files.carrying import reading_notes
from compressor.files.graphs import parse
from compressor.files.reading import read_onnx
from compressor.runtime import layout_of, open_session
from compressor.stage import Context
from compressor.stages import Dynamic, Quantize
from compressor.workloads.files import workload_of_file
from workbench.onnx_files import drawn, saved_onnx, weights_of

F, I64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def _opened_here() -> None:
    """Files are opened in a process of their own, which they may bring down."""


def scanning(folder: Path, *, behind: int, copies: int = 1) -> Path:
    """Running sums of (batch, t) signals from the place `behind` on, of which shorter ones leave nothing.

    A Scan over no steps along axis 1 ends ONNX Runtime by SIGFPE.
    """
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum_in", "value"], ["sum_out"]),
            helper.make_node("Identity", ["sum_out"], ["so_far"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, F, ["batch"]) for name in ("sum_in", "value")],
        [helper.make_tensor_value_info(name, F, ["batch"]) for name in ("sum_out", "so_far")],
    )
    axes = {"scan_input_axes": [1], "scan_output_axes": [1], "num_scan_inputs": 1}
    nodes = [
        helper.make_node("Slice", ["x", "behind", "end", "one"], ["part"]),
        helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["begin"]),
        helper.make_node("Scan", ["begin", "part"], ["total", "y"], body=body, **axes),
    ]
    constants = {"behind": np.array([behind]), "end": np.array([1 << 40]), "one": np.array([1])}
    constants["nothing"] = np.float32(0)
    inputs = [("x", F, ["batch", "t"])]
    if copies > 1:
        inputs.append(("lengths", I64, ["batch"]))
        nodes.append(helper.make_node("Identity", ["lengths"], ["frames"]))
    outputs = [("y", F, ["batch", "t_out"]), ("frames", I64, ["batch"])][:copies]
    return saved_onnx(folder, nodes, inputs, outputs, constants)


@pytest.mark.parametrize(("behind", "copies"), [(8, 1), (60, 2)])
def test_inputs_that_bring_the_runtime_down_are_followed_by_others(behind: int, copies: int, tmp_path: Path) -> None:
    """The file is fine: the first lengths that are made up are too short for it, and end the process that reads it.

    Whoever makes some up again does not, and a second reading needs no process to die.
    """
    path = scanning(tmp_path, behind=behind, copies=copies)
    model = read_onnx(path)
    x = drawn(3, behind + 5)
    feeds = {"x": x.numpy()} | ({"lengths": np.zeros(3, np.int64)} if copies > 1 else {})
    found = model.session.run(["y"], feeds)[0]
    assert np.allclose(found, x[:, behind:].cumsum(1).numpy(), atol=1e-5)
    inputs = workload_of_file(path).example_inputs
    assert (inputs if isinstance(inputs, torch.Tensor) else inputs["x"]).shape[1] > behind
    assert layout_of(read_onnx(path).session).plain


def test_an_example_that_brings_the_runtime_down_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(OnnxFileError, match=r"brings ONNX Runtime down \(SIGFPE\) on the example; pass samples"):
        read_onnx(scanning(tmp_path, behind=9), example=drawn(2, 5))


def test_made_up_inputs_that_all_bring_the_runtime_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals of which nothing is ever left: as many processes end as are allowed, then an example is asked for."""
    monkeypatch.setattr(opening, "_MOST_PROCESSES", 2)
    with pytest.raises(OnnxFileError, match=r"down \(SIGFPE\) on made-up inputs. Pass example=.*model.onnx:data.npz"):
        read_onnx(scanning(tmp_path, behind=1 << 20))


def recurrent(folder: Path, operator: str) -> Path:
    """(batch, steps, 6) and states (1, 1, 8), which the file fixes: what it was exported with."""
    gates, states = {"GRU": (3, ["h0"]), "LSTM": (4, ["h0", "c0"])}[operator]
    ends = ["hn", "cn"][: len(states)]
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node(operator, ["xt", "W", "R", "", "", *states], ["", *ends], hidden_size=8),
        helper.make_node("Squeeze", ["hn", "zero"], ["last"]),
        helper.make_node("MatMul", ["last", "D"], ["y"]),
    ]
    weights = weights_of(W=(1, 8 * gates, 6), R=(1, 8 * gates, 8), D=(8, 2)) | {"zero": np.array([0])}
    inputs = [("x", F, ["batch_size", "steps", 6]), *((name, F, [1, 1, 8]) for name in states)]
    return saved_onnx(folder, nodes, inputs, [("y", F, ["batch_size", 2])], weights)


@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_a_state_of_one_sample_beside_a_free_batch(operator: str, tmp_path: Path) -> None:
    """No batch but 1 runs; with the state's batch freed any does, and each sample gives what it gives alone."""
    path = recurrent(tmp_path, operator)
    model = read_onnx(path)
    states = ["h0"] if operator == "GRU" else ["h0", "c0"]
    assert layout_of(model.session).inputs == dict.fromkeys(states, 1)
    given = {"x": drawn(3, 7, 6)} | {name: drawn(1, 3, 8, seed=1) for name in states}
    found = model.session.run(None, {name: value.numpy() for name, value in given.items()})[0]
    alone = open_session(path.read_bytes())
    for row in range(3):
        feeds = {name: value[(slice(None),) * (name != "x") + (slice(row, row + 1),)] for name, value in given.items()}
        (expected,) = alone.run(None, {name: value.numpy() for name, value in feeds.items()})
        assert np.allclose(found[row], expected[0], atol=1e-6)


@pytest.mark.parametrize("state", [[1, 1, 8], [1, "batch_size", 8]])
def test_a_file_that_takes_one_sample_alone_is_measured_without_data(state: list, tmp_path: Path) -> None:
    """Its output has no batch, whatever the file says, so that every call is one sample: several are made up."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["xt", "W", "R", "", "", "h0"], ["", "hn"], hidden_size=8),
        helper.make_node("Squeeze", ["hn"], ["last"]),
        helper.make_node("MatMul", ["last", "D"], ["y"]),
    ]
    inputs = [("x", F, ["batch_size", "steps", 6]), ("h0", F, state)]
    path = saved_onnx(tmp_path, nodes, inputs, [("y", F, [4])], weights_of(W=(1, 24, 6), R=(1, 24, 8), D=(8, 4)))
    workload = workload_of_file(path)
    inputs, targets = workload.calibration[0]
    assert len(targets) == 4
    assert [*inputs] == ["x", "h0"]
    assert len(inputs["x"]) == 4
    if state[1] == 1:
        assert layout_of(read_onnx(path).session).single
        assert inputs["x"].shape[1] == inputs["h0"].shape[2] == 1
    context = Context(progress=False)
    Quantize(form=Dynamic()).apply(workload.model, workload, context)
    assert context.details["outputs"][0]["db"] > 20


def test_what_is_called_the_batch_is_no_lone_number(tmp_path: Path) -> None:
    """Samples that share their largest value are mixed, and still come first in both inputs, as the file says."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Div", ["x", "largest"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "D"], ["y"]),
        helper.make_node("Identity", ["lengths"], ["frames"]),
    ]
    inputs = [("x", F, ["batch_size", 12]), ("lengths", I64, ["batch_size"])]
    outputs = [("y", F, ["batch_size", 4]), ("frames", I64, ["batch_size"])]
    path = saved_onnx(tmp_path, nodes, inputs, outputs, weights_of(D=(12, 4)))
    assert layout_of(read_onnx(path).session).plain


def test_ranges_of_a_whole_batch_leave_samples_where_they_are(tmp_path: Path) -> None:
    """Dynamic integers round every sample by the range of all: the state's batch is found, and nothing is single."""
    weight = np.random.default_rng(0).integers(-90, 90, (16, 16)).astype(np.int8)
    nodes = [
        helper.make_node("Squeeze", ["state", "zero"], ["flat"]),
        helper.make_node("Add", ["x", "flat"], ["sum"]),
        helper.make_node("DynamicQuantizeLinear", ["sum"], ["q", "scale", "point"]),
        helper.make_node("MatMulInteger", ["q", "w", "point"], ["integers"]),
        helper.make_node("Cast", ["integers"], ["float"], to=F),
        helper.make_node("Mul", ["float", "scale"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "zero"], ["next"]),
    ]
    inputs = [("x", F, ["batch", 16]), ("state", F, [1, "batch", 16])]
    outputs = [("y", F, ["batch", 16]), ("next", F, [1, "batch", 16])]
    path = saved_onnx(tmp_path, nodes, inputs, outputs, {"w": weight, "zero": np.array([0])})
    model = read_onnx(path)
    layout = layout_of(model.session)
    assert (layout.inputs, layout.outputs, layout.single) == ({"state": 1}, {"next": 1}, False)
    assert "quantized already" in reading_notes(parse(model.onnx_bytes))[0]


def test_a_batch_of_two_is_made_up_first(tmp_path: Path) -> None:
    """A file that takes any batch is read by two samples, though another input begins with a 1."""
    nodes = [helper.make_node("Add", ["x", "offset"], ["y"])]
    inputs = [("x", F, ["batch", 4]), ("offset", F, [1, 4])]
    path = saved_onnx(tmp_path, nodes, inputs, [("y", F, ["batch", 4])], {})
    model = read_onnx(path)
    assert layout_of(model.session).inputs == {"offset": None}
    (_, offset) = parse(model.onnx_bytes).graph.input
    assert [dim.dim_value for dim in offset.type.tensor_type.shape.dim] == [1, 4]


SIZES = {
    "channels first": ([("x", F, ["n", 3, "height", "width"])], {}, (2, 3, 224, 224)),
    "channels last": ([("x", F, ["n", "height", "width", 1])], {}, (2, 224, 224, 1)),
    "trained for a size": ([("x", F, ["n", 3, "height", "width"])], {"imgsz": "[320, 256]"}, (2, 3, 320, 320)),
    "trained for one side": ([("x", F, ["n", 3, "height", "width"])], {"imgsz": "416"}, (2, 3, 416, 416)),
    "no size that helps": ([("x", F, ["n", 3, "height", "width"])], {"imgsz": "999999"}, (2, 3, 224, 224)),
    "a line of text": ([("x", F, ["n", 3, 40, "width"])], {}, (2, 3, 40, 320)),
    "a line of text, channels last": ([("x", F, ["n", 40, "width", 1])], {}, (2, 40, 320, 1)),
    "a spectrogram": ([("x", F, ["n", 1, "frames", 80])], {}, (2, 1, 320, 80)),
    "numbers": ([("x", F, ["n", "numbers"])], {}, (2, 8)),
    "steps of features": ([("x", F, ["n", "steps", 12])], {}, (2, 128, 12)),
    "features of steps": ([("x", F, ["n", 80, "frames"])], {}, (2, 80, 128)),
    "steps of numbers": ([("x", F, ["n", "steps", "numbers"])], {}, (2, 8, 8)),
    "one number a step": ([("x", F, ["n", "steps", 1])], {}, (2, 8, 1)),
    "text": ([("x", I64, ["n", "words"])], {}, (2, 128)),
    "many channels": ([("x", F, ["n", 64, "height", "width"])], {}, (2, 64, 8, 8)),
}


@pytest.mark.parametrize("kind", list(SIZES))
def test_made_up_inputs_have_a_size_that_people_use(kind: str, tmp_path: Path) -> None:
    """Pictures that which the file says it was trained for, else 224: at 8 pixels no time says anything."""
    inputs, notes, expected = SIZES[kind]
    nodes = [helper.make_node("Cast", ["x"], ["floats"], to=F), helper.make_node("Relu", ["floats"], ["y"])]
    path = saved_onnx(tmp_path, nodes, inputs, [("y", F, inputs[0][2])], {})
    model = parse(path.read_bytes())
    helper.set_model_props(model, notes)
    path.write_bytes(model.SerializeToString())
    (tensor,) = [workload_of_file(path).example_inputs]
    assert tuple(tensor.shape) == expected


@pytest.mark.parametrize("height", [48, 32])
def test_a_reader_of_lines_that_leaves_both_sides_open_is_given_a_line(height: int, tmp_path: Path) -> None:
    """A file that takes one height alone, and says "?" for it: no square runs, a line of the usual heights does."""
    nodes = [
        helper.make_node("Mul", ["x", "mask"], ["masked"]),
        helper.make_node("Relu", ["masked"], ["y"]),
    ]
    mask = {"mask": np.ones((height, 1), dtype=np.float32)}
    path = saved_onnx(tmp_path, nodes, [("x", F, ["n", 3, "?", "w"])], [("y", F, ["n", 3, "?", "w"])], mask)
    assert tuple(workload_of_file(path).example_inputs.shape) == (2, 3, height, 320)


def test_sound_is_a_second_long(tmp_path: Path) -> None:
    """Where convolutions make fewer steps of it, unless a text stands beside it, of which the numbers may be a mask."""
    convolution = helper.make_node("Conv", ["x", "w"], ["y"])
    sound = saved_onnx(
        tmp_path, [convolution], [("x", F, ["n", 1, "t"])], [("y", F, ["n", 4, "s"])], weights_of(w=(4, 1, 5))
    )
    assert tuple(workload_of_file(sound).example_inputs.shape) == (2, 1, 16000)
    nodes = [
        convolution,
        helper.make_node("Cast", ["ids"], ["floats"], to=F),
        helper.make_node("Relu", ["floats"], ["z"]),
    ]
    inputs = [("x", F, ["n", 1, "t"]), ("ids", I64, ["n", "t"])]
    outputs = [("y", F, ["n", 4, "s"]), ("z", F, ["n", "t"])]
    text = saved_onnx(tmp_path, nodes, inputs, outputs, weights_of(w=(4, 1, 5)))
    assert {name: tuple(tensor.shape) for name, tensor in workload_of_file(text).example_inputs.items()} == {
        "x": (2, 1, 128),
        "ids": (2, 128),
    }


def test_sizes_that_do_not_run_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pictures halved and joined again, of which 225 does not fit: ONNX Runtime would write red lines of its own."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["half", "", "scales"], ["back"], mode="nearest"),
        helper.make_node("Add", ["x", "back"], ["y"]),
    ]
    shape = ["n", 3, "height", "width"]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    path = saved_onnx(tmp_path, nodes, [("x", F, shape)], [("y", F, shape)], constants)
    model = parse(path.read_bytes())
    helper.set_model_props(model, {"imgsz": "225"})
    path.write_bytes(model.SerializeToString())
    read = workload_of_file(path)
    assert tuple(read.example_inputs.shape) == (2, 3, 224, 224)
    with pytest.raises(Exception, match="Attempting to broadcast"):
        read.model(torch.zeros(1, 3, 225, 225))
    assert "onnxruntime" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("limit", "value"), [("COMPRESSOR_OPEN_MIB", "600"), ("COMPRESSOR_OPEN_SECONDS", "1")], ids=["memory", "time"]
)
@pytest.mark.usefixtures("_opened_here")
def test_sizes_that_take_too_much_are_followed_by_smaller_ones(
    limit: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of pictures that it says are far larger: what people use is tried first, and not insisted on."""
    monkeypatch.setenv(limit, value)
    names = [f"w{number}" for number in range(6)]
    nodes = [
        helper.make_node("Conv", ["x" if not number else f"y{number - 1}", name], [f"y{number}"], pads=[1, 1, 1, 1])
        for number, name in enumerate(names)
    ]
    nodes.append(helper.make_node("GlobalAveragePool", ["y5"], ["y"]))
    weights = weights_of(**{name: (32, 32 if number else 3, 3, 3) for number, name in enumerate(names)})
    shape = ["n", 3, "height", "width"]
    path = saved_onnx(tmp_path, nodes, [("x", F, shape)], [("y", F, ["n", 32, 1, 1])], weights)
    model = parse(path.read_bytes())
    helper.set_model_props(model, {"imgsz": "2048"})
    path.write_bytes(model.SerializeToString())
    assert workload_of_file(path).example_inputs.shape[2] < 2048
