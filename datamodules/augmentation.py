"""Augmentations that keep the label of a training example. A number selects one view of the example.

`TrainBatches` samples the number as a function of (seed, epoch, example), so a resumed run sees the same views.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

MAX_SHIFT = 4  # pixels, as is customary for CIFAR-10
STEPS = 2 * MAX_SHIFT + 1  # how many shifts there are along an axis, sizes of a crop, and places of it
# How many views each augmentation has. The arguments of an expression are permuted by a seed.
NUM_VIEWS = {
    "transpose": 2,
    "flip_horizontal": 2,
    "flip_vertical": 2,
    "shift": STEPS**2,
    "crop": STEPS**3,
    "permute": 1 << 32,
}
MOVES_PIXELS_OUT = {"shift", "crop"}  # the others show each pixel once


def num_views(names: Sequence[str]) -> int:
    """Return the number of views of all these augmentations together; 1 without any."""
    return prod(NUM_VIEWS[name] for name in names)


def choose(augment: bool | Sequence[str], known: Sequence[str], task: str) -> tuple[str, ...]:
    """Return the augmentations that `data.augment` names, in the task's order; `True` selects the first.

    Args:
        augment: the setting.
        known: the augmentations that keep the task's labels.
        task: the name of its class.

    Raises:
        ValueError: for an augmentation that the task does not have.
    """
    if not augment:
        return ()
    if not known:
        raise ValueError(
            f"data.augment: {task} has no augmentation that keeps its labels (got data.augment={_shown(augment)}). "
            "Fix: data.augment=false"
        )
    named = known[:1] if augment is True else tuple(augment)
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ValueError(
            f"data.augment: {', '.join(unknown)} is not a label-preserving augmentation for {task} (got "
            f"data.augment={_shown(augment)}). Fix: name any of {', '.join(known)}"
        )
    return tuple(name for name in known if name in named)


def _shown(augment: bool | Sequence[str]) -> str:
    return "true" if augment is True else f"[{', '.join(augment)}]" if augment else "false"


def pixel_sources(view: Tensor, names: Sequence[str], side: int) -> Tensor:
    """Return the source index of each pixel of a view of a square image, `(B, side²)` int64, for views `(B,)` int64.

    `shift` moves by up to 4 pixels each way and repeats the edge. `crop` cuts out a square at most 8 pixels smaller
    than the image. It enlarges the square by nearest-neighbour sampling.
    """
    view = view[:, None, None]
    place = torch.arange(side, device=view.device)
    row, column = place[:, None].expand(len(view), side, side), place.expand(len(view), side, side)
    for name in names:
        variant, view = view % NUM_VIEWS[name], view // NUM_VIEWS[name]
        if name == "transpose":
            row, column = torch.where(variant == 1, column, row), torch.where(variant == 1, row, column)
        elif name == "flip_horizontal":
            column = torch.where(variant == 1, side - 1 - column, column)
        elif name == "flip_vertical":
            row = torch.where(variant == 1, side - 1 - row, row)
        elif name == "shift":
            row, column = row + variant // STEPS - MAX_SHIFT, column + variant % STEPS - MAX_SHIFT
            row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
        elif name == "crop":
            cut, top, left = variant // STEPS**2, variant // STEPS % STEPS, variant % STEPS
            row, column = (
                start * cut // (STEPS - 1) + (2 * axis + 1) * (side - cut) // (2 * side)
                for start, axis in ((top, row), (left, column))
            )
    return (row * side + column).flatten(1)
