"""The same code paths on a GPU; skipped, saying so, where there is none. The kernels: `test_triton_kernels.py`."""

import pytest
import torch
from attention_inputs import draw_mask, draw_qkv, output_and_gradients, relative_error
from random_sequences import SEQUENCES, random_split
from tiny_backends import BACKENDS, inputs

from datamodules.collate import SplitBatches
from datamodules.image_batches import ImageBatches
from skyformer.ops.nystrom import nystrom_gaussian_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("solver", ["cholesky", "newton_schulz"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_nystrom_attention(dtype, tolerance, solver):
    q, k, v = draw_qkv(2, 3, 137, 137, 16)
    mask, landmarks = draw_mask(2, 137), q[:, :, ::11] * 0.5

    def attend(mask):
        return lambda q, k, v, w: nystrom_gaussian_attention(q, k, v, w, mask, solver=solver)

    expected = output_and_gradients(attend(mask), [q, k, v, landmarks], torch.float64)
    actual = output_and_gradients(attend(mask.cuda()), [x.cuda() for x in (q, k, v, landmarks)], dtype)
    assert max(relative_error(a.cpu(), e) for a, e in zip(actual, expected, strict=True)) < tolerance


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_gives_what_it_gives_on_the_cpu(name):
    backend = BACKENDS[name]().double().eval()
    tensors, mask = [x.double() for x in inputs(2, 100)], torch.arange(100) < torch.tensor([[100], [60]])
    expected = backend(*tensors, mask)
    actual = backend.cuda()(*(x.cuda() for x in tensors), mask.cuda()).cpu()
    assert relative_error(actual[0], expected[0]) < 1e-9
    assert relative_error(actual[1, :, :60], expected[1, :, :60]) < 1e-9


@pytest.mark.parametrize("kind", [*SEQUENCES, "images", "black pixels left out"])
def test_batches_are_made_on_the_gpu_without_waiting_for_it(kind):
    if kind in SEQUENCES:
        split, settings = SEQUENCES[kind]
        host, device = (SplitBatches(split, **settings, device=place) for place in (None, torch.device("cuda")))
    else:
        split, drop_black = random_split([1024] * 40, black=0.7), kind != "images"
        host, device = (ImageBatches(split, drop_black, device=place) for place in (None, torch.device("cuda")))
    items = [0, 39, 7, *([40 + 3, 280 + 5] if isinstance(host, ImageBatches) else [])]
    device.__getitems__(items)  # copies the arrays
    try:
        torch.cuda.set_sync_debug_mode("error")
        batch = device.__getitems__(items)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for actual, expected in zip(batch, host.__getitems__(items), strict=True):
        assert (actual is None) == (expected is None)
        assert actual is None or (actual.is_cuda and torch.equal(actual.cpu(), expected))


@pytest.mark.parametrize("overlay", ["trainer/bf16", "trainer/fp16", "trainer/compile"])
def test_training_run(tmp_path, main, tiny_arguments, overlay):
    """One layer and one shape of a batch: the compiler takes its time for each."""
    sizes = ["--model.num_layers=1", *(f"--data.init_args.{name}" for name in ("min_length=40", "test_size=21"))]
    cli = main(["fit", *tiny_arguments("listops", tmp_path, overlay), *sizes, "--trainer.accelerator=cuda"])
    assert cli.trainer.global_step == 9
    assert torch.isfinite(torch.as_tensor(cli.trainer.callback_metrics["train/loss"]))


def test_benchmark(tmp_path, main):
    """One case: each has a process of its own."""
    arguments = ["--device=cuda", "--backends=[skyformer]", "--sizes=[2x256]", "--precisions=[bfloat16]"]
    (row,) = main(["benchmark", *arguments, "--part=layer", f"--output={tmp_path}"])
    assert "failed" not in row
    assert row["peak_mb"] > 0
    assert row["operations"] > 0
