"""Singular values of attention outputs (Appendix B), and condition numbers of attention matrices."""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skyformer.attention import Attention, SkyformerAttention
from skyformer.exceptions import RunError
from skyformer.model.classifier import SequenceClassifier
from skyformer.ops.nystrom import regularized_gram
from skyformer.report.style import new_figure, save_picture, style_of
from skyformer.study.backends import read_backends, same_draws
from skyformer.study.inputs import Example, example_of_length, layer_inputs
from skyformer.study.matrices import condition_number
from skyformer.study.setting import Setting, checkpoints_of, distinct_names, make_parser, print_tables, write_rows

BACKENDS = [
    "softmax", "kernelized", "skyformer", "nystromformer", "linformer", "informer", "performer", "reformer", "bigbird",
]  # fmt: skip
_DESCRIPTION = (
    "Singular values of attention outputs (Appendix B). --checkpoint may be given several times: then each run shows "
    "its own attention."
)
_CAPTION = (
    "Outputs: all heads side by side, {length:,} tokens × {width} numbers. Condition: σ₁ / σ_last. Rank: how many σ "
    "exceed σ₁ / 1,000. Attention matrices: {length:,} × {length:,}, the worst head's condition, the mean rank; ∞ "
    "where the rank is not full in float64, as with every method of fewer landmarks than tokens, by construction; - "
    "where the output is not linear in the values. M + γI: the system that Skyformer solves. Means over the examples."
)


def run_spectrum(args: list[str]) -> None:
    """Singular values of a layer's attention output for each backend: `spectrum.csv`, `.md`, `.png`."""
    parser = make_parser("spectrum", _DESCRIPTION, BACKENDS, "report/spectrum")
    add = parser.add_argument
    add("--layer", type=int, default=1, help="Layer to measure, from 0; the paper shows the second.")
    add("--length", type=int | None, help="Tokens of an example; default: 1,024, or as many as the task has.")
    add("--examples", type=int, default=4, help="Number of examples to average over.")
    settings = [Setting.read(parser, args, path) for path in checkpoints_of(args)] or [Setting.read(parser, args)]
    if len(tasks := {setting.task for setting in settings}) > 1:
        raise RunError(
            f"--checkpoint: runs of several tasks (got {', '.join(sorted(tasks))}). Fix: name runs of one task"
        )
    for setting in settings:
        if setting.config.length is None:
            setting.config.length = min(1024, setting.data.max_length)
    config = settings[0].config
    for name in ("length", "examples"):
        if config[name] < 1:
            raise RunError(f"--{name} must be at least 1 (got {config[name]}). Fix: --{name} 1, or more")
    found = {name: measure(setting, model) for name, setting, model in _models(settings)}
    output = Path(config.output).expanduser()
    rows = [
        {"method": name, "index": index, "singular_value": value}
        for name, measured in found.items()
        for index, value in enumerate(measured["singular_values"], 1)
    ]
    write_rows(output / "spectrum.csv", rows)
    source = settings[0].source if len(settings) == 1 else "each its own run"
    title = f"Spectrum of layer {config.layer + 1} on {settings[0].task}, {source}"
    caption = _CAPTION.format(length=config.length, width=config.model.embed_dim)
    print_tables(output / "spectrum.md", title, [(caption, [_row(name, found[name]) for name in found])])
    draw(found, title, output / "spectrum.png")
    print(f"{output}/spectrum.csv, spectrum.md, spectrum.png")


def _models(settings: Sequence[Setting]) -> Iterator[tuple[str, Setting, SequenceClassifier]]:
    """Names and models: of one setting, one for each backend; of several, each its own."""
    if len(settings) == 1:
        (setting,) = settings
        length = max(setting.data.max_length, setting.config.length)
        for name, (backend, _) in read_backends(setting.config.backends).items():
            yield name, setting, setting.make_model(backend, length)
        return
    for name, setting in zip(distinct_names(settings), settings, strict=True):
        yield name, setting, setting.make_model(None, setting.config.length)


