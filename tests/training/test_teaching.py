"""What a teacher remembers: the answers alone, in main memory, and no more than a share of what is free."""

import pytest
import torch
from torch import Tensor, nn

from compressor.batches import Batches
from compressor.training import remembered
from compressor.training.passes.losses import Position
from compressor.training.precision import Float32
from compressor.training.teaching import Teacher
from workbench.same_data import same_data


class Cut(nn.Module):
    """The first of many tokens is the answer: a view of something a hundred times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, 0]


class Reusing(nn.Module):
    """Every call writes into the same output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("output", torch.zeros(8, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.copy_(self.layer(x[:, 0]))


class Same(nn.Module):
    """All rows of the answer are one, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:1, 0]).expand(len(x), 3)


GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(8, 100, 4, generator=GENERATOR), torch.arange(8) % 3) for _ in range(4)]


def teacher_of(model: nn.Module) -> Teacher:
    workload = same_data(model.eval(), Batches(BATCHES[0], batch_size=8), BATCHES[0][0])
    return Teacher(model, workload, Float32(), seed=0, remember=True)


def ask(teacher: Teacher) -> list[Tensor]:
    return [
        teacher.outputs(inputs, targets, Position(view=0, batch=number)).clone()
        for number, (inputs, targets) in enumerate(BATCHES)
    ]


@pytest.mark.parametrize("build", [Cut, Reusing, Same])
def test_answers_are_kept_by_themselves(build) -> None:
    """Views do not keep what they are cut from, written-over outputs stay what they were, and all is counted."""
    torch.manual_seed(0)
    teacher = teacher_of(build())
    first, second = ask(teacher), ask(teacher)
    assert teacher.recalled == 4
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    kept = [teacher.remembered.recall(Position(view=0, batch=number)) for number in range(4)]
    storages = [tensor.untyped_storage() for tensors in kept for tensor in tensors or ()]
    assert len({storage.data_ptr() for storage in storages}) == 4
    assert sum(storage.nbytes() for storage in storages) == teacher.remembered.memory_bytes == 4 * 8 * 3 * 4
    assert all(storage.device.type == "cpu" for storage in storages)


def test_shares_of_memory_and_disk_are_taken_and_the_rest_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 800 bytes holds two answers of 96, a quarter of 400 one; the last is computed again, to its bits."""
    torch.manual_seed(0)
    teacher = teacher_of(Cut())
    kept = teacher.remembered
    monkeypatch.setattr(remembered, "free_memory_bytes", lambda: 800 - kept.memory_bytes)
    monkeypatch.setattr(remembered, "free_disk_bytes", lambda _: 400 - kept.disk_bytes)
    monkeypatch.setattr(kept, "_disk", True)  # wherever this test runs
    first, second = ask(teacher), ask(teacher)
    assert (teacher.recalled, teacher.computed, kept.memory_bytes, kept.disk_bytes) == (3, 5, 192, 96)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert teacher.summary() == "3 of 8 batches answered from 192 bytes of memory and 96 of a temporary file"
