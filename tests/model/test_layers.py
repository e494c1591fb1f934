"""Norms, feed-forward networks and stochastic depth by their formulas, and runs with all of them."""

import math

import pytest
import torch
from refusals import refuse

from skyformer.attention import SoftmaxAttention
from skyformer.model.encoder import Encoder
from skyformer.model.layers import StochasticDepth, make_feed_forward, make_norm


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def test_norms_by_their_formulas():
    x, gain = draw(3, 8), torch.arange(1.0, 9.0, dtype=torch.float64)
    for kind in ("layer", "rms"):
        norm = make_norm(kind, 8).double()
        norm.weight.data.copy_(gain)
        for row, out in zip(x.tolist(), norm(x).tolist(), strict=True):
            mean = sum(row) / 8 if kind == "layer" else 0.0
            root = math.sqrt(sum((value - mean) ** 2 for value in row) / 8 + 1e-5)
            assert out == pytest.approx([(value - mean) / root * (i + 1) for i, value in enumerate(row)], rel=1e-12)


@pytest.mark.parametrize("kind", ["gelu", "geglu"])
def test_feed_forward_by_its_formula(kind):
    torch.manual_seed(0)
    network = make_feed_forward(kind, 4, 6, dropout=0.0).double()
    x = draw(4)
    inner = (network[0].weight @ x + network[0].bias).tolist()
    hidden = [gelu(value) for value in inner[:6]]
    if kind == "geglu":
        hidden = [gate * value for gate, value in zip(hidden, inner[6:], strict=True)]
    expected = network[3].weight @ torch.tensor(hidden, dtype=torch.float64) + network[3].bias
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)


def test_stochastic_depth_leaves_out_whole_sequences():
    torch.manual_seed(0)
    layer, branch = StochasticDepth(0.25), torch.ones(4000, 3, 2)
    out = layer(branch)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == out[:, :1, :1]).all(), "a sequence as a whole"
    assert out.mean() == pytest.approx(1, abs=0.03), "nothing changes on average"
    assert layer.eval()(branch) is branch


def test_rate_grows_with_the_block():
    encoder = Encoder(9, 8, SoftmaxAttention, embed_dim=8, hidden_dim=8, num_layers=4, stochastic_depth=0.2)
    assert [block.stochastic_depth.p for block in encoder.blocks] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_defaults_draw_no_number_more():
    encoder = Encoder(9, 8, SoftmaxAttention, embed_dim=8, hidden_dim=8, dropout=0.0)
    before = torch.get_rng_state()
    encoder(torch.zeros(2, 8, dtype=torch.long))
    assert torch.equal(torch.get_rng_state(), before)


def test_model_has_what_was_asked_for(tmp_path, main, tiny_arguments):
    options = ["--model.norm=rms", "--model.feed_forward=geglu", "--model.stochastic_depth=0.2", "--model.num_layers=3"]
    model = main(["fit", *tiny_arguments("listops", tmp_path), *options, "--trainer.max_steps=3"]).model
    block = model.encoder.blocks[-1]
    norms = [type(norm).__name__ for norm in (block.attention_norm, block.mlp_norm, model.encoder.norm)]
    assert norms == ["RMSNorm"] * 3
    assert block.mlp[0].out_features == 32, "two halves of hidden_dim=16"
    assert (len(model.encoder.blocks), block.stochastic_depth.p) == (3, 0.2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model.norm=batch"], 2, ["norm", "batch"]),
        (["--model.feed_forward=relu"], 2, ["feed_forward", "relu"]),
        (["--model.pooling=last"], 2, ["pooling", "last"]),
        (["--model.stochastic_depth=1"], 1, ["stochastic_depth=1.0 must lie in [0, 1)"]),
    ],
)
def test_options_that_do_not_exist_are_refused(arguments, code, words, tmp_path, main, capsys, tiny_arguments):
    refuse(main, capsys, ["fit", *tiny_arguments("listops", tmp_path), *arguments], code, *words)


@pytest.mark.parametrize(("setting", "value"), [("norm", "batch"), ("feed_forward", "relu")])
def test_unknown_part_is_named(setting, value):
    with pytest.raises(ValueError, match=rf"{setting}='{value}' is not one of \["):
        Encoder(9, 8, SoftmaxAttention, embed_dim=8, hidden_dim=8, **{setting: value})
