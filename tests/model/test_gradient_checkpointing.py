"""Blocks recomputed in the backward pass: the same run, in less memory."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from interrupted_runs import assert_same_training, final_weights

from skyformer.attention import (
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

BACKENDS = {
    "bigbird": partial(BigBirdAttention, block_size=4, dropout=0.2),
    "informer": partial(InformerAttention, num_queries=4, dropout=0.2),
    "kernelized": partial(KernelizedAttention, dropout=0.2),
    "linformer": partial(LinformerAttention, projected_length=4, dropout=0.2),
    "nystromformer": partial(NystromformerAttention, num_landmarks=4),
    "performer": partial(PerformerAttention, num_features=8, redraw_every=2),
    "reformer": partial(ReformerAttention, num_buckets=4, chunk_length=4),
    "skyformer": partial(SkyformerAttention, num_landmarks=8),
    "softmax": partial(SoftmaxAttention, dropout=0.2),
}


def three_steps(encoder: Encoder) -> list[torch.Tensor]:
    """The gradients of three steps, the state of the encoder after them, and the next random numbers."""
    torch.manual_seed(1)
    tokens, mask, results = torch.randint(9, (3, 20)), torch.arange(20) < torch.tensor([[20], [13], [5]]), []
    for _ in range(3):
        encoder.zero_grad()
        encoder(tokens, mask).square().sum().backward()
        results += [parameter.grad.clone() for parameter in encoder.parameters()]
    return [*results, *encoder.state_dict().values(), torch.rand(5)]


def make_encoder(attention, gradient_checkpointing: bool) -> Encoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "hidden_dim": 16, "dropout": 0.3, "positions": "rotary", "stochastic_depth": 0.3}
    return Encoder(9, 20, attention, **sizes, gradient_checkpointing=gradient_checkpointing)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_and_state_are_the_same(name):
    """With dropout, stochastic depth, rotations, landmark draws, and features that are redrawn every other step."""
    kept, recomputed = (three_steps(make_encoder(BACKENDS[name], on)) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_each_block_keeps_its_input_only():
    sizes = []
    for on in (False, True):
        encoder, kept = make_encoder(BACKENDS["skyformer"], on), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            encoder(torch.randint(9, (3, 20)))
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 4


@pytest.mark.long
def test_compiled_gradients_are_the_same():
    encoders = [make_encoder(BACKENDS["skyformer"], on) for on in (False, True)]
    for encoder in encoders:
        encoder.compile(backend="aot_eager", fullgraph=True)
    kept, recomputed = map(three_steps, encoders)
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize(
    ("attention", "extra"),
    [
        ("skyformer", []),
        pytest.param("performer", ["--model.attention.redraw_every=2"], marks=pytest.mark.long),
    ],
)
def test_run_and_its_resume_are_the_same(attention, extra, tmp_path, main, tiny_arguments):
    """By one line of YAML. A run that began without it may resume with it."""
    (tmp_path / "on.yaml").write_text("model:\n  gradient_checkpointing: true\n")
    on = f"--config={tmp_path}/on.yaml"

    def fit(name: str, *more: str) -> Path:
        main(["fit", *tiny_arguments("listops", tmp_path / name, f"attention/{attention}"), *extra, *more])
        return tmp_path / name

    kept, recomputed = fit("kept"), fit("recomputed", on)
    assert_same_training(recomputed, kept, from_step=0)
    part = tmp_path / "resumed/checkpoints/last.ckpt"
    part.parent.mkdir(parents=True)
    shutil.copy(kept / "checkpoints/previous.ckpt", part)
    assert 0 < torch.load(part, weights_only=True)["global_step"] < 9
    resumed = fit("resumed", on, "--ckpt_path=last")
    ours, theirs = final_weights(resumed), final_weights(kept)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
