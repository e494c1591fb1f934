"""The Gaussian kernel's product with values against the two steps that it stands for."""

import pytest
import torch
from reference_attention import gaussian_kernel as reference_kernel

from skyformer.ops.kernel import gaussian_kernel
from skyformer.ops.kernel_product import gaussian_product, traced_gradients, traced_product

SHAPES = [((2, 3, 17, 4), (2, 3, 5, 4), 6), ((9, 4), (9, 4), 4), ((1, 1, 1, 1), (1, 1, 3, 1), 2)]


def draw(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


@pytest.mark.parametrize(("x_shape", "y_shape", "width"), SHAPES)
def test_output_and_gradients(x_shape, y_shape, width):
    x, y, value = draw(x_shape), draw(y_shape), draw((*y_shape[:-1], width))
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(dim=-1)
    expected = (-squares / 2).exp() @ value
    out = gaussian_product(x, y, value)
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    ours, theirs = (torch.autograd.grad((o * weight).sum(), (x, y, value)) for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_finite_differences():
    inputs = [draw(shape) for shape in ((2, 5, 3), (2, 4, 3), (2, 4, 2))]
    assert torch.autograd.gradcheck(gaussian_product, inputs)


def test_only_some_inputs_need_gradients():
    x, y, value = draw((4, 3)), draw((5, 3)).detach(), draw((5, 2)).detach()
    (gradient,) = torch.autograd.grad(gaussian_product(x, y, value).sum(), x)
    (expected,) = torch.autograd.grad((gaussian_kernel(x, y) @ value).sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_low_precision(scale):
    """Under autocast, as near as numbers of 8 bits allow."""
    x, y, value = ((scale * draw((rows, 16), torch.float32)).detach() for rows in (64, 63, 63))
    x.requires_grad_(), y.requires_grad_()
    expected = reference_kernel(x.double(), y.double()) @ value.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gaussian_product(x, y, value)
    assert out.dtype == torch.bfloat16
    weight = torch.randn_like(expected)
    pairs = [(out, expected)]
    grads = (torch.autograd.grad((o * weight.to(o.dtype)).sum(), (x, y)) for o in (out, expected))
    pairs += zip(*grads, strict=True)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize(("x_shape", "y_shape", "width"), SHAPES)
def test_traced_product_is_the_same(x_shape, y_shape, width):
    """torch.compile takes both passes as operators, in one graph."""
    tensors = [draw(x_shape), draw(y_shape), draw((*y_shape[:-1], width))]
    traced = torch.compile(gaussian_product, backend="aot_eager", fullgraph=True)
    results = []
    for product in (gaussian_product, traced):
        out = product(*tensors, 0.5, 2.0)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_traced_operators_say_their_shapes():
    left, right, value, grad = (torch.randn(2, *shape) for shape in ((7, 5), (9, 5), (9, 4), (7, 4)))
    torch.library.opcheck(traced_product, (left, right, value))
    torch.library.opcheck(traced_gradients, (left, right, value, grad, 3))
