"""What the studies compute, against formulas written out."""

import math
from types import SimpleNamespace

import pytest
import torch
from attention_inputs import clustered_rows, draw, draw_qkv
from torch import Generator, nn

from skyformer.attention import KernelizedAttention, SkyformerAttention, SoftmaxAttention
from skyformer.exceptions import RunError
from skyformer.ops.linalg import matrix_norm
from skyformer.study.approximation import measure_backends, shared_target, sized, skyformer_softmax
from skyformer.study.backends import make_attention, same_draws, with_defaults
from skyformer.study.matrices import condition_number, leverage_scores, thin_norm
from skyformer.study.spectrum import _condition_and_rank, attention_matrix
from skyformer.study.stability import instability, ratios, summarise
from skyformer.study.theorem import (
    CHOICES,
    FAILURE,
    estimated_scores,
    farthest_point,
    k_means,
    means_of_segments,
    measure_bound,
    measure_choices,
    nystrom_error,
    scaled_rows,
)


def kernel_of(x, y):
    return torch.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 2)


def test_norms_against_singular_values():
    tall = draw(2, 3, 50, 8)
    torch.testing.assert_close(thin_norm(tall), torch.linalg.svdvals(tall)[..., 0])
    square = draw(2, 60, 60, seed=1) @ torch.diag(0.9 ** torch.arange(60, dtype=torch.float64))
    for matrix in (square, square[:, :5], square[:, :, :40]):
        torch.testing.assert_close(matrix_norm(matrix), torch.linalg.svdvals(matrix)[:, 0], rtol=1e-6, atol=0)
    square[1, 2, 3] = torch.nan
    assert matrix_norm(square).isnan().tolist() == [False, True]


def test_leverage_scores_and_statistical_dimension():
    rows = draw(40, 5)
    kernel = kernel_of(rows, rows)
    scores = leverage_scores(kernel, 0.3)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    torch.testing.assert_close(scores, (kernel @ torch.linalg.inv(kernel + 0.3 * torch.eye(40))).diagonal())
    torch.testing.assert_close(scores.sum(), (eigenvalues / (eigenvalues + 0.3)).sum())


def test_condition_and_rank():
    matrix = torch.diag(torch.tensor([4.0, 1.0, 0.002], dtype=torch.float64))
    assert _condition_and_rank(matrix) == [pytest.approx(2000), 2]
    matrix[2, 2] = 0
    assert _condition_and_rank(matrix[None]) == [math.inf, 2]
    assert condition_number(torch.tensor([[4.0, 1.0], [3.0, 1.0]])).tolist() == [4, 3]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("rows", [draw(80, 4), clustered_rows(80, 4, 0, spread=0.0)], ids=["random", "coinciding"])
def test_choice_gives_as_many_finite_landmarks_and_repeats_itself(name, rows):
    first, again, other = (CHOICES[name](rows, 17, Generator().manual_seed(seed)) for seed in (1, 1, 3))
    assert first.shape == (17, 4)
    assert first.isfinite().all()
    assert first.equal(again)
    if name != "segment means":
        assert not first.equal(other)
    if name not in ("segment means", "k-means"):
        assert all((rows == landmark).all(dim=1).any() for landmark in first), "they are rows"


def test_some_choices_take_no_row_twice():
    for name in ("uniform", "ridge leverage", "strided farthest point", "pivoted"):
        chosen = CHOICES[name](draw(60, 3), 30, Generator().manual_seed(0))
        assert len(chosen.unique(dim=0)) == 30


def test_half_of_the_landmarks_are_queries():
    rows = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)])
    assert CHOICES["half and half"](rows, 7, Generator().manual_seed(0))[:, 0].tolist() == [0] * 3 + [1] * 4


@pytest.mark.parametrize("landmark_draw", ["uniform", "half_and_half"])
def test_a_draw_is_the_one_of_the_attention(landmark_draw):
    rows = draw(40, 4)
    layer = SkyformerAttention(1, 4, 20, num_landmarks=8, landmark_draw=landmark_draw, seed=3).eval()
    expected, _ = layer.landmarks(*(rows * 4**0.25).view(2, 1, 1, 20, 4), None)
    chosen = CHOICES[landmark_draw.replace("_", " ")](rows, 8, Generator().manual_seed(3))
    torch.testing.assert_close(chosen, expected[0, 0])


