"""Exact kernelized attention by the flash kernel, by blocks of queries, and as one matrix: the same."""

import pytest
import reference_attention as reference
import torch
from attention_inputs import draw_mask, draw_qkv, output_and_gradients, relative_error

from skyformer.ops import gaussian, recompute
from skyformer.ops.gaussian import gaussian_attention


@pytest.fixture(params=["flash", "blocks", "whole"])
def path(request, monkeypatch):
    monkeypatch.setattr(gaussian, "has_flash", lambda tensor: request.param == "flash")
    monkeypatch.setattr(recompute, "ENTRIES_AT_ONCE", 700 if request.param == "blocks" else 1 << 24)
    return request.param


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_output_and_gradients(path, dtype, tolerance, masked):
    q, k, v = draw_qkv(2, 3, 37, 53, 16)
    v = v[..., :5]  # the kernel takes one size for all three, but values may have another
    mask = draw_mask(2, 53) if masked else None
    actual = output_and_gradients(lambda q, k, v: gaussian_attention(q, k, v, mask), [q, k, v], dtype)
    expected = output_and_gradients(lambda q, k, v: reference.gaussian_attention(q, k, v, mask), [q, k, v], q.dtype)
    assert max(map(relative_error, actual, expected)) < tolerance


@pytest.mark.parametrize("scale", [1e-4, 10.0, 1e3])
def test_extreme_scales_stay_finite(path, scale):
    q, k, v = (scale * x.float() for x in draw_qkv(1, 2, 9, 9, 16))
    for result in output_and_gradients(gaussian_attention, [q, k, v], torch.float32):
        assert result.isfinite().all()


def test_gradients_are_those_of_finite_differences(path):
    inputs = [x.requires_grad_() for x in draw_qkv(1, 1, 5, 6, 4)]
    mask = torch.tensor([[True, True, False, True, True, True]])
    assert torch.autograd.gradcheck(lambda q, k, v: gaussian_attention(q, k, v, mask), inputs)


def test_blocks_without_dropout_do_not_read_the_state_of_a_generator(monkeypatch):
    """A CUDA graph refuses it."""
    monkeypatch.setattr(gaussian, "has_flash", lambda tensor: False)
    monkeypatch.setattr(recompute, "ENTRIES_AT_ONCE", 700)
    inputs = [x.requires_grad_() for x in draw_qkv(1, 2, 40, 40, 8)]
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch, name, lambda *args: pytest.fail("the generator's state was read"))
    gaussian_attention(*inputs).sum().backward()


def test_blocks_drop_what_they_dropped_before(monkeypatch):
    """The backward pass recomputes a block. With other dropped entries its gradient would be another function's."""
    monkeypatch.setattr(recompute, "ENTRIES_AT_ONCE", 700)
    q, k, v = draw_qkv(1, 2, 40, 40, 8)
    v.requires_grad_()
    torch.manual_seed(0)
    out = gaussian_attention(q, k, v, dropout_p=0.5)
    (gradient,) = torch.autograd.grad(out.sum(), v)
    # The output is linear in the values: v · gradient is the output's sum if and only if both used the same C.
    torch.testing.assert_close((v * gradient).sum(), out.sum())


def test_memory_is_linear_in_the_length():
    """What the backward pass keeps of 2,048 tokens holds no matrix of their pairs."""
    q, k, v = (x.requires_grad_() for x in draw_qkv(1, 1, 2048, 2048, 8, dtype=torch.float32))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        gaussian_attention(q, k, v).sum().backward()
    assert max(kept) < 2048 * 40
