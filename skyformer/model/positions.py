"""Position encodings: vectors added to the embedding, or rotations of queries and keys.

Shapes: B batch, H heads, N tokens, D embedding size, P head dimension.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn

from skyformer.ops.checks import check_choice

Positions = Literal["learned", "sinusoidal", "rotary", "rotary_2d", "none"]
PositionInit = Literal["normal", "sinusoidal_2d", "local"]
STANDARD_DEVIATION = 0.02  # of the embeddings at their start
# With `position_init=local`, so that a token is of the order of what its neighbours add to it in the first layer.
LOCAL_STANDARD_DEVIATION = 0.4
BASE = 10_000.0  # the longest wavelength is about 2π times this many tokens
BASE_2D = 100.0  # the same for rows and columns: an image has a few dozen
# Where each head attends at first with `position_init=local`: an offset, on images by row and column, and how many of
# the fastest decades of frequency are weak. Each half decade makes the neighbourhood about three times as wide.
LOCAL_HEADS = (((1,), 0.0), ((-1,), 0.0), ((0,), 0.5), ((0,), 1.0), ((2,), 0.0), ((-2,), 0.0))
LOCAL_HEADS_2D = (((0, 1), 0.0), ((0, -1), 0.0), ((1, 0), 0.0), ((-1, 0), 0.0), ((0, 0), 0.5), ((0, 0), 1.0))


def make_positions(kind: Positions, max_length: int, embed_dim: int) -> "nn.Embedding | SinusoidalPositions | None":
    """Make the vectors `(max_length, D)` that are added to the embedding, as `weight`; None where none are added.

    Raises:
        ValueError: for an unknown kind, naming it.
    """
    check_choice("positions", kind, Positions)
    if kind == "learned":
        return nn.Embedding(max_length, embed_dim)
    return SinusoidalPositions(max_length, embed_dim) if kind == "sinusoidal" else None


@torch.no_grad()
def start_learned(weight: Tensor, init: PositionInit, image_side: int) -> None:
    """Set learned positions `(max_length, D)` to their start, in place.

    Raises:
        ValueError: for a start that the sequences cannot have, naming it.
    """
    max_length, embed_dim = weight.shape
    nn.init.normal_(weight, std=STANDARD_DEVIATION)
    if init == "sinusoidal_2d":
        _check_square("position_init=sinusoidal_2d", max_length, image_side, "--model.position_init normal")
        weight.copy_(sinusoidal_positions_2d(image_side, embed_dim))


def check_position_init(kind: Positions, init: PositionInit) -> None:
    """Refuse an unknown start of learned positions, and any but the default for other positions.

    Raises:
        ValueError: naming `position_init`.
    """
    check_choice("position_init", init, PositionInit)
    starts = {"learned": ("normal", "sinusoidal_2d"), "rotary": ("normal", "local"), "rotary_2d": ("normal", "local")}
    if init not in starts.get(kind, ("normal",)):
        kinds = " or ".join(name for name, inits in starts.items() if init in inits)
        raise ValueError(
            f"position_init={init} needs positions={kinds} (got positions={kind}). Fix: --model.position_init normal"
        )


def _check_square(setting: str, max_length: int, image_side: int, fix: str) -> None:
    if image_side < 1 or image_side**2 != max_length:
        raise ValueError(
            f"{setting} needs square images (got sequences of {max_length:,} tokens and image_side={image_side}). "
            f"Fix: {fix}"
        )


def make_rotary(kind: Positions, max_length: int, head_dim: int, image_side: int) -> "RotaryPositions | None":
    """Make the rotations of queries and keys; None where they are not rotated.

    Raises:
        ValueError: for a head dimension that has no such pairs, or a sequence that is no square image, naming both.
    """
    if kind not in ("rotary", "rotary_2d"):
        return None
    multiple = 2 if kind == "rotary" else 4
    if head_dim % multiple:
        raise ValueError(
            f"positions={kind} needs a head dimension, embed_dim / num_heads, that is a multiple of {multiple} (got "
            f"{head_dim}). Fix: change --model.embed_dim or --model.num_heads"
        )
    if kind == "rotary":
        return RotaryPositions(partial(rotary_angles, torch.arange(max_length), head_dim, BASE))
    _check_square("positions=rotary_2d", max_length, image_side, "--model.positions rotary")
    return RotaryPositions(partial(rotary_angles_2d, image_side, head_dim))


def local_biases(kind: Positions, num_heads: int, head_dim: int) -> Tensor:
    """Biases of queries and keys, `(2, H, P)` float64, with which each head attends near its token.

    The keys' bias is u, and the queries' is u rotated by the head's offset δ. With projections of zero the kernel is

        κ(R_m R_δ u, R_n u) = exp(−(60 / P) Σ_k a_k² (1 − cos(θ_k (m + δ − n))))

    It is 1 at n = m + δ and below 0.01 far from it. If all a_k are 1, it is 0.15 to 0.36 one position off, for P = 16
    to 64. In the wider heads a_k is 0.1 for the fastest half or whole decade of θ_k, and the kernel one position off is
    0.8 to 0.9 or 0.98. With a_k = 0 queries and keys would get no gradient for these features. Softmax has the same
    weights, divided by their sum.

    Heads take the entries of `LOCAL_HEADS` or `LOCAL_HEADS_2D` in turn.

    Raises:
        ValueError: for P below 16, which has too few frequencies.
    """
    if head_dim < 16:
        raise ValueError(
            f"position_init=local needs a head dimension, embed_dim / num_heads, of at least 16 (got {head_dim}). Fix: "
            "change --model.embed_dim or --model.num_heads"
        )
    heads = LOCAL_HEADS_2D if kind == "rotary_2d" else LOCAL_HEADS
    offsets, weak_decades = zip(*(heads[head % len(heads)] for head in range(num_heads)), strict=True)
    angle = torch.stack([_angles_of(kind, offset, head_dim) for offset in offsets])
    frequency = _angles_of(kind, (1,) * len(offsets[0]), head_dim)
    is_strong = frequency < 1.01 * 10.0 ** -torch.tensor(weak_decades, dtype=torch.float64)[:, None]
    size = math.sqrt(60 / math.sqrt(head_dim)) * torch.where(is_strong, 1.0, 0.1)
    key = torch.cat([size, torch.zeros_like(size)], dim=-1).double()
    return torch.stack([rotate(key, torch.stack([angle.cos(), angle.sin()])), key])


def _angles_of(kind: Positions, place: Sequence[int], head_dim: int) -> Tensor:
    if kind == "rotary":
        return rotary_angles(torch.tensor(place), head_dim, BASE)[0]
    return torch.cat([rotary_angles(torch.tensor([axis]), head_dim // 2, BASE_2D)[0] for axis in place])


class SinusoidalPositions(nn.Module):
    """Fixed vectors of the standard deviation that the token embedding starts with; no checkpoint holds them."""

    weight: Tensor

    def __init__(self, max_length: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", sinusoidal_positions(max_length, embed_dim).float(), persistent=False)


class RotaryPositions(nn.Module):
    """Rotations by position (Su et al., RoFormer, 2021, §3.2): cosines and sines of the angles, in float32 at least.

    In half precision, the angles of a long sequence would round to those of other positions.

    Args:
        angles: makes them, `(max_length, P / 2)` float64.
    """

    table: Tensor

    def __init__(self, angles: Callable[[], Tensor]) -> None:
        super().__init__()
        self.angles = angles
        self.register_buffer("table", self._make().float(), persistent=False)

    def _make(self) -> Tensor:
        angles = self.angles()
        return torch.stack([angles.cos(), angles.sin()])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        former = self.table.dtype
        super()._apply(fn, recurse)
        if self.table.dtype != former:
            dtype = torch.promote_types(self.table.dtype, torch.float32)
            self.table = self._make().to(self.table.device, dtype)
        return self

    def forward(self, length: int, position: Tensor | None) -> Tensor:
        """`(2, 1, 1, length, P / 2)`, or `(2, B, 1, length, P / 2)` for positions `(B, length)`, for `rotate`."""
        if position is None:  # picked, since `export` needs a tensor that is contiguous whatever the length
            position = torch.arange(length, device=self.table.device)[None]
        return self.table[:, position][:, :, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs of features (k, k + P / 2), k < P / 2, of each row; lengths stay as they are.

    Args:
        x: `(B, H, N, P)`.
        rotation: cosines and sines, `(2, B or 1, 1, N, P / 2)`.

    Returns:
        `(B, H, N, P)` of the dtype of `x`, computed in that of `rotation` if it is more precise.
    """
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