def test_means_of_segments_by_hand():
    rows = torch.arange(16, dtype=torch.float64)[:, None]
    assert means_of_segments(rows, 4, Generator())[:, 0].tolist() == [1.5, 5.5, 9.5, 13.5]


def test_k_means_finds_what_stands_apart():
    rows = clustered_rows(200, 3, 0, clusters=4, spread=0.01)
    centres = k_means(rows, 20, Generator().manual_seed(0))
    assert torch.cdist(rows, centres).amin(dim=1).max() < 0.05


def test_farthest_point_is_farthest():
    rows = draw(50, 3)
    chosen = farthest_point(rows, 10, Generator().manual_seed(0))
    for number in range(1, 10):
        distances = torch.cdist(rows, chosen[:number]).amin(dim=1)
        assert torch.cdist(chosen[number][None], chosen[:number]).min() == pytest.approx(distances.max().item())


def test_strided_candidates_are_equally_apart():
    rows = torch.arange(400, dtype=torch.float64)[:, None]
    chosen = CHOICES["strided farthest point"](rows, 10, Generator().manual_seed(0))[:, 0]
    assert len((chosen % 10).unique()) == 1, "one in ten: four candidates for each"
    assert chosen.min() < 10
    assert chosen.max() > 389


def test_pivots_leave_nothing_where_the_rank_is_theirs():
    """Five clusters of equal rows: five pivots are enough, five uniform rows are not."""
    rows = clustered_rows(60, 3, 0, clusters=5, spread=0.0)[None].double()
    query, key = rows.split(30, dim=1)
    kernel = kernel_of(query[0], key[0])[None]
    errors = {
        name: nystrom_error(query, key, kernel, CHOICES[name](rows[0], 5, Generator().manual_seed(0))[None], 0.0)
        for name in ("uniform", "pivoted")
    }
    assert errors["pivoted"] < 1e-9
    assert errors["uniform"] > 1


def test_scores_from_all_rows_are_the_exact_ones():
    rows = draw(60, 4)
    kernel = kernel_of(rows, rows)
    rank = math.ceil(32 / (4 * math.log(32)))
    ridge = torch.linalg.eigvalsh(kernel)[:-rank].sum().item() / rank
    found = estimated_scores(rows, rows, torch.ones(60, dtype=torch.float64), 32)
    torch.testing.assert_close(found, leverage_scores(kernel, ridge))


def test_ridge_leverage_of_rows_that_coincide():
    """Their scores are next to nothing, at all levels."""
    for seed in range(50):
        chosen = CHOICES["ridge leverage"](torch.ones(1024, 3).double(), 16, Generator().manual_seed(seed))
        assert chosen.equal(torch.ones(16, 3).double())


def test_ridge_leverage_sees_what_is_rare():
    """Ten rows apart among 500 nearly alike: uniform sampling takes few of them, leverage scores nearly all."""
    rows = torch.cat([0.05 * draw(500, 4), 20 * draw(10, 4, seed=1)])
    taken = {
        name: sum((CHOICES[name](rows, 40, Generator().manual_seed(seed)).norm(dim=1) > 2).sum() for seed in range(5))
        / 5
        for name in ("uniform", "ridge leverage")
    }
    assert taken["uniform"] < 3
    assert taken["ridge leverage"] > 8


def test_skyformer_with_all_landmarks_is_softmax():
    query, key, value = draw_qkv(1, 2, 12, 12, 8)
    layer = SkyformerAttention(2, 8, 12, num_landmarks=24, ridge=1e-12).double().eval()
    exact = torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ value
    torch.testing.assert_close(skyformer_softmax(layer, query, key, value), exact, rtol=1e-5, atol=1e-6)


def test_shared_softmax_leaves_a_token_itself_out():
    query, _, value = draw_qkv(1, 1, 6, 6, 4)
    found = shared_target(query, value)[0, 0]
    for i in range(6):
        others = [j for j in range(6) if j != i]
        logits = torch.stack([query[0, 0, i] @ query[0, 0, j] / query[0, 0, j].norm() / 2 for j in others])
        torch.testing.assert_close(found[i], torch.softmax(logits, 0) @ value[0, 0, others])


def test_attention_matrix_is_what_multiplies_the_values():
    query, key, value = draw_qkv(1, 2, 10, 10, 4)
    softmax = torch.softmax(query @ key.mT / 2, dim=-1)
    torch.testing.assert_close(attention_matrix(SoftmaxAttention(2, 4, 10), query, key), softmax)
    kernelized = KernelizedAttention(2, 4, 10)
    matrix = attention_matrix(kernelized, query, key)
    torch.testing.assert_close(matrix @ value, kernelized(query, key, value, None))


