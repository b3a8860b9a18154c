"""Rounded weights looked at again: what the sweeps find, what they leave alone, and that they cannot lose."""

from itertools import product

import pytest
import torch
from torch import Tensor

from compressor.quantization.accuracy.coordinate_descent import Rows
from compressor.quantization.accuracy.gptq import rounded_columns, rows_of

BOUNDS = (-8, 7)


def _problem(seed: int, *, outputs: int = 6, inputs: int = 24) -> Rows:
    """Rows and H of inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, outputs, inputs, generator=generator, dtype=torch.float64)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(inputs, 200, generator=generator, dtype=torch.float64)
    return _rows(rows, (x @ x.mT)[None])


def _rows(aim: Tensor, hessian: Tensor) -> Rows:
    return Rows(aim=aim, hessian=hessian, zero_point=torch.zeros_like(aim), still=aim == 0, bounds=BOUNDS)


def test_no_single_integer_is_better_after_the_sweeps() -> None:
    """By trying each of the sixteen in the place of each weight; what GPTQ leaves has some that are."""
    problem = _problem(0)
    scale = torch.full_like(problem.aim, 0.3)
    start = rounded_columns(problem, scale)
    found, same_scale = problem.descended(start, scale, sweeps=20, scaled=False)
    assert torch.equal(same_scale, scale)
    assert BOUNDS[0] <= found.min() <= found.max() <= BOUNDS[1]

    def better(integers: Tensor) -> int:
        least, count = problem.errors(integers, scale), 0
        for column, integer in product(range(problem.aim.shape[-1]), range(BOUNDS[0], BOUNDS[1] + 1)):
            other = integers.clone()
            other[..., column] = integer
            count += int((problem.errors(other, scale) < least * (1 - 1e-9)).sum())
        return count

    assert better(start) > 0
    assert better(found) == 0


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("inputs", [24, 300])
def test_no_sweep_loses(inputs: int, scaled: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Row by row, within a block of columns and across them."""
    problem = _problem(1, inputs=inputs)
    scale = torch.full_like(problem.aim, 0.4)
    integers = (problem.aim / scale).round().clamp(*BOUNDS)
    errors = [problem.errors(integers, scale)]
    for _ in range(4):
        integers, scale = problem.descended(integers, scale, sweeps=1, scaled=scaled)
        errors.append(problem.errors(integers, scale))
        assert (errors[-1] <= errors[-2] * (1 + 1e-9)).all()
    assert errors[-1].sum() < 0.8 * errors[0].sum()


def test_scales_are_those_of_least_squares() -> None:
    """A row whose integers are right takes the scale that they are right on."""
    aim = torch.tensor([[[2.0, -4.0, 6.0]]], dtype=torch.float64)
    problem, integers = _rows(aim, torch.eye(3).double()[None]), torch.tensor([[[1.0, -2.0, 3.0]]]).double()
    found, scale = problem.descended(integers, torch.full_like(aim, 1.9), sweeps=1, scaled=True)
    assert torch.equal(found, integers)
    assert scale.flatten().tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_rows_of_zeros_keep_their_scale() -> None:
    problem = _rows(torch.zeros(1, 2, 3).double(), torch.eye(3).double()[None])
    found, scale = problem.descended(problem.aim, torch.ones_like(problem.aim), sweeps=2, scaled=True)
    assert not found.any()
    assert (scale == 1).all()


def test_weights_of_zero_stay() -> None:
    """Inputs that changed want other weights than the float ones, of those that are zero as well."""
    rows = _problem(2).aim
    rows[..., ::3] = 0.0
    hessian, zero = _problem(2).hessian, torch.zeros_like(rows)
    problem = rows_of(rows, zero, hessian, 0.3 * hessian + 1, bounds=BOUNDS, damping=0.01)
    assert (problem.aim[..., ::3] != 0).all()
    scale = torch.full_like(rows, 0.5)
    found, _ = problem.descended(zero, scale, sweeps=5, scaled=True)
    assert not found[..., ::3].any()
    assert found[..., 1::3].any()
