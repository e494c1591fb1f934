"""Randomly pivoted Cholesky in blocks."""

import pytest
import torch
from attention_inputs import clustered_rows, draw
from torch import Generator

from skyformer.study.pivots import factor_rows, pivoted_rows


def kernel_of(x):
    return torch.exp(-torch.cdist(x, x).square() / 2)


def draw_pivots(rows, count, seed=0, blocks=4):
    return pivoted_rows(rows, torch.rand(len(rows), generator=Generator().manual_seed(seed)), count, blocks)


def test_residual_is_what_the_pivots_leave_unexplained():
    rows, factor = draw(40, 4), torch.zeros(0, 40, dtype=torch.float64)
    pivots = torch.randperm(40, generator=Generator().manual_seed(0))[:12]
    for block in pivots.split(4):
        factor = torch.cat([factor, factor_rows(rows, factor, block)])
    kernel = kernel_of(rows)
    residual = (kernel - kernel[:, pivots] @ torch.linalg.solve(kernel[pivots][:, pivots], kernel[pivots])).diagonal()
    torch.testing.assert_close(1 - factor.square().sum(dim=0), residual, rtol=0, atol=1e-6)


def test_chances_are_those_of_the_residuals():
    rows, count = torch.tensor([[0.0], [0.3], [1.0], [4.0]], dtype=torch.float64), 1000
    noise = torch.rand((count, 4), generator=Generator().manual_seed(0))
    first, second = torch.stack([pivoted_rows(rows, numbers, 2) for numbers in noise]).unbind(dim=1)
    kernel = kernel_of(rows)
    torch.testing.assert_close(first.bincount() / count, torch.full((4,), 0.25), rtol=0, atol=0.04)
    for number in range(4):
        residual = 1 - kernel[number].square()
        found = second[first == number].bincount(minlength=4).double()
        torch.testing.assert_close(found / found.sum(), residual / residual.sum(), rtol=0, atol=0.08)


def test_one_block_is_the_uniform_draw():
    noise = torch.rand(30, generator=Generator().manual_seed(0))
    assert pivoted_rows(draw(30, 4), noise, 7, blocks=1).equal(noise.topk(7).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "coinciding", "far apart"])
def test_rows_are_distinct_and_repeat_themselves(kind, dtype):
    rows = {"random": draw(30, 4), "coinciding": clustered_rows(30, 4, 0, spread=0.0), "far apart": 1e3 * draw(30, 4)}
    first, again, other = (draw_pivots(rows[kind].to(dtype), 21, seed) for seed in (1, 1, 2))
    assert len(first.unique()) == 21
    assert first.equal(again)
    assert not first.equal(other)


def test_rows_unlike_those_chosen_are_preferred():
    """Four clusters of equal rows: after a block, a cluster that is chosen has next to no chance."""
    rows = clustered_rows(40, 4, 0, spread=0.0)
    for seed in range(20):
        assert sorted((draw_pivots(rows, 4, seed) % 4).tolist()) == [0, 1, 2, 3]
