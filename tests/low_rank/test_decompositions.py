"""Decompositions against hand-made numbers, and against numpy's own singular values on unfoldings made by loops."""

import numpy as np
import pytest
import torch
from torch import nn

from compressor.low_rank.decompositions import Whitening, decomposed
from compressor.structure.factored.chains import CP, SPATIAL, SVD, TUCKER, chain_of, full_ranks, ways


def kernel_of(chain, shape):
    """The weight (outputs, inputs, height, width) that a chain of convolutions applies: its answer to single pixels."""
    _, inputs, height, width = shape
    kernel = torch.zeros(shape, dtype=torch.float64)
    for channel in range(inputs):
        x = torch.zeros(1, inputs, 2 * height - 1, 2 * width - 1, dtype=torch.float64)
        x[0, channel, height - 1, width - 1] = 1
        kernel[:, channel] = chain(x)[0].flip(1, 2).detach()
    return kernel


def chain_at(weight, by, ranks, whitening=None):
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), bias=False, dtype=torch.float64)
    return chain_of(layer, by, decomposed(weight, by, whitening).values(ranks))


def test_two_singular_values_by_hand():
    """diag(3, 1) at rank 1 is diag(3, 0), and a tenth of the squares is lost."""
    taken = decomposed(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), SVD)
    first, second = taken.values([1])
    torch.testing.assert_close(second @ first, torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    # Both halves are of one size.
    assert first.norm() == pytest.approx(second.norm()) == pytest.approx(3**0.5)
    assert taken.error([1]) == pytest.approx(0.1)
    assert taken.error([2]) == 0


def test_a_separable_kernel_has_spatial_rank_one():
    """The outer product of a column and a row comes back exactly; as channels it is of rank one, too."""
    column, row = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    weight = torch.outer(column, row)[None, None]
    taken = decomposed(weight, SPATIAL)
    assert taken.error([1]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(kernel_of(chain_at(weight, SPATIAL, [1]), weight.shape), weight.double())


def test_truncated_products_against_numpy():
    """The kernels of svd and spatial chains are numpy's truncated products of unfoldings that loops wrote."""
    weight = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    outputs, inputs, height, width = weight.shape
    unfolded = {
        SVD: (lambda o, i, y, x: (o, (i * height + y) * width + x), (outputs, inputs * height * width)),
        SPATIAL: (lambda o, i, y, x: (i * height + y, o * width + x), (inputs * height, outputs * width)),
    }
    for by, (place, size) in unfolded.items():
        matrix = np.zeros(size)
        for at in np.ndindex(*weight.shape):
            matrix[place(*at)] = weight[at]
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        for rank in (1, 3, len(s)):
            product = (u[:, :rank] * s[:rank]) @ v[:rank]
            wanted = torch.tensor([product[place(*at)] for at in np.ndindex(*weight.shape)]).reshape(weight.shape)
            torch.testing.assert_close(kernel_of(chain_at(weight, by, [rank]), weight.shape), wanted)
            lost = (s[rank:] ** 2).sum() / (s**2).sum()
            assert decomposed(weight, by).error([rank]) == pytest.approx(lost, abs=1e-12)


def hooi(weight, made, taken, sweeps):
    """Tucker-2 by numpy: singular vectors of unfoldings, each side anew with the other fixed."""
    w = weight.numpy().reshape(*weight.shape[:2], -1)

    def axes(tensor, mode, rank):
        unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        return np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]

    left, right = axes(w, 0, made), axes(w, 1, taken)
    for _ in range(sweeps):
        left = axes(np.tensordot(w, right, (1, 0)).transpose(0, 2, 1), 0, made)
        right = axes(np.tensordot(w, left, (0, 0)).transpose(2, 0, 1), 1, taken)
    core = np.einsum("oip,or,is->rsp", w, left, right)
    return torch.tensor(np.einsum("rsp,or,is->oip", core, left, right).reshape(weight.shape))


@pytest.mark.parametrize("ranks", [(1, 1), (3, 2), (6, 1), (6, 4)])
def test_tucker_against_numpy(ranks):
    """The kernel of the chain is that of orthogonal iteration written with numpy, and loses no more than it says."""
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    got = kernel_of(chain_at(weight, TUCKER, ranks), weight.shape)
    torch.testing.assert_close(got, hooi(weight, *ranks, sweeps=5))
    lost = float((got - weight).square().sum() / weight.square().sum())
    started = hooi(weight, *ranks, sweeps=0)
    said = decomposed(weight, TUCKER).error(ranks)
    assert said == pytest.approx(float((started - weight).square().sum() / weight.square().sum()), abs=1e-12)
    assert lost <= said + 1e-12


def test_a_sum_of_outer_products_comes_back():
    """Three terms drawn at random are unique up to their order (Kruskal 1977): CP at rank 3 finds them again."""
    generator = torch.Generator().manual_seed(1)
    made, taken, moved = (torch.randn(side, 3, generator=generator, dtype=torch.float64) for side in (6, 5, 9))
    weight = torch.einsum("or,ir,pr->oip", made, taken, moved).reshape(6, 5, 3, 3)
    decomposition = decomposed(weight, CP)
    assert decomposition.error([3]) < 1e-6
    torch.testing.assert_close(kernel_of(chain_at(weight, CP, [3]), weight.shape), weight, atol=1e-2, rtol=1e-2)
    first, kernels, last = (value.flatten(1) for value in decomposition.values([3]))
    sizes = torch.stack([first.norm(dim=1), kernels.norm(dim=1), last.norm(dim=0)])
    torch.testing.assert_close(sizes, sizes.mean(dim=0).expand(3, -1))
    # Of two terms there are less than three hold.
    assert decomposition.error([2]) > 0.01


def test_one_term_is_the_best_one_by_power_iteration():
    """At rank 1 numpy's power iteration on one term in noise ends in the same product; the error is what it says."""
    generator = torch.Generator().manual_seed(2)
    o, i, p = (torch.randn(side, generator=generator, dtype=torch.float64) for side in (6, 4, 9))
    noise = 0.1 * torch.randn(6, 4, 9, generator=generator, dtype=torch.float64)
    weight = (torch.einsum("o,i,p->oip", o, i, p) + noise).reshape(6, 4, 3, 3)
    w, o, i, p = weight.flatten(2).numpy(), o.numpy(), i.numpy(), p.numpy()
    for _ in range(200):
        o = np.einsum("oip,i,p->o", w, i, p) / ((i @ i) * (p @ p))
        i = np.einsum("oip,o,p->i", w, o, p) / ((o @ o) * (p @ p))
        p = np.einsum("oip,o,i->p", w, o, i) / ((o @ o) * (i @ i))
    wanted = torch.tensor(np.einsum("o,i,p->oip", o, i, p)).reshape(weight.shape)
    got = kernel_of(chain_at(weight, CP, [1]), weight.shape)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
    lost = float((got - weight).square().sum() / weight.square().sum())
    assert decomposed(weight, CP).error([1]) == pytest.approx(lost, rel=1e-4)


def test_outer_products_near_the_outputs_lose_less_of_them():
    """With inputs of very unequal size the whitened terms have the outputs nearer than those of the weight alone."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 6, 3, 3, generator=generator, dtype=torch.float64)
    scales = torch.tensor([10.0, 5.0, 1.0, 0.5, 0.1, 0.05], dtype=torch.float64)
    moments = torch.diag(scales.square())

    def lost(kernel):
        return float(torch.einsum("oiyx,i->oiyx", kernel - weight, scales).square().sum())

    plain = kernel_of(chain_at(weight, CP, [6]), weight.shape)
    white = kernel_of(chain_at(weight, CP, [6], Whitening.of(moments)), weight.shape)
    assert lost(white) < 0.7 * lost(plain)


def test_a_weight_of_zeros_stays_one():
    assert decomposed(torch.zeros(4, 4, 3, 3), CP).error([2]) == 0
    assert all(torch.isfinite(value).all() for value in decomposed(torch.zeros(4, 4, 3, 3), CP).values([2]))


@pytest.mark.parametrize("by", ways((6, 4, 3, 3)))
@pytest.mark.parametrize("white", [False, True])
def test_at_full_ranks_nothing_is_lost(by, white):
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    x = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([0.01, 1.0, 5.0, 0.0])
    whitening = Whitening.of(x.t() @ x) if white else None
    ranks = full_ranks(weight.shape, by)
    assert decomposed(weight, by, whitening).error(ranks) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(
        kernel_of(chain_at(weight, by, ranks, whitening), weight.shape), weight, atol=1e-5, rtol=1e-5
    )


def test_whitened_values_lose_least_of_the_outputs():
    """Of all products of rank 2 the whitened one has the outputs nearest: numpy projects them onto their own axes."""
    weight = torch.randn(7, 5, dtype=torch.float64)
    x = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    outputs = x @ weight.t()
    u, s, v = np.linalg.svd(outputs.numpy(), full_matrices=False)
    nearest = torch.tensor((u[:, :2] * s[:2]) @ v[:2])
    taken = decomposed(weight, SVD, Whitening.of(x.t() @ x, ridge=0.0))
    first, second = taken.values([2])
    torch.testing.assert_close(x @ first.t() @ second.t(), nearest, atol=1e-8, rtol=1e-8)
    assert taken.error([2]) == pytest.approx(float((s[2:] ** 2).sum() / (s**2).sum()))
    plain_first, plain_second = decomposed(weight, SVD).values([2])
    assert (x @ plain_first.t() @ plain_second.t() - outputs).norm() > (nearest - outputs).norm()


def test_a_channel_that_is_always_zero_does_not_break_the_whitening():
    """Moments of rank one are made definite; the values stay finite, and all-zero moments give no whitening."""
    x = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    whitening = Whitening.of(x.t() @ x)
    first, second = decomposed(torch.randn(4, 3), SVD, whitening).values([3])
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()
    assert Whitening.of(torch.zeros(3, 3)) is None
    assert Whitening.of(torch.full((3, 3), torch.nan)) is None
