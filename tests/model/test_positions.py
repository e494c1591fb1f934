"""Positions of the encoder: values by the formulas, distances, every backend with rotations, refused settings."""

import math
from functools import partial

import pytest
import torch
from refusals import refuse
from torch import Tensor

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
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.encoder import Encoder, attention_inputs
from skyformer.model.positions import make_rotary, rotary_angles, rotate, sinusoidal_positions

BACKENDS = {
    "softmax": SoftmaxAttention,
    "kernelized": KernelizedAttention,
    "skyformer": partial(SkyformerAttention, num_landmarks=6),
    "nystromformer": partial(NystromformerAttention, num_landmarks=4, conv_kernel=3),
    "linformer": partial(LinformerAttention, projected_length=5),
    "informer": partial(InformerAttention, num_queries=6, factor=2.0),
    "bigbird": partial(BigBirdAttention, block_size=4, num_random_blocks=1),
    "performer": partial(PerformerAttention, num_features=16),
    "reformer": partial(ReformerAttention, num_buckets=4, chunk_length=4),
}
# Their output depends on distances alone; random features and hash buckets are of absolute directions.
RELATIVE = sorted(BACKENDS.keys() - {"performer", "reformer"})
LENGTH, SIDE = 40, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotated(row: Tensor, *places: int, base: float) -> Tensor:
    """A row `(P,)` rotated by hand: pair k of (k, k + P / 2) by the angle of its place; pairs are shared out evenly."""
    out, half = row.clone(), len(row) // 2
    each = half // len(places)
    for pair in range(half):
        angle = places[pair // each] * base ** (-(pair % each) / each)
        cosine, sine, (x, y) = math.cos(angle), math.sin(angle), row[[pair, pair + half]].tolist()
        out[pair], out[pair + half] = cosine * x - sine * y, sine * x + cosine * y
    return out


def make_encoder(attention=SoftmaxAttention, positions="rotary", **settings) -> Encoder:
    torch.manual_seed(0)
    length = SIDE**2 if positions == "rotary_2d" else LENGTH
    sizes = {"embed_dim": 16, "hidden_dim": 16, "image_side": SIDE if positions == "rotary_2d" else 0}
    encoder = Encoder(9, length, attention, positions=positions, **{**sizes, **settings})
    return encoder.double().eval()


def test_sinusoidal_positions_by_the_formula():
    positions = sinusoidal_positions(6, 5)
    for n in range(6):
        angles = [n * 10_000 ** (-k / 3) for k in range(3)]
        expected = [0.02 * math.sqrt(2) * f(a) for a in angles for f in (math.sin, math.cos)][:5]
        assert positions[n].tolist() == pytest.approx(expected, abs=1e-12)
    assert sinusoidal_positions(4096, 64).square().mean().sqrt() == pytest.approx(0.02), "that of the embedding"


@pytest.mark.parametrize(("kind", "base"), [("rotary", 10_000.0), ("rotary_2d", 100.0)])
def test_rotation_by_hand(kind, base):
    x = draw(2, 3, SIDE**2, 8)
    out = rotate(x, make_rotary(kind, SIDE**2, 8, SIDE).double()(SIDE**2, None))
    for n in range(SIDE**2):
        places = (n,) if kind == "rotary" else divmod(n, SIDE)
        expected = torch.stack([torch.stack([rotated(x[b, h, n], *places, base=base) for h in (0, 2)]) for b in (0, 1)])
        torch.testing.assert_close(out[:, ::2, n], expected, rtol=1e-12, atol=1e-12)


def kernel(x: Tensor, y: Tensor) -> float:
    return float(torch.exp(-(x - y).square().sum() / 2))


def test_kernel_of_rotated_rows_depends_on_the_distance_alone():
    query, key = draw(8, seed=1), draw(8, seed=2)
    table = make_rotary("rotary", 5000, 8, 0).double()(5000, None)
    queries, keys = (rotate(row.expand(1, 1, 5000, 8), table)[0, 0] for row in (query, key))
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(5000), rtol=1e-12, atol=0)
    for distance in (-40, 0, 1, 700):
        expected = kernel(queries[100], keys[100 + distance])
        for place in (41, 999, 4000):
            assert kernel(queries[place], keys[place + distance]) == pytest.approx(expected, rel=1e-10)
    near, far = kernel(queries[100], keys[101]), kernel(queries[100], keys[800])
    assert near != pytest.approx(far, rel=1e-3)


