"""Checks of sizes, shapes and types that the attention functions share."""

from typing import Any, get_args

import torch
from torch import Tensor


def check_at_least_one(**sizes: int) -> None:
    """Refuse a size below 1.

    Raises:
        ValueError: naming it.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def check_above_zero(**values: float) -> None:
    """Refuse a value that is not greater than 0, NaN too.

    Raises:
        ValueError: naming it.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be greater than 0")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`.

    Raises:
        ValueError: naming the argument and the valid values.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is not one of {list(get_args(choices))}")


def check_inputs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Refuse query, key, value and mask whose shapes do not go together.

    Raises:
        ValueError: naming the argument.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (B, H, tokens, P), got shape {tuple(tensor.shape)}")
        if tensor.shape[:2] != query.shape[:2]:
            raise ValueError(f"{name} has batch and heads {tuple(tensor.shape[:2])}, query {tuple(query.shape[:2])}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query has head dimension {query.shape[-1]} and key {key.shape[-1]}; they must be equal")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key has {key.shape[2]} tokens and value {value.shape[2]}; they must be equal")
    check_mask("mask", mask, (key.shape[0], key.shape[2]))


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, int]) -> None:
    """Refuse a mask that is not boolean or not of `shape`.

    Raises:
        ValueError: naming the argument `name`.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean (True = a real token), got {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")
