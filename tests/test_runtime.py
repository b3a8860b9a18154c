import copy
import pickle

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.estimate import Estimate
from compressor.runtime import (
    OnnxModule,
    _exp_interval,
    open_session,
    predict_all,
    time_interleaved,
)


def model_bytes(nodes, inputs, outputs, weights=()) -> bytes:
    """The file of a graph; inputs are (name, type, shape), outputs names, weights {name: array}."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def scaled(factor: float) -> bytes:
    """The file of y = factor * x."""
    return model_bytes(
        [helper.make_node("Mul", ["input", "factor"], ["output"])],
        [("input", TensorProto.FLOAT, ["n", 2])],
        ["output"],
        {"factor": np.array([factor], np.float32)},
    )


def convolutions(count: int, width: int = 16) -> bytes:
    """`count` 3x3 convolutions on (n, width, 24, 24)."""
    weight = np.random.default_rng(0).standard_normal((width, width, 3, 3)).astype(np.float32) / width
    names = ["input", *(f"h{index}" for index in range(count - 1)), "output"]
    nodes = [
        helper.make_node("Conv", [names[index], "w"], [names[index + 1]], pads=[1, 1, 1, 1]) for index in range(count)
    ]
    return model_bytes(nodes, [("input", TensorProto.FLOAT, ["n", width, 24, 24])], ["output"], {"w": weight})


@pytest.fixture
def two_inputs() -> bytes:
    """Inputs ids (int64) and mask (bool) -> ids * mask as float, and the ids again."""
    return model_bytes(
        [
            helper.make_node("Cast", ["mask"], ["mask_float"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["ids"], ["ids_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["ids_float", "mask_float"], ["output"]),
            helper.make_node("Identity", ["ids"], ["again"]),
        ],
        [("ids", TensorProto.INT64, ["n", 2]), ("mask", TensorProto.BOOL, ["n", 2])],
        ["output", "again"],
    )


def test_module_computes_what_the_file_says() -> None:
    """A file that doubles its input is a module that doubles its input."""
    module = OnnxModule(scaled(2.0))
    assert torch.equal(module(torch.tensor([[1.0, 3.0]])), torch.tensor([[2.0, 6.0]]))
    assert list(module.parameters()) == []


def test_module_takes_names_and_any_element_type(two_inputs: bytes) -> None:
    """int64 and bool inputs go in by order or by name, and several outputs come back as a tuple."""
    module = OnnxModule(two_inputs)
    ids, mask = torch.tensor([[5, 7]]), torch.tensor([[True, False]])
    for outputs in (module(ids, mask), module(mask=mask, ids=ids), module(ids, mask=mask)):
        assert isinstance(outputs, tuple)
        assert torch.equal(outputs[0], torch.tensor([[5.0, 0.0]]))
        assert torch.equal(outputs[1], ids)


def test_module_leaves_out_inputs_the_file_lacks() -> None:
    """A dict with more entries than the graph has inputs is fed without the extra ones."""
    module = OnnxModule(scaled(3.0))
    assert torch.equal(module(input=torch.ones(1, 2), token_type_ids=torch.zeros(1)), torch.full((1, 2), 3.0))


def test_numbered_inputs_keep_their_numbers() -> None:
    """Where the exporter dropped input_0, the second positional tensor still becomes input_1."""
    file = model_bytes(
        [helper.make_node("Neg", ["input_1"], ["output"])], [("input_1", TensorProto.FLOAT, ["n"])], ["output"]
    )
    assert OnnxModule(file)(torch.tensor([1.0]), torch.tensor([2.0])).item() == -2.0


def test_missing_input_is_named(two_inputs: bytes) -> None:
    """Forgetting an input raises an error that says which."""
    with pytest.raises(ValueError, match=r"pass \['mask'\] as well"):
        OnnxModule(two_inputs)(ids=torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 2 tensors; pass them by name"):
        OnnxModule(scaled(1.0))(torch.ones(1, 2), torch.ones(1, 2))


def test_copies_and_pickles_work_on_their_own() -> None:
    """A deep copy and a pickle hold the bytes alone and open their own session when first used."""
    module = OnnxModule(scaled(2.0))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 - our own bytes
        assert twin._session is None
        assert twin.onnx_bytes == module.onnx_bytes
        assert torch.equal(twin(torch.ones(1, 2)), torch.full((1, 2), 2.0))


@pytest.mark.parametrize("damage", [b"", b"not a model", scaled(1.0)[:40], scaled(1.0)[:-3]])
def test_broken_file_is_refused_with_a_way_out(damage: bytes) -> None:
    """Empty, foreign and truncated bytes give one clear error."""
    with pytest.raises(ValueError, match=rf"cannot load the ONNX model of {len(damage)} bytes: .*export it again"):
        open_session(damage)


def test_missing_file_is_named(tmp_path) -> None:
    """A path that does not exist is part of the error."""
    with pytest.raises(ValueError, match=r"absent\.onnx"):
        open_session(tmp_path / "absent.onnx")


def test_session_from_a_path(tmp_path) -> None:
    """A session opens from a file as from its bytes."""
    (tmp_path / "model.onnx").write_bytes(scaled(2.0))
    outputs = open_session(tmp_path / "model.onnx", threads=2).run(None, {"input": np.ones((1, 2), np.float32)})
    assert outputs[0].tolist() == [[2.0, 2.0]]


def test_predict_all_concatenates_every_batch() -> None:
    """Outputs and targets of all batches come back in order, whatever form the batches have."""
    pairs = [(torch.ones(2, 2), torch.tensor([0, 1])), (torch.zeros(1, 2), torch.tensor([2]))]
    dicts = [{"input": inputs, "extra": inputs, "labels": targets} for inputs, targets in pairs]
    for data in (pairs, dicts):
        outputs, targets = predict_all(scaled(4.0), data)
        assert outputs.tolist() == [[4.0, 4.0], [4.0, 4.0], [0.0, 0.0]]
        assert targets.tolist() == [0, 1, 2]


def test_predict_all_judges_the_output_called_output(two_inputs: bytes) -> None:
    """Of several outputs the one named "output" is judged."""
    data = [{"ids": torch.tensor([[5, 7]]), "mask": torch.tensor([[False, True]]), "labels": torch.tensor([1])}]
    assert predict_all(two_inputs, data)[0].tolist() == [[0.0, 7.0]]


def test_predict_all_refuses_no_data() -> None:
    """An exhausted generator is an error, not an empty score."""
    with pytest.raises(ValueError, match="no batches"):
        predict_all(scaled(1.0), iter([]))


def test_interval_is_students() -> None:
    """Logarithms -1, 0, 1 have mean 0, standard error 1/sqrt(3), and t of 2 degrees of freedom is 4.303."""
    estimate = _exp_interval(np.array([-1.0, 0.0, 1.0]))
    half = 4.302653 / 3**0.5
    assert estimate.value == pytest.approx(1.0)
    assert np.log([estimate.low, estimate.high]) == pytest.approx([-half, half], rel=1e-5)


def test_interval_never_pretends_more_than_the_resolution() -> None:
    """Seven repeats that agree to the last bit still leave half a percent of doubt."""
    estimate = _exp_interval(np.zeros(7), floor=0.002)
    assert estimate.high == pytest.approx(np.exp(2.446912 * 0.002), rel=1e-6)
    assert not estimate.excludes(1.004)


def test_a_faster_file_is_seen_to_be_faster() -> None:
    """A quarter of the convolutions is between 2 and 8 times faster, and the interval excludes 1."""
    timing = time_interleaved(convolutions(2), convolutions(8), torch.randn(1, 16, 24, 24), seconds=0.7)
    assert timing.speedup.excludes(1.0)
    assert 2 < timing.speedup.value < 8
    assert timing.reference_ms.value > timing.candidate_ms.value > 0


def test_the_same_file_is_as_fast_as_itself() -> None:
    """A/A on a busy machine stays near 1, by its value or by admitting how little it knows."""
    file = convolutions(3)
    speedup = time_interleaved(file, file, torch.randn(1, 16, 24, 24), seconds=0.7, seed=1).speedup
    assert 0.8 < speedup.value < 1.25
    # Twice the interval is exceeded in some 0.1 % of runs.
    assert abs(np.log(speedup.value)) < 2 * np.log(speedup.high / speedup.value)


def test_timing_refuses_too_little() -> None:
    """Two repeats have no interval, and no time measures nothing."""
    with pytest.raises(ValueError, match="at least 3"):
        time_interleaved(scaled(1.0), scaled(1.0), torch.ones(1, 2), repeats=2)
    with pytest.raises(ValueError, match="seconds is the time to spend, above 0; got 0"):
        time_interleaved(scaled(1.0), scaled(1.0), torch.ones(1, 2), seconds=0)


def test_estimates_hold_their_value() -> None:
    """Every estimate of a timing lies inside its own interval."""
    timing = time_interleaved(scaled(1.0), scaled(2.0), torch.ones(4, 2), seconds=0.2, repeats=3, threads=2)
    for estimate in (timing.reference_ms, timing.candidate_ms, timing.speedup):
        assert isinstance(estimate, Estimate)
        assert estimate.low <= estimate.value <= estimate.high
