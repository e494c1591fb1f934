"""The rows of a benchmark as a table on the screen and as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skyformer.files import write_table

Row = dict[str, Any]
_DEVICE, _FORWARD = "GPU ms", "fwd ms"


def print_table(rows: Sequence[Row], machine: str = "") -> None:
    """Milliseconds, MB, and how far from the floor; the rates of the machine of this name, and where other rows are
    from.

    For a GPU, the time on it takes the place of the forward pass: 80 columns have no room for both.
    """
    on_gpu = any(row.get("device_seconds") for row in rows)
    columns = ("ms", _DEVICE if on_gpu else _FORWARD, "MB", "Gop", "floor", "ratio")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("size", "type", "form", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        size, cells = f"{row['batch_size']}x{row['length']}", _cells(row)
        shown = (cells.get(name, "-") for name in columns)
        table.add_row(row["name"], size, row["precision"].replace("float", "f"), row["form"], *shown)
    console = Console()
    console.print(table)
    measured = [row for row in rows if "matmul_per_s" in row]
    if measured:
        products, copies = (max(row[name] for row in measured) / 1e9 for name in ("matmul_per_s", "copy_per_s"))
        said = f"Matrix product {products:,.0f} Gop/s, copy {copies:,.0f} GB/s, at their best."
        console.print(f"{machine}: {said}" if machine else said, highlight=False)
    for source in dict.fromkeys(row["source"] for row in rows if "source" in row):
        console.print(f"released: {source}.", highlight=False)


def _cells(row: Row) -> dict[str, str]:
    """The row's texts by column, without those that it has no figure for."""
    if "failed" in row:
        return {"ms": "failed"}
    cells = {
        name: _milliseconds(row[quantity])
        for name, quantity in (("ms", "seconds"), (_DEVICE, "device_seconds"), (_FORWARD, "forward_s"))
        if row.get(quantity)
    }
    if "source" in row:
        return cells
    cells["MB"] = f"{row['peak_mb']:,.0f}"
    if floor := row["floor_s"]:
        cells["Gop"] = f"{row['operations'] / 1e9:,.1f}"
        cells["floor"] = _milliseconds(floor)
        cells["ratio"] = f"{row['seconds'] / floor:.2f}"
    return cells


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.2f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All fields of all rows."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, fields, rows)
