"""Files whose samples lie elsewhere than in rows: found when they are read, and used by everything that runs them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compressor.budget import Budget
from compressor.errors import WorkloadError
from compressor.files.carrying import reading_notes
from compressor.files.reading import read_onnx
from compressor.measuring.macs import count_macs
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.placement.forms import Dynamic, Static
from compressor.running.pipeline import Pipeline
from compressor.runtime import OnnxModule, feeds_of, layout_of, predict_batches
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload, call_model, predict
from compressor.workloads import load
from compressor.workloads.unlabelled import workload_of_inputs
from workbench.onnx_files import drawn, saved_onnx, weights_of

H = 24


def stateful(folder: Path, *, batch: str | int = "batch", scalar: bool = False, state_first: bool = False) -> Path:
    """One step of an LSTM: (batch, 32) and a state (2, batch, H) in, (batch, 8) and the next state out."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "ax0"], ["xs"]),
        helper.make_node("Split", ["state"], ["h0", "c0"], axis=0, num_outputs=2),
        helper.make_node("LSTM", ["xs", "W", "R", "B", "", "h0", "c0"], ["Y", "hn", "cn"], hidden_size=H),
        helper.make_node("Squeeze", ["hn", "ax0"], ["hq"]),
        helper.make_node("MatMul", ["hq", "D"], ["output"]),
        helper.make_node("Concat", ["hn", "cn"], ["stateN"], axis=0),
    ]
    inputs = [("x", TensorProto.FLOAT, [batch, 32]), ("state", TensorProto.FLOAT, [2, batch, H])]
    weights = weights_of(W=(1, 4 * H, 32), R=(1, 4 * H, H), B=(1, 8 * H), D=(H, 8)) | {"ax0": np.array([0])}
    if state_first:
        inputs.reverse()
    if scalar:
        inputs.insert(0 if state_first else len(inputs), ("sr", TensorProto.INT64, []))
        nodes[0].input[0] = "scaled"
        nodes = [
            helper.make_node("Cast", ["sr"], ["srf"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["srf", "rate"], ["factor"]),
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
            *nodes,
        ]
        weights["rate"] = np.float32(16000)
    outputs = [("output", TensorProto.FLOAT, [batch, 8]), ("stateN", TensorProto.FLOAT, [2, batch, H])]
    return saved_onnx(folder, nodes, inputs, outputs, weights)


def time_major(folder: Path, *, batch: str | int = "batch", inputs_too: bool = False) -> Path:
    """An LSTM over time: (batch, steps, 16), or time first, in; (steps, batch, 10) out, as CTC wants it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "W", "R", "B"], ["Y"], hidden_size=H),
        helper.make_node("Squeeze", ["Y", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "D"], ["y"]),
    ]
    shape = [batch, "t", 16]
    if inputs_too:
        nodes, shape = nodes[1:], ["t", batch, 16]
        nodes[0].input[0] = "x"
    weights = weights_of(W=(1, 4 * H, 16), R=(1, 4 * H, H), B=(1, 8 * H), D=(H, 10)) | {"one": np.array([1])}
    return saved_onnx(
        folder, nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, ["t", batch, 10])], weights
    )


@pytest.mark.parametrize("batch", ["batch", "N", "dim_7", 1])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("state_first", [False, True])
def test_a_state_and_a_number_for_all_are_found(
    batch: str | int, *, scalar: bool, state_first: bool, tmp_path: Path
) -> None:
    """The state has its batch second, the rate none: whatever the batch is called, fixed or free, in any order."""
    path = stateful(tmp_path, batch=batch, scalar=scalar, state_first=state_first)
    size = 1 if batch == 1 else 5
    example = {"x": drawn(size, 32), "state": drawn(2, size, H)} | ({"sr": torch.tensor(16000)} if scalar else {})
    model = read_onnx(path, example=example)
    layout = layout_of(model.session)
    assert layout.inputs == {"state": 1} | ({"sr": None} if scalar else {})
    assert layout.outputs == {"stateN": 1}
    # The file itself is called as it is, and in rows every sample has its own state.
    x, state = drawn(3, 32, seed=1), drawn(2, 3, H, seed=2)
    given = {"x": x, "state": state} | ({"sr": torch.tensor(16000)} if scalar else {})
    output, following = model(**given)
    rows = model.in_rows(given)
    assert rows["state"].shape == (3, 2, H)
    torch.testing.assert_close(predict(model, rows), output)
    torch.testing.assert_close(call_model(model, rows)[1], following.movedim(1, 0))
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in rows.items()}
        torch.testing.assert_close(predict(model, alone), output[row : row + 1])


def one_row(folder: Path, *, batch: str) -> Path:
    """An LSTM's one step, with the batch second in all that it takes and gives: (1, batch, 16) to (1, batch, 10)."""
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=H),
        helper.make_node("Squeeze", ["Y", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "D"], ["y"]),
    ]
    weights = weights_of(W=(1, 4 * H, 16), R=(1, 4 * H, H), B=(1, 8 * H), D=(H, 10)) | {"one": np.array([1])}
    inputs, outputs = (([(name, TensorProto.FLOAT, [1, batch, size])]) for name, size in (("x", 16), ("y", 10)))
    return saved_onnx(folder, nodes, inputs, outputs, weights)


