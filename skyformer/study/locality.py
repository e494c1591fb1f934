"""`study locality`: how far a trained network looks, and its accuracy when attention is limited to blocks.

Shapes: B sequences, N tokens, D embedding size.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from skyformer.exceptions import RunError
from skyformer.files import write_atomically
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.head import UNLABELLED
from skyformer.report.pictures import add_legend
from skyformer.report.style import new_figure, save_picture, style_of
from skyformer.study.blocks import attention_in_blocks, distances
from skyformer.study.setting import Setting, checkpoints_of, distinct_names, make_parser, print_tables

_DESCRIPTION = (
    "How far a trained network looks: squared gradients of the encoder's output at a position with respect to the "
    "token embeddings, by distance; and the accuracy when attention is limited to blocks. --checkpoint may be given "
    "several times, also for runs of several tasks."
)
_GRADIENT_CAPTION = (
    "Squared gradient of the encoder's output at a position with respect to the token embeddings: the share of the "
    "token itself, and within a distance the share of the rest. Distances are {unit}. The last row counts tokens."
)
_ACCURACY_CAPTION = (
    "Accuracy, %, with attention in blocks of {unit}, each a sequence of its own; {counted}, standard error "
    "{error:.1f} at most. The networks were trained without blocks."
)
EXAMPLES_AT_ONCE = 16
WHOLE = "whole"
Measured = dict[str, Any]


def run_locality(args: list[str]) -> None:
    """Gradients by distance and accuracy by block, of one or more runs: `locality.json`, `.md`, `.png`.

    Args:
        args: arguments after `study locality`.

    Raises:
        RunError: for a value that makes no sense.
        CheckpointError: for a checkpoint that cannot be read.
        SystemExit: 2 for a wrong argument.
    """
    parser = make_parser("locality", _DESCRIPTION, None, "report/locality")
    add = parser.add_argument
    add("--examples", type=int, default=1000, help="Examples of the validation set, drawn at random.")
    add("--positions", type=int, default=4, help="Positions of each example whose gradients are measured.")
    add(
        "--windows",
        type=list[int] | None,
        help="Positions of a block, on images the side of a square of pixels; default: powers of 4, of 2 on images.",
    )
    paths: list[str | None] = [*checkpoints_of(args)]
    if not paths and not {"-h", "--help"} & {*args}:
        raise RunError("study locality needs a trained network. Fix: --checkpoint <file of a run>")
    settings = [Setting.read(parser, args, path) for path in paths or [None]]
    config = settings[0].config
    for name, least in (("examples", config.examples), ("positions", config.positions), ("windows", _least(config))):
        if least < 1:
            raise RunError(f"--{name} {config[name]} must be at least 1")
    rows = [measure(setting, name) for setting, name in zip(settings, distinct_names(settings), strict=True)]
    output = Path(config.output).expanduser()
    write_atomically(output / "locality.json", json.dumps(rows, indent=1) + "\n")
    print_tables(output / "locality.md", "Locality of trained networks", _tables(rows))
    draw(rows, output / "locality.png")
    print(f"{output}: locality.md, locality.json, locality.png")


def _least(config: Any) -> int:
    return 1 if config.windows is None else min(config.windows, default=0)


def measure(setting: Setting, name: str) -> Measured:
    """Measure one run: accuracies by block, mean squared gradients by distance, and how many pairs of tokens those are.

    An untrained network has the same configuration and initial weights. `labels` counts the labels of the `examples`.
    """
    config, data = setting.config, setting.data
    side = getattr(data, "image_side", 0)
    print(f"{setting.task}: {name}", file=sys.stderr)
    batches = sample_batches(data.splits["val"], config.examples, config.seed_everything)
    model, untrained = setting.make_model(), replace(setting, state=None).make_model()
    windows = sorted(set(config.windows or default_windows(data.max_length, side)))
    accuracy = {str(width): accuracy_in_blocks(model, batches, width, side) for width in windows}
    accuracy[WHOLE] = accuracy_in_blocks(model, batches, None, side)
    labels = torch.cat([(batch.label != UNLABELLED).view(len(batch.label), -1).sum(dim=1) for batch in batches])
    found: Measured = {
        "task": setting.task, "method": setting.backend, "name": name, "checkpoint": config.checkpoint,
        "is_image": side > 0, "examples": len(labels), "labels": int(labels.sum()),
        "standard_error": largest_standard_error(labels), "accuracy": accuracy,
    }  # fmt: skip
    for key, network in (("trained", model), ("untrained", untrained)):
        sums, pairs = gradients_by_distance(network, batches, side, config.positions, config.seed_everything)
        found |= {key: (sums / pairs.clamp(min=1)).tolist(), "pairs": pairs.tolist()}
    return found


def default_windows(max_length: int, side: int) -> list[int]:
    """Powers of 4 below the length; on images powers of 2 below the side."""
    base, longest = (2, side) if side else (4, max_length)
    return [base**power for power in range(math.ceil(math.log(longest, base) - 1e-9))]


def sample_batches(split: Any, count: int, seed: int) -> list[Any]:
    """Return batches of `count` examples of a split, drawn without replacement; those of similar length together."""
    chosen = torch.randperm(len(split), generator=Generator().manual_seed(seed))[:count].tolist()
    chosen.sort(key=lambda index: split.lengths[index])
    starts = range(0, len(chosen), EXAMPLES_AT_ONCE)
    return [split.__getitems__(chosen[start : start + EXAMPLES_AT_ONCE]) for start in starts]


def largest_standard_error(labels: Tensor) -> float:
    """Return the largest standard error that a fraction of correct labels can have.

    Examples are independent, but the labels of one may be right or wrong together. With L_i labels in example i:

        Var(Σ right_i / Σ L_i) ≤ ¼ Σ L_i² / (Σ L_i)²

    Args:
        labels: `(examples,)` int64, the number of labels of each.
    """
    return (labels.double().norm() / labels.sum() / 2).item()


@torch.no_grad()
def accuracy_in_blocks(model: SequenceClassifier, batches: Sequence[Any], width: int | None, side: int) -> float:
    """Return the fraction of correct labels, with attention limited to blocks of this width; None for the whole."""
    right, total = 0, 0
    for batch in batches:
        if width is None:
            scores, label = model.scores_and_labels(batch)
        else:
            with attention_in_blocks(model.encoder, width, side, batch.position):
                scores, label = model.scores_and_labels(batch)
        right += int((scores.argmax(dim=-1) == label).sum())
        total += len(label)
    return right / total


def gradients_by_distance(
    model: SequenceClassifier, batches: Sequence[Any], side: int, positions: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of squared gradients at each distance, and the number of pairs of tokens, `(distances,)` float64.

    A pair is a position i, drawn for each sequence, and any real token j. Its squared gradient is ‖∂y_i / ∂x_j‖² in the
    Frobenius norm, y the encoder's output and x the token embeddings. A random vector v with E v vᵀ = I estimates it:

        E ‖∂(v · y_i) / ∂x_j‖² = ‖∂y_i / ∂x_j‖²

    Args:
        model: in evaluation mode.
        batches: as of the data module.
        side: side of the images; 0 for other sequences.
        positions: how many i for each sequence, drawn with replacement.
        seed: seed of the positions and of v.
    """
    generator = Generator().manual_seed(seed)
    longest = side or model.encoder.max_length
    sums, pairs = torch.zeros((2, longest), dtype=torch.float64)
    for batch in batches:
        embedded, encoded, (_, mask, position) = _encode(model, batch)
        real = embedded.new_ones(embedded.shape[:2], dtype=torch.bool) if mask is None else mask
        # Of a sequence without tokens nothing is counted, whatever is drawn.
        weights = torch.where(real.any(dim=1, keepdim=True), real, True).double()
        places = torch.arange(embedded.shape[1]).expand(len(embedded), -1) if position is None else position
        for step in range(positions):
            chosen = torch.multinomial(weights, 1, generator=generator)
            vectors = torch.randn(encoded[:, 0].shape, generator=generator)
            outputs = encoded.gather(1, chosen[:, :, None].expand(-1, -1, encoded.shape[2]))[:, 0]
            (gradient,) = torch.autograd.grad((outputs * vectors).sum(), embedded, retain_graph=step + 1 < positions)
            distance = distances(places.gather(1, chosen)[:, 0], places, side)[real]
            sums.index_add_(0, distance, gradient.double().square().sum(dim=-1)[real])
            pairs += distance.bincount(minlength=longest)
    return sums, pairs


