"""`sweep` on this machine: runs that fail, stop, resume, and belong to others."""

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import processes
import pytest
import sweep_runs
import torch
from slurm_cluster import wait_until
from sweep_runs import RESULT, stopped_with, sweep, tiny_grid

from skyformer.sweep.job import Attempt, read_attempts, write_attempts
from skyformer.training.memory import GPU_SHARE, limit_gpu_memory

# Stands for Python where only what a sweep makes of its runs' ends is of interest: `fit` ends as the file `status` in
# the runs' folder says, after the shell commands DURING; `test` writes a result.
FAKE = """#!/bin/sh
for argument; do case $argument in --trainer.default_root_dir=*) folder=${argument#*=};; esac; done
echo "$OMP_NUM_THREADS $2 $folder" >> RUNS/calls
echo "$CUDA_VISIBLE_DEVICES" >> RUNS/gpus
echo "$SKYFORMER_GPU_SHARE" >> RUNS/shares
shift; echo "$@" >> RUNS/arguments
if [ $1 = fit ]; then trap 'kill $!; exit 143' TERM; eval "$DURING"; fi
if [ $1 = fit ]; then echo 'a loss of fit'; exit $(cat RUNS/status); fi
echo 'RESULT' > $folder/result.json
""".replace("RESULT", RESULT)


@pytest.fixture
def write_grid(tmp_path):
    return partial(sweep_runs.write_grid, tmp_path)


