"""The contract of `Attention`, for every backend.

Shapes: B batch, H heads, N tokens, P head dimension.
"""

import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from tiny_backends import BACKENDS, HEAD_DIM, HEADS, MAX_LENGTH, inputs, mask_of, write_outputs
from tiny_runs import HELPERS, ROOT

from skyformer.attention import (
    Attention,
    BigBirdAttention,
    InformerAttention,
    KernelizedAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
    SkyformerAttention,
    SoftmaxAttention,
)
from skyformer.model.encoder import Encoder
from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.landmarks import gather_rows, half_and_half_rows, uniform_rows


@pytest.fixture(params=BACKENDS)
def backend(request) -> Attention:
    return BACKENDS[request.param]().eval()


@pytest.mark.parametrize("length", [1, 2, 63, 127, 1000, 4095])
def test_shapes_and_finiteness(backend, length):
    out = backend(*inputs(1, length), mask_of(max(1, length // 2), total=length))
    assert out.shape == (1, HEADS, length, HEAD_DIM)
    assert torch.isfinite(out).all()


def test_padding_changes_nothing(backend):
    tensors, real = inputs(2, 50), mask_of(50, 50, total=50)
    garbage = inputs(2, 30, seed=1, scale=9.0)
    padded = [torch.cat(pair, dim=2) for pair in zip(tensors, garbage, strict=True)]
    expected = backend(*tensors, real)
    torch.testing.assert_close(backend(*padded, mask_of(50, 50, total=80))[:, :, :50], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backend(*tensors, None), expected, rtol=1e-5, atol=1e-5)


def test_batch_mates_change_nothing(backend):
    """An example alone, and as second of three beside examples of other lengths and scales."""
    query, key, value = inputs(3, 40)
    mask = mask_of(40, 25, 3, total=40)
    scale = torch.tensor([100.0, 1.0, 0.0])[:, None, None, None]
    together = backend(query * scale, key * scale, value, mask)[1]
    alone = backend(query[1:2], key[1:2], value[1:2], mask[1:2])[0]
    torch.testing.assert_close(together[:, :25], alone[:, :25], rtol=1e-5, atol=1e-5)


def test_eval_is_deterministic_whatever_ran_before(backend):
    if getattr(backend, "landmark_draw", "") == "half_and_half":
        backend.eval_landmarks = "fixed"
    tensors = inputs(2, 40)
    first = backend(*tensors, None)
    torch.rand(7)
    assert torch.equal(backend(*tensors, None), first)


@pytest.mark.parametrize("name", BACKENDS)
def test_state_dict_restores_the_output(name):
    backend, other = (BACKENDS[name]().eval() for _ in range(2))
    for state in other.state_dict().values():
        state.zero_()
    for attention in (backend, other):
        if getattr(attention, "landmark_draw", "") == "half_and_half":
            attention.eval_landmarks = "fixed"
    other.load_state_dict(backend.state_dict())
    tensors = inputs(2, 40)
    assert torch.equal(other(*tensors, None), backend(*tensors, None))


def test_another_process_gives_the_same(tmp_path):
    """All backends, made and run with the same seed in a process of its own."""
    paths = [str(ROOT), str(HELPERS)]
    script = f"import sys; sys.path[:0] = {paths}; import tiny_backends; tiny_backends.write_outputs(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there.pt")], check=True, timeout=100)
    write_outputs(tmp_path / "here.pt")
    here, there = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("here", "there"))
    assert here.keys() == there.keys() == BACKENDS.keys()
    for name, out in here.items():
        assert torch.equal(out, there[name]), name


def test_layers_share_one_projection_where_asked():
    encoder = Encoder(10, 16, partial(LinformerAttention, projected_length=4, sharing="layers"), num_layers=3)
    projections = {id(p) for name, p in encoder.named_parameters(remove_duplicate=False) if "projection" in name}
    assert len(projections) == 1
    encoder(torch.zeros(1, 16, dtype=torch.long)).sum().backward()
    assert encoder.blocks[2].attention.backend.key_projection.grad.abs().sum() > 0
    apart = Encoder(10, 16, partial(LinformerAttention, projected_length=4), num_layers=3)
    assert sum("projection" in name for name, _ in apart.named_parameters()) == 6


def test_performer_draws_new_features_where_asked():
    attention = PerformerAttention(HEADS, HEAD_DIM, 64, redraw_every=3)
    drawn = []
    for _ in range(7):
        attention(*inputs(1, 5), None)
        drawn.append(attention.projection.clone())
    same = [torch.equal(a, b) for a, b in pairwise(drawn)]
    assert same == [True, True, False, True, True, False]
    attention.eval()
    for _ in range(4):
        attention(*inputs(1, 5), None)
    assert torch.equal(attention.projection, drawn[-1])


