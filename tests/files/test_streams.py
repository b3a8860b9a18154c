"""Streams run step by step on the file's own states, files without a batch sample by sample, fixed batches in parts."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.cli.options import parsed_streams
from compressor.errors import OnnxFileError, StageError, WorkloadError, WrongUseError
from compressor.files.carrying import reading_notes
from compressor.files.reading import read_onnx
from compressor.measuring.fidelity import fidelity
from compressor.measuring.scores import score_rows
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.running.pipeline import Pipeline
from compressor.runtime import layout_of, open_session, run_on_samples
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.workload import predict
from compressor.workloads import load
from compressor.workloads.unlabelled import workload_of_inputs
from workbench.onnx_files import drawn, saved_onnx, weights_of

H = 24
LENGTH = 120


def step_of_a_stream(folder: Path, *, batch: str | int = "batch") -> Path:
    """An LSTM's step: (batch, 32), a state (2, batch, H) and a rate in, (batch, 8) and the next state out."""
    nodes = [
        helper.make_node("Cast", ["sr"], ["srf"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["srf", "rate"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "ax0"], ["xs"]),
        helper.make_node("Split", ["state"], ["h0", "c0"], axis=0, num_outputs=2),
        helper.make_node("LSTM", ["xs", "W", "R", "B", "", "h0", "c0"], ["Y", "hn", "cn"], hidden_size=H),
        helper.make_node("Squeeze", ["hn", "ax0"], ["hq"]),
        helper.make_node("MatMul", ["hq", "D"], ["output"]),
        helper.make_node("Concat", ["hn", "cn"], ["stateN"], axis=0),
    ]
    weights = weights_of(W=(1, 4 * H, 32), R=(1, 4 * H, H), B=(1, 8 * H), D=(H, 8))
    weights |= {"ax0": np.array([0]), "rate": np.array(16000, np.float32)}
    inputs = [
        ("x", TensorProto.FLOAT, [batch, 32]),
        ("state", TensorProto.FLOAT, [2, batch, H]),
        ("sr", TensorProto.INT64, []),
    ]
    outputs = [("output", TensorProto.FLOAT, [batch, 8]), ("stateN", TensorProto.FLOAT, [2, batch, H])]
    return saved_onnx(folder, nodes, inputs, outputs, weights)


def by_hand(onnx_bytes: bytes, x: torch.Tensor, state: np.ndarray | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """(outputs (samples, steps, 8), the state ahead of every step) of a loop over the steps of `x`."""
    session = open_session(onnx_bytes)
    state = np.zeros((2, len(x), H), np.float32) if state is None else state
    outputs, states = [], []
    for step in range(x.shape[1]):
        states.append(state)
        fed = {"x": x[:, step].numpy(), "state": state, "sr": np.array(16000)}
        output, state = session.run(["output", "stateN"], fed)
        outputs.append(output)
    return np.stack(outputs, axis=1), states


STREAMS = {"stateN": "state"}
RATE = torch.tensor(16000)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_stream_runs_with_its_own_states(batch: str | int, tmp_path: Path) -> None:
    """Every step is given the state of the one before it, from zeros or from what a stream is said to begin with."""
    model = read_onnx(step_of_a_stream(tmp_path, batch=batch), streams=STREAMS)
    assert model.streams == STREAMS
    x = drawn(6, 5, 32)
    rows = model.in_rows({"x": x, "sr": RATE})
    found = predict(model, rows).numpy()
    np.testing.assert_allclose(found, by_hand(model.onnx_bytes, x)[0], rtol=0, atol=1e-6)
    first = drawn(2, 6, H, seed=3)
    begun = predict(model, rows | {"state": first.movedim(1, 0)}).numpy()
    np.testing.assert_allclose(begun, by_hand(model.onnx_bytes, x, first.numpy())[0], rtol=0, atol=1e-6)
    assert np.abs(begun[:, 0] - found[:, 0]).max() > 0.01
    # One call, as the file is called itself, is none.
    flat = predict(model, {"x": x[:, 0], "state": first.movedim(1, 0), "sr": rows["sr"]}).numpy()
    np.testing.assert_allclose(flat, begun[:, 0], rtol=0, atol=1e-6)


def test_a_stream_is_calibrated_on_its_states_and_scored_as_it_runs(tmp_path: Path) -> None:
    """Calibration sees the states that the float file comes to; the integer file is judged on its own."""
    model = read_onnx(step_of_a_stream(tmp_path), streams=STREAMS)
    x = drawn(60, 6, 32)
    workload = workload_of_inputs(model, {"x": x, "sr": RATE}, metric="relative", batch_size=8)
    inputs, targets = next(iter(workload.test))
    assert inputs["x"].shape[1:] == (6, 32)
    assert "state" not in inputs
    assert targets.shape[1:] == (6, 8)
    calibration = [batch for batch, _ in workload.calibration]
    seen = {tuple(row.flatten().tolist()) for batch in calibration for row in batch["state"]}
    streams, _ = model.unrolled((inputs, targets))
    wanted = by_hand(model.onnx_bytes, inputs["x"])[1]
    np.testing.assert_allclose(streams["state"].numpy(), np.concatenate(wanted, axis=1).swapaxes(0, 1), atol=1e-6)
    assert len(seen) > 5 * len(x) * 0.2
    result = Pipeline([Quantize()]).run(workload, progress=False)
    shipped = result.artifact.path.read_bytes()
    assert layout_of(open_session(shipped)) == layout_of(model.session)
    for file in (model.onnx_bytes, shipped):
        found = run_on_samples(open_session(file), inputs)[0]
        np.testing.assert_allclose(found, by_hand(file, inputs["x"])[0], rtol=0, atol=1e-6)
    rows = score_rows(shipped, workload.test, workload.metric)
    noise = [
        np.square(by_hand(shipped, batch["x"])[0] - by_hand(model.onnx_bytes, batch["x"])[0]).sum()
        for batch, _ in workload.test
    ]
    assert len(rows) == 24
    told = [entry.db for entry in fidelity(model.onnx_bytes, shipped, [batch for batch, _ in workload.test])]
    signal = np.concatenate([by_hand(model.onnx_bytes, batch["x"])[0] for batch, _ in workload.test])
    assert told[0] == pytest.approx(10 * np.log10(np.square(signal - signal.mean()).sum() / sum(noise)), abs=0.05)


def test_a_stream_of_files_needs_no_states(tmp_path: Path) -> None:
    """model.onnx:data.npz with sequences, by the command line's pairs; without data one step is measured."""
    path = step_of_a_stream(tmp_path)
    np.savez(tmp_path / "data.npz", x=drawn(40, 5, 32).numpy(), sr=np.int64(16000))
    streams = parsed_streams(["stateN=state"])
    workload = load(f"{path}:{tmp_path / 'data.npz'}", streams=streams)
    inputs, targets = next(iter(workload.validation))
    assert inputs["x"].shape[1:] == (5, 32)
    np.testing.assert_allclose(targets.numpy(), by_hand(workload.model.onnx_bytes, inputs["x"])[0], atol=1e-6)
    assert workload.example_inputs["state"].shape == (2, 2, H)
    assert load(str(path), streams=streams).example_inputs["x"].shape == (2, 32)
    with pytest.raises(WrongUseError, match="--streams is OUTPUT=INPUT, such as stateN=state, got 'stateN'"):
        parsed_streams(["stateN"])
    with pytest.raises(WrongUseError, match="names the output 'a' twice"):
        parsed_streams(["a=b", "a=c"])
    with pytest.raises(WorkloadError, match="streams are outputs and inputs of an ONNX file"):
        load("digits", streams=streams)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"stateM": "state"}, r"the output 'stateM', and .* has the outputs output, stateN; did you mean 'stateN'\?"),
        ({"stateN": "x"}, r"'stateN' .* of shape \(2, \?, 24\), cannot be the input 'x' of the next step"),
        ({"stateN": "sr"}, r"float of shape .* cannot be the input 'sr'.*int64"),
        ({"stateN": "state", "output": "state"}, "cannot be the input 'state'"),
    ],
)
def test_pairs_that_are_none_are_refused(streams: dict[str, str], message: str, tmp_path: Path) -> None:
    """Names and shapes are looked at when the file is read."""
    with pytest.raises(OnnxFileError, match=message):
        read_onnx(step_of_a_stream(tmp_path), streams=streams)


