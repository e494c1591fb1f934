"""The rows of a benchmark as a table on the screen and as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skyformer.files import write_table

Row = dict[str, Any]


def print_table(rows: Sequence[Row], machine: str = "") -> None:
    """Milliseconds, MB, and how far from the floor; the rates of the machine of this name, and where other rows are
    from.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("size", "type", "form", "ms", "fwd ms", "MB", "Gop", "floor", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        size = f"{row['batch_size']}x{row['length']}"
        table.add_row(row["name"], size, row["precision"].replace("float", "f"), row["form"], *_cells(row))
    console = Console()
    console.print(table)
    measured = [row for row in rows if "matmul_per_s" in row]
    if measured:
        products, copies = (max(row[name] for row in measured) / 1e9 for name in ("matmul_per_s", "copy_per_s"))
        said = f"Matrix product {products:,.0f} Gop/s, copy {copies:,.0f} GB/s, at their best."
        console.print(f"{machine}: {said}" if machine else said, highlight=False)
    for source in dict.fromkeys(row["source"] for row in rows if "source" in row):
        console.print(f"released: {source}.", highlight=False)


def _cells(row: Row) -> list[str]:
    if "failed" in row:
        return ["failed", "", "", "", "", ""]
    if "source" in row:
        return [_milliseconds(row["seconds"]), "-", "-", "-", "-", "-"]
    floor = row["floor_s"]
    return [
        _milliseconds(row["seconds"]),
        _milliseconds(row["forward_s"]) if row["forward_s"] else "-",
        f"{row['peak_mb']:,.0f}",
        f"{row['operations'] / 1e9:,.1f}" if floor else "-",
        _milliseconds(floor) if floor else "-",
        f"{row['seconds'] / floor:.2f}" if floor else "-",
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.2f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All fields of all rows."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, fields, rows)