@pytest.mark.parametrize("batch", ["batch", "N", "b", "batch_size", "Batch Size"])
def test_a_batch_that_is_named_is_found_behind_a_one(batch: str, tmp_path: Path) -> None:
    """No input has samples first: the dimension called a batch is taken, and nothing is said of a batch of 1."""
    model = read_onnx(one_row(tmp_path, batch=batch))
    layout = layout_of(model.session)
    assert (layout.inputs, layout.outputs) == ({"x": 1}, {"y": 1})
    assert not reading_notes(onnx.load_from_string(model.onnx_bytes))
    x = drawn(4, 1, 16)
    torch.testing.assert_close(predict(model, x), model(x.movedim(0, 1)).movedim(1, 0))


@pytest.mark.parametrize("rows", [False, True])
def test_few_rows_of_samples_that_lie_elsewhere_are_no_few_samples(tmp_path: Path, *, rows: bool) -> None:
    """Forty samples behind a one are forty, as the file takes them, (1, 40, 16), and in rows."""
    path, data = one_row(tmp_path, batch="batch"), tmp_path / "data.npz"
    x = drawn(40, 1, 16).numpy()
    np.savez(data, inputs=x if rows else x.swapaxes(0, 1))
    workload = load(f"{path}:{data}")
    (inputs, _), *_ = workload.validation
    assert inputs["x"].shape[1:] == (1, 16)
    assert sum(len(targets) for _, targets in (*workload.train, *workload.validation, *workload.test)) == 40


def test_too_few_samples_are_refused_wherever_they_lie(tmp_path: Path) -> None:
    """Three samples are too few, whether they come first or behind a one."""
    path, data = one_row(tmp_path, batch="batch"), tmp_path / "data.npz"
    for x in (drawn(1, 3, 16), drawn(3, 1, 16)):
        np.savez(data, inputs=x.numpy())
        with pytest.raises(WorkloadError, match="has 3 samples, and at least 20 are needed"):
            load(f"{path}:{data}")