def test_streams_of_differing_lengths_are_refused(tmp_path: Path) -> None:
    """All inputs of a stream have as many steps; a file of streams is not trained."""
    model = read_onnx(step_of_a_stream(tmp_path), streams=STREAMS)
    x = drawn(40, 3, 32)
    workload = workload_of_inputs(model, {"x": x, "sr": RATE}, metric="relative")
    with pytest.raises(StageError, match="has them elsewhere, or in steps; use Quantize"):
        QuantizationAwareTraining().apply(model, workload, Context(progress=False))
    with pytest.raises(WorkloadError, match="needs at least one step"):
        predict(model, {"x": x[:, :0], "sr": torch.full((40,), 16000)})


def test_a_stream_runs_with_its_batch_behind_a_one(tmp_path: Path) -> None:
    """Input and states are (1, batch, features): samples are streams, and states of zeros are as many as they."""
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"], hidden_size=H),
        helper.make_node("MatMul", ["hn", "D"], ["output"]),
    ]
    inputs = [(name, TensorProto.FLOAT, [1, "b", size]) for name, size in (("x", 32), ("h", H), ("c", H))]
    outputs = [(name, TensorProto.FLOAT, [1, "b", size]) for name, size in (("output", 8), ("hn", H), ("cn", H))]
    weights = weights_of(W=(1, 4 * H, 32), R=(1, 4 * H, H), B=(1, 8 * H), D=(H, 8))
    path, streams = saved_onnx(tmp_path, nodes, inputs, outputs, weights), {"hn": "h", "cn": "c"}
    x = drawn(40, 3, 1, 32)
    np.savez(tmp_path / "data.npz", x=x.numpy())
    model = load(f"{path}:{tmp_path / 'data.npz'}", streams=streams).model
    found = predict(model, {"x": x})
    assert found.shape == (40, 3, 1, 8)
    session, states = open_session(path.read_bytes()), {"h": np.zeros((1, 40, H), np.float32)}
    states["c"] = states["h"]
    for step in range(3):
        output, states["h"], states["c"] = session.run(None, {"x": x[:, step].movedim(0, 1).numpy(), **states})
        np.testing.assert_allclose(found[:, step].movedim(0, 1), output, rtol=0, atol=1e-6)


