"""Checkpoints are read as they were written, or not at all."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from compressor import load_checkpoint
from compressor.errors import StorageError
from compressor.storage import sha256
from compressor.structure.checkpoint import PLAN_FILE, WEIGHTS_FILE, save_checkpoint
from compressor.structure.plan import apply_plan_
from compressor.tensor_files import tensor_file
from workbench.mutations import damaged, edited

PLAN = [
    {
        "kind": "slice",
        "tensors": {"first.weight": {"0": [0, 2]}, "first.bias": {"0": [0, 2]}, "second.weight": {"1": [0, 2]}},
        "shapes": {"first.weight": [4, 4]},
        "attributes": {"first": {"out_features": 2}, "second": {"in_features": 2}},
        "why": {"group": "first", "kept_scores": [0.5, 0.25]},
    },
    {"kind": "identity", "modules": ["block"]},
]


class Net(nn.Module):
    """Two layers of one shape, a block, a tie, a buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.block = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.left.weight

    def forward(self, x):
        return self.tied(self.block(self.norm(self.right(self.left(self.second(self.first(x)))))))


@pytest.fixture
def saved(tmp_path: Path) -> nn.Module:
    """The model whose checkpoint is in `tmp_path`."""
    model = apply_plan_(Net(), PLAN)
    save_checkpoint(tmp_path, model, PLAN)
    return model


def put(folder: Path, weights: bytes, plan: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / PLAN_FILE).write_bytes(plan)


def rewritten(raw: bytes, change) -> bytes:
    """A safetensors file whose header was put through `change`."""
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def swapped_tensors(header):
    header["left.weight"]["data_offsets"], header["right.weight"]["data_offsets"] = (
        header["right.weight"]["data_offsets"],
        header["left.weight"]["data_offsets"],
    )
    return header


def without_digests(header):
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def refused(folder: Path, factory=Net, **options) -> str:
    with pytest.raises(StorageError) as caught:
        load_checkpoint(folder, factory, **options)
    return str(caught.value)


def test_a_flipped_bit_is_found_in_every_tensor(saved, tmp_path) -> None:
    """One bit of any tensor's values: the file and that tensor are named, and the way out."""
    raw = (tmp_path / WEIGHTS_FILE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        place = 8 + size + entry["data_offsets"][0]
        (tmp_path / WEIGHTS_FILE).write_bytes(raw[:place] + bytes([raw[place] ^ 64]) + raw[place + 1 :])
        message = refused(tmp_path)
        assert f"tensor {name!r} in {tmp_path / WEIGHTS_FILE} is not as it was written" in message
        assert "run again" in message


def test_two_tensors_of_one_shape_swapped_are_found(saved, tmp_path) -> None:
    """A header that is valid in itself, with two names changed over, gives no model, nor advice to take it so."""
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(rewritten(path.read_bytes(), swapped_tensors))
    assert "is not as it was written" in refused(tmp_path)
    assert "verify=False" not in refused(tmp_path)


def test_a_file_without_digests_is_refused_and_read_where_that_is_asked(saved, tmp_path) -> None:
    """What lacks digests is not taken for verified; former versions' files are read with verify=False."""
    path = tmp_path / WEIGHTS_FILE
    tensors = load(path.read_bytes())
    former = {"tied": json.dumps({"tied.weight": "left.weight"}), "plan_sha256": sha256(b"")}
    for content in (rewritten(path.read_bytes(), without_digests), save(tensors, metadata=former)):
        path.write_bytes(content)
        assert "verify=False" in refused(tmp_path)
    loaded = load_checkpoint(tmp_path, Net, verify=False)
    assert loaded.tied.weight is loaded.left.weight
    assert torch.equal(loaded.right.weight, saved.right.weight)
    path.write_bytes(save(tensors, metadata=former | {"tied": '{"tied.weight": 3}'}))
    assert "ties 'tied.weight' to 3" in refused(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ({"tied.weight": "nowhere"}, "ties 'tied.weight' to 'nowhere'"),
        ({"tied.weight": "tied.weight"}, "ties 'tied.weight' to 'tied.weight'"),
        ({"left.weight": "right.weight"}, "ties 'left.weight' to 'right.weight'"),
        ({"tied.weight": ["left.weight"]}, "ties 'tied.weight'"),
        (["tied.weight"], "names by name, got list"),
    ],
)
def test_a_tie_to_what_is_not_there_is_refused(saved, tmp_path, tied, message) -> None:
    """Ties must lead from a name without a tensor to a stored tensor."""
    path = tmp_path / WEIGHTS_FILE
    facts = {"tied": tied, "plan_sha256": sha256((tmp_path / PLAN_FILE).read_bytes())}
    path.write_bytes(tensor_file(load(path.read_bytes()), facts))
    assert message in refused(tmp_path)


@pytest.mark.parametrize("gone", [WEIGHTS_FILE, PLAN_FILE])
def test_a_missing_file_is_named(saved, tmp_path, gone) -> None:
    """Half a checkpoint is a StorageError with the file's name."""
    (tmp_path / gone).unlink()
    assert str(tmp_path / gone) in refused(tmp_path)


