import copy
import pickle

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from compressor.runtime import OnnxModule, open_session, predict_batches
from workbench.onnx_files import model_bytes, scaled


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


def test_batches_of_every_form_are_predicted_in_order() -> None:
    """Outputs and targets of every batch come back in order, whatever form the batches have."""
    pairs = [(torch.ones(2, 2), torch.tensor([0, 1])), (torch.zeros(1, 2), torch.tensor([2]))]
    dicts = [{"input": inputs, "extra": inputs, "labels": targets} for inputs, targets in pairs]
    for data in (pairs, dicts):
        found = list(predict_batches(scaled(4.0), data))
        assert [output.tolist() for output, _ in found] == [[[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0]]]
        assert [targets.tolist() for _, targets in found] == [[0, 1], [2]]


def test_the_output_called_output_is_judged(two_inputs: bytes) -> None:
    """Of several outputs the one named "output" is judged."""
    data = [{"ids": torch.tensor([[5, 7]]), "mask": torch.tensor([[False, True]]), "labels": torch.tensor([1])}]
    ((output, _),) = predict_batches(two_inputs, data)
    assert output.tolist() == [[0.0, 7.0]]
