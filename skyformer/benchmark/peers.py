"""Attention layers of other libraries, at the same sizes, for those that are installed."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from skyformer.benchmark.cases import Case
from skyformer.exceptions import RunError


def make_peer(case: Case) -> Callable[[Tensor], Tensor]:
    """A layer `(B, N, D)` → `(B, N, D)`, projections included, of the library that `case.name` names.

    Raises:
        RunError: for a library that is not installed.
    """
    make, module = PEERS[case.name]
    try:
        return make(import_module(module), case)
    except ImportError as error:
        raise RunError(f"--peers {case.name}: {module} is not installed. Fix: pip install -e '.[peers]'") from error


def installed_peers(backends: Iterable[str]) -> list[str]:
    """Return the peers of these backends whose library is installed."""
    named = dict.fromkeys(peer for backend in backends for peer in PEER_OF.get(backend, ()))
    return [peer for peer in named if find_spec(PEERS[peer][1].partition(".")[0])]


def _sdpa(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    return _Sdpa(library.scaled_dot_product_attention, case)


class _Sdpa(nn.Module):
    """Projections around torch's function, as one would write them."""

    def __init__(self, attend: Callable[..., Tensor], case: Case) -> None:
        super().__init__()
        self.attend, self.num_heads = attend, case.num_heads
        self.inner = nn.Linear(case.embed_dim, 3 * case.embed_dim)
        self.outer = nn.Linear(case.embed_dim, case.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inner(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.outer(self.attend(query, key, value).transpose(1, 2).flatten(2))


def _keops(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    return _Sdpa(partial(keops_gaussian, library), case)


def keops_gaussian(library: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Exact κ(Q, K) V by KeOps, `(B, H, N, P)`, without an N × N array; query and key are scaled by P^-¼."""
    scale = query.shape[-1] ** -0.25
    left, right = (scale * x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key))  # KeOps has no bf16
    x, y = (
        library.LazyTensor(left[..., :, None, :].contiguous()),
        library.LazyTensor(right[..., None, :, :].contiguous()),
    )
    kernel = (-((x - y) ** 2).sum(-1) / 2).exp()
    return (kernel @ value.to(left.dtype).contiguous()).to(value.dtype)


def _taylor(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    head_dim = case.embed_dim // case.num_heads
    return library.TaylorSeriesLinearAttn(case.embed_dim, dim_head=head_dim, heads=case.num_heads)


def _nystrom(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    return library.NystromAttention(
        dim=case.embed_dim, dim_head=case.embed_dim // case.num_heads, heads=case.num_heads, num_landmarks=128
    )


def _linformer(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    return library.LinformerSelfAttention(case.embed_dim, case.length, k=128, heads=case.num_heads)


def _performer(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    head_dim = case.embed_dim // case.num_heads
    return library.SelfAttention(case.embed_dim, heads=case.num_heads, dim_head=head_dim, nb_features=128)


def _reformer(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    return library.LSHSelfAttention(case.embed_dim, heads=case.num_heads, bucket_size=64, n_hashes=2)


def _big_bird(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    config = library.BigBirdConfig(
        hidden_size=case.embed_dim, num_attention_heads=case.num_heads, intermediate_size=case.hidden_dim,
        num_hidden_layers=1, max_position_embeddings=case.length, block_size=64, num_random_blocks=3,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, vocab_size=16,
    )  # fmt: skip
    return _BigBird(library, config, case)


class _BigBird(nn.Module):
    """transformers' block-sparse attention with its output projection; its masks are all ones."""

    def __init__(self, library: Any, config: Any, case: Case) -> None:
        super().__init__()
        module = import_module("transformers.models.big_bird.modeling_big_bird")
        self.attention = module.BigBirdBlockSparseAttention(config)
        self.outer = nn.Linear(case.embed_dim, case.embed_dim)
        self.make_masks = module.BigBirdModel.create_masks_for_block_sparse_attn
        self.block_size = config.block_size

    def forward(self, x: Tensor) -> Tensor:
        blocked, band, start, end = self.make_masks(x.new_ones(x.shape[:2]), self.block_size)
        mixed = self.attention(
            x, band_mask=band, from_mask=start, to_mask=end, from_blocked_mask=blocked, to_blocked_mask=blocked
        )
        return self.outer(mixed[0].flatten(2))


def _nystromformer(library: Any, case: Case) -> Callable[[Tensor], Tensor]:
    config = library.NystromformerConfig(
        hidden_size=case.embed_dim, num_attention_heads=case.num_heads, num_landmarks=128,
        segment_means_seq_len=case.length, conv_kernel_size=33, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )  # fmt: skip
    module = import_module("transformers.models.nystromformer.modeling_nystromformer")
    attention, outer = module.NystromformerSelfAttention(config), nn.Linear(case.embed_dim, case.embed_dim)
    return _Chain(attention, outer)


class _Chain(nn.Module):
    def __init__(self, attention: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.attention, self.outer = attention, outer

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.attention(x)[0])


PEERS: dict[str, tuple[Callable[[Any, Case], Callable[[Tensor], Tensor]], str]] = {
    "sdpa": (_sdpa, "torch.nn.functional"),
    "taylor-series-linear-attention": (_taylor, "taylor_series_linear_attention"),
    "pykeops": (_keops, "pykeops.torch"),
    "nystrom-attention": (_nystrom, "nystrom_attention"),
    "transformers-nystromformer": (_nystromformer, "transformers"),
    "linformer": (_linformer, "linformer"),
    "performer-pytorch": (_performer, "performer_pytorch"),
    "reformer-pytorch": (_reformer, "reformer_pytorch"),
    "transformers-bigbird": (_big_bird, "transformers"),
}
UNCOUNTED = ("pykeops",)  # whose own loops no counter sees, so they have no floor
PEER_OF = {
    "softmax": ("sdpa", "taylor-series-linear-attention"),
    "kernelized": ("sdpa", "pykeops"),
    "nystromformer": ("nystrom-attention", "transformers-nystromformer"),
    "linformer": ("linformer",),
    "performer": ("performer-pytorch",),
    "reformer": ("reformer-pytorch",),
    "bigbird": ("transformers-bigbird",),
}
