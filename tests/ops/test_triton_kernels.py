"""The Triton kernels against float64: on a GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter must be chosen before Triton is imported, so without a GPU a long test runs this file in another
process. `.ci/run` runs it each time.
"""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from attention_inputs import draw, draw_mask, output_and_gradients, relative_error

from skyformer.benchmark.counting import count
from skyformer.ops import triton_dispatch
from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.kernel_product import gaussian_product
from skyformer.ops.nystrom import nystrom_gaussian_attention, regularized_gram

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = {torch.float32: 2e-6, torch.float16: 1e-3, **({torch.bfloat16: 1e-2} if ON_GPU else {})}
LONG = 66 if INTERPRETED else 300  # rows with which a side counts as long
SHAPES = [  # N, M, P, V, B, H
    (63, 1000, 24, 20, 1, 1),
    (500, 63, 32, 32, 1, 1),
    (65, 40, 8, 100, 1, 2),
    (1, 3, 5, 1, 2, 2),
]

runs_kernels = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")
pytest.importorskip("triton", reason="the CPU builds of torch bring no Triton")


@pytest.mark.long
@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the tests below run here")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "--noconftest", "--no-header", "-x"]
    settings = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, __file__], env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Few programs, but enough to share sums, and sides that count as long: each step takes the interpreter long."""
    if INTERPRETED:
        from skyformer.ops import triton_kernels

        monkeypatch.setattr(triton_kernels, "PROGRAMS", 4)
        monkeypatch.setattr(triton_kernels, "SHORT", 64)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that a kernel is to fill holds NaN before."""
    new_empty = torch.Tensor.new_empty

    def poison(*args, **settings):
        memory = new_empty(*args, **settings)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


def draw_tensors(n, m, width, size, *outer):
    shapes = ((n, width), (m, width), (m, size))
    return [draw(*(outer or (1, 2)), *shape, seed=k).to(DEVICE) for k, shape in enumerate(shapes)]


def reference(x, y, value, x_scale=1.0, y_scale=1.0):
    distances = x_scale * x[..., :, None, :] - y_scale * y[..., None, :, :]
    return (-distances.square().sum(dim=-1) / 2).exp() @ value


def assert_close(function, tensors, dtype, expected_function=reference):
    tensors = [tensor.to(dtype) for tensor in tensors]
    actual = output_and_gradients(function, tensors, dtype)
    expected = output_and_gradients(expected_function, tensors, torch.float64)
    for name, a, e in zip(["output", "x", "y", "value"], actual, expected, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, e) < DTYPES[dtype], name


@runs_kernels
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape, dtype):
    assert_close(
        lambda *tensors: gaussian_product(*tensors, 0.5, 0.7),
        draw_tensors(*shape),
        dtype,
        lambda *tensors: reference(*tensors, 0.5, 0.7),
    )


def test_layout_does_not_depend_on_the_length():
    """If it did, the compiler would compile again at another length."""
    from skyformer.ops import triton_kernels

    like = torch.zeros(1)
    strides = [triton_kernels._empty(like, (2, 3, n, 4), torch.float16).stride() for n in (8, 5000)]
    assert strides == [(8 * 12, 4, 12, 1), (5000 * 12, 4, 12, 1)]


@runs_kernels
@pytest.mark.usefixtures("poisoned")
def test_any_strides_and_leading_axes():
    x, y, value = draw_tensors(LONG, 20, 16, 16, 2, 1)
    assert_close(lambda x, y, v: gaussian_product(x.mT.contiguous().mT, y, v), (x, y, value), torch.float32)
    assert_close(
        lambda x, y, v: gaussian_product(x.repeat_interleave(2, -1)[..., ::2], y[:1].expand_as(y), v),
        (x, y, value),
        torch.float32,
        lambda x, y, v: reference(x, y[:1], v),
    )
    heads_inside = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (x, y, value)]
    assert_close(gaussian_product, heads_inside, torch.float32)
    for outer in [(3,), (1, 2, 1)]:
        assert_close(gaussian_product, draw_tensors(20, 33, 16, 16, *outer), torch.float32)


@runs_kernels
def test_rows_further_apart_than_32_bits_count():
    """Of memory that is never touched between them."""
    x, y, value = (tensor.half() for tensor in draw_tensors(5, 20, 16, 16, 1, 1))
    apart = torch.empty(2**31 + 16, dtype=torch.float16, device=DEVICE).as_strided(x.shape, (0, 0, 2**29, 1))
    apart.copy_(x)
    assert torch.equal(gaussian_product(apart, y, value), gaussian_product(x, y, value))