def rotary_angles(position: Tensor, head_dim: int, base: float) -> Tensor:
    """The angle of each pair of features at each position, `(N, P / 2)` float64: position · base^(−2k / P)."""
    frequency = base ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    return position[:, None] * frequency


def rotary_angles_2d(side: int, head_dim: int) -> Tensor:
    """The same for the pixels of a square image in the order of the rows, `(side², P / 2)` float64.

    The first half of the pairs goes by the row, the second by the column. The base is 100 (Heo et al., Rotary Position
    Embedding for Vision Transformer, ECCV 2024). With 10,000, half of the pairs would hardly turn within 32 pixels.
    """
    axis = rotary_angles(torch.arange(side), head_dim // 2, BASE_2D)
    row, column = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)


def sinusoidal_positions(length: int, embed_dim: int) -> Tensor:
    """One vector for each position, `(N, D)` float64 (Vaswani et al. 2017, §3.5), times the embeddings' √2 · 0.02:

        sin(n 10000^(−2k / D)), cos(n 10000^(−2k / D)), k = 0 …

    With entries of size 1, as in the paper, positions would outweigh the token embedding, which starts at 0.02.
    """
    angle = rotary_angles(torch.arange(length), embed_dim + embed_dim % 2, BASE)
    vectors = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return math.sqrt(2) * STANDARD_DEVIATION * vectors[:, :embed_dim]


def sinusoidal_positions_2d(side: int, embed_dim: int, amplitude: float = 0.1) -> Tensor:
    """One vector for each pixel of a square image, `(side², embed_dim)` float32, in the order of the rows.

    The first half of the features encodes the row, the second half the column, after Vaswani et al. 2017, §3.5:

        sin(ω_k z), cos(ω_k z), with ω_k = (2π / 8) 10000^(−k / K), k = 0 … K − 1, for a place z

    The shortest wavelength is 8 pixels, so that the vectors of neighbours are alike. The amplitude is five times that
    of `normal`: positions then outweigh the pixels' values in what the first layer sees.

    Raises:
        ValueError: for an `embed_dim` that is no multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4 for position_init=sinusoidal_2d")
    count = embed_dim // 4
    frequency = 2 * math.pi / 8 * 10_000.0 ** (-torch.arange(count) / count)
    angle = torch.arange(side)[:, None] * frequency
    axis = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    row, column = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return amplitude * torch.cat([row, column], dim=-1).flatten(0, 1)
