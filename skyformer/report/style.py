"""The style of a method in every picture: name, colour, line, marker."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyformer.exceptions import RunError
from skyformer.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart; where two methods share a hue, the line differs. The
# markers tell all of them apart in grey too.
_METHODS = {
    "skyformer": ("Skyformer", "#D55E00", "-", "o"),
    "kernelized": ("Kernelized", "#E69F00", "-", "s"),
    "softmax": ("Softmax", "#000000", "-", "D"),
    "nystromformer": ("Nyströmformer", "#0072B2", "-", "^"),
    "linformer": ("Linformer", "#56B4E9", "-", "v"),
    "informer": ("Informer", "#009E73", "-", "P"),
    "performer": ("Performer", "#CC79A7", "-", "X"),
    "reformer": ("Reformer", "#0072B2", "--", "<"),
    "bigbird": ("BigBird", "#009E73", "--", "*"),
}
_OTHERS = ("#5E3C99", "#8C510A", "#7F7F7F")
ORDER = tuple(_METHODS)
PANELS_IN_ROW = 3


@dataclass(frozen=True)
class Style:
    """`label` for a reader, `color`, `linestyle` and `marker` as matplotlib takes them."""

    label: str
    color: str
    linestyle: str
    marker: str


def style_of(backend: str) -> Style:
    """Return the style of a backend. One outside the package has a style from its name.

    A name that begins with a shipped method, such as `skyformer_mine`, takes that method's colour.
    """
    if backend in _METHODS:
        return Style(*_METHODS[backend])
    for name, (label, color, _, _) in _METHODS.items():
        if backend.startswith((f"{name}_", f"{name} ")):
            return Style(label + backend.removeprefix(name).replace("_", " "), color, ":", "h")
    return Style(backend, _OTHERS[sum(backend.encode()) % len(_OTHERS)], ":", "h")


def place(backend: str) -> tuple[int, str]:
    """Return the sort key of a backend among others."""
    return (ORDER.index(backend) if backend in ORDER else len(ORDER), backend)


def new_figure(panels: int, width: float, height: float, columns: int | None = None) -> tuple[Any, Any]:
    """A figure of this size in inches with its panels side by side, or in rows of this many columns.

    Raises:
        RunError: where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError("pictures need matplotlib. Fix: pip install -e '.[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    columns = columns or panels
    axes = figure.subplots(-(-panels // columns), columns, squeeze=False).ravel()
    for empty in axes[panels:]:
        empty.remove()
    for panel in axes[:panels]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes[:panels]


def save_picture(figure: Any, path: Path) -> None:
    """Save as PNG, at 150 dots per inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically(path, content.getvalue())
