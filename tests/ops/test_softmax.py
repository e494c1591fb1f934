"""Softmax attention with dropout on its weights: torch's form of it, given the same weights to drop."""

import pytest
import torch
import torch.nn.functional as F

from skyformer.ops import recompute, softmax
from skyformer.ops.softmax import softmax_attention

B, H, N, P = 2, 3, 20, 8


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return [torch.randn(B, H, N, P, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.fixture
def mask():
    return (torch.arange(N) < torch.tensor([[N], [7]]))[:, None, None]


@pytest.mark.parametrize("entries", [300, 1 << 24], ids=["blocks", "whole"])
@pytest.mark.parametrize("masked", [False, True])
def test_with_weights_that_are_kept_it_is_softmax_attention(entries, masked, inputs, mask, monkeypatch):
    """Dropout replaced by a factor a weight; torch's own form has nowhere to put one, so they are all equal."""
    monkeypatch.setattr(recompute, "ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr(softmax, "dropout", lambda weights, p: weights * (1 - p))
    mask = mask if masked else None
    ours = softmax_attention(*inputs, mask, dropout_p=0.25)
    theirs = 0.75 * F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    pairs = zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs)), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("entries", [300, 1 << 24], ids=["blocks", "whole"])
def test_dropped_weights_are_the_same_in_both_passes(entries, inputs, monkeypatch):
    """Output and gradient for the values are one linear map: ⟨D v, g⟩ = ⟨v, Dᵀ g⟩."""
    monkeypatch.setattr(recompute, "ENTRIES_AT_ONCE", entries)
    query, key, value = inputs
    out = softmax_attention(query, key, value, dropout_p=0.5)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum(), value)
    assert (out * weight).sum().item() == pytest.approx((value * gradient).sum().item(), rel=1e-12)


def test_a_rate_of_a_half_drops_half_of_the_weights(inputs):
    torch.manual_seed(1)
    query, key, _ = inputs
    identity = torch.eye(N, dtype=torch.float64).expand(B, H, N, N)
    weights = F.scaled_dot_product_attention(query, key, identity)
    dropped = softmax_attention(query, key, identity, dropout_p=0.5)
    kept = dropped != 0
    assert kept.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / kept.numel() ** 0.5)
    torch.testing.assert_close(dropped[kept], 2 * weights[kept], rtol=1e-12, atol=0)
