"""How far each method's output is from the attention that it approximates, and from softmax attention (Figure 1)."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from skyformer.attention import Attention, SkyformerAttention
from skyformer.runs import RunError
from skyformer.study.backends import Description, make_attention, read_backends
from skyformer.study.inputs import Heads
from skyformer.study.matrices import thin_norm
from skyformer.study.targets import skyformer_softmax, softmax_target, target_of

# Arguments that are d.
_SIZES = ("num_landmarks", "projected_length", "num_features", "num_queries")


def sized(attention: Description, num_landmarks: int, length: int, seed: int) -> Description:
    """A backend at size d, its own seed set.

    d is what the method calls its landmarks, features, queries or projected length; of Reformer and BigBird, the number
    of keys that a query sees, over two chunks a round, or five blocks and the random ones. Nyströmformer's convolution,
    which approximates nothing, is left out.

    Raises:
        RunError: for a backend without such an argument.
    """
    arguments = dict(attention.get("init_args") or {})
    changed: dict[str, int] = {name: num_landmarks for name in _SIZES if name in arguments}
    if "chunk_length" in arguments:
        chunk = max(1, num_landmarks // (2 * arguments.get("num_rounds", 1)))
        changed |= {"chunk_length": chunk, "num_buckets": 2 * max(1, length // (2 * chunk))}
    if "block_size" in arguments:
        changed["block_size"] = max(1, num_landmarks // (5 + arguments.get("num_random_blocks", 0)))
    if not changed:
        known = ", ".join((*_SIZES, "chunk_length", "block_size"))
        raise RunError(f"{attention['class_path']} has no size to vary; its YAML must set one of {known}")
    own = {"seed": seed, "conv_kernel": 0}
    changed |= {name: value for name, value in own.items() if name in arguments}
    return {**attention, "init_args": {**arguments, **changed}}


def measure_backends(
    inputs: dict[int, Heads], backends: Sequence[str], sizes: Sequence[int], draws: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each method, target, length, d and draw: `error`, the spectral norm of the difference between the two
    outputs, and `relative`, over that of the target's; both the mean over the heads.

    Args:
        inputs: query, key and value `(1, H, n, p)`, by length.
        backends: overlays or YAML files.
        sizes: the d; those below n are taken.
        draws: seeds of the methods' random numbers.

    Raises:
        RunError: for a backend that cannot be made, before anything is measured.
    """
    named = {name: attention for name, (_, attention) in read_backends(backends).items()}
    for attention in named.values():
        for num_landmarks in sizes:
            make_attention(sized(attention, num_landmarks, num_landmarks, 0), 1, 8, num_landmarks, 0)
    for length, heads in inputs.items():
        exact = softmax_target(*heads)
        _, num_heads, _, head_dim = heads[0].shape
        for name, attention in named.items():
            print(f"n = {length:,}: {name}", file=sys.stderr)
            for num_landmarks in (size for size in sizes if size < length):
                for draw in draws:
                    at_size = sized(attention, num_landmarks, length, draw)
                    backend = make_attention(at_size, num_heads, head_dim, length, draw)
                    place = {"length": length, "num_landmarks": num_landmarks, "draw": draw, "method": name}
                    for target, method_error in _errors(backend, heads, exact):
                        yield {**place, "target": target, **method_error}


@torch.no_grad()
def _errors(backend: Attention, heads: Heads, exact: Tensor) -> Iterator[tuple[str, dict[str, float]]]:
    query, key, value = (x.double() for x in heads)
    out = backend(query, query if backend.shares_query_and_key else key, value, None)
    target, approximated = target_of(backend, query, key, value)
    yield target, _distance(out, approximated)
    if target != "softmax":
        yield "softmax", _distance(out, exact)
    if isinstance(backend, SkyformerAttention):
        yield "softmax through A and D", _distance(skyformer_softmax(backend, query, key, value), exact)


def _distance(out: Tensor, target: Tensor) -> dict[str, float]:
    error, norm = thin_norm(out - target), thin_norm(target)
    return {"error": error.mean().item(), "relative": (error / norm).mean().item()}