def test_states_of_unknown_sizes_are_asked_for(tmp_path: Path) -> None:
    """Zeros of no known size cannot be made: the error names the state, and is a typed one."""
    nodes = [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Relu", ["y"], ["next"])]
    inputs, outputs = (
        [(name, TensorProto.FLOAT, ["batch", "w"]) for name in names] for names in (("x", "state"), ("y", "next"))
    )
    path = saved_onnx(tmp_path, nodes, inputs, outputs, {})
    example = {"x": drawn(4, 3, 5), "state": drawn(4, 5)}
    model = read_onnx(path, example=example, streams={"next": "state"})
    with pytest.raises(WorkloadError, match=r"the state 'state' has the shape .* sizes are not known; give what"):
        predict(model, {"x": drawn(4, 3, 5)})


def signal_file(folder: Path, *, length: int | str = LENGTH, scalar_out: bool = False) -> Path:
    """A signal without a batch: (length,) by convolutions and a mean to (8,), or to one number."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["rows"]),
        helper.make_node("Conv", ["rows", "W", "b"], ["c"], strides=[2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "V"], ["d"], strides=[2]),
        helper.make_node("ReduceMean", ["d", "last"], ["m"], keepdims=0),
        helper.make_node("Squeeze", ["m", "zero"], ["y"]),
    ]
    if scalar_out:
        nodes[-1:] = [helper.make_node("ReduceMax", ["m"], ["y"], keepdims=0)]
    weights = weights_of(W=(16, 1, 5), b=(16,), V=(8, 16, 3))
    weights |= {"axes": np.array([0, 1]), "last": np.array([2]), "zero": np.array([0])}
    shape = [] if scalar_out else [8]
    return saved_onnx(folder, nodes, [("x", TensorProto.FLOAT, [length])], [("y", TensorProto.FLOAT, shape)], weights)


@pytest.mark.parametrize("length", [LENGTH, "t"])
@pytest.mark.parametrize("scalar_out", [False, True])
def test_a_file_without_a_batch_is_called_sample_by_sample(
    length: int | str, *, scalar_out: bool, tmp_path: Path
) -> None:
    """A sample is what one call takes; it is read, calibrated, quantized, compared, timed and scored so."""
    path = signal_file(tmp_path, length=length, scalar_out=scalar_out)
    model = read_onnx(path)
    assert layout_of(model.session).single
    assert model.fixed_batch == 1
    assert "every call is one sample" in reading_notes(onnx.load_from_string(model.onnx_bytes))[0]
    x = drawn(60, LENGTH)
    session = open_session(path.read_bytes())
    wanted = np.stack([session.run(None, {"x": row.numpy()})[0] for row in x])
    np.testing.assert_allclose(predict(model, x).numpy(), wanted, rtol=0, atol=1e-6)
    np.savez(tmp_path / "data.npz", inputs=x.numpy())
    workload = load(f"{path}:{tmp_path / 'data.npz'}", metric="relative")
    assert sum(len(targets) for _, targets in workload.test) == 24
    step = Pipeline([Quantize(rounding=GPTQ(samples=8))]).run(workload, progress=False).report.steps[-1]
    assert step.measurement.score.value > 15
    assert step.details["rounding"]["layers"] == 2


def _turned(folder: Path, batch: int) -> Path:
    """A batch that a Reshape hides in one constant of many: samples stay apart, and the batch cannot be freed."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Mul", ["f", "k"], ["g"]),
        helper.make_node("Reshape", ["g", "back"], ["h"]),
        helper.make_node("MatMul", ["h", "W"], ["y"]),
    ]
    weights = weights_of(W=(16, 4)) | {
        "flat": np.array([batch * 16]),
        "back": np.array([batch, 16]),
        "k": np.ones(batch * 16, np.float32),
    }
    shapes = [("x", TensorProto.FLOAT, [batch, 16])], [("y", TensorProto.FLOAT, [batch, 4])]
    return saved_onnx(folder, nodes, *shapes, weights)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_cannot_be_free_stays(batch: int, tmp_path: Path) -> None:
    """Any number of samples goes through such a file in parts, the last one filled; the report says that it stays."""
    path = _turned(tmp_path, batch)
    model = read_onnx(path)
    assert model.fixed_batch == batch
    assert f"its batch of {batch} could not be made free" in reading_notes(onnx.load_from_string(model.onnx_bytes))[0]
    x = drawn(50, 16)
    weight = numpy_helper.to_array(onnx.load(str(path)).graph.initializer[0])
    np.testing.assert_allclose(predict(model, x).numpy(), x.numpy() @ weight, rtol=0, atol=1e-5)
    workload = workload_of_inputs(model, x, metric="relative", batch_size=7)
    report = Pipeline([Quantize()]).run(workload, progress=False).report
    assert report.steps[-1].measurement.score.value > 20