def test_performer_features_are_orthogonal_in_blocks():
    projection = PerformerAttention(HEADS, HEAD_DIM, 64, num_features=20).projection
    gram = projection[:8] @ projection[:8].T
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)


def test_reformer_makes_no_keys():
    encoder = Encoder(10, 16, ReformerAttention)
    assert encoder.blocks[0].attention.query_key_value.out_features == 2 * 64


def test_fully_masked_example_is_finite_and_alone(backend):
    tensors = [x.requires_grad_() for x in inputs(2, 20)]
    out = backend(*tensors, mask_of(0, 20, total=20))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(x.grad).all() for x in tensors if x.grad is not None)
    torch.testing.assert_close(out[1:], backend(*(x[1:] for x in tensors), None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_any_scale_is_finite(backend, scale):
    tensors = [x.requires_grad_() for x in inputs(1, 64, scale=scale)]
    backend(*tensors, None).sum().backward()
    assert torch.isfinite(tensors[0].grad).all()
    assert tensors[1].grad is None if backend.shares_query_and_key else torch.isfinite(tensors[1].grad).all()
    assert torch.isfinite(tensors[2].grad).all()


def test_bfloat16_autocast_stays_near_float32(backend):
    tensors = inputs(2, 100)
    expected = backend(*tensors, None)
    with torch.autocast("cpu", torch.bfloat16):
        low = backend(*(x.bfloat16() for x in tensors), None).float()
    # Which queries Informer takes hangs on small differences.
    tolerance = 0.1 if isinstance(backend, InformerAttention) else 0.05
    assert (low - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_weights_in_any_precision_give_nearly_the_same(backend, dtype, tolerance, training):
    """With the same draws, also where the dtype is the default one, as in Lightning's `16-true`."""
    if dtype == torch.bfloat16 and isinstance(backend, InformerAttention | ReformerAttention):
        tolerance = 0.2  # queries chosen, and buckets, hang on small differences
    if hasattr(backend, "redraw_every"):
        backend.redraw_every, backend.calls[...] = 1, 1
    backend.train(training)
    tensors, mask = inputs(2, 100), mask_of(100, 60, total=100)
    state = {name: tensor.clone() for name, tensor in backend.state_dict().items()}
    torch.manual_seed(1)
    expected = backend(*tensors, mask)
    backend.load_state_dict(state)
    low = [x.to(dtype).requires_grad_() for x in tensors]
    torch.manual_seed(1)
    torch.set_default_dtype(dtype)
    try:
        out = backend.to(dtype)(*low, mask)
        out.float().sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.dtype == dtype
    real = mask[:, None, :, None]
    assert ((out - expected) * real).norm() < tolerance * (expected * real).norm()
    assert all(torch.isfinite(x.grad).all() for x in low if x.grad is not None)


def test_drawn_numbers_are_not_rounded():
    """In bfloat16 uniform numbers tie, or become 1."""
    attention = SkyformerAttention(HEADS, HEAD_DIM, 64)
    drawn = attention.eval_noise.clone()
    assert torch.equal(attention.bfloat16().float().eval_noise, drawn)
    assert attention.double().eval_noise.dtype == torch.float64


def test_mask_of_wrong_kind_is_refused(backend):
    with pytest.raises(ValueError, match="mask must be boolean"):
        backend(*inputs(1, 8), torch.ones(1, 8))
    with pytest.raises(ValueError, match="mask must have shape"):
        backend(*inputs(1, 8), torch.ones(1, 9, dtype=torch.bool))


def test_whole_graph_compiles(backend):
    tensors, mask = inputs(2, 40), mask_of(40, 25, total=40)
    compiled = torch.compile(backend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors, mask), backend(*tensors, mask))


@pytest.mark.parametrize(
    "make", [SoftmaxAttention, KernelizedAttention, BigBirdAttention, InformerAttention, LinformerAttention]
)
def test_attention_dropout_acts_in_training_only(make):
    torch.manual_seed(0)
    attention = make(HEADS, HEAD_DIM, 64, dropout=0.5)
    tensors = inputs(1, 30)
    assert not torch.equal(attention(*tensors, None), attention(*tensors, None))
    attention.eval()
    assert torch.equal(attention(*tensors, None), attention(*tensors, None))
    with pytest.raises(ValueError, match=r"dropout=1\.0"):
        make(HEADS, HEAD_DIM, 64, dropout=1.0)


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (SkyformerAttention, "num_landmarks", 0),
        (SkyformerAttention, "ridge", 0.0),
        (SkyformerAttention, "num_heads", 0),
        (SkyformerAttention, "head_dim", -1),
        (SkyformerAttention, "max_length", 0),
        (BigBirdAttention, "block_size", 65),
        (BigBirdAttention, "num_random_blocks", -1),
        (InformerAttention, "num_queries", 0),
        (InformerAttention, "factor", 0.0),
        (LinformerAttention, "projected_length", 0),
        (NystromformerAttention, "num_landmarks", 0),
        (NystromformerAttention, "conv_kernel", 4),
        (PerformerAttention, "num_features", 0),
        (PerformerAttention, "eps", 0.0),
        (PerformerAttention, "redraw_every", 0),
        (ReformerAttention, "num_buckets", 3),
        (ReformerAttention, "num_rounds", 0),
        (ReformerAttention, "chunk_length", 0),
        (SkyformerAttention, "solver", "choleski"),
        (SkyformerAttention, "landmark_draw", "unifrom"),
        (SkyformerAttention, "eval_landmarks", "fix"),
        (LinformerAttention, "sharing", "layer"),
        (NystromformerAttention, "pinv", "pinv"),
        (PerformerAttention, "kernel", "Relu"),
    ],
)
def test_arguments_that_cannot_work_are_refused(make, argument, value):
    arguments = {"num_heads": HEADS, "head_dim": HEAD_DIM, "max_length": 64, argument: value}
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        make(**arguments)