@pytest.fixture
def fake_python(tmp_path, monkeypatch) -> Path:
    """Runs that take no time: returns the folder of the sweep's runs."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "status").write_text("0")
    script = tmp_path / "python"
    script.write_text(FAKE.replace("RUNS", str(runs)))
    script.chmod(0o755)
    monkeypatch.setattr("skyformer.sweep.submission.PYTHON", str(script))
    monkeypatch.setattr("skyformer.sweep.local._POLL_SECONDS", 0.02)
    return runs


def calls(runs: Path) -> list[str]:
    """What was run since the last time: threads, command, run."""
    path = runs / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(line.replace(f"{runs}/", "") for line in lines)


def test_written_commands_are_those_of_the_sweep(write_grid, fake_python, main, monkeypatch):
    scheduler = {"class_path": "skyformer.model.schedule.LinearOneCycle", "init_args": {"warmup_steps": 2}}
    main(sweep(write_grid(arguments={"model.lr_scheduler": scheduler}), fake_python))
    before = (fake_python / "arguments").read_text()
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0", "1 test listops/skyformer/seed0"]
    (fake_python / "arguments").unlink()
    monkeypatch.setenv("PATH", f"{fake_python.parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["bash", str(fake_python / "listops/skyformer/seed0/commands.sh")], check=True)
    assert (fake_python / "arguments").read_text() == before
    assert len(calls(fake_python)) == 2


def test_what_failed_is_listed_and_retried_alone(write_grid, fake_python, main, capsys):
    main(sweep(write_grid(seeds=[0]), fake_python))
    (fake_python / "status").write_text("3")
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1]), fake_python)) == 1
    said = capsys.readouterr().out
    assert "failed    listops/skyformer/seed1: a loss of fit" in said
    assert f"failed with status 3; {fake_python}/listops/skyformer/seed1/log.txt ends:" in said
    assert calls(fake_python)[-1] == "1 test listops/skyformer/seed0", "no test of a run that failed"
    (fake_python / "status").write_text("0")
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1]), fake_python)) == 1
    assert calls(fake_python) == [], "a plain sweep leaves it alone"
    assert "a loss of fit" in capsys.readouterr().out, "but lists it"
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1, 2]), fake_python, "--retry=true")) == 1
    assert calls(fake_python) == ["1 fit listops/skyformer/seed1", "1 test listops/skyformer/seed1"]
    main(sweep(write_grid(seeds=[0, 1, 2]), fake_python))
    assert calls(fake_python) == ["1 fit listops/skyformer/seed2", "1 test listops/skyformer/seed2"]


@pytest.fixture
def hangup():
    """`hangup(signal.SIG_DFL)`: what is done about SIGHUP for the time of a test; nohup has it ignored."""
    former = signal.getsignal(signal.SIGHUP)
    yield partial(signal.signal, signal.SIGHUP)
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("name", "status"),
    [("TERM", 143), *(pytest.param(*case, marks=pytest.mark.long) for case in (("INT", 130), ("HUP", 129)))],
)
def test_stopped_sweep_stops_its_runs_and_goes_on(
    name, status, write_grid, fake_python, main, capsys, monkeypatch, hangup
):
    hangup(signal.SIG_DFL)
    monkeypatch.setenv("DURING", f"kill -s {name} {os.getpid()}; sleep 60 & wait")
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1]), fake_python, "--parallel=1")) == status
    assert "stopped   listops/skyformer/seed0" in capsys.readouterr().out
    assert [attempt.status for attempt in read_attempts(fake_python / "listops/skyformer/seed0")] == [143]
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0"]
    monkeypatch.delenv("DURING")
    main(sweep(write_grid(seeds=[0, 1]), fake_python))
    assert len(calls(fake_python)) == 4


def test_sweep_of_nohup_outlives_its_terminal(write_grid, fake_python, main, monkeypatch, hangup):
    hangup(signal.SIG_IGN)
    monkeypatch.setenv("DURING", f"kill -s HUP {os.getpid()}")
    main(sweep(write_grid(), fake_python))
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0", "1 test listops/skyformer/seed0"]


def test_run_that_failed_in_another_sweep_is_left_alone(write_grid, fake_python, main, capsys, monkeypatch):
    """Meanwhile: the first run is at work, the second waits for its turn here."""
    other = fake_python / "listops/skyformer/seed1"
    write_attempts(fake_python, [Attempt(1.0, 50_000, 1, "there", 2.0, 3)])
    monkeypatch.setenv("DURING", f"cp {fake_python}/attempts.json {other}")
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1]), fake_python, "--parallel=1")) == 1
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0", "1 test listops/skyformer/seed0"]
    assert "failed    listops/skyformer/seed1" in capsys.readouterr().out


def test_retry_takes_up_no_other_run(write_grid, fake_python, main, capsys, monkeypatch):
    """One that another process trained until it was stopped, while the failed one was tried again."""
    failed, foreign = (fake_python / f"listops/skyformer/seed{seed}" for seed in (0, 1))
    write_attempts(failed, [Attempt(1.0, 50_000, 1, "here", 2.0, 3)])
    write_attempts(foreign, [Attempt(1.0, 50_000, 1, "there", 2.0, 143)])
    taken = iter([True, True])
    monkeypatch.setattr("skyformer.sweep.progress.is_running", lambda folder: folder == foreign and next(taken, False))
    assert stopped_with(main, sweep(write_grid(seeds=[0, 1]), fake_python, "--retry=true")) == 1
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0", "1 test listops/skyformer/seed0"]
    assert "stopped   listops/skyformer/seed1" in capsys.readouterr().out


def test_run_of_another_process_is_waited_for(write_grid, fake_python, main, monkeypatch):
    """What looked as if somebody trained it is looked at again, and started once nobody does."""
    free = iter([False, False, True])
    monkeypatch.setattr("skyformer.sweep.progress.is_running", lambda folder: not next(free, True))
    main(sweep(write_grid(), fake_python))
    assert calls(fake_python) == ["1 fit listops/skyformer/seed0", "1 test listops/skyformer/seed0"]


def test_each_run_sees_a_gpu_of_its_own(write_grid, fake_python, main, monkeypatch):
    monkeypatch.setattr("skyformer.sweep.command.visible_gpus", lambda: ["3", "MIG-5"])
    main(sweep(write_grid(seeds=[0, 1]), fake_python))
    assert sorted((fake_python / "gpus").read_text().split()) == ["3", "3", "MIG-5", "MIG-5"]


def test_runs_share_gpus_and_their_memory(write_grid, fake_python, main, capsys, monkeypatch):
    """Four runs that wait for each other on two GPUs."""
    monkeypatch.setattr("skyformer.sweep.command.visible_gpus", lambda: ["0", "1"])
    monkeypatch.setenv("DURING", f"while [ $(wc -l < {fake_python}/calls) -lt 4 ]; do sleep 0.02; done")
    main(sweep(write_grid(seeds=[0, 1, 2, 3]), fake_python, "--runs_per_gpu=2"))
    assert "4 at once" in capsys.readouterr().out
    assert sorted((fake_python / "gpus").read_text().split()) == [*["0"] * 4, *["1"] * 4]
    assert set((fake_python / "shares").read_text().split()) == {"0.4500"}


@pytest.mark.parametrize(
    ("gpus", "arguments", "words"),
    [
        ([], ["--runs_per_gpu=2"], "no run trains on a GPU here. Fix: set --parallel"),
        (["0"], ["--runs_per_gpu=2", "--parallel=3"], "allows 2 run(s) at once on 1 GPU(s) (got --parallel 3)"),
        (["0"], ["--runs_per_gpu=0"], "--runs_per_gpu 0 must be at least 1"),
    ],
)
def test_sharing_that_cannot_be_is_refused(gpus, arguments, words, write_grid, fake_python, main, capsys, monkeypatch):
    monkeypatch.setattr("skyformer.sweep.command.visible_gpus", lambda: gpus)
    assert stopped_with(main, sweep(write_grid(), fake_python, *arguments)) == 1
    assert words in capsys.readouterr().err
    assert calls(fake_python) == []


def test_run_takes_its_share_of_a_gpu(monkeypatch):
    """Whatever its device is called; a run on a CPU, or without a share, sets nothing."""
    shares = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *given: shares.append(given))
    limit_gpu_memory(torch.device("cuda", 1))
    monkeypatch.setenv(GPU_SHARE, "0.4500")
    limit_gpu_memory(torch.device("cpu"))
    limit_gpu_memory(torch.device("cuda", 1))
    assert shares == [(0.45, torch.device("cuda", 1))]


def test_run_keeps_its_number_of_threads(write_grid, fake_python, main):
    (fake_python / "status").write_text("143")
    assert stopped_with(main, sweep(write_grid(), fake_python, "--threads=2")) == 1
    assert calls(fake_python) == ["2 fit listops/skyformer/seed0"]
    (fake_python / "status").write_text("0")
    main(sweep(write_grid(), fake_python))
    assert calls(fake_python) == ["2 fit listops/skyformer/seed0", "2 test listops/skyformer/seed0"]


def test_status_starts_nothing(write_grid, fake_python, main, capsys):
    main(sweep(write_grid(overrides={"d64": {}}), fake_python, "--status=true", "--runs_per_gpu=2"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["task", "backend", "override", "seed", "state", "step", "val", "%", "test", "%", "left"]
    assert said[1].split() == ["listops", "skyformer", "d64", "0", "waiting", "-", "-", "-", "-"]
    assert said[-1] == "1 run: 1 waiting; time left not known yet."
    assert {path.name for path in fake_python.iterdir()} == {"status"}


@pytest.mark.long
def test_killed_sweep_goes_on_and_repeats_nothing(tmp_path, data_dir, write_grid):
    """The whole way in real processes: the sweep is killed while its run is at work, and started again, and again."""
    folder, log = tmp_path / "runs/listops/skyformer/seed0", tmp_path / "said"
    command = sweep(write_grid(arguments={**tiny_grid(data_dir), "data.max_length": 63}), tmp_path / "runs")
    first = processes.start(command, log)
    wait_until((folder / "log.txt").exists, seconds=300)
    first.kill()
    first.join()
    for expected in ("To start: 0", "finished  listops/skyformer/seed0"), ("1 finished. To start: 0",):
        log.unlink()
        again = processes.start(command, log)
        again.join(timeout=300)
        again.kill()
        assert again.exitcode == 0, log.read_text()
        assert all(words in log.read_text() for words in expected), log.read_text()
        assert "1 run: 1 finished" in log.read_text()
        assert "started " not in log.read_text(), "what the killed sweep left went on"
        assert len(json.loads((folder / "record.json").read_text())) == len(read_attempts(folder)) == 1
        assert json.loads((folder / "result.json").read_text())["test/examples"] == 13