def test_rows_that_see_each_other_are_no_batch(tmp_path: Path) -> None:
    """A fixed (3, 16) whose rows are centred on their mean is one sample, and so are its outputs."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["c"]),
        helper.make_node("MatMul", ["c", "W"], ["y"]),
    ]
    weights = weights_of(W=(16, 4)) | {"zero": np.array([0])}
    shapes = [("x", TensorProto.FLOAT, [3, 16])], [("y", TensorProto.FLOAT, [3, 4])]
    model = read_onnx(saved_onnx(tmp_path, nodes, *shapes, weights))
    assert layout_of(model.session).single
    x = drawn(5, 3, 16)
    wanted = (x - x.mean(dim=1, keepdim=True)).numpy() @ weights["W"]
    np.testing.assert_allclose(predict(model, x).numpy(), wanted, rtol=0, atol=1e-5)
    # Asked to stay, rows are samples, whatever they see.
    assert read_onnx(tmp_path / "given.onnx", batch="fixed").fixed_batch == 3


def test_made_up_inputs_are_tried_in_several_lengths(tmp_path: Path) -> None:
    """A file that needs a multiple of 40 does not run at 128, nor at 8."""
    nodes = [
        helper.make_node("Reshape", ["x", "parts"], ["r"]),
        helper.make_node("MatMul", ["r", "W"], ["y"]),
    ]
    weights = weights_of(W=(40, 4)) | {"parts": np.array([0, 3, -1, 40])}
    shapes = [("x", TensorProto.FLOAT, ["n", 3, "t"])], [("y", TensorProto.FLOAT, ["n", 3, "s", 4])]
    path = saved_onnx(tmp_path, nodes, *shapes, weights)
    assert read_onnx(path)(drawn(1, 3, 80)).shape == (1, 3, 2, 4)
    assert load(str(path)).example_inputs.shape[2] == 640