@pytest.mark.parametrize(
    "plan",
    [
        "{}",
        "[3]",
        '[{"kind": ["slice"]}]',
        '[{"kind": "identity", "modules": 3}]',
        '[{"kind": "identity", "modules": [3]}]',
        '[{"kind": "layers", "dropped": [1]}]',
        '[{"kind": "slice", "tensors": {"first.weight": [0]}}]',
        '[{"kind": "slice", "tensors": {"first.weight": {"0": {"0": 1}}}}]',
        '[{"kind": "slice", "tensors": {}, "attributes": {"first": 3}}]',
        '[{"kind": "attention", "modules": {"first": 1}}]',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_plan_of_another_form_is_refused(saved, tmp_path, plan) -> None:
    """Whatever stands in plan.json, under matching digests or none, ends in a StorageError that names the file."""
    content = plan.encode(errors="surrogateescape")
    path = tmp_path / WEIGHTS_FILE
    facts = {"tied": {"tied.weight": "left.weight"}, "plan_sha256": sha256(content)}
    put(tmp_path, tensor_file(load(path.read_bytes()), facts), content)
    assert PLAN_FILE in refused(tmp_path)
    assert PLAN_FILE in refused(tmp_path, verify=False)


def test_a_factory_of_something_else_is_refused(saved, tmp_path) -> None:
    """A factory must give a module, and one that holds what the checkpoint holds."""
    assert "model_factory must give a torch.nn.Module, got dict" in refused(tmp_path, dict)
    assert "cannot be applied to Linear" in refused(tmp_path, lambda: nn.Linear(4, 4))


def test_a_buffer_that_shares_a_parameters_memory_keeps_its_values(tmp_path) -> None:
    """A parameter and a buffer in one memory cannot become one: both get the values, each as what it is."""

    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.register_buffer("copy", self.weight.detach())

    model = Shares()
    save_checkpoint(tmp_path, model, [])
    loaded = load_checkpoint(tmp_path, Shares)
    assert torch.equal(loaded.copy, model.weight)
    assert torch.equal(loaded.weight, model.weight)
    assert [name for name, _ in loaded.named_buffers()] == ["copy"]


def test_kinds_of_numbers_survive(tmp_path) -> None:
    """bfloat16, integers, booleans, scalars and empty tensors come back with their bits, into a model of float32."""

    def model() -> nn.Module:
        net = nn.Linear(2, 2)
        net.register_buffer("steps", torch.tensor(7))
        net.register_buffer("mask", torch.tensor([True, False]))
        net.register_buffer("none", torch.empty(0, 3))
        return net

    half = model().to(torch.bfloat16)
    save_checkpoint(tmp_path, half, [])
    loaded = load_checkpoint(tmp_path, model)
    assert loaded.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, half.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_equal_models_give_equal_files(tmp_path) -> None:
    """The library's maps have another order every time: it does not show in the bytes."""
    contents = set()
    for _ in range(10):
        torch.manual_seed(0)
        save_checkpoint(tmp_path, apply_plan_(Net(), PLAN), PLAN)
        contents.add((tmp_path / WEIGHTS_FILE).read_bytes() + (tmp_path / PLAN_FILE).read_bytes())
    assert len(contents) == 1


def mutated(weights: bytes, plan: bytes, chance: random.Random) -> tuple[bytes, bytes]:
    """The two files with one fault, in bytes or in what they say; some carry digests made anew for it."""
    kind = chance.choice(("weights", "weights", "plan", "header", "values", "said", "forged plan", "forged facts"))
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    with_facts = json.loads(header["__metadata__"]["compressor"])
    tensors, facts = load(weights), with_facts["facts"]
    said = json.loads(plan)
    if kind == "weights":
        return damaged(weights, chance), plan
    if kind == "plan":
        return weights, damaged(plan, chance)
    if kind == "header":
        return rewritten(weights, lambda header: edited(header, chance)), plan
    if kind == "values":
        one, two = chance.sample([name for name, value in tensors.items() if value.shape == (4, 4)], 2)
        if chance.random() < 0.5:
            tensors[one], tensors[two] = tensors[two], tensors[one]
        else:
            tensors[one] = tensors[one].flip(chance.randrange(2))
        metadata = {"compressor": json.dumps(with_facts)}
        return save(tensors, metadata=metadata), plan
    if kind == "said":
        return weights, json.dumps(edited(said, chance)).encode()
    if kind == "forged plan":
        content = json.dumps(edited(said, chance)).encode()
        return tensor_file(tensors, facts | {"plan_sha256": sha256(content)}), content
    return tensor_file(tensors, edited(facts, chance)), plan


def check_mutations(folder: Path, model: nn.Module, seeds: range) -> None:
    """Each mutated checkpoint is refused with a StorageError, or gives the weights that were saved."""
    weights, plan = (folder / WEIGHTS_FILE).read_bytes(), (folder / PLAN_FILE).read_bytes()
    wanted = model.state_dict()
    fresh = Net()
    messages = []
    for seed in seeds:
        put(folder, *mutated(weights, plan, random.Random(seed)))  # noqa: S311 - damage, no secrets
        try:
            loaded = load_checkpoint(folder, lambda: copy.deepcopy(fresh))
        except StorageError as error:
            messages.append(str(error))
            continue
        state = loaded.state_dict()
        assert state.keys() == wanted.keys(), f"seed {seed}"
        assert all(torch.equal(value, wanted[name]) for name, value in state.items()), f"seed {seed}"
    # Some edits leave everything as it was, or say the same in other words.
    assert len(messages) > 0.75 * len(seeds)
    assert all(str(folder) in message for message in messages)


def test_mutated_checkpoints_are_refused_or_unchanged(saved, tmp_path) -> None:
    """A sample of those of `make test-mutations`."""
    check_mutations(tmp_path, saved, range(150))


@pytest.mark.mutations
def test_all_mutated_checkpoints_are_refused_or_unchanged(saved, tmp_path, told_damage) -> None:
    """No mutation silently gives other weights, and none ends in an error of another type."""
    told_damage("checkpoint", 2500)
    check_mutations(tmp_path, saved, range(2500))
