"""A line for each event of a sweep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyformer.sweep.attempts import LOG
from skyformer.sweep.cells import Cell
from skyformer.sweep.progress import Progress, State, progress_of, state_of
from skyformer.sweep.table import last_lines
from skyformer.sweep.time_left import duration, whole_time_left


class Events:
    """Says what happens to runs, as it happens.

    Args:
        plans: every run of the grid with its configuration.
        at_once: runs that go on at the same time; None where SLURM decides.
    """

    def __init__(self, plans: Mapping[Cell, Mapping[str, Any]], at_once: int | None) -> None:
        self.plans, self.at_once = plans, at_once
        self.seen: dict[Cell, Progress] = {}

    def look(self, queue: Mapping[str, str]) -> dict[Cell, Progress]:
        """The progress of all runs; that of finished ones is read once."""
        for cell, config in self.plans.items():
            if cell not in self.seen or self.seen[cell].state != State.FINISHED:
                self.seen[cell] = progress_of(cell, config, queue)
        return self.seen

    def state(self, cell: Cell, queue: Mapping[str, str]) -> State:
        """Of a run as it is now, without a look at its curves."""
        return state_of(cell.folder, self.plans[cell]["trainer"]["max_steps"], queue)

    def started(self, cell: Cell) -> None:
        print(f"started   {cell.name}", flush=True)

    def ended(self, cell: Cell, said: Path | None = None) -> None:
        """Say how a run ended, as it was when last looked at, and how long the others will take.

        Args:
            cell: the run.
            said: the log of its job, for one that did not come to start its run.
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
