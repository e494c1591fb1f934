"""How far each method's output is from the attention that it approximates, and from softmax attention (Figure 1)."""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from skyformer.attention import Attention, SkyformerAttention
from skyformer.benchmark.cases import read_attention
from skyformer.runs import RunError
from skyformer.study.inputs import Heads
from skyformer.study.matrices import thin_norm
from skyformer.study.targets import skyformer_softmax, softmax_target, target_of

# Arguments that are d, and those that make as many keys of it: 2 chunks in each of 2 rounds; 5 + 3 blocks.
_SIZES = ("num_landmarks", "projected_length", "num_features", "num_queries")
_KEYS = {"chunk_length": 4, "block_size": 8}


def sized(attention: dict[str, Any], num_landmarks: int, length: int, draw: int) -> dict[str, Any]:
    """The arguments of a backend at size d, with the random numbers of this draw.

    d is what the method calls its landmarks, features, queries or projected length; of Reformer and BigBird, the number
    of keys that a query sees. Nyströmformer's convolution, which approximates nothing, is left out.

    Args:
        attention: class path and arguments, as in YAML.

    Raises:
        RunError: for a backend without such an argument.
    """
    arguments = dict(attention["init_args"])
    changed = {name: num_landmarks for name in _SIZES if name in arguments}
    changed |= {name: max(1, num_landmarks // share) for name, share in _KEYS.items() if name in arguments}
    if not changed:
        known = ", ".join((*_SIZES, *_KEYS))
        raise RunError(f"{attention['class_path']} has no size to vary; its YAML must set one of {known}")
    if "num_buckets" in arguments:
        changed["num_buckets"] = 2 * max(1, length // (2 * changed["chunk_length"]))
    if "seed" in arguments:
        changed["seed"] = draw
    if "conv_kernel" in arguments:
        changed["conv_kernel"] = 0
    return {**attention, "init_args": {**arguments, **changed}}


def make_backend(attention: dict[str, Any], heads: Heads, draw: int) -> Attention:
    """A backend for these inputs, in float64 and in evaluation mode."""
    module, _, name = attention["class_path"].rpartition(".")
    torch.manual_seed(draw)
    _, num_heads, length, head_dim = heads[0].shape
    return getattr(import_module(module), name)(num_heads, head_dim, length, **attention["init_args"]).double().eval()


def measure_backends(
    inputs: dict[int, Heads], backends: Sequence[str], sizes: Sequence[int], draws: int
) -> Iterator[dict[str, Any]]:
    """A row for each method, target, length, d and draw: `error`, the spectral norm of the difference between the two
    outputs, and `relative`, over that of the target's; both the mean over the heads.

    Args:
        inputs: query, key and value `(1, H, n, p)`, by length.
        backends: overlays or YAML files.
        sizes: the d.
        draws: number of repeats with other random numbers.
    """
    named = [read_attention(backend, 0.0) for backend in backends]
    for length, heads in inputs.items():
        exact = softmax_target(*heads)
        for name, attention in named:
            print(f"n = {length:,}: {name}", file=sys.stderr)
            for num_landmarks in (size for size in sizes if size < length):
                for draw in range(draws):
                    backend = make_backend(sized(attention, num_landmarks, length, draw), heads, draw)
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