@runs_kernels
@pytest.mark.parametrize("size", [16, 100])
def test_one_tensor_as_both_sides(size):
    x, _, value = draw_tensors(20, 20, 16, size)
    tensors = [tensor.float() for tensor in (x, value)]
    actual = output_and_gradients(lambda x, v: gaussian_product(x, x, v, 0.5, 0.7), tensors, torch.float32)
    expected = output_and_gradients(lambda x, v: reference(x, x, v, 0.5, 0.7), tensors, torch.float64)
    assert max(map(relative_error, actual, expected)) < DTYPES[torch.float32]


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_far_from_the_origin(dtype):
    x, y, value = draw_tensors(40, 70, 32, 32)
    x, y = 4 + 0.3 * x, 4 + 0.3 * y
    tensors = [tensor.to(dtype) for tensor in (x, y, value)]
    error = relative_error(gaussian_product(*tensors), reference(*(tensor.double() for tensor in tensors)))
    assert error < (1e-4 if dtype == torch.float32 else DTYPES[dtype])


@runs_kernels
def test_nan_is_not_hidden():
    x, y, value = (tensor.float() for tensor in draw_tensors(3, 40, 16, 16))
    x[0, 0, 1] = torch.nan
    out = gaussian_product(x, y, value)
    assert out[0, 0, 1].isnan().all()
    assert out[0, 0, ::2].isfinite().all()


@runs_kernels
def test_autocast():
    tensors = [tensor.float() for tensor in draw_tensors(20, 30, 16, 16)]

    def cast(*tensors):
        with torch.autocast(DEVICE, torch.float16):
            return gaussian_product(*tensors)

    expected = output_and_gradients(gaussian_product, tensors, torch.float16)
    actual = output_and_gradients(cast, tensors, torch.float32)
    assert actual[0].dtype == torch.float16
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.half(), e)
    assert [gradient.dtype for gradient in actual[1:]] == [torch.float32] * 3


@runs_kernels
def test_tf32_has_the_norms_of_what_it_multiplies(monkeypatch):
    """So that rows far from the origin keep a small error, which is that of the inputs."""
    precision = torch.get_float32_matmul_precision()
    x, y, value = (tensor.float() for tensor in draw_tensors(40, 70, 32, 32))
    x, y = 4 + 0.3 * x, 4 + 0.3 * y
    coarse = [(tensor.view(torch.int32) & -8192).view(torch.float32).double() for tensor in (x, y, value)]
    try:
        torch.set_float32_matmul_precision("high")
        out = gaussian_product(x, y, value)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert relative_error(out, reference(*coarse)) < 1e-3


