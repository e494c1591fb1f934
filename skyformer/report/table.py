"""Tables as text, Markdown and LaTeX; `page.html.jinja` has their form in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text
from tabulate import tabulate


def markdown_table(rows: Sequence[dict[str, str]], left: Sequence[str] = ()) -> str:
    """A Markdown table of equal-keyed rows: the first column and those named in `left` to the left, others right."""
    sides = ["left" if name in (next(iter(rows[0])), *left) else "right" for name in rows[0]]
    return tabulate(rows, headers="keys", tablefmt="pipe", colalign=sides, disable_numparse=True) + "\n"


@dataclass(frozen=True)
class Cell:
    """Plain text. `value` is what the cell is about, `lines` the notes on it; a best `value` is set in bold."""

    value: str
    lines: tuple[str, ...] = ()
    is_best: bool = False


EMPTY = Cell("")
WIDEST, WIDEST_LABEL = 27, 22  # characters of a cell: three columns on 80; longer lines are broken


@dataclass(frozen=True)
class Table:
    """`rows`: a label, then a cell for each of `columns` but the first, which heads the labels."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]


def to_markdown(table: Table) -> str:
    """Format as a section with the notes below, in GitHub's Markdown."""
    rows = [
        dict(zip(table.columns, [escape_markdown(label), *map(_markdown_cell, cells)], strict=True))
        for label, cells in table.rows
    ]
    notes = "".join(f"\n{escape_markdown(note)}\n" for note in table.notes)
    return f"## {escape_markdown(table.title)}\n\n{markdown_table(rows)}{notes}"


def _markdown_cell(cell: Cell) -> str:
    value = escape_markdown(cell.value)
    return "<br>".join([f"**{value}**" if cell.is_best else value, *map(escape_markdown, cell.lines)])


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    for sign in "\\|*_<[":
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def to_latex(table: Table) -> str:
    """A `table` environment; needs `\\usepackage{booktabs}` and no other package."""
    head = " & ".join(map(_tex, table.columns)) + r" \\"
    lines = [" & ".join([_tex(label), *map(_tex_cell, cells)]) + r" \\" for label, cells in table.rows]
    notes = r" \\ ".join(r"\parbox{0.98\textwidth}{" + _tex(note) + "}" for note in table.notes)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_tex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            "\n\\addlinespace\n".join(lines),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\raggedright {notes}",
            r"\end{table}",
            "",
        ]
    )


def _tex_cell(cell: Cell) -> str:
    value = rf"\textbf{{{_tex(cell.value)}}}" if cell.is_best else _tex(cell.value)
    if not cell.lines:
        return value
    return r"\begin{tabular}[t]{@{}r@{}}" + r" \\ ".join([value, *map(_tex, cell.lines)]) + r"\end{tabular}"


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # after a line's end it would be an argument
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "–": "--",
    "…": r"\dots{}",
} | {sign: "\\" + sign for sign in "&%$#_"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def print_table(table: Table, console: Console) -> None:
    """Print as many columns side by side as the screen has room for, and the rest below."""
    widths = [_width(table, number) + 2 for number in range(len(table.columns))]
    first = 1
    while first < len(table.columns):
        last = first + 1
        while last < len(table.columns) and widths[0] + sum(widths[first : last + 1]) - 2 <= console.width:
            last += 1
        _print_columns(table, range(first, last), console)
        first = last
    for note in table.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _width(table: Table, column: int) -> int:
    if column == 0:
        return min(WIDEST_LABEL, max(len(text) for text in (table.columns[0], *(label for label, _ in table.rows))))
    cells = [cells[column - 1] for _, cells in table.rows]
    texts = [table.columns[column], *(line for cell in cells for line in (cell.value, *cell.lines))]
    return min(WIDEST, max(map(len, texts)))


def _print_columns(table: Table, columns: Sequence[int], console: Console) -> None:
    screen = ScreenTable(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    screen.add_column(table.columns[0], max_width=WIDEST_LABEL)
    for column in columns:
        screen.add_column(table.columns[column], justify="right", max_width=WIDEST)
    for label, cells in table.rows:
        screen.add_row(Text(label, overflow="fold"), *(_screen_cell(cells[column - 1]) for column in columns))
    console.print(screen)


def _screen_cell(cell: Cell) -> Text:
    text = Text(cell.value, style="bold" if cell.is_best else "")
    for line in cell.lines:
        text.append("\n" + line, style="dim")
    return text
