"""Embeddings with max_norm: a user's weights stay as they are, and the file shortens the rows that the model does."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.files.export import export_onnx
from compressor.metrics import Metric
from compressor.running.preflight import check_workload
from compressor.runtime import open_session
from compressor.structure.preparing.bounded_rows import bound_rows_
from compressor.workload import Workload

ROWS, READ = 20, 10


class Words(nn.Module):
    """Rows of a table of embeddings, longer than their limit of 1 at first, and a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.table: nn.Module = nn.Embedding(ROWS, 6, max_norm=1.0)
        if kind == "bag":
            self.table = nn.EmbeddingBag(ROWS, 6, max_norm=1.0, norm_type=1.0, mode="sum")
        if kind == "function":
            self.table = nn.Embedding(ROWS, 6)
        nn.init.normal_(self.table.weight, std=3.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "function":
            return self.head(F.embedding(x, self.table.weight, max_norm=1.0).sum(1))
        rows = self.table(x)
        return self.head(rows if self.kind == "bag" else rows.sum(1))


class Clamped(nn.Module):
    """Keeps its weights within limits whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.weight.clamp_(-0.1, 0.1)
        return self.head(x.float())


def workload(model: nn.Module) -> Workload:
    """Texts of four words, of which the data hold the first READ alone."""

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.randint(0, READ, (size, 4)), torch.arange(size) % 3

    return Workload(
        name="words",
        model=model.eval(),
        example_inputs=torch.randint(0, READ, (2, 4)),
        train=[batch(6)],
        calibration=[batch(6)],
        validation=[batch(6)],
        test=[batch(6)],
        loss=F.cross_entropy,
        metric=Metric.accuracy(),
    )


@pytest.mark.parametrize("model", [Words("embedding"), Words("bag"), Words("function"), Clamped()], ids=str)
def test_checks_and_export_leave_the_weights_of_a_user_alone(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    job = workload(model)

    check_workload(job)
    export_onnx(model, job)

    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not model.training


@pytest.mark.parametrize("kind", ["embedding", "bag", "function"])
def test_the_file_shortens_rows_that_no_data_read(kind: str) -> None:
    model = Words(kind).eval()
    file = export_onnx(model, workload(model)).onnx_bytes
    session = open_session(file)
    unread = torch.arange(READ, ROWS).reshape(2, -1)[:, :4]

    (found,) = session.run(None, {session.get_inputs()[0].name: unread.numpy()})

    if kind != "function":  # whose rows are shortened at every call
        assert b"ScatterND" not in file
    # Called last: it writes into its weights.
    np.testing.assert_allclose(found, model(unread).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_rows_are_bounded_in_their_own_norm() -> None:
    table = nn.EmbeddingBag.from_pretrained(torch.tensor([[3.0, 4.0], [0.5, 0.25]]), max_norm=1.0, norm_type=1.0)

    bound_rows_(table)

    # |3| + |4| = 7 is cut to 1; torch divides by the norm + 1e-7. The second row is short enough.
    expected: Any = torch.tensor([[3 / 7, 4 / 7], [0.5, 0.25]])
    torch.testing.assert_close(table.weight, expected)
    assert table.max_norm is None