@runs_kernels
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled(dynamic):
    compiled = torch.compile(gaussian_product, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for n in (20, 30):
        tensors = draw_tensors(n, 12, 16, 16, 1, 1)
        actual, expected = (output_and_gradients(f, tensors, torch.float32) for f in (compiled, gaussian_product))
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@runs_kernels
def test_operators_keep_their_contract():
    from skyformer.ops import landmark_kernels, triton_kernels

    for shape in [(3, 20, 16, 16), (LONG, 5, 8, 16)]:
        tensors = [tensor.float().requires_grad_() for tensor in draw_tensors(*shape)]
        settings = (None, None, 1.0, 1.0, 0.0, torch.float32)
        torch.library.opcheck(triton_kernels.kernel_sum, (*tensors, *settings))
    landmarks, _, right = tensors
    torch.library.opcheck(landmark_kernels.landmark_solution, (landmarks[:, :, :5], right, None, 0.1))


@runs_kernels
def test_operations_are_counted():
    """Two products forward, and five backward."""
    tensors = [tensor.float().requires_grad_() for tensor in draw_tensors(20, 30, 16, 8)]
    operations, moved = count(lambda: gaussian_product(*tensors).sum().backward())
    assert operations == 2 * 2 * 20 * 30 * (16 + 8 + 3 * 16 + 2 * 8)
    assert moved > 0


@runs_kernels
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_repeats_bit_for_bit():
    tensors = draw_tensors(100, 1000, 32, 32)
    first, second = (output_and_gradients(gaussian_product, tensors, torch.float16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@runs_kernels
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("function", [gaussian_product, partial(gaussian_attention, dropout_p=0.1)])
def test_captured_in_a_graph(function):
    tensors = [tensor.bfloat16().requires_grad_() for tensor in draw_tensors(100, 1000, 32, 32)]

    def step():
        out = function(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out))]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step()
    torch.manual_seed(1)
    expected = step()
    torch.manual_seed(1)
    graph.replay()
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@runs_kernels
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_attention_repeats_bit_for_bit():
    tensors = draw_tensors(1000, 1000, 32, 32)

    def attend(*tensors):
        torch.manual_seed(0)
        return gaussian_attention(*tensors, dropout_p=0.1)

    first, second = (output_and_gradients(attend, tensors, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@runs_kernels
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "function"),
    [
        ((500, 130, 32, 32, 1, 1), gaussian_attention),
        ((63, 100, 8, 16, 2, 1), gaussian_attention),
        ((20, 100, 8, 16, 2, 1), gaussian_product),
        ((100, 20, 8, 16, 2, 1), gaussian_product),
    ],
)
def test_mask(shape, function, dtype):
    """Numbers of masked keys and values are not looked at."""
    query, key, value = draw_tensors(*shape)
    mask = draw_mask(shape[4], shape[1]).to(DEVICE)
    wrong = ~mask[:, None, :, None]
    scale = shape[2] ** -0.25 if function is gaussian_attention else 1.0
    tensors = [query, key.masked_fill(wrong, torch.nan), value.masked_fill(wrong, torch.nan)]
    actual = output_and_gradients(lambda *tensors: function(*tensors, mask=mask), tensors, dtype)
    expected = output_and_gradients(
        lambda q, k, v: reference(q, k, v.masked_fill(wrong, 0), scale, scale),
        [tensor.to(dtype) for tensor in (query, key, value)],
        torch.float64,
    )
    for name, a, e in zip(["output", "query", "key", "value"], actual, expected, strict=True):
        assert relative_error(a, e) < DTYPES[dtype], name


def kept_entries(n, m, keys, p):
    """Which entries a product with `keys` keeps, `(B, H, n, m)`: κ(0, 0) = 1 times an identity shows them."""
    from skyformer.ops import triton_kernels

    x, y = (torch.zeros(*keys.shape[:2], rows, 1, device=DEVICE) for rows in (n, m))
    value = torch.eye(m, device=DEVICE).expand(*keys.shape[:2], m, m)
    out = triton_kernels.kernel_sum(x, y, value, None, keys, 1.0, 1.0, p, torch.float32)
    assert torch.equal(out, (out > 0) * out.max())
    torch.testing.assert_close(out.max().item(), 1 / (1 - p))
    return out > 0


@runs_kernels
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_has_the_same_bits_in_all_passes(dtype):
    from skyformer.ops import triton_kernels

    tensors = draw_tensors(130, 100, 16, 24)
    mask = draw_mask(1, 100).to(DEVICE)
    keys = draw_keys(1, 2, 130)
    kept = kept_entries(130, 100, keys, 0.25) & mask[:, None, None, :]

    def attend(*tensors):
        return triton_kernels.kernel_sum(*tensors, mask, keys, 0.5, 0.5, 0.25, dtype)

    def expected_attend(x, y, value):
        distances = 0.5 * (x[..., :, None, :] - y[..., None, :, :])
        return ((-distances.square().sum(dim=-1) / 2).exp() * kept / 0.75) @ value

    assert_close(attend, tensors, dtype, expected_attend)


def draw_keys(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2**63 - 1, shape, generator=generator).to(DEVICE)


@runs_kernels
def test_dropped_entries_are_independent():
    """Their rate, and that of pairs in a row, in a column and of neighbouring heads, within four deviations."""
    kept = kept_entries(64, 128, draw_keys(2, 4, 64), 0.3)
    pairs = [kept]
    pairs += [kept[..., :-shift] == kept[..., shift:] for shift in (1, 2, 3, 7, 32, 64)]
    pairs += [kept[..., :-shift, :] == kept[..., shift:, :] for shift in (1, 2, 5, 32)]
    pairs += [kept[:, 1:] == kept[:, :-1], kept[0] == kept[1]]
    for pair, rate in zip(pairs, [0.7, *[0.58] * (len(pairs) - 1)], strict=True):
        deviation = (rate * (1 - rate) / pair.numel()) ** 0.5
        assert abs(pair.double().mean().item() - rate) < 4 * deviation


@runs_kernels
def test_dropout_is_decided_by_the_generator():
    query, key, value = (tensor.float() for tensor in draw_tensors(20, 40, 16, 16))

    def attend(seed):
        torch.manual_seed(seed)
        return gaussian_attention(query, key, value, dropout_p=0.5)

    assert torch.equal(attend(0), attend(0))
    assert not torch.equal(attend(0), attend(1))


def solve_exactly(landmarks, right, mask=None, ridge=0.1):
    landmarks, right = landmarks.double(), right.double()
    right = right if mask is None else right * mask[:, None, :, None]
    return torch.linalg.solve(regularized_gram(landmarks, ridge, mask), right)


@runs_kernels
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "masked"), [((1, 1, 63, 24, 20), False), ((2, 2, 20, 8, 33), True)])
def test_landmark_solution(shape, masked, dtype):
    *outer, count, width, size = shape
    landmarks, right = 0.3 * draw(*outer, count, width).to(DEVICE), draw(*outer, count, size, seed=1).to(DEVICE)
    mask = draw_mask(outer[0], count).to(DEVICE) if masked else None
    tensors = [tensor.to(dtype) for tensor in (landmarks, right)]
    actual = output_and_gradients(
        lambda *tensors: triton_dispatch.landmark_solution(*tensors, mask, 0.1), tensors, dtype
    )
    expected = output_and_gradients(lambda *tensors: solve_exactly(*tensors, mask), tensors, torch.float64)
    assert [a.dtype for a in actual] == [torch.float32, dtype, dtype]
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < DTYPES[dtype]