def test_kernel_of_pixels_depends_on_rows_and_columns_between_them():
    table = make_rotary("rotary_2d", 1024, 8, 32).double()(1024, None)
    queries, keys = (rotate(draw(8, seed=s).expand(1, 1, 1024, 8), table).view(32, 32, 8) for s in (1, 2))
    expected = kernel(queries[3, 4], keys[5, 11])
    assert kernel(queries[20, 21], keys[22, 28]) == pytest.approx(expected, rel=1e-10)
    assert kernel(queries[3, 4], keys[10, 6]) != pytest.approx(expected, rel=1e-3), "rows are not columns"
    assert torch.equal(queries[3, 4].view(2, 2, 2)[:, 0], queries[3, 9].view(2, 2, 2)[:, 0]), "half goes by the row"
    assert torch.equal(queries[3, 4].view(2, 2, 2)[:, 1], queries[8, 4].view(2, 2, 2)[:, 1]), "half by the column"


@pytest.mark.parametrize("attention", [SoftmaxAttention, ReformerAttention])
def test_backend_receives_rotated_queries_and_keys(attention):
    """At the positions that are given; values are as they were."""
    encoder = make_encoder(attention)
    tokens, position = torch.randint(9, (2, 10)), torch.stack([torch.arange(10), 3 * torch.arange(10)])
    (_, (query, key, value, _)), *_ = attention_inputs(encoder, tokens, None, position)
    block = encoder.blocks[0]
    plain = [*block.attention._heads(block.attention.query_key_value(block.attention_norm(encoder.tokens(tokens))))]
    torch.testing.assert_close(value, plain[-1])
    for rows, seen in ((plain[0], query), (plain[-2], key)):
        expected = rotated(rows[1, 0, 7], 21, base=10_000.0)
        torch.testing.assert_close(seen[1, 0, 7], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RELATIVE)
