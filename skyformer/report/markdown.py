"""Rows of a table as Markdown."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table of equal-keyed rows: the first column to the left, the others to the right, cells aligned."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    lines = [_line(columns, widths)]
    lines.append("|" + "|".join("-" * (width + 1) + ("-" if n == 0 else ":") for n, width in enumerate(widths)) + "|")
    lines += [_line([row[column] for column in columns], widths) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if n == 0 else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"
