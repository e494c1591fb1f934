"""`sweep`: the job of one run, and its locks."""

import os
import signal
import sys
import threading

import pytest
from filelock import FileLock
from sweep_runs import RESULT

from skyformer.sweep.job import Attempt, Job, hold, is_running, read_attempts, run_job


def test_locks_tell_who_trains(tmp_path):
    assert not is_running(tmp_path)
    assert list(tmp_path.iterdir()) == [], "to look leaves nothing behind"
    with FileLock(tmp_path / ".lock"):
        assert is_running(tmp_path), "a fit whose sweep was killed"
    with hold(tmp_path, 0) as free:
        assert free
        assert is_running(tmp_path)
        with hold(tmp_path, 0) as second:
            assert not second
    assert not is_running(tmp_path)


@pytest.fixture
def work(tmp_path):
    """`work("code", "code")`: runs these Python programs as a run's commands, and returns its last attempt."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def run(*programs: str, max_steps: int = 9) -> Attempt:
        commands = tuple((sys.executable, "-c", program) for program in programs)
        run_job(Job(str(tmp_path), commands, {"ANSWER": "42"}, 1, max_steps))
        return read_attempts(tmp_path)[-1]

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


WRITE_RESULT = f"open('result.json', 'w').write({RESULT!r})"
SIGNAL_PARENT = "import os, signal, time; os.kill(os.getppid(), signal.{}); time.sleep(60)"


def test_job_runs_its_commands_once(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert work("import os; print(os.environ['ANSWER'])", WRITE_RESULT).status == 0
    assert "\n42\n" in (tmp_path / "log.txt").read_text()
    work("raise SystemExit(5)")
    assert len(read_attempts(tmp_path)) == 1, "it is finished"
    assert work("raise SystemExit(5)", WRITE_RESULT, max_steps=10).status == 5
    assert len(read_attempts(tmp_path)) == 2


def test_job_leaves_a_run_alone_that_another_has(work, tmp_path):
    work("raise SystemExit(5)")
    with FileLock(tmp_path / ".lock"):
        work("raise SystemExit(6)")
    assert [attempt.status for attempt in read_attempts(tmp_path)] == [5]


def test_to_be_looked_at_costs_a_job_nothing(work, tmp_path):
    """Another sweep asks whether somebody trains at the moment at which the job does."""
    (tmp_path / ".lock").touch()
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    assert work("").status == 0


def test_job_passes_sigterm_on(work, tmp_path):
    attempt = work(SIGNAL_PARENT.format("SIGTERM"), "open('tested', 'w')")
    assert attempt.status == 143
    assert attempt.ended is not None
    assert not (tmp_path / "tested").exists()


@pytest.mark.parametrize("came_further", [True, False])
def test_job_of_slurm_that_is_not_training_is_queued_again(came_further, work, tmp_path, monkeypatch):
    tool = tmp_path / "bin/scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    before = "open('checkpoints/last.ckpt', 'w').close(); " if came_further else ""
    attempt = work(before + SIGNAL_PARENT.format("SIGUSR1"))
    assert attempt.status == (138 if came_further else 124)
    assert (tmp_path / "asked").exists() == came_further
    assert ("Fix: a longer --slurm.time" in (tmp_path / "log.txt").read_text()) != came_further