def test_output_depends_on_distances_alone(name):
    """Shift all positions: also landmarks, segment means, projected keys and sampled queries give the same."""
    encoder = make_encoder(BACKENDS[name], query_key_gain=6.0)
    tokens, mask = torch.randint(9, (2, 20)), torch.arange(20) < torch.tensor([[20], [13]])
    place = torch.arange(20).expand(2, -1)
    near = encoder(tokens, mask, place)
    torch.testing.assert_close(encoder(tokens, mask, place + 17)[mask], near[mask], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(encoder(tokens, mask, 2 * place)[mask], near[mask], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_rotates_black_pixels_out(name):
    """Of pixels that are left out the others keep their positions: scores and gradients are those of masking."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        BACKENDS[name], torch.optim.SGD, vocab_size=9, max_length=SIDE**2, image_side=SIDE, positions="rotary_2d",
        embed_dim=16, hidden_dim=16, query_key_gain=6.0,
    ).double().eval()  # fmt: skip
    tokens = torch.randint(1, 9, (2, SIDE**2)) * (torch.rand(2, SIDE**2) < 0.4)
    counts = (tokens > 0).sum(dim=1)
    mask = torch.arange(int(counts.max())) < counts[:, None]
    position, kept = torch.zeros(mask.shape, dtype=torch.long), torch.zeros(mask.shape, dtype=torch.long)
    position[mask], kept[mask] = (tokens > 0).nonzero()[:, 1], tokens[tokens > 0]
    results = []
    for inputs in ((tokens, tokens > 0), (kept, mask, position)):
        scores = model(*inputs)
        gradient = torch.autograd.grad(scores.square().sum(), model.encoder.blocks[0].attention.query_key_value.weight)
        results.append((scores, *gradient))
    for masked, dropped in zip(*results, strict=True):
        torch.testing.assert_close(dropped, masked, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(model(kept, mask), results[0][0], rtol=1e-4), "positions matter"


def test_landmarks_are_rotated_rows():
    """With every row a landmark and a small ridge, Skyformer is the exact kernel of the rotated rows."""
    tokens = torch.randint(9, (2, 20))
    every = partial(SkyformerAttention, num_landmarks=40, ridge=1e-10)
    exact, approximate = (make_encoder(a, query_key_gain=6.0)(tokens) for a in (KernelizedAttention, every))
    torch.testing.assert_close(approximate, exact, rtol=1e-5, atol=1e-5)


def test_without_positions_the_order_does_not_matter():
    tokens, order = torch.randint(9, (2, 20)), torch.randperm(20)
    for positions, same in (("none", True), ("sinusoidal", False), ("rotary", False), ("learned", False)):
        encoder = make_encoder(positions=positions)
        assert torch.allclose(encoder(tokens[:, order]), encoder(tokens)[:, order], atol=1e-10) == same, positions


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "rotary_2d", "none"])
def test_no_checkpoint_holds_fixed_positions(positions):
    encoder = make_encoder(positions=positions)
    assert not [name for name in encoder.state_dict() if "positions" in name or "rotary" in name]


def test_rotations_stay_precise_in_half_precision():
    """In bfloat16, positions 1,000 and 1,001 would have the same angles."""
    rotary = make_rotary("rotary", 2048, 8, 0)
    angles = rotary_angles(torch.arange(2048), 8, 10_000.0)
    for dtype, kept, error in ((torch.bfloat16, torch.float32, 1e-7), (torch.float64, torch.float64, 1e-15)):
        rotary = rotary.to(dtype)
        assert rotary.table.dtype == kept
        assert (rotary.table[0] - angles.cos()).abs().max() < error
    x = draw(1, 1, 4, 8).bfloat16()
    assert rotate(x, rotary(4, None)).dtype == torch.bfloat16


@pytest.mark.long
def test_compiled_encoder_gives_the_same():
    """In one graph: nothing in Python depends on the data."""
    tokens, results = torch.randint(9, (2, 20)), []
    for compiled in (False, True):
        encoder = make_encoder(num_layers=1, norm="rms", feed_forward="geglu", stochastic_depth=0.4).train()
        if compiled:
            encoder.compile(backend="aot_eager", fullgraph=True)
        torch.manual_seed(1)
        encoder(tokens, None, torch.arange(20).expand(2, -1)).square().sum().backward()
        results.append([parameter.grad for parameter in encoder.parameters()])
    for gradient, expected in zip(*results, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"positions": "absolute"}, r"positions='absolute' is not one of \['learned', 'sinusoidal', 'rotary'"),
        ({"positions": "rotary", "embed_dim": 6}, r"multiple of 2 \(got 3\)\. Fix: change --model.embed_dim or"),
        ({"positions": "rotary_2d", "embed_dim": 12, "image_side": 3}, r"rotary_2d needs .* multiple of 4 \(got 6\)"),
        ({"positions": "rotary_2d"}, r"9 tokens and image_side=0\)\. Fix: --model.positions rotary"),
        (
            {"positions": "rotary", "position_init": "sinusoidal_2d"},
            r"got positions=rotary\)\. Fix: --model",
        ),
    ],
)
def test_positions_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Encoder(16, 9, SoftmaxAttention, **{"embed_dim": 16, "hidden_dim": 8, **settings})


@pytest.mark.parametrize(
    ("task", "arguments", "code", "words"),
    [
        (
            "listops",
            ["--model.positions=rotary_2d"],
            1,
            ["positions=rotary_2d needs square images"],
        ),
        (
            "listops",
            ["--model.positions=rotary", "--model.embed_dim=6"],
            1,
            ["positions=rotary needs a head"],
        ),
        ("listops", ["--model.positions=rotation"], 2, ["positions", "rotation"]),
        (
            "listops",
            ["--model.positions=rotary", "--model.positions_lr_factor=0.1"],
            1,
            ["positions_lr_factor=0.1 is for learned positions (got positions=rotary)"],
        ),
    ],
)
def test_command_with_positions_that_cannot_be_is_refused(
    task, arguments, code, words, tmp_path, main, capsys, tiny_arguments
):
    refuse(main, capsys, ["fit", *tiny_arguments(task, tmp_path), *arguments], code, *words)


@pytest.mark.parametrize(
    ("task", "positions"),
    [
        *(pytest.param("listops", name, marks=pytest.mark.long) for name in ("sinusoidal", "none")),
        ("pathfinder", "rotary_2d"),
    ],
)
def test_run_with_other_positions(task, positions, tmp_path, main, tiny_arguments):
    """Pathfinder's configuration names a start of learned positions."""
    extra = [f"--model.positions={positions}", "--model.position_init=normal", "--trainer.max_steps=3"]
    cli = main(["fit", *tiny_arguments(task, tmp_path), *extra])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert main(["test", f"--config={tmp_path}/config.yaml"]).model.hparams.positions == positions