def test_rows_of_many_that_are_called_a_batch_are_samples(tmp_path: Path) -> None:
    """What a file does with every point by itself is read by the data: sixty clouds of seven points, or points."""
    nodes = [helper.make_node("MatMul", ["x", "D"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    shapes = [[(name, TensorProto.FLOAT, [1, "N", size])] for name, size in (("x", 16), ("y", 10))]
    path = saved_onnx(tmp_path, nodes, *shapes, weights_of(D=(16, 10)))
    clouds = read_onnx(path, example=drawn(60, 7, 16))
    assert layout_of(clouds.session).plain
    assert predict(clouds, drawn(60, 7, 16)).shape == (60, 7, 10)
    for example in (drawn(60, 1, 16), drawn(1, 60, 16)):
        assert layout_of(read_onnx(path, example=example).session).inputs == {"x": 1}


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("inputs_too", [False, True])
def test_time_first_is_found(batch: str | int, *, inputs_too: bool, tmp_path: Path) -> None:
    """Steps stand before the batch in outputs, or in inputs as well: samples are those that do not see each other."""
    model = read_onnx(time_major(tmp_path, batch=batch, inputs_too=inputs_too))
    layout = layout_of(model.session)
    assert layout.outputs == {"y": 1}
    assert layout.inputs == ({"x": 1} if inputs_too else {})
    x = drawn(4, 7, 16)
    given = x.movedim(0, 1) if inputs_too else x
    torch.testing.assert_close(predict(model, x), model(given).movedim(1, 0))
    assert count_macs(model.onnx_bytes, x) == count_macs(model.onnx_bytes, x[:2])


@pytest.mark.parametrize("stage", [Quantize(), Quantize(form=Dynamic()), Quantize(form=Static())])
def test_a_file_with_a_state_is_quantized_and_judged(stage: Quantize, tmp_path: Path) -> None:
    """Calibration, comparison, scoring and timing take the state as it lies; targets of a sample are its own."""
    model = read_onnx(stateful(tmp_path, scalar=True))
    x, state, rate = drawn(90, 32), drawn(2, 90, H, seed=1), torch.tensor(16000)
    inputs = {"x": x, "state": state, "sr": rate}
    y = model(**inputs)[0].argmax(dim=1)
    workload = Workload.from_datasets(
        model, train=(inputs, y), validation=(inputs, y), test=(inputs, y), metric="accuracy", batch_size=16
    )
    result = Pipeline([stage], budget=None).run(workload, progress=False)
    assert result.report.steps[0].measurement.score.value == 1.0
    assert result.report.steps[-1].measurement.score.value > 0.9
    assert {each["output"] for each in result.report.steps[-1].details["outputs"]} == {"output", "stateN"}
    # The integer file has the same layout, and notes it.
    shipped = OnnxModule(result.artifact.path.read_bytes())
    assert layout_of(shipped.session) == layout_of(model.session)
    assert float((shipped(**inputs)[0].argmax(1) == y).float().mean()) > 0.9


def test_a_file_with_time_first_is_scored_by_samples(tmp_path: Path) -> None:
    """Rows of the metric are samples, not steps, on every path: reference, integers, corrected biases."""
    model = read_onnx(time_major(tmp_path))
    x = drawn(60, 12, 16)
    workload = workload_of_inputs(model, x, metric="relative")
    outputs = [output for output, _ in predict_batches(model.onnx_bytes, workload.test)]
    assert [output.shape[1:] for output in outputs] == [(12, 10)] * len(outputs)
    assert sum(map(len, outputs)) == 24
    report = Pipeline([Quantize()], budget=Budget(max_drop=0.2, not_slower=False)).run(workload, progress=False).report
    assert report.steps[0].measurement.score.value == 200.0
    assert report.steps[-1].measurement.score.value > 10
    Quantize(form=Static(), bias_correction=BiasCorrection()).apply(workload.model, workload, Context(progress=False))


def test_arrays_come_as_the_file_takes_them_or_in_rows(tmp_path: Path) -> None:
    """An .npz may hold the state as (layers, samples, features) or as (samples, layers, features), and one rate."""
    path = stateful(tmp_path, scalar=True)
    x, state = drawn(60, 32), drawn(2, 60, H, seed=1)
    y = read_onnx(path)(x, state, torch.tensor(16000))[0].argmax(dim=1)
    scores = []
    for held in (state, state.movedim(1, 0)):
        np.savez(tmp_path / "data.npz", x=x.numpy(), state=held.numpy(), sr=np.int64(16000), targets=y.numpy())
        workload = load(f"{path}:{tmp_path / 'data.npz'}")
        scores += [
            float((predict(workload.model, inputs).argmax(1) == rows).float().mean()) for inputs, rows in workload.test
        ]
    assert scores
    assert set(scores) == {1.0}
    in_rows = ({"x": x, "state": state.movedim(1, 0), "sr": torch.tensor(16000)}, y)
    workload = Workload.from_datasets(read_onnx(path), train=in_rows, test=in_rows)
    inputs, rows = next(iter(workload.test))
    assert torch.equal(predict(workload.model, inputs).argmax(1), rows)


def test_one_value_for_all_cannot_differ(tmp_path: Path) -> None:
    """A rate that is 8000 for some samples of a batch and 16000 for others is refused by name."""
    model = read_onnx(stateful(tmp_path, scalar=True))
    inputs = {"x": drawn(2, 32), "state": drawn(2, 2, H), "sr": torch.tensor([8000, 16000])}
    with pytest.raises(ValueError, match="the input 'sr' is one for all samples of a call, and differs"):
        feeds_of(model.session, inputs)


@pytest.mark.parametrize("scalar", [False, True])
def test_a_file_that_reads_the_first_row_alone_is_called_sample_by_sample(tmp_path: Path, *, scalar: bool) -> None:
    """A recording (1, samples) of which the program takes row 0: more rows would run, and all but one be lost."""
    inputs = [("audio", TensorProto.FLOAT, [1, "samples"]), *([("gain", TensorProto.FLOAT, [])] if scalar else [])]
    nodes = [
        helper.make_node("Gather", ["audio", "first"], ["row"], axis=0),
        helper.make_node("Reshape", ["row", "frames"], ["framed"]),
        helper.make_node("MatMul", ["framed", "W"], ["heard"]),
        helper.make_node("Mul", ["heard", "gain" if scalar else "half"], ["loud"]),
        helper.make_node("Unsqueeze", ["loud", "front"], ["y"]),
    ]
    weights = weights_of(W=(16, 4)) | {
        "first": np.array(0), "frames": np.array([-1, 16]), "front": np.array([0]), "half": np.array(0.5, np.float32),
    }  # fmt: skip
    path = saved_onnx(tmp_path, nodes, inputs, [("y", TensorProto.FLOAT, [1, "frames", 4])], weights)
    model = read_onnx(path)
    # A number for all beside it has no rows, so that a sample is a whole call; alone its one row is the sample.
    assert layout_of(model.session).single == scalar
    given = {"audio": drawn(3, 1, 64), "gain": torch.ones(3)} if scalar else {"audio": drawn(3, 64)}
    found = call_model(model, given)
    assert found.shape == ((3, 1, 4, 4) if scalar else (3, 4, 4))
    torch.testing.assert_close(found[2:], call_model(model, {name: values[2:] for name, values in given.items()}))


def test_an_output_that_is_the_same_for_all_leaves_the_batch_free(tmp_path: Path) -> None:
    """Places of boxes, a constant, before the scores of every sample: the batch is found by the scores."""
    nodes = [
        helper.make_node("Identity", ["places"], ["boxes"]),
        helper.make_node("MatMul", ["x", "W"], ["scores"]),
    ]
    weights = weights_of(places=(6, 4), W=(16, 6))
    outputs = [("boxes", TensorProto.FLOAT, [6, 4]), ("scores", TensorProto.FLOAT, [1, 6])]
    path = saved_onnx(tmp_path, nodes, [("x", TensorProto.FLOAT, [1, 16])], outputs, weights)
    layout = layout_of(read_onnx(path).session)
    assert not layout.single
    assert layout.outputs == {"boxes": None}


def test_rows_stay_as_they_were(tmp_path: Path) -> None:
    """A file with its batch first everywhere notes nothing, and one whose samples mix is taken as it is."""
    weights = weights_of(W=(16, 4))
    shape = [("x", TensorProto.FLOAT, ["n", 16])], [("y", TensorProto.FLOAT, ["n", 4])]
    plain = saved_onnx(tmp_path, [helper.make_node("MatMul", ["x", "W"], ["y"])], *shape, weights)
    assert not read_onnx(plain).session.get_modelmeta().custom_metadata_map
    nodes = [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["c"]),
        helper.make_node("MatMul", ["c", "W"], ["y"]),
    ]
    mixed = saved_onnx(tmp_path, nodes, *shape, weights | {"zero": np.array([0])})
    assert layout_of(read_onnx(mixed).session).inputs == {}


def test_outputs_of_type_double_are_no_numbers_of_the_user(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """What a file answers in double precision is compared in single, without a notice about data that are single."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["y"], to=TensorProto.DOUBLE),
    ]
    inputs, outputs = [("x", TensorProto.FLOAT, ["batch", 16])], [("y", TensorProto.DOUBLE, ["batch", 4])]
    model = read_onnx(saved_onnx(tmp_path, nodes, inputs, outputs, weights_of(W=(16, 4))))
    workload = workload_of_inputs(model, drawn(60, 16))
    assert {targets.dtype for _, targets in workload.test} == {torch.float32}
    assert not [each for each in recwarn if "float64" in str(each.message)]
