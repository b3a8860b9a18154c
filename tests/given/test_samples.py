"""Sets of samples as people have them: lists, tables, labels of few bits."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from compressor import Workload
from compressor.errors import WorkloadError
from compressor.given.samples import samples_of

X, Y = torch.randn(6, 3), torch.arange(6) % 2


class Table:
    """What a table of pandas offers."""

    def to_numpy(self):
        return X.double().numpy()


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        (X.numpy(), Y.numpy().astype(np.int32)),
        (X.numpy(), Y.numpy().astype(np.int8)),
        (X.tolist(), Y.tolist()),
        (list(X), list(Y)),
        (list(X.numpy()), Y == 1),
        (Table(), Y),
        TensorDataset(X, Y),
    ],
)
def test_all_become_the_same_pair(given) -> None:
    """Inputs (6, 3), and labels in int64."""
    inputs, targets = samples_of("train", given)
    assert torch.allclose(inputs.float(), X)
    assert torch.equal(targets, Y)
    assert targets.dtype == torch.int64


def test_several_inputs_stay_several() -> None:
    """A tuple, a list or a dict of arrays with all samples each; marks of several labels stay what they are."""
    for inputs in ((X, X[:, :1]), [X, X[:, :1]]):
        first, second = samples_of("train", (inputs, Y))[0]
        assert (first.shape, second.shape) == ((6, 3), (6, 1))
    named, marks = samples_of("train", ({"a": X, "b": X.numpy()}, torch.ones(6, 2, dtype=torch.bool)))
    assert list(named) == ["a", "b"]
    assert marks.dtype == torch.bool


def test_images_of_several_sizes_are_refused() -> None:
    """They are no one array."""
    with pytest.raises(WorkloadError, match=r"rows of one length.*pad them"):
        samples_of("train", ([torch.ones(2, 3), torch.ones(4, 3), torch.ones(5, 3)], [0, 1, 0]))


class Marked(torch.Tensor):
    """What datasets of other packages give."""


def test_subclasses_of_tensors_are_tensors() -> None:
    """As samples and as example: what reaches the model are plain tensors of the same values."""
    inputs = torch.randn(40, 6)
    data = (inputs.as_subclass(Marked), torch.arange(40) % 2)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    workload = Workload.from_datasets(model, train=data, test=data)
    batch = next(iter(workload.test))
    assert [type(tensor) for tensor in (workload.example_inputs[0], batch[0])] == [torch.Tensor] * 2
    assert torch.equal(batch[0], inputs[: len(batch[0])])
