"""How each group looks in the pictures of a report, and the legend that says so."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill, wrap
from typing import Any

from skyformer.report.groups import Group
from skyformer.report.style import style_of

_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of a method's further settings
_WIDTH, _BROADER = 1.3, 0.8  # points
_LEGEND = 30  # characters in a line


def looks_of(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """How each label is drawn, as matplotlib takes it: in its method's colour and marker; filled and in the method's
    line for the setting that is on most tasks, hollow and dashed otherwise for its further ones, and broader for those
    beyond.
    """
    by_frequency = Counter(group.label for group in sorted(groups, key=lambda group: group.place))
    backends = {group.label: group.backend for group in groups}
    looks: dict[str, dict[str, Any]] = {}
    met: Counter[str] = Counter()
    for label, _ in by_frequency.most_common():
        style, number = style_of(backends[label]), met[backends[label]]
        met[backends[label]] += 1
        times, dashes = divmod(number - 1, len(_DASHES))
        looks[label] = {
            "color": style.color,
            "marker": style.marker,
            "linestyle": _DASHES[dashes] if number else style.linestyle,
            "linewidth": _WIDTH + _BROADER * max(0, times),
            "markerfacecolor": "white" if number else style.color,
        }
    return looks


def in_order(groups: Sequence[Group], labels: Iterable[str]) -> list[str]:
    """Those labels, each once, in the order of the methods."""
    places = {group.label: group.place for group in groups}
    return sorted(set(labels), key=lambda label: places[label])


def add_legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Beside the panels: lines by their texts, long ones broken."""
    texts = [fill(text, _LEGEND) for text in handles]
    place = {"loc": "outside right center", "frameon": False, "handlelength": 3}  # long enough for dashes
    figure.legend(list(handles.values()), texts, **place)


def figure_size(panels: int, columns: int, texts: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches of so many panels in rows of `columns`, and of a legend of these texts beside them."""
    legend = [wrap(text, _LEGEND) for text in texts]
    width = 0.85 + 0.085 * max((len(line) for lines in legend for line in lines), default=0)
    return 4.2 * columns + width, max(3.5 * -(-panels // columns), 0.3 + 0.24 * sum(map(len, legend)))
