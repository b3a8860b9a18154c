"""Models that draw random numbers are compared under one seed."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.calling.draws import EvenDraws, seeded
from compressor.structure.graph import trace_structure
from workbench.halving import free, locks


class Drawing(nn.Module):
    """An autoencoder with a chance of some kind in the middle, in eval mode too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.enter, self.mean, self.spread = nn.Linear(20, 24), nn.Linear(24, 8), nn.Linear(24, 8)
        self.leave, self.out = nn.Linear(8, 24), nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x))
        mean, spread = self.mean(h), torch.exp(0.5 * self.spread(h))
        z = {
            "randn_like": lambda: mean + torch.randn_like(mean) * spread,
            "normal": lambda: torch.normal(mean, spread),
            "rsample": lambda: torch.distributions.Normal(mean, spread, validate_args=False).rsample(),
            "in place": lambda: mean + torch.empty_like(mean).normal_() * spread,
            "dropout": lambda: F.dropout(mean, 0.4, training=True) * spread,
            "feature dropout": lambda: F.dropout1d(mean[..., None], 0.4, training=True)[..., 0] * spread,
            "bernoulli": lambda: mean * torch.bernoulli(torch.sigmoid(spread)),
            "gumbel": lambda: mean - torch.empty_like(mean).exponential_().log() * spread,
            "rrelu": lambda: F.rrelu(mean, 0.1, 0.4, training=True) * spread,
            "by sample": lambda: mean + spread * torch.randn(len(mean), 1),
            "python": lambda: mean + spread * random.random(),  # noqa: S311 - as models draw
            "numpy": lambda: mean + spread * float(np.random.rand()),  # noqa: NPY002 - as models draw
            "permuted": lambda: (mean + spread)[torch.randperm(len(mean))],
        }[self.how]()
        return self.out(F.relu(self.leave(z)))


KINDS = (
    "randn_like, normal, rsample, in place, dropout, feature dropout, bernoulli, gumbel, rrelu, by sample, python,"
    " numpy, permuted"
)


@pytest.mark.parametrize("how", KINDS.split(", "))
def test_chance_in_the_forward_pass_locks_nothing(how: str) -> None:
    """Draws of every kind, by torch, Python and numpy: all inner widths go, those that are drawn for too."""
    graph = trace_structure(Drawing(how).eval(), torch.randn(2, 20))
    assert set(free(graph)) == {"enter", "mean", "leave"}


def test_noise_of_a_fixed_width_locks_with_the_true_reason() -> None:
    """A draw whose size is written down cannot follow, and a draw that is counted out does not."""

    class Fixed(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.enter(x))
            mean = self.mean(h) + self.spread(h)
            return self.out(F.relu(self.leave(mean + torch.randn(len(x), 8))))

    reasons = locks(trace_structure(Fixed("").eval(), torch.randn(2, 20)))
    assert "drawn in forward" in reasons["mean"]
    assert "enter" not in reasons


def test_a_wrong_cut_is_found_beside_chance() -> None:
    """Features weighed by position are refused though every call draws numbers."""

    class Weighed(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.enter(x))
            mean = self.mean(h) + self.spread(h)
            return self.out(F.relu(self.leave(mean * (mean.shape[1] / 8) + torch.randn_like(mean))))

    reasons = locks(trace_structure(Weighed("").eval(), torch.randn(2, 20)))
    assert "computes something else" in reasons["mean"]


def test_a_seed_is_set_for_a_while() -> None:
    """All three generators give the same under it, and go on afterwards as if nothing had been."""

    def numbers() -> tuple[float, ...]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002, S311 - under test

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - under test
    wanted = numbers()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002 - under test
    with seeded() as first:
        one = numbers()
    with seeded() as second:
        two = numbers()
    with seeded() as third:
        torch.ones(2).sum()
    assert one == two
    assert (first.any, second.any, third.any) == (True, True, False)
    assert numbers() == wanted


def test_even_draws_do_not_depend_on_shapes() -> None:
    """One number for all elements, the same for the same call, another for the next."""
    drawn = []
    for size in (3, 40):
        with EvenDraws():
            drawn.append(
                [torch.randn(size), torch.rand(2, size), torch.empty(size).exponential_(), torch.randint(9, (size,))]
            )
    for few, many in zip(*drawn, strict=True):
        assert len(few.unique()) == len(many.unique()) == 1
        assert few.flatten()[0] == many.flatten()[0]
    assert drawn[0][0][0] != drawn[0][1][0, 0]
