"""Counts the operations and bytes of products, solves and attention kernels."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from skyformer.ops.flash import GRADIENTS, KERNEL

_aten = torch.ops.aten
Shape = tuple[int, ...]


def count(work: Callable[[], object]) -> tuple[int, int]:
    """Operations (two a multiply-add) that `work` does in products, factorisations, solves and attention kernels, and
    the bytes that these read and write, each operand once.
    """
    with _Bytes() as moved, FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        work()
    return counter.get_total_flops(), moved.bytes


def count_needed(forward: Callable[[], object], whole: Callable[[], object]) -> tuple[int, int]:
    """Count `whole`, a forward and a backward pass, but at most three times the forward pass.

    A product has two of its size in the backward pass. Further work, such as recomputing, is a choice of the
    implementation and must not raise its floor.
    """
    done, once = count(whole), count(forward)
    return min(done[0], 3 * once[0]), min(done[1], 3 * once[1])


class _Bytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = getattr(function, "overloadpacket", None)
        if packet in flop_registry or packet in _FORMULAS:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
            self.bytes += sum(tensor.nbytes for tensor in tensors.values())  # `out=` is given and returned
        return out


def _flash(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    pairs = prod(query[:-1]) * key[-2]
    return 2 * pairs * (query[-1] + value[-1])


def _flash_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    # Recompute the products, then the gradients for value, weights, query and key.
    pairs = prod(query[:-1]) * key[-2]
    return 2 * pairs * (3 * query[-1] + 2 * value[-1])


def _cholesky(matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(matrix[:-2]) * matrix[-1] ** 3 // 3


def _solve_triangular(factor: Shape, right: Shape, *args: Any, **kwargs: Any) -> int:
    return prod(factor[:-2]) * factor[-1] ** 2 * right[-1]


# What torch's counter does not see.
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.linalg_cholesky_ex: _cholesky,
    _aten.linalg_solve_triangular: _solve_triangular,
    KERNEL: _flash,
    GRADIENTS: _flash_backward,
}
