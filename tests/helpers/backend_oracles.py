"""Each backend beside a library's implementation of the same method, with the same weights.

A pair is (ours, theirs, heads): two functions of the same three float64 tensors `(B, H, N, P)`. Run as a program
(`PYTHONPATH=. python tests/helpers/backend_oracles.py`) this prints the tables of `docs/backends.md`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import backend_cases
import numpy as np
import torch
from torch import Tensor, nn

from skyformer.attention import (
    Attention,
    BigBirdAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
)

H, N, P = 2, 64, 8
Function = Callable[..., Tensor]
Pair = tuple[Function, Function, int]


def ours(backend: Attention) -> Function:
    backend = backend.double().eval()
    return lambda query, key, value: backend(query, key, value, None)


def joined(tensors: tuple[Tensor, ...]) -> Tensor:
    """`(B, H, N, P)` three times → `(B, N, 3 H P)`, for modules that project what they are given."""
    return torch.cat([x.transpose(1, 2).flatten(2) for x in tensors], dim=-1)


def choose(layer: nn.Linear, start: int) -> None:
    """Let a projection take features `start`, `start + 1`, … as they are."""
    with torch.no_grad():
        layer.weight.copy_(torch.eye(layer.in_features)[start : start + layer.out_features])
        if layer.bias is not None:
            layer.bias.zero_()


def as_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def nystrom_attention() -> Pair:
    """One matrix: its start of the pseudo-inverse is scaled by the largest of a batch."""
    from nystrom_attention import NystromAttention

    backend = NystromformerAttention(1, P, N, num_landmarks=16)
    library = NystromAttention(3 * P, dim_head=P, heads=1, num_landmarks=16, residual_conv_kernel=33).double().eval()
    with torch.no_grad():
        library.to_qkv.weight.copy_(torch.eye(3 * P))
        library.res_conv.weight.copy_(backend.conv.weight)
        library.to_out[0].weight.copy_(torch.eye(3 * P)[:, :P])
        library.to_out[0].bias.zero_()
    return ours(backend), lambda *inputs: as_heads(library(joined(inputs))[..., :P], 1), 1


def transformers_nystromformer() -> Pair:
    """One matrix, for the same reason."""
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=3 * P, num_attention_heads=1, num_landmarks=16, segment_means_seq_len=N, conv_kernel_size=33
    )
    backend = NystromformerAttention(1, 3 * P, N, num_landmarks=16)
    library = NystromformerSelfAttention(config).double().eval()
    with torch.no_grad():
        library.conv.weight.copy_(backend.conv.weight)
    attention = ours(backend)

    def projected(*inputs: Tensor) -> Tensor:
        x = joined(inputs)
        return attention(*(as_heads(layer(x), 1) for layer in (library.query, library.key, library.value)))

    return projected, lambda *inputs: as_heads(library(joined(inputs))[0], 1), 1


def performer_pytorch() -> Pair:
    """With next to no ε: else its gradient, for which the stabiliser is a constant, is another one."""
    from performer_pytorch.performer_pytorch import linear_attention, softmax_kernel

    eps = 1e-12
    backend = PerformerAttention(H, P, N, num_features=32, eps=eps)
    projection = backend.projection.double()

    def theirs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = softmax_kernel(query, projection_matrix=projection, is_query=True, eps=eps)
        key = softmax_kernel(key, projection_matrix=projection, is_query=False, eps=eps)
        return linear_attention(query, key, value)

    return ours(backend), theirs, H


def performer_pytorch_relu() -> Pair:
    from performer_pytorch import FastAttention

    backend = PerformerAttention(H, P, N, num_features=32, kernel="relu", eps=1e-3)
    library = FastAttention(P, nb_features=32, generalized_attention=True).double()
    library.projection_matrix = backend.projection.double()
    return ours(backend), library, H


def linformer() -> Pair:
    from linformer import LinformerSelfAttention

    backend = LinformerAttention(H, P, N, projected_length=16, sharing="heads")
    library = LinformerSelfAttention(3 * H * P, N, k=16, heads=H, dim_head=P).double().eval()
    for start, layer in enumerate((library.to_q, library.to_k, library.to_v)):
        choose(layer, start * H * P)
    with torch.no_grad():
        library.proj_k.copy_(backend.key_projection[0])
        library.proj_v.copy_(backend.value_projection[0])
        library.to_out.weight.copy_(torch.eye(3 * H * P)[:, : H * P])
        library.to_out.bias.zero_()
    return ours(backend), lambda *inputs: as_heads(library(joined(inputs))[..., : H * P], H), H


def reformer_pytorch() -> Pair:
    from reformer_pytorch import LSHAttention

    rounds, chunk = 3, 8
    backend = ReformerAttention(H, P, N, num_buckets=N // chunk, num_rounds=rounds, chunk_length=chunk)
    library = LSHAttention(
        bucket_size=chunk, n_hashes=rounds, attend_across_buckets=False, allow_duplicate_attention=False
    ).eval()

    def theirs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(0)
        rotations = torch.randn((1, P, rounds, N // chunk // 2), dtype=torch.float64)
        backend.eval_rotations.copy_(rotations[0].transpose(0, 1))
        torch.manual_seed(0)
        out, _, _ = library(query.flatten(0, 1), value.flatten(0, 1))
        return out.unflatten(0, query.shape[:2])

    theirs(*draw(H))  # so that ours has the rotations from the start
    return ours(backend), theirs, H


def transformers_reformer() -> Pair:
    """One round of buckets that fill one chunk each. It attends across the buckets of a chunk, counts a pair that meets
    in two rounds twice, lets the first chunk look back to the last, and has no 1 / √p; none of which then shows.
    """
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    chunk = 8
    config = ReformerConfig(
        hidden_size=2 * P, num_attention_heads=1, attention_head_size=P, num_hashes=1, num_buckets=N // chunk,
        lsh_attn_chunk_length=chunk, lsh_num_chunks_before=0, lsh_num_chunks_after=0, hash_seed=0, is_decoder=False,
    )  # fmt: skip
    backend = ReformerAttention(1, P, N, num_buckets=N // chunk, num_rounds=1, chunk_length=chunk)
    library = LSHSelfAttention(config).double().eval()
    choose(library.query_key, 0)
    choose(library.value, P)
    torch.manual_seed(config.hash_seed)
    rotation = torch.randn((1, P, 1, N // chunk // 2), dtype=torch.float64)[0, :, 0]
    attention = ours(backend)
    backend.eval_rotations.copy_(rotation)
    # What a token needs so that its bucket is one of N / c, each drawn c times.
    towards = torch.linalg.pinv(torch.cat([rotation, -rotation], dim=1)).repeat(chunk, 1)[torch.randperm(N)]

    def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention((query + 40 * towards) * P**0.5, key, value)

    def theirs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return as_heads(library(joined((query + 40 * towards, value))).hidden_states, 1)

    return own, theirs, 1


def transformers_bigbird() -> Pair:
    """In training mode, since its random blocks are zeros in evaluation, and with the random blocks of ours."""
    from transformers import BigBirdConfig, BigBirdModel
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    block, random = 4, 2
    backend = BigBirdAttention(H, P, N, block_size=block, num_random_blocks=random)
    config = BigBirdConfig(
        hidden_size=H * P, num_attention_heads=H, block_size=block, num_random_blocks=random, use_bias=False
    )
    library = BigBirdBlockSparseAttention(config).double().train()
    blocks = random_blocks(backend, N // block)
    library._bigbird_block_rand_mask_with_head = lambda **_: [blocks] * H
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, N, dtype=torch.float64), block)
    names = ("to_blocked_mask", "band_mask", "from_mask", "to_mask")
    given: dict[str, Any] = dict(zip(names, masks, strict=True))

    def theirs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = library.bigbird_block_sparse_attention(
            query, key, value, given["band_mask"], given["from_mask"], given["to_mask"], given["to_blocked_mask"],
            given["to_blocked_mask"], H, random, P, block, block, len(query), N, N, seed=0, plan_from_length=None,
            plan_num_rand_blocks=None,
        )  # fmt: skip
        return out.reshape(len(query), N, H, P).transpose(1, 2)

    return ours(backend), theirs, H


def random_blocks(backend: BigBirdAttention, blocks: int) -> np.ndarray:
    """The random blocks of each but the first and last block of queries, `(blocks - 2, r)`."""
    chosen, taken = backend._choose(blocks, torch.tensor([blocks - 1]))
    rows = []
    for row in range(1, blocks - 1):
        others = [int(c) for c, t in zip(chosen[0, row], taken[0, row], strict=True) if t and abs(int(c) - row) > 1]
        rows.append([c for c in others if c not in (0, blocks - 1)])
    return np.array(rows)


ORACLES: dict[str, Callable[[], Pair]] = {
    "nystromformer · nystrom-attention": nystrom_attention,
    "nystromformer · transformers": transformers_nystromformer,
    "linformer · linformer": linformer,
    "performer · performer-pytorch": performer_pytorch,
    "performer, relu · performer-pytorch": performer_pytorch_relu,
    "reformer · reformer-pytorch": reformer_pytorch,
    "reformer · transformers": transformers_reformer,
    "bigbird · transformers": transformers_bigbird,
}


def draw(heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (1 if heads == 1 else 2, heads, N, P)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]


def errors(name: str) -> tuple[float, float]:
    """Relative error of the output, and the largest of the gradients for query, key and value."""
    torch.manual_seed(0)
    own, library, heads = ORACLES[name]()
    inputs = draw(heads)
    results = []
    for function in (own, library):
        out = function(*inputs)
        cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad((out * cotangent).sum(), inputs, allow_unused=True)
        results.append([out, *(gradient for gradient in gradients if gradient is not None)])
    found = [((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True)]
    return found[0], max(found[1:])


def tables() -> Iterator[str]:
    """Those of `docs/backends.md`."""
    yield "| backend | output, float64 | gradient, float64 | output, float32 | gradient, float32 |"
    yield "|---|---|---|---|---|"
    for name in backend_cases.CASES:
        found = [f"{x:.0e}" for dtype in (torch.float64, torch.float32) for x in backend_cases.errors(name, dtype)]
        yield f"| {name} | {' | '.join(found)} |"
    yield ""
    yield "| backend · library | output | gradient |"
    yield "|---|---|---|"
    for name in ORACLES:
        output, gradient = errors(name)
        yield f"| {name} | {output:.0e} | {gradient:.0e} |"


if __name__ == "__main__":
    print("\n".join(tables()))