def test_landmarks_that_are_drawn_at_each_call_are_the_same_for_all_columns():
    query, key, value = draw_qkv(1, 1, 40, 40, 4)
    layer = SkyformerAttention(1, 4, 40, num_landmarks=8, eval_landmarks="fresh").double().eval()
    matrix = attention_matrix(layer, query, key)
    assert torch.linalg.matrix_rank(matrix, rtol=1e-9).item() <= 8
    with same_draws():
        torch.testing.assert_close(matrix @ value, layer(query, key, value, None))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_landmarks": 1, "conv_kernel": 33}, {"num_landmarks": 64, "conv_kernel": 0}),
        ({"projected_length": 1}, {"projected_length": 64}),
        ({"num_features": 1, "seed": 0}, {"num_features": 64, "seed": 5}),
        (
            {"chunk_length": 1, "num_buckets": 2, "num_rounds": 2},
            {"chunk_length": 16, "num_buckets": 16, "num_rounds": 2},
        ),
        ({"chunk_length": 1, "num_rounds": 4}, {"chunk_length": 8, "num_buckets": 32, "num_rounds": 4}),
        ({"block_size": 1, "num_random_blocks": 3}, {"block_size": 8, "num_random_blocks": 3}),
    ],
)
def test_size_of_a_method(arguments, expected):
    assert sized({"class_path": "a.B", "init_args": arguments}, 64, 256, 5)["init_args"] == expected


def test_defaults_are_varied_too():
    reformer = with_defaults({"class_path": "ReformerAttention"})
    expected = {"chunk_length": 16, "num_buckets": 16, "num_rounds": 2, "seed": 5}
    assert sized(reformer, 64, 256, 5)["init_args"] == expected
    with pytest.raises(RunError, match="SoftmaxAttention has no size to vary"):
        sized(with_defaults({"class_path": "SoftmaxAttention"}), 64, 256, 5)


def test_arguments_that_a_yaml_leaves_out_are_set(tmp_path):
    """Nyströmformer without its random convolution, and landmarks that differ between draws."""
    errors = {}
    for folder, convolution, seed in (("short", "", ""), ("full", "conv_kernel: 0", "seed: 0")):
        paths = []
        for name, argument in (("Nystromformer", convolution), ("Skyformer", seed)):
            paths.append(tmp_path / folder / f"{name}.yaml")
            paths[-1].parent.mkdir(exist_ok=True)
            init_args = f"{{num_landmarks: 128, {argument}}}"
            paths[-1].write_text(f"model: {{attention: {{class_path: {name}Attention, init_args: {init_args}}}}}")
        rows = measure_backends({20: draw_qkv(1, 1, 20, 20, 4)}, [*map(str, paths)], [16], [0, 1])
        errors[folder] = [(row["method"], row["relative"]) for row in rows]
    assert errors["short"] == errors["full"]
    assert len(set(errors["full"])) == 1 + 2 * 3, "two draws of Skyformer for its three targets"


def test_errors_of_a_method_by_hand():
    heads = draw_qkv(1, 2, 40, 40, 8)
    rows = list(measure_backends({40: heads}, ["skyformer", "linformer"], [16, 64], [0, 1]))
    assert {row["num_landmarks"] for row in rows} == {16}, "64 landmarks are more than 40 tokens"
    assert [row["draw"] for row in rows if row["target"] == "kernelized"] == [0, 1]
    query, key, value = heads
    attention = {
        "class_path": "skyformer.attention.SkyformerAttention",
        "init_args": {"num_landmarks": 16, "ridge": 0.1, "seed": 1},
    }
    approximate = make_attention(attention, 2, 8, 40, 1)(query, key, value, None)[0]
    exact = torch.stack([kernel_of(q / 8**0.25, k / 8**0.25) for q, k in zip(query[0], key[0], strict=True)]) @ value[0]
    norms = torch.linalg.matrix_norm(approximate - exact, ord=2)
    row = next(row for row in rows if row["target"] == "kernelized" and row["draw"] == 1)
    assert row["error"] == pytest.approx(norms.mean().item())
    assert row["relative"] == pytest.approx((norms / torch.linalg.matrix_norm(exact, ord=2)).mean().item())


