"""`sweep`: what a run's folder and SLURM tell of its progress, and how it is said."""

import json
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sweep_runs
from filelock import FileLock
from sweep_runs import RESULT
from torch.utils.tensorboard import SummaryWriter

from datamodules.examples import available_cores
from skyformer.exceptions import RunError
from skyformer.sweep.display import Events, last_lines, print_table
from skyformer.sweep.grid import Cell, cells_of, read_grid
from skyformer.sweep.job import Attempt, read_attempts, write_attempts
from skyformer.sweep.progress import Progress, State, duration, progress_of, state_of, time_left, whole_time_left
from skyformer.sweep.resources import choose_parallel, least_used, processes_of


@pytest.fixture
def write_grid(tmp_path):
    return partial(sweep_runs.write_grid, tmp_path)


def test_run_by_hand_is_taken_up_and_one_that_ended_is_not(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert state_of(tmp_path, 9, {}) == State.WAITING
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert state_of(tmp_path, 9, {}) == State.STOPPED
    for status, state in ((None, State.STOPPED), (143, State.STOPPED), (137, State.FAILED), (0, State.STOPPED)):
        write_attempts(tmp_path, [Attempt(1.0, 9, 1, "here", None if status is None else 2.0, status)])
        assert state_of(tmp_path, 9, {}) == state, status
    result = tmp_path / "result.json"
    result.write_text(RESULT)
    assert state_of(tmp_path, 9, {}) == State.FINISHED
    assert state_of(tmp_path, 10, {}) == State.STOPPED, "the grid asks for more steps now"
    write_attempts(tmp_path, [*read_attempts(tmp_path), Attempt(3.0, 9, 1, "here")])
    assert state_of(tmp_path, 9, {}) == State.STOPPED, "begun anew, and killed"
    (tmp_path / "attempts.json").write_text('[{"started":')
    assert state_of(tmp_path, 9, {}) == State.STOPPED


def log_losses(folder: Path, *points: tuple[int, float]) -> None:
    """As `fit` logs them: steps, and when, in seconds since 1970."""
    with SummaryWriter(str(folder)) as writer:
        for step, at in points:
            writer.add_scalar("train/loss", 1.0, step, walltime=at)


def test_time_of_a_killed_attempt_ends_with_its_last_log(tmp_path):
    cell = Cell("listops", "skyformer", "", 0, tmp_path, ())
    write_attempts(cell.folder, [Attempt(50.0, 100, 1, "here"), Attempt(1e5, 100, 1, "here", 1e5 + 60, 143)])
    log_losses(cell.folder, (0, 60.0), (9, 65.0), (10, 1e5 + 30), (29, 1e5 + 50))
    assert progress_of(cell, {"trainer": {"max_steps": 100}}, {}).seconds == 15 + 60


@pytest.mark.parametrize("by_hand", [True, False])
def test_pace_is_that_of_the_attempt_at_work(by_hand, tmp_path):
    cell = Cell("listops", "skyformer", "", 0, tmp_path, ())
    now = time.time()
    ended = {"ended": now - 1000 + 60, "status": 143} if by_hand else {}
    write_attempts(cell.folder, [Attempt(now - 1000, 100, 1, "here", **ended)])
    log_losses(cell.folder, (9, now - 950), (49, now))
    with FileLock(cell.folder / (".lock" if by_hand else ".sweep.lock")):
        progress = progress_of(cell, {"trainer": {"max_steps": 100}}, {})
    assert (progress.state, progress.step) == (State.RUNNING, 50)
    assert progress.seconds == pytest.approx(60 if by_hand else 1000, abs=100)
    assert progress.left == (None if by_hand else pytest.approx(1000, abs=100))


@pytest.mark.parametrize("text", ["", "[]", "{}", RESULT.replace("best", "last")])
def test_result_of_another_checkpoint_does_not_count(text, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    write_attempts(tmp_path, [Attempt(1.0, 9, 1, "here", 2.0, 0)])
    (tmp_path / "result.json").write_text(text)
    assert state_of(tmp_path, 9, {}) == State.STOPPED


def test_result_from_before_the_last_training_does_not_count(tmp_path):
    write_attempts(tmp_path, [Attempt(1.0, 9, 1, "here", 2.0, 0)])
    (tmp_path / "result.json").write_text(RESULT)
    for started, state in (
        (datetime.now(UTC) - timedelta(minutes=1), State.FINISHED),
        (datetime.now(UTC) + timedelta(minutes=1), State.STOPPED),
    ):
        (tmp_path / "record.json").write_text(json.dumps([{"started": started.isoformat()}]))
        assert state_of(tmp_path, 9, {}) == state


def test_queue_of_slurm_counts(tmp_path):
    (tmp_path / "slurm_job.txt").write_text("7_1\n")
    assert state_of(tmp_path, 9, {"7_1": "PENDING"}) == State.QUEUED
    assert state_of(tmp_path, 9, {"7_1": "RUNNING"}) == State.RUNNING
    assert state_of(tmp_path, 9, {"7_11": "RUNNING"}) == State.WAITING


@pytest.fixture
def watch(write_grid, tmp_path, monkeypatch):
    """`watch(queues)`: `--wait true` with what squeue says, one after the other; None for no answer. Returns how many
    runs' curves it read.
    """
    from skyformer.sweep import cluster

    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0)
    cells = cells_of(read_grid(write_grid(seeds=[0, 1, 2])), tmp_path)
    for number, cell in enumerate(cells):
        write_attempts(cell.folder, [Attempt(1.0, 9, 1, "node", 2.0, 0)])
        (cell.folder / "slurm_job.txt").write_text(f"7_{number}\n")
        (cell.folder / "result.json").write_text(RESULT)
    read = []
    monkeypatch.setattr("skyformer.sweep.display.progress_of", lambda *a: read.append(a) or progress_of(*a))

    def run(*queues: dict[str, str] | None) -> int:
        answers = iter(queues)

        def read_queue() -> dict[str, str]:
            answer = next(answers)
            if answer is None:
                raise RunError("squeue did not answer")
            return answer

        monkeypatch.setattr(cluster, "read_queue", read_queue)
        plans = {cell: {"trainer": {"max_steps": 9}} for cell in cells}
        assert cluster.wait(cells, Events(plans, None)) == queues[-1]
        return len(read)

    return run


def test_curves_are_read_when_a_run_of_slurm_has_ended(watch, capsys):
    first, last = {f"7_{number}": "RUNNING" for number in range(3)}, {"7_2": "PENDING"}
    assert watch(first, first, first, last, last, {}) == 3 + 1, "all when two ended; then the third"
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("finished")]
    assert lines == [["finished", f"listops/skyformer/seed{seed}:"] for seed in range(3)]


