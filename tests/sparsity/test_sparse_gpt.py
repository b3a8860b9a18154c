"""SparseGPT beside the plain form of its formulas, with an inverse for every column."""

import math

import pytest
import torch

from compressor.sparsity.sparse_gpt import SparseGPT, sparse_gpt


def by_inverses(rows, hessian, *, sparsity, stretch, by_row):
    """Algorithm 1 without Cholesky factors or lazy updates: H of the columns left is inverted at each of them."""
    rows, inputs = rows.clone(), rows.shape[1]
    inverse = [torch.linalg.inv(hessian[column:, column:]) for column in range(inputs)]
    gone = torch.zeros_like(rows, dtype=torch.bool)
    for column in range(inputs):
        if column % stretch == 0:
            ahead = range(column, min(column + stretch, inputs))
            loss = torch.stack([rows[:, other] ** 2 / inverse[other][0, 0] for other in ahead], dim=1)
            lines = loss if by_row else loss.reshape(1, -1)
            chosen = torch.zeros_like(lines, dtype=torch.bool)
            for line, row in enumerate(lines):
                chosen[line, row.argsort(stable=True)[: round(sparsity * len(row))]] = True
            gone[:, column : column + len(ahead)] = chosen.reshape(loss.shape)
        for row in range(len(rows)):
            if gone[row, column]:
                rows[row, column:] -= rows[row, column] / inverse[column][0, 0] * inverse[column][0]
                rows[row, column] = 0.0
    return rows


def layer(outputs: int = 5, inputs: int = 12, largest: float = 1.0):
    """Rows, inputs that hang together, the last of them `largest` times the first, and their second moments."""
    rows = torch.randn(outputs, inputs, dtype=torch.float64)
    x = torch.randn(inputs, inputs, dtype=torch.float64) @ torch.randn(inputs, 200, dtype=torch.float64)
    x *= torch.logspace(0, math.log10(largest), inputs, dtype=torch.float64)[:, None]
    return rows, x, x @ x.T


@pytest.mark.parametrize(("of", "columns"), [(None, 4), (None, 5), (None, 128), (4, 4), (4, 128), (3, 7)])
def test_it_computes_what_the_plain_form_computes(of, columns: int) -> None:
    """Zeros chosen for a few columns at a time, or in every four or three: the rows agree to float64's precision."""
    rows, _, hessian = layer()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    ours = sparse_gpt(rows, hessian, sparsity=0.5, of=of, damping=0.01, columns=columns)
    theirs = by_inverses(rows, damped, sparsity=0.5, stretch=columns if of is None else of, by_row=of is not None)
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert int((ours == 0).sum()) == int((theirs == 0).sum())


def test_outputs_stay_nearer_than_without_making_up() -> None:
    """Half of the weights gone, the squared error of the outputs is below that of the same zeros, and of magnitude."""
    rows, x, hessian = layer(20, 32, largest=30.0)
    ours = sparse_gpt(rows, hessian, sparsity=0.5)
    plain = rows.masked_fill(ours == 0, 0.0)
    smallest = rows.masked_fill(rows.abs() < rows.abs().median(), 0.0)
    error, same_zeros, magnitude = (((w - rows) @ x).square().sum() for w in (ours, plain, smallest))
    assert error < 0.9 * same_zeros
    assert error < 0.9 * magnitude


def test_every_four_keep_two() -> None:
    """2:4 holds in every row."""
    rows, _, hessian = layer(6, 16)
    sparse = sparse_gpt(rows, hessian, sparsity=0.5, of=4)
    assert ((sparse.reshape(6, 4, 4) == 0).sum(dim=2) == 2).all()


def test_zeros_stay_zero() -> None:
    """What a step before made zero takes no share of what is made up for."""
    rows, _, hessian = layer()
    once = sparse_gpt(rows, hessian, sparsity=0.25)
    twice = sparse_gpt(once, hessian, sparsity=0.5)
    assert (twice[once == 0] == 0).all()
    assert float((twice == 0).float().mean()) >= 0.5


def test_inputs_that_are_always_zero_lose_their_weights_first() -> None:
    """A dead input costs nothing, and no singular matrix stops the rest."""
    rows, _, hessian = layer(4, 6)
    hessian[2], hessian[:, 2] = 0.0, 0.0
    sparse = sparse_gpt(rows, hessian, sparsity=1 / 6)
    assert (sparse[:, 2] == 0).all()
    assert torch.equal(sparse[:, [0, 1, 3, 4, 5]], rows[:, [0, 1, 3, 4, 5]])


@pytest.mark.parametrize(("settings", "message"), [({"batches": 0}, "batches"), ({"damping": -1}, "damping")])
def test_wrong_settings_are_refused(settings, message: str) -> None:
    """Each is refused by its name."""
    with pytest.raises(ValueError, match=message):
        SparseGPT(**settings)
