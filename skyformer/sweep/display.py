"""Print a sweep's table and its events."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skyformer.sweep.grid import Cell
from skyformer.sweep.job import LOG
from skyformer.sweep.progress import Progress, Seen, State, duration, progress_of, state_of, time_left, whole_time_left

_COLORS = {State.FINISHED: "green", State.FAILED: "red", State.RUNNING: "cyan"}
_LINES = 5  # of a log


def print_table(seen: Seen, at_once: int | None) -> None:
    """Print all runs: state, steps, the best validation accuracy and the test accuracy in %, and the time left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    names = [*("task", "backend"), *(["override"] if any(cell.override for cell in seen) else [])]
    for name in names:
        table.add_column(name, overflow="fold")
    for name in ("seed", "state", "step", "val %", "test %", "left"):
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
    return (
        state,
        _steps(progress),
        _percent(progress.validation_accuracy),
        _percent(progress.test_accuracy),
        duration(left),
    )


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
    """Return the last non-empty lines of a log, each cut to 200 characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line[:200] for line in lines if line.strip()][-count:]


class Events:
    """Print events of runs as they happen.

    Args:
        plans: every run of the grid with its configuration.
        at_once: runs at the same time; None where SLURM decides.
    """

    def __init__(self, plans: Mapping[Cell, Mapping[str, Any]], at_once: int | None) -> None:
        self.plans, self.at_once = plans, at_once
        self.seen: dict[Cell, Progress] = {}

    def look(self, queue: Mapping[str, str]) -> dict[Cell, Progress]:
        """Return the progress of all runs; finished runs are read once."""
        for cell, config in self.plans.items():
            if cell not in self.seen or self.seen[cell].state != State.FINISHED:
                self.seen[cell] = progress_of(cell, config, queue)
        return self.seen

    def state(self, cell: Cell, queue: Mapping[str, str]) -> State:
        """Return the state of a run, without reading its curves."""
        return state_of(cell.folder, self.plans[cell]["trainer"]["max_steps"], queue)

    def started(self, cell: Cell) -> None:
        print(f"started   {cell.name}", flush=True)

    def ended(self, cell: Cell, said: Path | None = None) -> None:
        """Print how a run ended, and how long the others will take.

        Args:
            cell: the run.
            said: the log of its job, if the job failed before it started the run.
        """
        progress = self.seen[cell]
        if progress.state == State.FINISHED:
            accuracy = "-" if progress.test_accuracy is None else f"{progress.test_accuracy:.2%}"
            done = sum(other.state == State.FINISHED for other in self.seen.values())
            what = f"test {accuracy} after {duration(progress.seconds)}"
            print(f"finished  {cell.name}: {what}\n          {done} of {len(self.seen)}, {self._left()}", flush=True)
        elif progress.state == State.FAILED:
            print(f"failed    {cell.name}: {''.join(last_lines(cell.folder / LOG, 1))}", flush=True)
        elif progress.state == State.WAITING:
            reason = f": {''.join(last_lines(said, 1))} ({said})" if said else ""
            print(f"waiting   {cell.name}: its job did not start{reason}", flush=True)
        else:
            print(f"{progress.state:<9} {cell.name}", flush=True)

    def _left(self) -> str:
        return whole_time_left(self.seen, self.at_once)