def test_squeue_may_fail_a_few_times_while_one_waits(watch):
    going = {"7_0": "RUNNING"}
    assert watch(*3 * [None], going, *19 * [None], {})
    with pytest.raises(RunError, match="did not answer"):
        watch(going, *20 * [None])


def test_job_that_did_not_start_waits(watch, tmp_path, capsys):
    (tmp_path / "listops/skyformer/seed1/attempts.json").unlink()  # cancelled while it was queued
    watch({})
    assert "waiting   listops/skyformer/seed1: its job did not start\n" in capsys.readouterr().out


def test_one_run_a_gpu_or_as_many_as_cores_hold(monkeypatch, write_grid, tmp_path):
    monkeypatch.setattr("skyformer.sweep.resources.available_cores", lambda: 8)
    (cell,) = cells_of(read_grid(write_grid()), tmp_path)
    config = {"trainer": {"devices": 2, "accelerator": "auto"}}
    assert choose_parallel({cell: config}, [], 1, None, None) == 4
    assert choose_parallel({cell: config}, [], 16, None, None) == 1
    assert choose_parallel({cell: config}, ["0", "1", "2", "3", "4"], 1, None, None) == 2
    assert choose_parallel({cell: {"trainer": {"devices": 2, "accelerator": "cpu"}}}, ["0"], 1, None, None) == 4
    with pytest.raises(RunError, match="devices=2, but this machine has 1 GPU"):
        choose_parallel({cell: config}, ["0"], 1, None, None)
    assert [processes_of({"trainer": {"devices": d}}) for d in (1, "auto", -1, "3")] == [1, 1, 1, 3]
    assert least_used(["a", "b", "c"], ["a", "c", "a"], 2) == ["b", "c"]


def seen(state: State, step: int | None = None, seconds: float = 0.0, left: float | None = None) -> Progress:
    return Progress(state, step, 100, None, None, seconds, left, None)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_cores_are_those_that_a_container_may_use(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr("datamodules.examples._CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores() == cores


def test_time_left(write_grid, tmp_path):
    cells = cells_of(read_grid(write_grid(backends=["skyformer", "softmax"], seeds=[0, 1, 2])), tmp_path)
    states = [seen(State.FINISHED, 100, 60), seen(State.RUNNING, 50, 20, 20), seen(State.STOPPED, 25)]
    known = dict(zip(cells, [*states, *3 * [seen(State.WAITING)]], strict=True))
    assert list(time_left(known).values()) == [0, 20, (60 + 40) / 2 * 0.75, None, None, None]
    assert whole_time_left(known, 1) == "roughly 3 min left"
    assert whole_time_left(dict(list(known.items())[:3]), 2) == "about 38 s left"
    assert whole_time_left(dict(list(known.items())[3:]), 2) == "time left not known yet"
    assert whole_time_left(dict(list(known.items())[:1]), 2) == "none left"
    assert whole_time_left({cells[0]: seen(State.RUNNING, 100, 60, 0.0)}, 1) == "nearly done", "its test is to come"


def test_durations():
    said = [duration(seconds) for seconds in (None, 99.4, 100, 5400, 6000, 200_000)]
    assert said == ["-", "99 s", "2 min", "90 min", "1.7 h", "2.3 d"]


def test_table_fits_into_80_columns(write_grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    grid = write_grid(tasks=["pathfinder"], backends=["nystromformer"], overrides={"landmarks=64": {}})
    (cell,) = cells_of(read_grid(grid), tmp_path)
    print_table({cell: Progress(State.FINISHED, 50_000, 50_000, 0.7, 0.71234, 9e5, None, 0)}, 1)
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    for word in ("pathfinder", "nystromformer", "finished", "50.0k/50k", "70.00", "71.23"):
        assert word in said


def test_last_lines_are_those_that_say_something(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"one\n" + b"\xff half\rtwo\n\n" + b"x" * 900 + b"\n")
    assert list(last_lines(tmp_path / "log.txt", 2)) == ["two", "x" * 200]
    assert list(last_lines(tmp_path / "none")) == []
