"""`python run.py sweep`: a grid of runs, each trained and tested once."""

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from datamodules.files import waiting_lock
from skyformer.exceptions import RunError
from skyformer.installation import command_parser
from skyformer.sweep.display import Events, print_failed, print_table, summary
from skyformer.sweep.grid import Cell, cells_of, read_grid, write_commands
from skyformer.sweep.plan import check_folders, plan
from skyformer.sweep.progress import State
from skyformer.sweep.resources import choose_parallel, has_slurm, read_queue, visible_gpus


def run_sweep(args: list[str]) -> None:
    """Start the unfinished runs of a grid, or show their states.

    Args:
        args: arguments after `sweep`.

    Raises:
        RunError: for an invalid grid, run or folder, before anything starts.
        SystemExit: 1 where a run failed or stopped; 2 for a wrong argument; 128 + n after signal n.
    """
    config = _parse(args)
    grid = Path(config.grid).expanduser()
    runs = Path(config.runs or Path("runs", grid.stem)).expanduser()
    plans = plan(cells_of(read_grid(grid), runs))
    on_slurm = config.executor == "slurm" or (config.executor == "auto" and has_slurm())
    threads = config.threads or int(config.slurm.get("cpus_per_task", 1))
    gpus = [] if on_slurm else visible_gpus()
    shared = config.runs_per_gpu if gpus or not config.status else None  # any machine can show the state
    parallel = 1 if on_slurm else choose_parallel(plans, gpus, threads, config.parallel, shared)
    events = Events(plans, None if on_slurm else parallel)
    queue = read_queue() if on_slurm else {}
    events.look(queue)
    if config.status:
        print_table(events.seen, events.at_once)
        print_failed(events.seen)
        return
    check_folders(plans)
    with waiting_lock(runs / ".commands.lock", "writes the commands of these runs"):
        for cell in plans:
            write_commands(cell, threads)
    todo = _todo(events, config.retry)
    print(f"{summary(events.seen)}. To start: {len(todo)}, in {runs}", flush=True)
    if on_slurm:
        _on_cluster(config, runs, todo, threads, events)
    else:
        _here(config, runs, todo, parallel, threads, gpus, events)


def _parse(args: list[str]) -> Namespace:
    config = _parser().parse_args(args)
    for name in ("parallel", "threads", "runs_per_gpu"):
        if config[name] is not None and config[name] < 1:
            raise RunError(f"--{name} {config[name]} must be at least 1")
    if wrong := re.search(r"\btime\b\W*?((\d+-)?\d+(:\d+)+)", " ".join(args)):  # YAML takes 4:00:00 for 14,400
        raise RunError(f"--slurm.time {wrong[1]} must be a number of minutes")
    return config


def _todo(events: Events, retry: bool) -> list[Cell]:
    """Return the runs to start: those not started or not finished; with `--retry true`, only the failed ones."""
    states = (State.FAILED,) if retry else (State.STOPPED, State.WAITING)
    return [cell for cell, progress in events.seen.items() if progress.state in states]


def _here(
    config: Namespace,
    runs: Path,
    todo: Sequence[Cell],
    parallel: int,
    threads: int,
    gpus: Sequence[str],
    events: Events,
) -> None:
    foreign = [cell for cell, seen in events.seen.items() if seen.state == State.RUNNING]
    if todo or foreign:
        local = _import("local")
        print(f"{parallel} at once, each process with {threads} thread(s)", flush=True)
        settings = {"runs_per_gpu": config.runs_per_gpu or 1, "retry": config.retry}
        local.LocalSweep(events.plans, runs, parallel, threads, gpus, events, **settings).run(todo, foreign)
    _end(events, {})


def _on_cluster(config: Namespace, runs: Path, todo: Sequence[Cell], threads: int, events: Events) -> None:
    if todo:
        cluster, submission = _import("cluster"), _import("submission")
        share = config.runs_per_gpu or 1
        jobs = {
            cell: submission.job_of(cell, events.plans[cell]["trainer"]["max_steps"], threads, runs_per_gpu=share)
            for cell in todo
        }
        array = cluster.submit(jobs, runs, config.parallel, config.slurm)
        print(f"Submitted as job {array}; it continues without this command. Look with --status true.", flush=True)
    if config.wait:
        going = [cell for cell, seen in events.seen.items() if seen.state in (State.QUEUED, State.RUNNING)]
        _end(events, _import("cluster").wait([*todo, *going], events))
        return
    seen = events.look(read_queue())
    print_failed(seen)
    if any(progress.state == State.FAILED for progress in seen.values()):
        raise SystemExit(1)


def _import(name: str) -> Any:
    """Import a module that needs submitit, which is an extra."""
    try:
        return import_module(f"skyformer.sweep.{name}")
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise RunError("sweep needs submitit. Fix: pip install -e '.[sweep]'") from error


def _end(events: Events, queue: dict[str, str]) -> None:
    """Show how the sweep ended.

    Raises:
        SystemExit: 1 where a run is not finished.
    """
    seen = events.look(queue)
    print()
    print_table(seen, events.at_once)
    print_failed(seen)
    failed = [cell for cell, progress in seen.items() if progress.state == State.FAILED]
    if failed:
        print("\nOnce fixed, the failed ones are started with --retry true.")
    if any(progress.state != State.FINISHED for progress in seen.values()):
        raise SystemExit(1)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "sweep", "Trains and tests a grid of runs, here or through SLURM; what is finished is not done again."
    )
    add = parser.add_argument
    add("--grid", type=str, required=True, help="YAML: tasks, backends, seeds; see docs/sweep.md.")
    add("--runs", type=str | None, help="Folder of the runs; default: runs/<name of the grid file>.")
    add("--executor", type=Literal["auto", "local", "slurm"], default="auto", help="auto: SLURM where it has sbatch.")
    add("--parallel", type=int | None, help="Runs at once; default: one per GPU, or as many as the cores allow.")
    add("--threads", type=int | None, help="Threads of each process; default: 1, or slurm.cpus_per_task.")
    add("--runs_per_gpu", type=int | None, help="Runs that share one GPU and its memory; default: one.")
    add("--status", type=bool, default=False, help="Only show the state of each run.")
    add("--retry", type=bool, default=False, help="Start the failed runs again, and only those.")
    add("--wait", type=bool, default=False, help="On SLURM: stay until all have ended.")
    add("--slurm", type=dict[str, Any], default={}, help="For SLURM, such as --slurm.partition, time (minutes).")
    return parser
