"""Random and clustered inputs for the tests of the attention functions, and how results are compared."""

import torch

SHAPES = [  # B, H, L, S, P, D
    (2, 2, 33, 47, 32, 9),
    (1, 3, 64, 64, 16, 16),
    (2, 1, 1, 5, 32, 3),
    (3, 2, 50, 17, 16, 7),
]
SOLVERS = ["cholesky", "newton_schulz"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draw_qkv(batch, heads, queries, keys, dim, seed=0, dtype=torch.float64):
    q = draw(batch, heads, queries, dim, seed=3 * seed, dtype=dtype)
    k = draw(batch, heads, keys, dim, seed=3 * seed + 1, dtype=dtype)
    v = draw(batch, heads, keys, dim, seed=3 * seed + 2, dtype=dtype)
    return q, k, v


def draw_mask(batch, keys):
    """Another length for every example, and a hole in the middle: padding need not be at the end."""
    mask = torch.ones(batch, keys, dtype=torch.bool)
    for b in range(batch):
        mask[b, keys - 1 - b :] = False
        mask[b, keys // 2] = False
    return mask


def gather_rows(query, key, rows, scale=None):
    """Landmarks W: the chosen rows (B, H, D) of the scaled [Q; K]."""
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    both = torch.cat([query, key], dim=2) * scale
    return both.gather(2, rows[..., None].expand(-1, -1, -1, query.shape[-1]))


def draw_rows(query, key, count, mask=None, seed=0):
    """``count`` distinct rows of [Q; K] for each example and head, never a masked key."""
    batch, heads, queries, _ = query.shape
    allowed = torch.ones(batch, queries + key.shape[2])
    if mask is not None:
        allowed[:, queries:] = mask
    allowed = allowed.repeat_interleave(heads, 0)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(allowed, count, generator=generator).view(batch, heads, count)


def output_and_gradients(function, inputs, dtype):
    """The output for ``inputs`` and the gradients of <output, a fixed random matrix> for each of them."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    output = function(*leaves)
    cotangent = draw(*output.shape, seed=99).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_same(function, reference_function, inputs, dtype):
    actual = output_and_gradients(function, inputs, dtype)
    expected = output_and_gradients(reference_function, [x.to(dtype) for x in inputs], torch.float64)
    for name, a, e in zip(["output", "q", "k", "v", "w"], actual, expected, strict=False):
        assert a.dtype == dtype
        assert a.shape == e.shape
        assert relative_error(a, e) <= TOLERANCE[dtype], name


def clustered_rows(count, dim, seed, clusters=4, spread=0.1):
    """Points close to a few shared centres, ``count / clusters`` to each."""
    centres = 3 * draw(clusters, dim, seed=1000)
    return centres[torch.arange(count) % clusters] + spread * draw(count, dim, seed=seed)