def test_inputs_of_other_sizes_are_refused(backend):
    """As in somebody's own model: longer sequences, other heads, an axis forgotten, keys of another length."""
    name = type(backend).__name__
    backend.max_length = 16
    with pytest.raises(ValueError, match=f"17 tokens is longer than max_length=16. Fix: make {name}"):
        backend(*inputs(1, 17), None)
    for shape in ((1, 3, 5, HEAD_DIM), (1, HEADS, 5, 9), (HEADS, 5, HEAD_DIM)):
        with pytest.raises(ValueError, match=rf"num_heads=2, N, head_dim=8\) \(got \({shape[0]}.*Fix: make {name}"):
            backend(*(torch.zeros(shape) for _ in range(3)), None)
    query, key, value = inputs(1, 8)
    with pytest.raises(ValueError, match="value must have the query's shape"):
        backend(query, key, value[:, :, 1:], None)
    if not backend.shares_query_and_key:
        with pytest.raises(ValueError, match="key must have the query's shape"):
            backend(query, key[:, :, 1:], value, None)


def test_skyformer_with_every_row_a_landmark_is_kernelized():
    """2N landmarks and γ → 0: the Nyström approximation is exact."""
    tensors = [x.double() for x in inputs(2, 12)]
    attention = SkyformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_landmarks=24, ridge=1e-12).double().eval()
    torch.testing.assert_close(attention(*tensors, None), gaussian_attention(*tensors), rtol=1e-6, atol=1e-8)


def test_training_draws_new_landmarks_and_each_example_its_own():
    attention = SkyformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_landmarks=4)
    query, key, _ = (x[:1].expand(2, -1, -1, -1) for x in inputs(1, 30))
    first, second = (attention.landmarks(query, key, None)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_uniform_rows_are_distinct_valid_and_uniform():
    """3 + 3 valid rows of 5 + 5; each pair of them equally likely in 4,000 draws."""
    noise = torch.rand(4000, 2, 5, generator=torch.Generator().manual_seed(0))
    rows, valid = uniform_rows(noise, mask_of(3, total=5).expand(4000, -1), 2)
    assert valid.all()
    assert (rows[:, 0] != rows[:, 1]).all()
    counts = torch.bincount(rows.flatten(), minlength=10)
    assert counts[[3, 4, 8, 9]].sum() == 0
    expected, deviation = 8000 / 6, (8000 * (1 / 6) * (5 / 6)) ** 0.5
    assert ((counts[[0, 1, 2, 5, 6, 7]] - expected).abs() < 4.5 * deviation).all()


def test_short_example_has_fewer_landmarks():
    rows, valid = uniform_rows(torch.rand(1, 2, 5), mask_of(1, total=5), 6)
    assert valid.sum() == 2
    assert set(rows[0][valid[0]].tolist()) == {0, 5}


def test_half_and_half_rows_come_from_valid_tokens():
    noise = torch.tensor([[0.0, 0.5, 0.99999994, 0.2]])
    mask = torch.tensor([[False, True, True, False, True]])
    rows, valid = half_and_half_rows(noise, mask)
    assert rows.tolist() == [[1, 2, 9, 6]]
    assert valid.all()


def test_gather_rows_takes_queries_then_keys():
    query, key, _ = inputs(2, 5)
    rows = torch.tensor([[0, 4, 5, 9], [3, 8, 2, 7]])
    expected = torch.cat([query, key], dim=2)
    for example in range(2):
        assert torch.equal(gather_rows(query, key, rows)[example], expected[example][:, rows[example]])
