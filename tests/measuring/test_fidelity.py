"""What the outputs of one file keep of another's, by numbers worked out by hand."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.budget import judge_others
from compressor.measuring.fidelity import fidelity, sqnr_db
from compressor.measuring.output_channels import output_channels

CHANNELS = 4


def file_of(*outputs: tuple[str, np.ndarray, int], joined: bool = False) -> onnx.ModelProto:
    """A file that gives its input (n, 4, t) times a factor a channel; `joined` makes it from single channels."""
    nodes, constants = [], []
    for name, factors, kind in outputs:
        constants.append(numpy_helper.from_array(factors.reshape(1, -1, 1).astype(np.float32), f"{name}_f"))
        if joined:
            constants.append(numpy_helper.from_array(np.ones(CHANNELS, dtype=np.int64), "sizes"))
            parts = [f"part{place}" for place in range(CHANNELS)]
            nodes.append(helper.make_node("Mul", ["x", f"{name}_f"], ["all"]))
            nodes.append(helper.make_node("Split", ["all", "sizes"], parts, axis=1))
            nodes.append(helper.make_node("Concat", parts, [name], axis=1))
        elif kind == TensorProto.INT64:
            nodes.append(helper.make_node("Mul", ["x", f"{name}_f"], [f"{name}_m"]))
            nodes.append(helper.make_node("ArgMax", [f"{name}_m"], [name], axis=1))
        else:
            nodes.append(helper.make_node("Mul", ["x", f"{name}_f"], [name]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, "t"])],
        [helper.make_tensor_value_info(name, kind, None) for name, _, kind in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


REAL, WHOLE = TensorProto.FLOAT, TensorProto.INT64


def kept(before: onnx.ModelProto, after: onnx.ModelProto, *batches: torch.Tensor):
    return fidelity(before.SerializeToString(), after.SerializeToString(), batches)


def test_every_output_has_its_own_decibels_around_the_mean() -> None:
    """One output off by a tenth of its signal keeps 20 dB; a second off by a hundredth of its mean keeps less than it
    seems: 100 + noise of 1 is 0 dB, not 40.
    """
    ones = np.ones(CHANNELS)
    before = file_of(("a", ones, REAL), ("b", ones, REAL))
    after = file_of(("a", 1.1 * ones, REAL), ("b", 1.01 * ones, REAL))
    signal = torch.randn(8, CHANNELS, 50)
    a, b = kept(before, after, signal[:5], signal[5:])
    assert (a.output, a.judged, b.judged) == ("a", True, False)
    assert a.db == pytest.approx(20.0, abs=0.05)
    assert b.db == pytest.approx(40.0, abs=0.05)
    _, off = kept(before, after, 100 + signal)
    power = 10 * np.log10(float(signal.var()) / float(((100 + signal) * 0.01).square().mean()))
    assert off.db == pytest.approx(power, abs=0.05)
    assert off.db < 1


def test_channels_that_are_joined_are_looked_at_one_by_one() -> None:
    """Scores beside boxes, 640 times as large: all scores at zero leave 42 dB of the whole and 0 of the channel."""
    scale = np.array([640.0, 640.0, 640.0, 1.0])
    before, after = (
        file_of(("y", each, REAL), joined=True) for each in (scale, scale * np.array([1.008, 1.008, 1.008, 0.0]))
    )
    (told,) = kept(before, after, torch.randn(8, CHANNELS, 50))
    assert told.db > 40
    assert told.channel == 3
    assert told.channel_db == pytest.approx(0.0, abs=0.5)
    verdict = judge_others([told], 10.0)
    assert not verdict.keep
    assert "its channel 3 " in verdict.reason


def test_absent_classes_and_constants_are_no_lost_channels() -> None:
    """A probability that never reaches 0.02, and a channel that does not vary, have no decibels of their own."""
    x = torch.rand(8, CHANNELS, 50)
    x[:, 1] = 3.0
    scale = np.array([1.0, 1.0, 1.0, 0.01])
    before = file_of(("y", scale, REAL), joined=True)
    after = file_of(("y", scale * np.array([1.01, 1.01, 1.02, 0.0]), REAL), joined=True)
    (told,) = kept(before, after, x)
    assert told.channel in {0, 2}
    assert told.channel_db > 20


def test_whole_numbers_have_a_share_and_constants_their_own_size() -> None:
    """Two of four positions counted alike are a half; a constant output off by a tenth keeps 20 dB of its size."""
    swap = np.array([1.0, 1.0, -1.0, -1.0])
    before, after = (file_of(("best", each, WHOLE)) for each in (np.ones(CHANNELS), swap))
    x = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])[:, :, None]
    (told,) = kept(before, after, x)
    assert told.equal == 0.5
    assert told.worst_db == 200.0
    same, off = (file_of(("y", factor * np.ones(CHANNELS), REAL)) for factor in (1.0, 1.1))
    (told,) = kept(same, off, torch.ones(2, CHANNELS, 3))
    assert told.db == pytest.approx(20.0, abs=0.01)


def test_nan_and_other_shapes_are_said_in_words() -> None:
    """A file with NaN where the other has numbers keeps nothing; one that selects more or fewer cannot be compared."""
    same = file_of(("y", np.ones(CHANNELS), REAL))
    broken = file_of(("y", np.full(CHANNELS, np.nan), REAL))
    (told,) = kept(same, broken, torch.ones(2, CHANNELS, 3))
    assert told.worst_db == -200.0
    assert "NaN or infinities" in told.says()
    chosen = file_of(("y", np.ones(CHANNELS), REAL))
    chosen.graph.node[0].output[0] = "m"
    chosen.graph.node.append(helper.make_node("NonZero", ["m"], ["n"]))
    chosen.graph.node.append(helper.make_node("Cast", ["n"], ["y"], to=REAL))
    fewer = onnx.ModelProto.FromString(chosen.SerializeToString())
    fewer.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([[[0], [1], [1], [1]]]), "y_f"))
    (told,) = kept(chosen, fewer, torch.ones(2, CHANNELS, 3))
    assert "has the shape (3, 18) where the float file gives (3, 24)" in told.says()


def test_infinities_of_the_other_sign_are_others() -> None:
    """-inf where the float file has it loses nothing, and inf in its place all."""
    below, above = (file_of(("y", np.array([1, 2, 3, fill]), REAL)) for fill in (-np.inf, np.inf))
    data = torch.rand(2, CHANNELS, 3)
    (same,), (other,) = kept(below, below, data), kept(below, above, data)
    assert same.worst_db == 200.0
    assert other.worst_db == -200.0


def test_what_is_masked_in_both_is_no_noise() -> None:
    """A tenth off is 20 dB beside -inf, too; -inf that was lost, or came up, leaves nothing."""
    signal = np.array([[1.0, -1.0, -np.inf]], np.float32)
    off = np.array([[1.1, -1.1, -np.inf]], np.float32)
    assert sqnr_db(signal, off) == pytest.approx(20.0, abs=1e-3)
    assert sqnr_db(signal, np.nan_to_num(off)) == -np.inf
    assert sqnr_db(np.nan_to_num(signal), off) == -np.inf
    assert sqnr_db(signal, signal) == np.inf


def test_channels_are_found_through_what_leaves_them_in_place() -> None:
    """Behind a convolution's Sigmoid, Transpose, Reshape of its places, and Concat of places; not behind a product."""
    w = numpy_helper.from_array(np.ones((6, 3, 1, 1), dtype=np.float32), "w")
    m = numpy_helper.from_array(np.ones((3, 5), dtype=np.float32), "m")
    shape = numpy_helper.from_array(np.array([0, 6, -1]), "shape")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["map"]),
        helper.make_node("Reshape", ["c", "shape"], ["flat"]),
        helper.make_node("Concat", ["flat", "flat"], ["places"], axis=2),
        helper.make_node("Transpose", ["places"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["row"]),
        helper.make_node("Concat", ["row", "row"], ["rows"], axis=-1),
    ]
    names = ("map", "places", "turned", "row", "rows")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", REAL, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(name, REAL, None) for name in names],
        [w, m, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert output_channels(model) == {"map": 1, "places": 1, "turned": 2, "row": None, "rows": 1}
