"""Plans: structure decisions that rebuild a model from its own class."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from compressor.errors import StorageError
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.pass_through import PassThrough
from compressor.structure.plan import Slices, apply_plan_

NARROW = {
    "kind": "slice",
    "tensors": {"0.weight": {"0": [0, 2]}, "0.bias": {"0": [0, 2]}, "2.weight": {"1": [0, 2]}},
    "attributes": {"0": {"out_features": 2}, "2": {"in_features": 2}},
}


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


class Free(Tied):
    """The same, untied."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(torch.zeros(5, 4))


def test_slice_keeps_the_named_rows_and_columns() -> None:
    """Keeping units 0 and 2 of three keeps exactly their rows, their biases and the next layer's columns."""
    model = two_layers()
    first, bias, second = model[0].weight.clone(), model[0].bias.clone(), model[2].weight.clone()
    assert apply_plan_(model, [NARROW]) is model
    assert torch.equal(model[0].weight, first[[0, 2]])
    assert torch.equal(model[0].bias, bias[[0, 2]])
    assert torch.equal(model[2].weight, second[:, [0, 2]])
    assert (model[0].out_features, model[2].in_features) == (2, 2)
    assert model(torch.ones(1, 4)).shape == (1, 2)


def test_buffers_of_batch_norm_are_narrowed_with_its_weights() -> None:
    """Running statistics are tensors like any other to a plan; the batch counter is left alone."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    names = ("weight", "bias", "running_mean", "running_var")
    entry = {
        "kind": "slice",
        "tensors": {f"0.{name}": {"0": [1]} for name in names},
        "attributes": {"0": {"num_features": 1}},
    }
    apply_plan_(model, [entry])
    assert model[0].running_mean.tolist() == [2.0]
    assert model.eval()(torch.tensor([[2.0]])).item() == 0.0


def test_frozen_dtype_and_layout_survive() -> None:
    """A frozen bfloat16 channels-last weight is still frozen, bfloat16 and channels-last when narrower."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(torch.bfloat16, memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    entry = {"kind": "slice", "tensors": {"0.weight": {"0": [1, 2]}, "0.bias": {"0": [1, 2]}}}
    apply_plan_(model, [entry])
    assert model[0].weight.shape == (2, 3, 3, 3)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert (model[0].weight.requires_grad, model[0].bias.requires_grad) == (False, True)


def test_identity_hands_through_and_takes_other_arguments() -> None:
    """A removed block gives its first argument back, whatever else it is called with."""
    model = apply_plan_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), [{"kind": "identity", "modules": ["1"]}])
    ones = torch.ones(1, 2)
    assert isinstance(model[1], PassThrough)
    assert model[1](ones, 3, mask=None) is ones
    assert PassThrough(as_tuple=True)(ones)[0] is ones
    assert PassThrough(with_state=True)(ones, None) == (ones, None)


def test_tied_tensors_stay_tied_when_narrowed() -> None:
    """Narrowing a shared weight under one of its names narrows it for all, and it stays one parameter."""
    model = apply_plan_(Tied(), [{"kind": "slice", "tensors": {"head.weight": {"1": [0, 3]}}}])
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.shape == (5, 2)


def test_checkpoint_round_trip_is_exact_and_saves_tied_tensors_once(tmp_path) -> None:
    """What is loaded has the saved bits, the tie included, though the file holds the tensor once."""
    plan = [{"kind": "slice", "tensors": {"embedding.weight": {"1": [0, 3]}}}]
    model = apply_plan_(Tied(), plan)
    save_checkpoint(tmp_path, model, plan)
    loaded = load_checkpoint(tmp_path, Tied)
    tokens = torch.tensor([[0, 4]])
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.head.weight is loaded.embedding.weight
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["embedding.weight"]
    assert load_checkpoint(tmp_path, Free).head.weight.shape == (5, 2)


def test_checkpoint_ties_what_was_tied_by_hand(tmp_path) -> None:
    """A tie that the factory's model does not make is made on loading."""
    save_checkpoint(tmp_path, Tied(), [])
    loaded = load_checkpoint(tmp_path, Free)
    assert loaded.head.weight is loaded.embedding.weight


def test_plan_file_is_plain_json(tmp_path) -> None:
    """plan.json is the list of entries itself, so that reports and people can read it."""
    model = apply_plan_(two_layers(), [NARROW])
    save_checkpoint(tmp_path, model, [NARROW])
    assert json.loads((tmp_path / "plan.json").read_text()) == [NARROW]
    loaded = load_checkpoint(tmp_path, two_layers)
    assert not loaded.training
    assert torch.equal(loaded(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_factory_of_another_model_is_refused_by_name_and_shape(tmp_path) -> None:
    """A factory with another width is refused with the tensor, the wanted and the got shape."""
    save_checkpoint(tmp_path, two_layers(), [])
    with pytest.raises(StorageError, match=r"'2\.bias' has shape \(2,\).*wants \(7,\)"):
        load_checkpoint(tmp_path, lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 7)))
    with pytest.raises(StorageError, match=r"missing \['3\.bias', '3\.weight'\]"):
        load_checkpoint(tmp_path, lambda: nn.Sequential(*two_layers(), nn.Linear(2, 2)))


