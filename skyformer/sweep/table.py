"""A sweep on the screen: a row a run, and why some failed."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from skyformer.sweep.attempts import LOG
from skyformer.sweep.progress import Progress, State
from skyformer.sweep.time_left import Seen, duration, time_left, whole_time_left

_COLORS = {State.FINISHED: "green", State.FAILED: "red", State.RUNNING: "cyan"}
_LINES = 5  # of a log


def print_table(seen: Seen, at_once: int | None) -> None:
    """All runs: state, steps, the best dev accuracy and the test accuracy in %, and the time left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    names = [*("task", "backend"), *(["override"] if any(cell.override for cell in seen) else [])]
    for name in names:
        table.add_column(name, overflow="fold")
    for name in ("seed", "state", "step", "dev %", "test %", "left"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    times = time_left(seen)
    for cell, progress in seen.items():
        table.add_row(*(getattr(cell, name) for name in names), str(cell.seed), *_cells(progress, times[cell]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{summary(seen)}; {whole_time_left(seen, at_once)}.")


def _cells(progress: Progress, left: float | None) -> tuple[str, ...]:
    color = _COLORS.get(progress.state)
    name = f"{progress.state} early" if progress.stopped_early else str(progress.state)
    state = f"[{color}]{name}[/]" if color else name
    left = None if progress.state in (State.FINISHED, State.FAILED) else left
    return state, _steps(progress), _percent(progress.dev_accuracy), _percent(progress.test_accuracy), duration(left)


def _steps(progress: Progress) -> str:
    """`120/120`; `12.5k/50k` where both are long; `-` where nothing was logged."""
    step, most = progress.step, progress.max_steps
    if step is None:
        return "-"
    if most < 10_000:
        return f"{step}/{most if most > 0 else '-'}"
    return f"{step / 1000:.1f}k/{most / 1000:.0f}k"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"


def summary(seen: Seen) -> str:
    """`18 runs: 12 finished, 2 running, 4 waiting`."""
    counts = Counter(progress.state for progress in seen.values())
    parts = [f"{counts[state]} {state}" for state in reversed(State) if counts[state]]
    return f"{len(seen)} run{'s' if len(seen) > 1 else ''}: {', '.join(parts)}"


def print_failed(seen: Seen) -> None:
    """The failed runs with the last lines of their logs."""
    for cell, progress in seen.items():
        if progress.state == State.FAILED:
            print(f"\n{cell.name} failed with status {progress.status}; {cell.folder / LOG} ends:")
            for line in last_lines(cell.folder / LOG):
                print(f"  {line}")


def last_lines(path: Path, count: int = _LINES) -> Iterable[str]:
    """The last lines of a log that say something, each within 200 characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line[:200] for line in lines if line.strip()][-count:]
