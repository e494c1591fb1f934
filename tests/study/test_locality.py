"""`study locality`: gradients by distance, and attention in blocks."""

import json
from types import SimpleNamespace

import pytest
import torch
from attention_inputs import draw
from tiny_backends import BACKENDS, HEAD_DIM, HEADS
from torch.optim import AdamW

from datamodules import MQAR
from skyformer import SequenceClassifier
from skyformer.attention import SoftmaxAttention
from skyformer.model.head import UNLABELLED
from skyformer.study.blocks import BlockAttention, attention_in_blocks, block_places, distances
from skyformer.study.locality import (
    _octaves,
    _tables,
    _within,
    accuracy_in_blocks,
    default_windows,
    gradients_by_distance,
    largest_standard_error,
    sample_batches,
)


@pytest.fixture(scope="module")
def checkpoint(main, tiny_arguments, tmp_path_factory):
    """Of a Skyformer on Pathfinder, whose black pixels are dropped."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_arguments("pathfinder", folder), "--trainer.max_steps=3"])
    return folder / "checkpoints/last.ckpt"


def make_classifier(**settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "hidden_dim": 8, "vocab_size": 7, "max_length": 16, "num_layers": 1, "dropout": 0.0}
    return SequenceClassifier("softmax", AdamW, **{**sizes, **settings}).eval()


def batch_of(tokens, mask=None, position=None):
    return SimpleNamespace(tokens=tokens, mask=mask, position=position)


@pytest.mark.parametrize("side", [0, 6])
@pytest.mark.parametrize("name", BACKENDS)
def test_each_block_is_a_sequence_of_its_own(name, side):
    torch.manual_seed(0)
    backend = BACKENDS[name]().double().eval()
    query, key, value = (draw(2, HEADS, 20, HEAD_DIM, seed=seed) for seed in range(3))
    if backend.shares_query_and_key:
        key = query
    mask = torch.arange(20) < torch.tensor([20, 13])[:, None]
    position = torch.stack([torch.randperm(36)[:20].sort().values for _ in range(2)]) * mask if side else None
    out = BlockAttention(backend, 4, side, position)(query, key, value, mask)
    places = torch.arange(20).expand(2, -1) if position is None else position
    block = places // 6 // 4 * 2 + places % 6 // 4 if side else places // 4
    for number in range(9):
        inside = mask & (block == number)
        expected = backend(query, key, value, inside)
        torch.testing.assert_close(out.mT[..., :, inside[0]][0], expected.mT[..., :, inside[0]][0])
        torch.testing.assert_close(out.mT[..., :, inside[1]][1], expected.mT[..., :, inside[1]][1])


def test_softmax_in_blocks_is_softmax_with_a_block_diagonal_mask():
    query, key, value = (draw(1, HEADS, 11, HEAD_DIM, seed=seed) for seed in range(3))
    block = torch.arange(11) // 4
    logits = (query @ key.mT / HEAD_DIM**0.5).masked_fill(block[:, None] != block, -torch.inf)
    found = BlockAttention(SoftmaxAttention(HEADS, HEAD_DIM, 11), 4, 0, None)(query, key, value, None)
    torch.testing.assert_close(found, logits.softmax(dim=-1) @ value)


def test_places_and_distances_in_an_image():
    position = torch.arange(36).view(6, 6)
    block, place = block_places(position, 4, 6)
    assert block.tolist() == [[0, 0, 0, 0, 1, 1]] * 4 + [[2, 2, 2, 2, 3, 3]] * 2
    assert place[1, :].tolist() == [4, 5, 6, 7, 4, 5]
    assert place[4, :].tolist() == [0, 1, 2, 3, 0, 1]
    assert block_places(position, 100, 6)[1].equal(position), "a square of the whole image"
    found = distances(torch.tensor([8]), torch.tensor([[8, 9, 13, 14, 0, 35]]), 6)
    assert found.tolist() == [[0, 1, 1, 1, 2, 4]], "position 8 is row 1, column 2"
    assert distances(torch.tensor([8]), torch.tensor([[8, 9, 2, 0]]), 0).tolist() == [[0, 1, 6, 8]]


def test_gradients_are_the_squared_norms_of_the_jacobian():
    """One sequence many times, so that the mean over the random vectors is near the expectation."""
    model = make_classifier(query_key_gain=4.0, image_side=4, positions="sinusoidal")
    tokens, position = torch.tensor([[1, 2, 3, 4, 0]]), torch.tensor([[2, 3, 7, 12, 0]])
    mask = torch.tensor([[True, True, True, True, False]])
    embedded = model.encoder.tokens(tokens).detach()

    def encode(x):
        hook = model.encoder.tokens.register_forward_hook(lambda *_: x)
        try:
            return model.encoder(tokens, mask, position)[0]
        finally:
            hook.remove()

    jacobian = torch.autograd.functional.jacobian(encode, embedded)[:, :, 0]  # (N, D, N, D)
    norms = jacobian.square().sum(dim=(1, 3))[:4, :4]
    # (0, 2), (0, 3), (1, 3) and (3, 0)
    distance = torch.tensor([[0, 1, 1, 3], [1, 0, 1, 3], [1, 1, 0, 3], [3, 3, 3, 0]])
    many = batch_of(*(x.expand(1000, -1) for x in (tokens, mask, position)))
    sums, pairs = gradients_by_distance(model, [many], 4, 4, 0)
    assert pairs.sum() == 16000, "of the real tokens"
    assert pairs[2] == 0
    for number in (0, 1, 3):
        found, expected = sums[number] / pairs[number], norms[distance == number].mean()
        assert found.item() == pytest.approx(expected.item(), rel=0.05)


def test_no_gradient_leaves_a_block():
    model = make_classifier(num_layers=2)
    batch = batch_of(torch.arange(14).view(2, 7) % 7)
    whole, _ = gradients_by_distance(model, [batch], 0, 20, 0)
    again, _ = gradients_by_distance(model, [batch], 0, 20, 0)
    assert whole.equal(again), "drawn with the seed"
    with attention_in_blocks(model.encoder, 3, 0, None):
        limited, _ = gradients_by_distance(model, [batch], 0, 20, 0)
    assert (whole[:7] > 0).all()
    assert (limited[:3] > 0).all()
    assert limited[3:].sum() == 0
    assert gradients_by_distance(model, [batch], 0, 20, 0)[0].equal(whole), "the backends are back"


def test_accuracy_with_token_labels_is_that_of_labelled_tokens(tmp_path):
    sizes = {"vocab_size": 16, "train_size": 1, "val_size": 21, "test_size": 1, "batch_size": 1}
    data = MQAR(data_dir=str(tmp_path), train_cases=((16, 2), (20, 4)), test_cases=((16, 2),), **sizes)
    data.prepare_data()
    data.setup("fit")
    batches = sample_batches(data.splits["val"], 21, 0)
    model = make_classifier(vocab_size=16, num_classes=16, max_length=20, pooling="none")
    right = 0
    for batch in batches:
        predicted = model(batch.tokens, batch.mask).argmax(dim=-1)
        is_right = (batch.label != UNLABELLED) & (torch.arange(batch.label.shape[1]) % 4 == 0)
        batch.label[:] = torch.where(is_right, predicted, batch.label)
        right += int((predicted == batch.label).sum())
    labels = 11 * 2 + 10 * 4
    assert 20 < right < labels
    assert accuracy_in_blocks(model, batches, None, 0) == accuracy_in_blocks(model, batches, 20, 0) == right / labels
    for batch in batches:
        model.metrics["val"]["accuracy"].update(*model.scores_and_labels(batch))
    assert model.metrics["val"]["accuracy"].compute().item() == pytest.approx(right / labels), "as in validation"


def test_standard_error_is_of_independent_examples():
    assert largest_standard_error(torch.ones(400, dtype=torch.int64)) == pytest.approx(0.5 / 20)
    labels = torch.tensor([2, 4, 4])
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3) @ labels.float() / 10
    assert largest_standard_error(labels) == pytest.approx(outcomes.std(correction=0).item()), "all labels alike"


@pytest.mark.parametrize(
    ("labels", "said"),
    [(25, "; 25 validation examples, standard"), (4000, "; 4,000 labelled tokens of 25 validation examples, standard")],
)
def test_caption_counts_what_the_accuracy_counts(labels, said):
    row = {"task": "mqar", "name": "skyformer", "is_image": False, "examples": 25, "labels": labels}
    row |= {"standard_error": 0.1, "accuracy": {"1": 0.5, "whole": 0.75}}
    row |= {key: [1.0, 2.0, 1.0] for key in ("pairs", "trained", "untrained")}
    _, (caption, _) = _tables([row])
    assert f"{said} error 10.0 at most" in caption


def test_windows_shares_and_octaves():
    assert default_windows(4096, 0) == [1, 4, 16, 64, 256, 1024]
    assert default_windows(2000, 0) == [1, 4, 16, 64, 256, 1024]
    assert default_windows(1024, 32) == [1, 2, 4, 8, 16]
    assert _within(torch.tensor([9.0, 1.0, 2.0, 1.0]), [1, 2]) == {"≤ 1": "25.0%", "≤ 2": "75.0%"}
    assert _octaves([2.0, 4.0, 1.0, 6.0, 2.0], [5.0, 1.0, 2.0, 1.0, 3.0]) == ([1, 2, 4], [2.0, 0.5, 1.5])
    assert _octaves([2.0, 4.0, 1.0, 6.0, 2.0, 8.0], [1.0] * 6) == ([1, 2, 4, 8], [2.0, 0.5, 2.0, 4.0]), "up to 5"
    assert _octaves([1.0] * 16, [1.0] * 16)[0] == [1, 2, 4, 8, 16]


def test_command_on_an_image(checkpoint, main, tmp_path, capsys, tiny_arguments):
    checked = f"--checkpoint={checkpoint}"
    main(["study", "locality", checked, "--windows=[64,1,4]", "--positions=1", f"--output={tmp_path}"])
    (row,) = json.loads((tmp_path / "locality.json").read_text())
    assert (row["task"], row["method"], row["examples"]) == ("pathfinder", "skyformer", 10)
    assert list(row["accuracy"]) == ["1", "4", "64", "whole"]
    assert row["accuracy"]["64"] == row["accuracy"]["whole"], "a square beyond the image's sides"
    assert len(row["trained"]) == len(row["untrained"]) == len(row["pairs"]) == 32, "pixels, not positions"
    assert row["trained"] != row["untrained"]
    printed = capsys.readouterr().out
    assert "| Skyformer, untrained |" in printed
    assert printed.startswith((tmp_path / "locality.md").read_text())
    assert (tmp_path / "locality.png").stat().st_size > 10_000
    cli = main(["validate", *tiny_arguments("pathfinder", tmp_path / "run"), f"--ckpt_path={checkpoint}"])
    assert cli.trainer.callback_metrics["val/accuracy"] == pytest.approx(row["accuracy"]["whole"])


def test_what_makes_no_sense_is_refused(checkpoint, main, tmp_path, capsys):
    for arguments, said in (
        ([], "needs a trained network. Fix: --checkpoint"),
        ([f"--checkpoint={checkpoint}", "--windows=[4,0]"], "--windows [4, 0] must be at least 1"),
        ([f"--checkpoint={checkpoint}", "--windows=[]"], "--windows [] must be at least 1"),
        ([f"--checkpoint={checkpoint}", "--examples=0"], "--examples 0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(["study", "locality", *arguments, f"--output={tmp_path / 'out'}"])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