@runs_kernels
def test_landmarks_that_are_nearly_the_same():
    """The condition is the worst there is, and the right side has what it amplifies: rows that are alike."""
    landmarks = 5 + 0.01 * draw(1, 1, 48, 8).float().to(DEVICE)
    right = (100 + 0.01 * draw(1, 1, 48, 8, seed=1)).float().to(DEVICE)
    assert (
        relative_error(triton_dispatch.landmark_solution(landmarks, right, None, 0.1), solve_exactly(landmarks, right))
        < 1e-4
    )


@runs_kernels
@pytest.mark.usefixtures("poisoned")
def test_nystrom_attention():
    query, key, value = draw_tensors(33, 40, 16, 16)
    landmarks, mask = query[:, :, ::3] * 0.5, draw_mask(1, 40).to(DEVICE)

    def attend(*tensors):
        return nystrom_gaussian_attention(*tensors, mask)

    tensors = [query, key, value, landmarks]
    actual, expected = (output_and_gradients(attend, tensors, dtype) for dtype in (torch.float32, torch.float64))
    assert max(map(relative_error, actual, expected)) < 1e-5


def test_where_the_kernels_are_used():
    x, y, value = (tensor.float() for tensor in draw_tensors(3, 4, 16, 16))
    assert triton_dispatch.has_kernels(x, y, value) == (ON_GPU or INTERPRETED)
    assert not triton_dispatch.has_kernels(x.double(), y.double(), value.double())
    wide = value.new_zeros(1, 2, 4, 129)
    assert not triton_dispatch.has_kernels(x, y, wide)
    assert not triton_dispatch.has_kernels(x, y[:, :, :0], value[:, :, :0])


@pytest.mark.parametrize(("major", "used"), [(7, False), (8, True), (9, True)])
def test_older_gpus_have_the_other_path(major, used, monkeypatch):
    """Triton does not multiply bfloat16 there, and supports a V100 no more."""
    monkeypatch.setattr(triton_dispatch, "_DEVICE", "meta")
    monkeypatch.setattr(triton_dispatch, "product_dtype", lambda x: x.dtype)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(triton_dispatch, "_can_launch", True)
    x = torch.empty(1, 2, 4, 16, device="meta")
    assert triton_dispatch.has_kernels(x, x, x) == used


class BrokenDriver:
    @property
    def active(self):
        raise RuntimeError("Failed to find C compiler")


def test_machine_on_which_triton_cannot_launch(monkeypatch):
    import triton

    monkeypatch.setattr(triton_dispatch, "_can_launch", None)
    monkeypatch.setattr(triton.runtime, "driver", BrokenDriver())
    with pytest.warns(
        UserWarning, match=r"runs without Triton kernels.*\(Failed to find C compiler\)\. Fix: install a C compiler"
    ):
        assert not triton_dispatch.can_launch()


@pytest.mark.parametrize(("setting", "allowed"), [("none", False), ("ieee", False), ("tf32", True)])
def test_tf32_by_the_newer_setting(setting, allowed):
    """Reading the older setting raises then."""
    from skyformer.ops.triton_kernels import allows_tf32

    former = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = setting
        assert allows_tf32() == allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = former


@pytest.mark.parametrize(("compiles", "exports"), [(True, False), (False, True)])
def test_compilation_does_not_pass_for_an_export(compiles, exports, monkeypatch):
    """In torch 2.11 `is_exporting` is true under `torch.compile`, which then left the kernels out."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: compiles)
    assert triton_dispatch.is_exporting() == exports
