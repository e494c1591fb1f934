"""Attentions of other libraries in `study approximation`. They have no size d, so their errors are one for all d."""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from skyformer.benchmark.peers import keops_gaussian
from skyformer.exceptions import RunError
from skyformer.ops.gaussian import gaussian_attention
from skyformer.study.inputs import Heads
from skyformer.study.matrices import relative_distance, softmax_target


def taylor_softmax(library: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention with exp(x) ≈ 1 + x + x² / 2, in time linear in N: `(B, H, N, P)`."""
    left, right = map(library.second_taylor_expansion, (query * query.shape[-1] ** -0.5, key))
    return left @ (right.mT @ value) / (left @ right.sum(dim=2).unsqueeze(-1))


Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
Target = Callable[..., Tensor]
# Module, function, and name and function of the attention that it approximates.
STUDIED: dict[str, tuple[str, Attend, str, Target]] = {
    "taylor-series-linear-attention": (
        "taylor_series_linear_attention.attention", taylor_softmax, "softmax", softmax_target,
    ),
    "pykeops": ("pykeops.torch", keops_gaussian, "kernelized", gaussian_attention),
}  # fmt: skip


def import_peers(peers: Sequence[str]) -> dict[str, Any]:
    """Return the module of each peer.

    Raises:
        RunError: for an unknown peer, or one that is not installed.
    """
    modules = {}
    for name in peers:
        if name not in STUDIED:
            raise RunError(f"--peers {name} is not one of {', '.join(STUDIED)}")
        try:
            modules[name] = import_module(STUDIED[name][0])
        except ImportError as error:
            raise RunError(f"--peers {name}: it is not installed. Fix: pip install -e '.[peers]'") from error
    return modules


@torch.no_grad()
def measure_peers(
    inputs: dict[int, Heads], peers: Sequence[str], sizes: Sequence[int], draw: int
) -> Iterator[dict[str, Any]]:
    """Return a row for each peer, length and d, as `measure_backends` does.

    Args:
        inputs: query, key and value `(1, H, n, p)`, by length.
        peers: keys of `STUDIED`.
        sizes: the d; those below n are taken.
        draw: seed that the rows name. Nothing is drawn.
    """
    for name, library in import_peers(peers).items():
        _, attend, target, make_target = STUDIED[name]
        for length, heads in inputs.items():
            print(f"n = {length:,}: {name}", file=sys.stderr)
            query, key, value = (x.double() for x in heads)
            errors = relative_distance(attend(library, query, key, value), make_target(query, key, value))
            for size in sizes:
                if size < length:
                    place = {"length": length, "num_landmarks": size, "draw": draw, "method": name}
                    yield {**place, "target": target, **errors}
