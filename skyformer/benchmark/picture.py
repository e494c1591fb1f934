"""Time and memory against length, both logarithmic, with fitted exponents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyformer.report.style import new_figure, place, save_picture, style_of

Row = dict[str, Any]


def exponent(rows: Sequence[Row], quantity: str) -> float:
    """a of the fit `quantity / B ∝ N^a` by least squares of the logarithms; NaN for fewer than two lengths."""
    if len({row["length"] for row in rows}) < 2:
        return float("nan")
    lengths = np.log([row["length"] for row in rows])
    return float(np.polyfit(lengths, np.log([row[quantity] / row["batch_size"] for row in rows]), 1)[0])


def draw_scaling(rows: Sequence[Row], path: Path) -> None:
    """Two panels: time and memory an example, one line a name and precision, its exponent in the legend."""
    figure, panels = new_figure(2, 10.5, 4.2)
    measured = [row for row in rows if "failed" not in row]
    lines = sorted({(place(row["name"]), row["name"], row["precision"]) for row in measured})
    for panel, quantity, unit in zip(panels, ("seconds", "peak_mb"), ("s", "MB"), strict=True):
        for _, name, precision in lines:
            chosen = [row for row in measured if (row["name"], row["precision"]) == (name, precision)]
            look = style_of(name)
            label = f"{look.label}, {precision}: $N^{{{exponent(chosen, quantity):.2f}}}$"
            values = [row[quantity] / row["batch_size"] for row in chosen]
            marker = "o" if precision == "float32" else "x"
            panel.loglog(
                [row["length"] for row in chosen], values, color=look.color, linestyle=look.linestyle, marker=marker,
                markersize=4, lw=1.3, label=label,
            )  # fmt: skip
        panel.set(xlabel="tokens N", ylabel=f"{'time' if unit == 's' else 'peak memory'} an example ({unit})")
        panel.legend(frameon=False, fontsize=8)
    save_picture(figure, path)