def measure(setting: Setting, model: SequenceClassifier) -> dict[str, Any]:
    """Return means over the examples, in float64.

    `singular_values` are those of the layer's output, divided by the first. `output` and `matrix` are (condition
    number, effective rank). `system` is the condition of M + γI, or None.
    """
    layers: Any = model.encoder.blocks
    print(type(layers[0].attention.backend).__name__, file=sys.stderr)
    config = setting.config
    examples = [
        _measure_example(model, example_of_length(setting, config.length, number), config.layer)
        for number in range(config.examples)
    ]
    return {key: _mean([example[key] for example in examples]) for key in examples[0]}


@torch.no_grad()
def _measure_example(model: SequenceClassifier, example: Example, number: int) -> dict[str, list[float]]:
    layer, (query, key, value, _) = layer_inputs(model, example, number)
    query, key, value = query.double(), key.double(), value.double()
    layer.double()
    with same_draws():
        heads = layer(query, key, value, None)
    matrix = attention_matrix(layer, query, key)
    if not torch.allclose(matrix @ value, heads, rtol=1e-6, atol=1e-9):
        matrix = torch.full_like(matrix, math.nan)  # it has none: what it does with the values is not linear
    output = torch.cat(heads[0].unbind(0), dim=-1)
    values = torch.linalg.svdvals(output)
    found = {
        "singular_values": (values / values[0]).tolist(),
        "output": _condition_and_rank(output),
        "matrix": _condition_and_rank(matrix[0]),
        "system": [_system_condition(layer, query, key)],
    }
    layer.float()
    return found


def _system_condition(layer: Attention, query: Tensor, key: Tensor) -> float:
    """Return the condition number of Skyformer's M + γI for the worst head; NaN for other methods."""
    if not isinstance(layer, SkyformerAttention):
        return math.nan
    with same_draws():
        landmarks, valid = layer.landmarks(query, key, None)
    return condition_number(torch.linalg.svdvals(regularized_gram(landmarks, layer.ridge, valid))).max().item()


def attention_matrix(layer: Attention, query: Tensor, key: Tensor) -> Tensor:
    """Return the matrix that multiplies the values, `(B, H, n, p)` twice → `(B, H, n, n)`.

    It is the backend's output for the columns of the identity, p at a time.
    """
    length, head_dim = query.shape[2:]
    identity = torch.eye(length, -(-length // head_dim) * head_dim, dtype=query.dtype).expand(*query.shape[:2], -1, -1)
    parts = []
    for values in identity.split(head_dim, dim=-1):
        with same_draws():
            parts.append(layer(query, key, values, None))
    return torch.cat(parts, dim=-1)[..., :length]


def _condition_and_rank(matrix: Tensor) -> list[float]:
    """The worst condition number, and the mean effective rank: how many singular values exceed a thousandth of the
    largest. NaN for a matrix of NaN.
    """
    if matrix.isnan().any():
        return [math.nan, math.nan]
    values = torch.linalg.svdvals(matrix)
    rank = (values > values[..., :1] / 1000).sum(dim=-1).double().mean()
    return [condition_number(values).max().item(), rank.item()]


def _mean(lists: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]


def _row(name: str, found: dict[str, Any]) -> dict[str, str]:
    output, matrix = found["output"], found["matrix"]
    return {
        "method": style_of(name).label,
        "output: condition": _number(output[0]),
        "rank": f"{output[1]:.0f}",
        "matrix: condition": _number(matrix[0]),
        "rank of it": "-" if math.isnan(matrix[1]) else f"{matrix[1]:.0f}",
        "M + γI": _number(found["system"][0]),
    }


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "∞" if math.isinf(value) else f"{value:.3g}"


def draw(found: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Singular values over the largest, against their number."""
    figure, (panel,) = new_figure(1, 7.2, 4.2)
    for name, measured in found.items():
        look, values = style_of(name), measured["singular_values"]
        numbers = range(1, len(values) + 1)
        panel.plot(
            numbers, values, color=look.color, linestyle=look.linestyle, marker=look.marker, markevery=0.1, ms=4,
            label=look.label, lw=1.4,
        )  # fmt: skip
    panel.set(xlabel="number of the singular value", ylabel="singular value / largest", yscale="log")
    figure.suptitle(title, fontsize="medium")
    figure.legend(loc="outside right center", frameon=False)
    save_picture(figure, path)
