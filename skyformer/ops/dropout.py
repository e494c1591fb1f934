"""Dropout whose random bits cost little on a CPU."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16  # of an int16
_PER_DRAW = 4  # int16 in an int64


class Dropout(nn.Module):
    """`torch.nn.Dropout`, faster on a CPU, where drawing one number an entry takes up to a third of a training step.

    Args:
        p: rate in [0, 1).

    Raises:
        ValueError: for another rate.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_probability("dropout", p)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with entries zeroed with probability p, the others divided by the probability of staying.

    On a CPU, each entry uses 16 random bits, so p is rounded to a multiple of 2⁻¹⁶ and the divisor follows. On other
    devices this is torch's own dropout.
    """
    dropped = round(p * LEVELS)
    if dropped == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return _Dropout.apply(x, dropped)


# A custom operator, so that torch.compile calls it unchanged and a compiled run draws the same bits as an eager one.
@torch.library.custom_op("skyformer::random_int16", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_int16(count: int, *, device: torch.device) -> Tensor:
    """`(count,)` uniform over all int16, on the CPU; `device` tells the compiler whose generator it draws from.

    From NumPy's SFC64, twice as fast as torch's CPU generator. torch's generator draws the seed, so its state
    determines the bits.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draws = np.random.SFC64(seed).random_raw(-(-count // _PER_DRAW))
    return torch.from_numpy(draws.view(np.int16))[:count]


@random_int16.register_fake
def _(count: int, *, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.int16)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        bits = random_int16(x.numel(), device=x.device).view(x.shape)
        keep = bits.ge_(dropped - LEVELS // 2).to(torch.uint8)  # vector instructions, which booleans lack
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return _kept(x, keep, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _kept(grad, keep, ctx.scale), None


def _kept(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return (x * keep.to(x.dtype)).mul_(scale)


def check_probability(name: str, value: float) -> float:
    """Return `value`, a dropout rate in [0, 1).

    Raises:
        ValueError: naming the argument.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must lie in [0, 1)")
    return value