def test_choice_of_landmarks_by_hand():
    heads = draw_qkv(1, 2, 30, 30, 4)
    rows = scaled_rows(heads)
    query, key = rows[:, :30], rows[:, 30:]
    kernel = torch.stack([kernel_of(q, k) for q, k in zip(query, key, strict=True)])
    landmarks = rows[:, ::4]
    for ridge in (0.1, 0.0):
        errors = []
        for head in range(2):
            inner = kernel_of(landmarks[head], landmarks[head]) + ridge * torch.eye(15)
            middle = torch.linalg.pinv(inner)
            approximate = kernel_of(query[head], landmarks[head]) @ middle @ kernel_of(landmarks[head], key[head])
            errors.append(torch.linalg.matrix_norm(approximate - kernel[head], ord=2))
        torch.testing.assert_close(
            nystrom_error(query, key, kernel, landmarks, ridge), torch.stack(errors), rtol=1e-4, atol=1e-9
        )
    assert nystrom_error(query, key, kernel, rows, 0.0).max() < 1e-8, "all rows leave no error"
    found = list(measure_choices({30: heads}, [16], [0.1, 0.0], [0, 1]))
    assert len(found) == len(CHOICES) * 2 * 2
    assert all(0 < row["relative"] < 1 for row in found)
    assert all(min(row["seconds"], row["seconds_to_attend"]) > 0 for row in found)


def test_bound_by_hand():
    """One head has nearly equal rows and an outlier: a small dimension, and a larger bound for most λ."""
    heads = draw_qkv(1, 2, 30, 30, 4)
    for part in heads[:2]:
        part *= torch.tensor([0.1, 0.5]).view(1, 2, 1, 1)
    heads[0][:, 0, 0] += 20
    winners = set()
    for row in measure_bound({30: heads}):
        d_stats, bounds = [], []
        for rows in scaled_rows(heads):
            completed = kernel_of(rows, rows)
            ridge = row["relative"] * torch.linalg.matrix_norm(completed[:30, 30:], ord=2)
            scores = (completed @ torch.linalg.inv(completed + ridge * torch.eye(60))).diagonal()
            beta = (1 / 60) / (scores / scores.sum()).max()
            d_stats.append(scores.sum().item())
            bounds.append((scores.sum() / beta * math.log(30 / FAILURE)).item())
        winner = bounds.index(max(bounds))
        assert row["bound"] == pytest.approx(bounds[winner], rel=1e-5)
        assert row["d_stat"] == pytest.approx(d_stats[winner], rel=1e-5)
        winners.add((winner, d_stats.index(max(d_stats))))
    assert winners == {(0, 1), (1, 1)}


class Linear(nn.Module):
    """Scores that are linear in the weights, so that the instability score is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(draw(4, 2))

    def forward(self, tokens, mask, position):
        return tokens.to(self.weight.dtype) @ self.weight

    def scores_and_labels(self, batch):
        return self(batch.tokens, batch.mask, batch.position), batch.label

    def make_optimizer_and_scheduler(self, max_steps):
        return torch.optim.SGD(self.parameters(), lr=0.1), None


def test_instability_of_a_linear_model():
    batches = [
        SimpleNamespace(tokens=torch.randint(9, (3, 4)), mask=None, position=None, label=torch.tensor([0, 1, 1]))
        for _ in range(3)
    ]
    found = list(instability(Linear(), iter(batches), 3))
    by_hand, weight = [], draw(4, 2).requires_grad_()
    for batch in batches:
        inputs = batch.tokens.double()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(inputs @ weight, batch.label), weight)
        by_hand.append(((inputs @ gradient).square().sum() / gradient.square().sum()).item())
        weight = (weight - 0.1 * gradient).detach().requires_grad_()
    assert found == pytest.approx(by_hand)


def test_ratios_are_to_softmax_of_the_same_seed():
    taus = {("softmax", 0): [2.0, 4.0], ("softmax", 1): [10.0], ("skyformer", 0): [1.5], ("skyformer", 1): [6.0]}
    rows = [
        {"method": method, "seed": seed, "step": step, "tau": tau}
        for (method, seed), values in taus.items()
        for step, tau in enumerate(values, 1)
    ]
    assert ratios(rows) == {"softmax": [1, 1], "skyformer": [0.5, 0.6]}
    row = summarise(rows, "text")[1]
    assert row == {"method": "Skyformer", "mean τ": "3.75", "ratio to self-attention": "0.55 ± 0.07", "paper": "0.81"}
    assert summarise(rows, "mine")[1]["paper"] == "-"
