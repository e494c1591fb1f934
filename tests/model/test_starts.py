"""How positions, queries and keys start: values by the formulas, and every backend with them."""

import math

import pytest
import torch
from tiny_runs import ROOT

from skyformer.attention import KernelizedAttention, ReformerAttention, SkyformerAttention, SoftmaxAttention
from skyformer.model.encoder import Encoder, attention_inputs
from skyformer.model.positions import sinusoidal_positions_2d

ATTENTIONS = sorted(path.stem for path in (ROOT / "configs/attention").glob("*.yaml"))
QUICK = ("skyformer", "reformer", "linformer")  # one each of separate, shared and projected keys


def test_sinusoidal_positions_2d_by_the_formula():
    positions = sinusoidal_positions_2d(side=5, embed_dim=8)
    assert positions.shape == (25, 8)
    for row in range(5):
        for column in range(5):
            expected = []
            for place in (row, column):
                for k in range(2):
                    angle = place * 2 * math.pi / 8 * 10_000 ** (-k / 2)
                    expected += [0.1 * math.sin(angle), 0.1 * math.cos(angle)]
            assert positions[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_products_of_sinusoidal_positions_depend_on_the_offset_alone():
    positions = sinusoidal_positions_2d(32, 64).double().reshape(32, 32, 64)
    near = (positions[3, 4] * positions[4, 6]).sum()
    assert (positions[20, 9] * positions[21, 11]).sum() == pytest.approx(float(near), abs=1e-6)
    distance = (positions[10, 10] - positions).square().sum(dim=-1)
    assert distance[10, 10] == 0
    assert distance[10, 11] < distance[10, 12] < distance[10, 13]


def test_encoder_starts_with_them():
    encoder = Encoder(256, 1024, SoftmaxAttention, position_init="sinusoidal_2d", image_side=32)
    assert torch.equal(encoder.positions.weight, sinusoidal_positions_2d(32, 64))
    assert encoder.positions.weight.requires_grad


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_queries_and_keys_start_equal(gain):
    torch.manual_seed(0)
    usual = Encoder(16, 9, SoftmaxAttention, embed_dim=8, hidden_dim=8)
    torch.manual_seed(0)
    equal = Encoder(16, 9, SoftmaxAttention, embed_dim=8, hidden_dim=8, query_key_gain=gain)
    for before, after in zip(usual.blocks, equal.blocks, strict=True):
        was, now = before.attention.query_key_value, after.attention.query_key_value
        for name in ("weight", "bias"):
            old, new = getattr(was, name), getattr(now, name)
            assert torch.equal(new[:8], gain * old[:8])
            assert torch.equal(new[8:16], gain * old[:8])
            assert torch.equal(new[16:], old[16:]), "values start as usual"
    others = [name for name, _ in usual.named_parameters() if "query_key_value" not in name]
    assert all(torch.equal(usual.get_parameter(name), equal.get_parameter(name)) for name in others)


def test_shared_query_and_key_projection_takes_the_gain():
    torch.manual_seed(0)
    usual = Encoder(16, 9, ReformerAttention, embed_dim=8, hidden_dim=8).blocks[0].attention.query_key_value
    torch.manual_seed(0)
    gained = Encoder(16, 9, ReformerAttention, embed_dim=8, hidden_dim=8, query_key_gain=3.0).blocks[0].attention
    assert torch.equal(gained.query_key_value.weight[:8], 3 * usual.weight[:8])
    assert torch.equal(gained.query_key_value.weight[8:], usual.weight[8:])


def test_equal_starts_attend_to_the_neighbourhood():
    """κ of a pixel with itself is 1; it falls with the distance, the faster the larger the gain."""
    kernels = []
    for gain in (1.0, 2.0):
        torch.manual_seed(0)
        encoder = Encoder(
            256, 1024, SkyformerAttention, position_init="sinusoidal_2d", query_key_gain=gain, image_side=32
        )
        block = encoder.blocks[0]
        x = block.attention_norm(encoder.tokens(torch.full((1, 1024), 7)) + encoder.positions.weight)
        query, key, _ = block.attention._heads(block.attention.query_key_value(x))
        distance = (query[0, 0, 528] - key[0, 0]).square().sum(dim=-1) / math.sqrt(32)
        kernels.append(torch.exp(-distance / 2).reshape(32, 32))
    for kernel in kernels:
        assert kernel[16, 16] == 1
        assert kernel[16, 17] > kernel[16, 18] > kernel[16, 19]
    assert (kernels[1][16, 17:20] < kernels[0][16, 17:20]).all()


# Of each head: offset by row and column, and the largest frequency.
NEIGHBOURS = {
    "rotary": [(0, 1, 1.0), (0, -1, 1.0), (0, 0, 0.33), (0, 0, 0.11), (0, 2, 1.0), (0, -2, 1.0)],
    "rotary_2d": [(0, 1, 1.0), (0, -1, 1.0), (1, 0, 1.0), (-1, 0, 1.0), (0, 0, 0.33), (0, 0, 0.11)],
}


@pytest.mark.parametrize("positions", NEIGHBOURS)
@pytest.mark.parametrize("dim", [16, 32])
def test_local_start_attends_to_neighbours(dim, positions):
    """Each head's kernel of one token with all others, by the formula in `local_biases`."""
    side, heads = 9, 6
    length = side**2 if positions == "rotary_2d" else 61
    encoder = Encoder(
        16, length, KernelizedAttention, embed_dim=heads * dim, hidden_dim=8, num_heads=heads, positions=positions,
        position_init="local", image_side=side if positions == "rotary_2d" else 0,
    ).double()  # fmt: skip
    inputs = attention_inputs(encoder, torch.randint(16, (2, length)), None, None)
    token = length // 2  # the centre of an image
    base, axes = (100.0, 2) if positions == "rotary_2d" else (10_000.0, 1)
    thetas = [base ** (-k * 2 * axes / dim) for k in range(dim // 2 // axes)]
    for _, (query, key, *_) in inputs:
        kernel = torch.exp(-torch.cdist(query, key).square() / (2 * math.sqrt(dim)))[:, :, token]
        for head, (row, column, largest) in enumerate(NEIGHBOURS[positions]):
            aim = token + row * side + column
            expected = []
            for n in range(length):
                apart = [n // side - aim // side, n % side - aim % side] if axes == 2 else [n - aim]
                turns = sum((1 if t <= largest else 0.01) * (1 - math.cos(t * d)) for t in thetas for d in apart)
                expected.append(math.exp(-60 / dim * turns))
            expected = torch.tensor(expected, dtype=torch.float64).expand(2, -1)
            torch.testing.assert_close(kernel[:, head], expected, rtol=1e-4, atol=1e-6)
            assert kernel[0, head].argmax() == aim


@pytest.mark.parametrize("positions", NEIGHBOURS)
@pytest.mark.parametrize("attention", [KernelizedAttention, SoftmaxAttention])
def test_all_projections_of_a_local_start_are_trained(attention, positions):
    encoder = Encoder(
        16, 49, attention, embed_dim=96, hidden_dim=8, num_heads=6, positions=positions, position_init="local",
        image_side=7,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(torch.randint(16, (2, 49))).square().sum(dim=1).std().backward()
        optimizer.step()
    for block in encoder.blocks:
        assert block.attention.query_key_value.weight.abs().sum(dim=1).gt(0).all()


def test_local_start_has_tokens_of_the_size_of_their_neighbours_sum():
    torch.manual_seed(0)
    encoder = Encoder(
        256, 200, KernelizedAttention, num_heads=4, dropout=0.0, positions="rotary", position_init="local"
    )
    block, x = encoder.blocks[0], encoder.tokens(torch.randint(256, (4, 200)))
    added = block.attention(block.attention_norm(x), None, encoder.rotary(200, None))
    assert 0.5 < x.std() / added.std() < 2


@pytest.mark.parametrize(
    "attention", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in ATTENTIONS]
)
def test_every_backend_trains_with_both(attention, tmp_path, main, tiny_arguments):
    arguments = tiny_arguments("pathfinder", tmp_path, f"attention/{attention}")
    starts = ["--model.position_init=sinusoidal_2d", "--model.query_key_gain=2"]
    cli = main(["fit", *arguments, *starts, "--trainer.max_steps=1", "--model.lr_scheduler.init_args.warmup_steps=0"])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("task", ["image", "pathx", "text"])
def test_two_dimensional_start_is_for_images(task, tmp_path, main, tiny_arguments, capsys):
    """Text of 4,096 bytes has a square's length and no plane."""
    arguments = [*tiny_arguments(task, tmp_path), "--model.position_init=sinusoidal_2d", "--trainer.max_steps=3"]
    if task != "text":
        assert main(["fit", *arguments]).model.encoder.positions.weight.shape[0] in (1024, 16_384)
        return
    with pytest.raises(SystemExit):
        main(["fit", *arguments])
    assert "position_init=sinusoidal_2d needs square images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"position_init": "sinusoidal"}, r"position_init='sinusoidal' is not one of \['normal', 'sinusoidal_2d', "),
        ({"position_init": "local"}, r"needs positions=rotary or rotary_2d \(got positions=learned\)\. Fix: "),
        ({"position_init": "local", "positions": "rotary", "query_key_gain": 2.0}, "Fix: --model.query_key_gain null"),
        ({"position_init": "local", "positions": "rotary", "attention": ReformerAttention}, r"got ReformerAttention"),
        (
            {"position_init": "local", "positions": "rotary"},
            r"of at least 16 \(got 4\)\. Fix: change --model.embed_dim",
        ),
        ({"position_init": "sinusoidal_2d", "image_side": 8}, r"sequences of 9 tokens and image_side=8\). Fix: "),
        ({"position_init": "sinusoidal_2d", "image_side": 3, "embed_dim": 6}, "embed_dim=6 must be a multiple of 4"),
        ({"query_key_gain": 0.0}, "query_key_gain=0.0 must be a number above 0"),
        ({"query_key_gain": math.inf}, "query_key_gain=inf must be a number above 0"),
    ],
)
def test_what_cannot_work_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Encoder(16, 9, **{"attention": SoftmaxAttention, "embed_dim": 8, "hidden_dim": 8, **settings})