def _encode(model: SequenceClassifier, batch: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Token embeddings and the encoder's output, `(B, N, D)` each, the one a function of the other; and the encoder's
    inputs.
    """
    seen: dict[str, Any] = {}

    def embed(module: Any, inputs: Any, out: Tensor) -> Tensor:
        seen["embedded"] = out.detach().requires_grad_()
        return seen["embedded"]

    def encode(module: Any, inputs: Any, out: Tensor) -> None:
        seen.update(encoded=out, inputs=inputs)

    hooks = [model.encoder.tokens.register_forward_hook(embed), model.encoder.register_forward_hook(encode)]
    try:
        model(batch.tokens, batch.mask, batch.position)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["embedded"], seen["encoded"], seen["inputs"]


def _tables(rows: Sequence[Measured]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return tables for each task: gradients and accuracies of its runs."""
    tables = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        is_image, examples, labels = (own[0][key] for key in ("is_image", "examples", "labels"))
        unit = "in pixels, the larger one of rows and columns" if is_image else "in positions"
        tables.append((f"{task}. {_GRADIENT_CAPTION.format(unit=unit)}", _gradient_table(own)))
        unit = "squares of w × w pixels" if is_image else "w positions"
        counted = f"{examples:,} validation examples"
        if labels != examples:
            counted = f"{labels:,} labelled tokens of {counted}"
        caption = _ACCURACY_CAPTION.format(unit=unit, counted=counted, error=100 * own[0]["standard_error"])
        tables.append((f"{task}. {caption}", [_accuracy_row(row) for row in own]))
    return tables


def _gradient_table(rows: Sequence[Measured]) -> list[dict[str, str]]:
    table = []
    for row in rows:
        pairs = torch.tensor(row["pairs"], dtype=torch.float64)
        reached = int(pairs.nonzero().max())
        limits = [limit for limit in default_windows(len(pairs), len(pairs) * row["is_image"]) if limit < reached]
        label = style_of(row["name"]).label
        for key in ("trained", "untrained"):
            squared = torch.tensor(row[key], dtype=torch.float64) * pairs
            itself = {"network": f"{label}, {key}", "itself": _percent(squared[0] / squared.sum())}
            table.append(itself | _within(squared, limits))
    return [*table, {"network": "tokens", "itself": _percent(pairs[0] / pairs.sum())} | _within(pairs, limits)]


def _within(weight: Tensor, limits: Sequence[int]) -> dict[str, str]:
    """The share of the weights `(distances,)` above distance 0 that is within each limit."""
    others = weight[1:].sum()
    return {f"≤ {limit:,}": _percent(weight[1 : limit + 1].sum() / others) for limit in limits}


def _percent(share: Tensor) -> str:
    return f"{100 * share.item():.1f}%"


def _accuracy_row(row: Measured) -> dict[str, str]:
    cells = {"network": style_of(row["name"]).label}
    return cells | {name if name == WHOLE else f"w = {name}": f"{100 * x:.1f}" for name, x in row["accuracy"].items()}


def draw(rows: Sequence[Measured], path: Path) -> None:
    """Above, mean squared gradients by distance, relative to that of the token itself; below, accuracies by block."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = new_figure(2 * len(tasks), 3.6 * len(tasks) + 2.2, 6.4, len(tasks))
    handles: dict[str, Any] = {}
    for column, task in enumerate(tasks):
        above, below = panels[column], panels[len(tasks) + column]
        for row in (row for row in rows if row["task"] == task):
            look = style_of(row["name"])
            for key, linestyle in (("trained", "-"), ("untrained", ":")):
                distance, mean = _octaves(row[key], row["pairs"])
                (handles[f"{look.label}, {key}"],) = above.plot(
                    distance, mean, color=look.color, linestyle=linestyle, marker=look.marker, ms=4, lw=1.4
                )
            names = list(row["accuracy"])
            places = [int(name) if name != WHOLE else (4 - 2 * row["is_image"]) * int(names[-2]) for name in names]
            values = [100 * value for value in row["accuracy"].values()]
            below.plot(places, values, color=look.color, linestyle=look.linestyle, marker=look.marker, ms=4, lw=1.4)
        unit = "pixels" if row["is_image"] else "positions"
        above.set(xscale="log", yscale="log", xlabel=f"distance, {unit}", title=task)
        below.set(xscale="log", xlabel=f"width of a block, {unit}")
        below.set_xticks(places, names)
        below.minorticks_off()
    panels[0].set_ylabel("squared gradient / that of the token itself")
    panels[len(tasks)].set_ylabel("accuracy, %")
    add_legend(figure, handles)
    save_picture(figure, path)


def _octaves(means: Sequence[float], pairs: Sequence[float]) -> tuple[list[int], list[float]]:
    """Means over the distances 1, 2, 3 … 4, 5 … 8 and so on, over that at distance 0; and the end of each octave.

    There are few pairs at a single large distance. Octaves without pairs are left out.
    """
    weights = torch.tensor(pairs)
    sums = torch.tensor(means, dtype=torch.float64) * weights
    ends = [2**power for power in range((len(means) - 1).bit_length() + 1)]
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        number = weights[start + 1 : end + 1].sum()
        if number > 0:
            found.append((end, (sums[start + 1 : end + 1].sum() / number).item() / means[0]))
    return [end for end, _ in found], [mean for _, mean in found]
