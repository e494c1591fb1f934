"""What a study leaves: numbers as CSV, a table as Markdown, on the screen too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skyformer.files import write_table, write_whole
from skyformer.report.markdown import markdown_table


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Equal-keyed rows as CSV."""
    write_table(path, list(rows[0]), rows)


def say_tables(path: Path, title: str, tables: Sequence[tuple[str, Sequence[dict[str, str]]]]) -> None:
    """Print tables under their captions, and write them as Markdown.

    Args:
        path: the file.
        title: its first line.
        tables: captions, and rows as `markdown_table` takes them.
    """
    parts = [f"# {title}\n", *(f"{caption}\n\n{markdown_table(rows)}" for caption, rows in tables)]
    text = "\n".join(parts)
    print(text)
    write_whole(path, text)
