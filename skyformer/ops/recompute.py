"""Less memory for more time: attention by blocks of queries, and layers recomputed in the backward pass."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ENTRIES_AT_ONCE = 1 << 24  # of a matrix of queries by keys: 64 MB in float32


def by_query_blocks(
    attend: Callable[[Tensor], Tensor], query: Tensor, num_keys: int, draws_numbers: bool = False
) -> Tensor:
    """`attend(query)`, computed for a few queries at a time and recomputed in the backward pass.

    Args:
        attend: queries `(B, H, any, P)` → `(B, H, any, V)`, each for itself; may close over keys and values.
        query: `(B, H, L, P)`.
        num_keys: S, which with B and H decides how many queries a block holds.
        draws_numbers: `attend` draws random numbers, and has to draw the same ones again. This reads the generator's
            state, which a CUDA graph refuses.

    Returns:
        `(B, H, L, V)`.
    """
    rows = max(1, ENTRIES_AT_ONCE // (query.shape[0] * query.shape[1] * num_keys))
    if rows >= query.shape[2]:
        return attend(query)
    blocks = query.split(rows, dim=2)
    return torch.cat(
        [checkpoint(attend, block, use_reentrant=False, preserve_rng_state=draws_numbers) for block in blocks], dim=2
    )


class _Pass(threading.local):
    """The state of a thread. On a GPU the backward pass, which recomputes, has its own thread."""

    recomputes = False


_pass = _Pass()


def is_recomputing() -> bool:
    """Return True in the second run of a function that `recomputed_in_backward` was given.

    A layer that changes its own state in `forward`, such as a count of calls, must not change it in this run.
    """
    return _pass.recomputes


def recomputed_in_backward(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return `function(*inputs)`, storing only its inputs; the backward pass runs it again.

    Both runs draw the same random numbers. The gradients are those of `function(*inputs)`, and torch's generators end
    in the same state.
    """
    has_run = False

    def run(*inputs: Any) -> Tensor:
        nonlocal has_run
        _pass.recomputes, has_run = has_run, True
        try:
            return function(*inputs)
        finally:
            _pass.recomputes = False

    # The compiler traces `function` once, and recomputes operations, not Python code.
    return checkpoint(function if torch.compiler.is_compiling() else run, *inputs, use_reentrant=False)
