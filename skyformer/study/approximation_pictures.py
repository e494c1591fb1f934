"""The pictures of `study approximation`: errors of methods, and of choices of landmarks."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from skyformer.report.pictures import add_legend
from skyformer.report.style import new_figure, save_picture, style_of

THROUGH = "softmax through A and D"
# Choices of landmarks in Okabe and Ito's colours, and markers for print without colour.
_CHOICES = {
    "uniform": ("#D55E00", "o"),
    "half and half": ("#E69F00", "s"),
    "segment means": ("#0072B2", "^"),
    "k-means": ("#009E73", "v"),
    "ridge leverage": ("#000000", "D"),
    "farthest point": ("#CC79A7", "x"),
    "strided farthest point": ("#56B4E9", "+"),
    "pivoted": ("#5E3C99", "*"),
}
_GREY = "#666666"


def draw_errors(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Above, each method against softmax (Skyformer through A and D); below, against what it approximates."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    figure, panels = _new_grid(2, len(lengths))
    for column, length in enumerate(lengths):
        own = [row for row in rows if row["length"] == length]
        against_softmax = [row for row in own if row["target"] == _nearest_to_softmax(row["method"], own)]
        approximated = [row for row in own if row["target"] == _own_target(row["method"], own)]
        for panel, shown in ((panels[0][column], against_softmax), (panels[1][column], approximated)):
            for method in dict.fromkeys(row["method"] for row in shown):
                look, rows_of_method = style_of(method), [row for row in shown if row["method"] == method]
                through = rows_of_method[0]["target"] == THROUGH
                label = f"{look.label} (A, then D)" if through else look.label
                _plot(panel, rows_of_method, label, look.color, look.linestyle, look.marker)
            panel.set(xscale="log", yscale="log", xlabel="d")
            _ticks(panel, sorted({row["num_landmarks"] for row in own}))
        panels[0][column].set_title(f"n = {length:,}")
    panels[0][0].set_ylabel("error against softmax, relative")
    panels[1][0].set_ylabel("error against the attention\nthat it approximates, relative")
    _finish(figure, panels, title, path)


def _nearest_to_softmax(method: str, rows: Sequence[dict[str, Any]]) -> str:
    targets = {row["target"] for row in rows if row["method"] == method}
    return THROUGH if THROUGH in targets else "softmax"


def _own_target(method: str, rows: Sequence[dict[str, Any]]) -> str:
    return next(row["target"] for row in rows if row["method"] == method)


def draw_choices(choices: Sequence[dict[str, Any]], bounds: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw ‖C̃ − C‖ / ‖C‖ against d for each choice of landmarks, with a row of panels for each γ.

    The row without γ also has λ at d = d_stat and at the d of Theorem 2. The last row has the errors with the largest γ
    against the time of choice and attention.
    """
    lengths = list(dict.fromkeys(row["length"] for row in choices))
    ridges = sorted({row["ridge"] for row in choices}, reverse=True)
    figure, panels = _new_grid(len(ridges) + 1, len(lengths))
    for column, length in enumerate(lengths):
        for line, ridge in enumerate(ridges):
            panel = panels[line][column]
            own = [row for row in choices if (row["length"], row["ridge"]) == (length, ridge)]
            for choice, (color, marker) in _CHOICES.items():
                _plot(panel, [row for row in own if row["choice"] == choice], choice, color, "-", marker)
            sizes = sorted({row["num_landmarks"] for row in own})
            panel.set(xscale="log", yscale="log", xlabel="d")
            if ridge == 0:
                _plot_theorem(panel, [row for row in bounds if row["length"] == length], sizes)
            _ticks(panel, sizes)
            panels[line][0].set_ylabel(f"‖C̃ − C‖₂ / ‖C‖₂,  γ = {ridge:g}")
        panels[0][column].set_title(f"n = {length:,}")
        own = [row for row in choices if (row["length"], row["ridge"]) == (length, ridges[0])]
        _plot_times(panels[-1][column], own)
    panels[-1][0].set_ylabel(f"‖C̃ − C‖₂ / ‖C‖₂,  γ = {ridges[0]:g}")
    _finish(figure, panels, title, path)


def _plot_times(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Mean error against mean time, a point for each d."""
    for choice in dict.fromkeys(row["choice"] for row in rows):
        own = [row for row in rows if row["choice"] == choice]
        sizes = sorted({row["num_landmarks"] for row in own})
        by_size = [[row for row in own if row["num_landmarks"] == size] for size in sizes]
        times = [1000 * fmean(map(seconds_in_all, same)) for same in by_size]
        errors = [fmean(row["relative"] for row in same) for same in by_size]
        color, marker = _CHOICES[choice]
        panel.plot(times, errors, color=color, marker=marker, ms=4, label=choice, lw=1.4)
    panel.set(xscale="log", yscale="log", xlabel="CPU time of choice and attention, ms a head")


def seconds_in_all(row: dict[str, Any]) -> float:
    """Time to choose landmarks, and to attend by them."""
    return row["seconds"] + row["seconds_to_attend"]


def _plot_theorem(panel: Any, bounds: Sequence[dict[str, Any]], sizes: Sequence[int]) -> None:
    """The two curves; where one is to the right of the panel, a note says from which d on there is one."""
    relative = [row["relative"] for row in bounds]
    limits, notes = panel.get_ylim(), []
    for key, linestyle, label in (
        ("d_stat", ":", "λ at d = d_stat, worst head"),
        ("bound", "--", "λ of Theorem 2, its C = 1"),
    ):
        places = [row[key] for row in bounds]
        if min(places) > max(sizes):
            notes.append(f"{label}: from d = {min(places):,.0f} on")
        else:
            panel.plot(places, relative, color=_GREY, linestyle=linestyle, label=label, lw=1.2)
    panel.set_title("\n".join(notes), loc="right", fontsize="small", color=_GREY)
    panel.set(xlim=(min(sizes) * 0.9, max(sizes) * 1.1), ylim=(limits[0], max(limits[1], max(relative))))


def _plot(panel: Any, rows: Sequence[dict[str, Any]], label: str, color: str, linestyle: str, marker: str) -> None:
    """Means over the draws, and the band from the smallest to the largest."""
    sizes = sorted({row["num_landmarks"] for row in rows})
    values = [[row["relative"] for row in rows if row["num_landmarks"] == size] for size in sizes]
    panel.plot(
        sizes, list(map(fmean, values)), color=color, linestyle=linestyle, marker=marker, ms=4, label=label, lw=1.4
    )
    panel.fill_between(sizes, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15, lw=0)


def _new_grid(rows: int, columns: int) -> tuple[Any, Any]:
    figure, panels = new_figure(rows * columns, 3.2 * columns + 2.4, 3.2 * rows, columns)
    return figure, panels.reshape(rows, columns)


def _ticks(panel: Any, sizes: Sequence[int]) -> None:
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()


def _finish(figure: Any, panels: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize="medium")
    handles = {
        label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    add_legend(figure, handles)
    save_picture(figure, path)
