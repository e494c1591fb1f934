"""Dropout's rate, scale, gradient and randomness."""

import pytest
import torch

from skyformer.ops.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rate_and_scale(p, dtype):
    out = dropout(torch.ones(1000, 401, dtype=dtype), p)
    kept = out != 0
    assert out.dtype == dtype
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / out.numel()) ** 0.5)
    assert out[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3 if dtype != torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("distance", range(1, 5))
def test_neighbours_are_dropped_independently(distance):
    """Four entries share one draw of the generator."""
    kept = (dropout(torch.ones(1 << 20), 0.3) != 0).double()
    both = (kept[:-distance] * kept[distance:]).mean().item()
    assert both == pytest.approx(0.49, abs=4 * (0.49 * 0.51 / (1 << 20)) ** 0.5 * 1.5)


def test_gradient_passes_where_the_value_did():
    x = torch.randn(33, 7, requires_grad=True)
    out = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(out, x, torch.full_like(x, 2.0))
    assert torch.equal(gradient != 0, out != 0)
    assert gradient.unique().tolist() == pytest.approx([0, 2 / 0.6], rel=1e-4)


def test_draws_come_from_torch_s_generator():
    x = torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_traced_dropout_draws_what_it_draws_otherwise():
    """Twice in one graph, too: neither is taken for the other."""

    def twice(x):
        return dropout(x, 0.5), dropout(x, 0.5)

    x = torch.ones(9, 5)
    results = []
    for function in (twice, torch.compile(twice, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(4)
        results.append(function(x))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert not torch.equal(*results[0])


def test_nothing_is_dropped_at_rate_zero_or_in_evaluation():
    x = torch.randn(5)
    assert dropout(x, 0.0) is x
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_rate_that_makes_no_sense_is_refused(p):
    with pytest.raises(ValueError, match=rf"dropout={p} must lie in \[0, 1\)"):
        Dropout(p)