def test_files_of_two_runs_are_not_mixed(tmp_path) -> None:
    """Weights saved with one plan are refused together with another."""
    save_checkpoint(tmp_path, two_layers(), [])
    (tmp_path / "plan.json").write_text(json.dumps([NARROW]))
    with pytest.raises(StorageError, match="is not the plan that"):
        load_checkpoint(tmp_path, two_layers)


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip"])
def test_damaged_weights_are_named(tmp_path, damage: str) -> None:
    """A truncated, empty or overwritten weight file gives an error with the file's name."""
    save_checkpoint(tmp_path, two_layers(), [])
    path = tmp_path / "weights.safetensors"
    raw = path.read_bytes()
    path.write_bytes({"truncate": raw[:-3], "empty": b"", "flip": b"\xff" * 8 + raw[8:]}[damage])
    with pytest.raises(StorageError, match=r"weights\.safetensors is not a readable safetensors file"):
        load_checkpoint(tmp_path, two_layers)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"kind": "slice", "tensors": {"9.weight": {"0": [0]}}},
            "narrows tensor '9.weight', which Sequential does not",
        ),
        (
            {"kind": "slice", "tensors": {"0.weight": {"0": [3]}}},
            r"keeps index 3 of dimension 0 of '0.weight'.*\(3, 4\)",
        ),
        ({"kind": "slice", "tensors": {"0.weight": {"0": [-1]}}}, "keeps index -1"),
        ({"kind": "slice", "tensors": {"0.weight": {"0": [1, 1]}}}, "distinct integers"),
        ({"kind": "slice", "tensors": {"0.weight": {"0": []}}}, "non-empty"),
        ({"kind": "slice", "tensors": {"0.weight": {"0": [True]}}}, "distinct integers"),
        ({"kind": "slice", "tensors": {"0.weight": {"2": [0]}}}, "dimension '2' of '0.weight', which has 2"),
        ({"kind": "slice", "tensors": {"0.weight": {"0": [0]}}, "shapes": {"0.weight": [9, 4]}}, r"shape \(9, 4\)"),
        ({"kind": "slice", "tensors": {}, "attributes": {"0": {"forward": 1}}}, "only sizes"),
        ({"kind": "slice", "tensors": {}, "attributes": {"0": {"in_features": "4"}}}, "only sizes"),
        ({"kind": "identity", "modules": ["layer9"]}, "removes module 'layer9'"),
        ({"kind": "identity", "modules": [""]}, "removes module ''"),
        ({"kind": "layers", "dropped": {"0": [1]}}, "layers of '0', which is no recurrent module of Sequential"),
        ({"kind": "magic"}, "entry 0 .* got 'magic'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing(entry: dict, message: str) -> None:
    """Every entry is checked whole before the first tensor is touched."""
    model = two_layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        apply_plan_(model, [entry])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_tensors_narrowed_in_two_ways_are_refused() -> None:
    """One tensor cannot keep different columns under its two names."""
    entry = {"kind": "slice", "tensors": {"head.weight": {"1": [0]}, "embedding.weight": {"1": [1]}}}
    with pytest.raises(ValueError, match="are one tied tensor"):
        apply_plan_(Tied(), [entry])


def test_slices_are_made_once() -> None:
    """A second model of the same parameters gets what the first got, but for other indices and tensors of its own."""
    model = two_layers()
    twin, other, apart = two_layers(), two_layers(), two_layers()
    for copied in (twin, other):
        for number in (0, 2):
            copied[number].weight, copied[number].bias = model[number].weight, model[number].bias
    wanted = apply_plan_(copy.deepcopy(model), [NARROW])
    slices: Slices = {}
    apply_plan_(twin, [NARROW], slices=slices)
    moved = {**NARROW, "tensors": {**NARROW["tensors"], "0.weight": {"0": [1, 2]}}}
    apply_plan_(other, [moved], slices=slices)
    assert other[0].weight is not twin[0].weight
    assert torch.equal(other[0].weight, model[0].weight[[1, 2]])
    assert other[0].bias is twin[0].bias
    apply_plan_(apart, [NARROW], slices=slices)
    assert apart[0].weight is not twin[0].weight
    apply_plan_(model, [NARROW], slices=slices)
    assert model[0].weight is twin[0].weight
    assert model[2].weight is twin[2].weight
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
