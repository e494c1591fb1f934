"""The exact attentions that methods approximate, dense and in float64, and Skyformer's way to softmax.

Query, key and value are `(B, H, n, p)`, without padding.
"""

from torch import Tensor

from skyformer.attention import Attention, SkyformerAttention
from skyformer.attention.reformer import ITSELF
from skyformer.functional import gaussian_attention, nystrom_gaussian_attention
from skyformer.kernel import half_square


def softmax_target(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(Q Kᵀ / √p) V`."""
    logits = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    return logits.softmax(dim=-1) @ value.double()


def shared_target(query: Tensor, value: Tensor) -> Tensor:
    """What Reformer's buckets approximate: softmax over the other tokens' queries at length one (Kitaev et al., §2)."""
    query = query.double()
    logits = query @ (query / query.norm(dim=-1, keepdim=True)).mT * query.shape[-1] ** -0.5
    logits.diagonal(dim1=-2, dim2=-1).sub_(ITSELF)
    return logits.softmax(dim=-1) @ value.double()


def target_of(backend: Attention, query: Tensor, key: Tensor, value: Tensor) -> tuple[str, Tensor]:
    """Name and output of the attention that a backend approximates: softmax, unless it is Skyformer's or shares its
    keys.
    """
    if isinstance(backend, SkyformerAttention):
        return "kernelized", gaussian_attention(query.double(), key.double(), value.double())
    if backend.shares_query_and_key:
        return "shared softmax", shared_target(query, value)
    return "softmax", softmax_target(query, key, value)


def skyformer_softmax(layer: SkyformerAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Skyformer's approximation of softmax attention: of A = exp(Q Kᵀ / √p), and then of D = diag(A 1).

    `A = D_Q^½ C D_K^½` (Eq. 3), so that with C̃ and weights w = exp(‖k‖² / 2), k scaled, `D̃⁻¹ Ã V = C̃ (w V) / C̃ w`;
    D_Q cancels.
    """
    landmarks, _ = layer.landmarks(query, key, None)
    exponent = half_square(key * key.shape[-1] ** -0.25)
    weights = (exponent - exponent.amax(dim=2, keepdim=True)).exp()
    both = [
        nystrom_gaussian_attention(query, key, right, landmarks, ridge=layer.ridge, solver=layer.solver)
        for right in (weights * value, weights)
    ]
    return both[0] / both[1]
