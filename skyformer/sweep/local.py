"""A sweep on this machine."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from skyformer.sweep.display import Events
from skyformer.sweep.grid import Cell
from skyformer.sweep.job import run_job
from skyformer.sweep.progress import State
from skyformer.sweep.resources import least_used, processes_of, uses_gpu
from skyformer.sweep.submission import inherited, job_of, new_folder

_POLL_SECONDS = 0.5
_ASK_SECONDS = 10
_MINUTES = 60 * 24 * 365 * 10  # a limit that submitit's local jobs must have


class LocalSweep:
    """Keep this many runs going until all have been tried once.

    submitit starts every job at once, so it gets no more jobs than that.

    Args:
        plans: every run of the grid with its configuration.
        runs: the sweep's folder.
        parallel: runs at once, including those of other processes.
        threads: threads of each process.
        gpus: GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.
        events: prints its progress.
        runs_per_gpu: runs that share a GPU, each with its part of the memory.
        retry: whether to start the failed runs only.
    """

    def __init__(
        self,
        plans: Mapping[Cell, Mapping[str, Any]],
        runs: Path,
        parallel: int,
        threads: int,
        gpus: Sequence[str],
        events: Events,
        runs_per_gpu: int = 1,
        retry: bool = False,
    ) -> None:
        self.plans, self.parallel, self.threads, self.gpus = plans, parallel, threads, gpus
        self.events, self.runs_per_gpu, self.retry = events, runs_per_gpu, retry
        self.executor = submitit.LocalExecutor(new_folder(runs))
        self.executor.update_parameters(timeout_min=_MINUTES)
        self.jobs: dict[Cell, submitit.Job[None]] = {}
        self.used: dict[Cell, list[str]] = {}
        self.signal: int | None = None

    def run(self, waiting: Sequence[Cell], foreign: Sequence[Cell]) -> None:
        """Train and test.

        Args:
            waiting: runs to start, in this order.
            foreign: runs that other processes train. The sweep waits for them and, except in a retry, continues them.

        Raises:
            SystemExit: 128 + n after signal n, once all runs of this sweep have stopped.
        """
        queue, others = list(waiting), list(foreign)
        with self._listening():
            while (queue or others or self.jobs) and self.signal is None:
                self._collect(others)
                self._watch(queue, others)
                while queue and len(self.jobs) + len(others) < self.parallel and self.signal is None:
                    self._start(queue.pop(0))
                time.sleep(_POLL_SECONDS)
            if self.signal is not None:
                self._stop()

    def _start(self, cell: Cell) -> None:
        if not self.retry and self.events.state(cell, {}) == State.FAILED:  # in another sweep, since this one began
            self._ended(cell)
            return
        config = self.plans[cell]
        in_use = [gpu for gpus in self.used.values() for gpu in gpus]
        count = processes_of(config) if uses_gpu(config, list(self.gpus)) else 0
        self.used[cell] = least_used(self.gpus, in_use, count)
        job = job_of(cell, config["trainer"]["max_steps"], self.threads, self.used[cell], self.runs_per_gpu)
        with inherited():
            self.jobs[cell] = self.executor.submit(run_job, job)
        self.events.started(cell)

    def _collect(self, others: list[Cell]) -> None:
        """Report finished jobs. If another process has taken a run, wait for it."""
        for cell, job in list(self.jobs.items()):
            if job.done():
                del self.jobs[cell], self.used[cell]
                if self.events.state(cell, {}) == State.RUNNING:
                    others.append(cell)
                else:
                    self._ended(cell, job.paths.stderr)

    def _watch(self, queue: list[Cell], others: list[Cell]) -> None:
        for cell in list(others):
            state = self.events.state(cell, {})
            if state != State.RUNNING:
                others.remove(cell)
                if state in (State.STOPPED, State.WAITING) and not self.retry:
                    queue.insert(0, cell)
                else:
                    self._ended(cell)

    def _ended(self, cell: Cell, said: Path | None = None) -> None:
        self.events.look({})
        self.events.ended(cell, said)

    def _stop(self) -> None:
        """Stop the jobs, and wait for their checkpoints."""
        assert self.signal is not None
        print(f"Stopping {len(self.jobs)} run(s), each after a checkpoint.", flush=True)
        next_time = 0.0
        while self.jobs:
            if time.monotonic() >= next_time:  # once more, should one have been about to start
                next_time = time.monotonic() + _ASK_SECONDS
                self._ask_to_stop()
            self._collect([])
            time.sleep(_POLL_SECONDS)
        print("Stopped. The same command continues.", flush=True)
        raise SystemExit(128 + self.signal)

    def _ask_to_stop(self) -> None:
        for job in self.jobs.values():
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own way kills after a second

    @contextmanager
    def _listening(self) -> Iterator[None]:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        former = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
