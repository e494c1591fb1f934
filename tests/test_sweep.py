"""`sweep`: what a grid means, what is refused before anything starts, and runs that fail, stop and go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import processes
import pytest
import yaml
from conftest import ROOT, TINY_DATA, TINY_MODEL
from filelock import FileLock
from slurm_cluster import wait_until
from test_cli import refuse
from torch.utils.tensorboard import SummaryWriter

from skyformer.runs import RunError
from skyformer.sweep.attempts import Attempt, hold, is_running, read_attempts, write_attempts
from skyformer.sweep.cells import Cell, cells_of
from skyformer.sweep.events import Events
from skyformer.sweep.grid import read_grid
from skyformer.sweep.job import Job, run_job
from skyformer.sweep.plan import check_folders, plan
from skyformer.sweep.progress import Progress, State, progress_of, state_of
from skyformer.sweep.resources import default_parallel, least_used, processes_of
from skyformer.sweep.table import last_lines, print_table
from skyformer.sweep.time_left import duration, time_left, whole_time_left

SMALL = {"tasks": ["listops"], "backends": ["skyformer"], "seeds": [0]}
RESULT = '{"test/accuracy": 0.25, "checkpoint": "runs/checkpoints/best.ckpt"}'
# Stands for Python where only what a sweep makes of its runs' ends is of interest: `fit` ends as the file `status` in
# the runs' folder says, after the shell commands DURING; `test` writes a result.
FAKE = """#!/bin/sh
for argument; do case $argument in --trainer.default_root_dir=*) folder=${argument#*=};; esac; done
echo "$OMP_NUM_THREADS $2 $folder" >> RUNS/calls
echo "$CUDA_VISIBLE_DEVICES" >> RUNS/gpus
shift; echo "$@" >> RUNS/arguments
if [ $1 = fit ]; then trap 'kill $!; exit 143' TERM; eval "$DURING"; fi
if [ $1 = fit ]; then echo 'a loss of fit'; exit $(cat RUNS/status); fi
echo 'RESULT' > $folder/result.json
""".replace("RESULT", RESULT)


@pytest.fixture
def write_grid(tmp_path):
    """`write_grid(seeds=[1])`: the path of a grid file with these keys in place of those of `SMALL`."""

    def write(**keys) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **keys}))
        return path

    return write


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


def sweep(grid: Path, runs: Path, *more: str) -> list[str]:
    return ["sweep", f"--grid={grid}", f"--runs={runs}", "--executor=local", *more]


def calls(runs: Path) -> list[str]:
    """What was run since the last time: threads, command, run."""
    path = runs / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(line.replace(f"{runs}/", "") for line in lines)


def stopped_with(main, arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task": ["listops"]}, ["unknown key task", "tasks, backends, seeds"]),
        ({"seeds": []}, ["seeds must be given"]),
        ({"seeds": [0, 0]}, ["seeds=[0, 0]"]),
        ({"seeds": [True]}, ["seeds=[True]"]),
        ({"seeds": 3}, ["seeds=3"]),
        ({"backends": ["softmux"]}, ["backends: softmux", "softmax", "or name a YAML file"]),
        ({"backends": "softmax"}, ["backends='softmax' must be a list"]),
        ({"backends": ["softmax", "softmax"]}, ["two are called softmax"]),
        ({"tasks": ["no/such.yaml"]}, ["tasks: no/such.yaml", "there is no file"]),
        ({"configs": ["trainer/fast"]}, ["configs: trainer/fast", "trainer/quick"]),
        ({"arguments": {"seed_everything": 3}}, ["arguments: seed_everything is set by the sweep"]),
        ({"tasks": {"listops": {"ckpt_path": "last"}}}, ["tasks.listops: ckpt_path is set by the sweep"]),
        ({"arguments": ["a"]}, ["arguments=['a'] must be arguments with values"]),
        ({"overrides": ["d64"]}, ["overrides must be names with arguments"]),
        ({"overrides": {"../up": {}}}, ["overrides: '../up' names a folder"]),
        ({"backends": [str(ROOT / "configs/trainer/quick.yaml")]}, ["names no model.attention.class_path"]),
        ({"arguments": {"trainer.max_step": 3}}, ["listops/skyformer/seed0", "trainer.max_step"]),
        ({"arguments": {"data.batch_size": "many"}}, ["listops/skyformer/seed0", "batch_size"]),
        ({"overrides": {"a": {"model.attention.num_landmark": 1}}}, ["listops/skyformer/a/seed0", "num_landmark"]),
        ({"arguments": {"trainer.devices": [0, 2]}}, ["listops/skyformer/seed0: trainer.devices=[0, 2]", "how many"]),
        ({"arguments": {"trainer.devices": "0,2"}}, ["listops/skyformer/seed0: trainer.devices=0,2", "how many"]),
        ({"arguments": {"data.train_size": 2**70}}, ["listops/skyformer/seed0", "more than 64 bits"]),
        (
            {"overrides": {"deep": {"model.num_layers": 4}, "same": {}, "same2": {"model.pooling": "mean"}}},
            ["listops/skyformer/same and listops/skyformer/same2 are the same run"],
        ),
    ],
)
def test_grid_that_is_wrong_is_refused_before_anything_starts(keys, words, write_grid, main, capsys, tmp_path):
    grid = write_grid(**keys)
    refuse(main, capsys, sweep(grid, tmp_path / "runs"), 1, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "words"), [("a: [", "not YAML"), ("- 1", "must hold keys"), (None, "no file")])
def test_file_that_is_no_grid(text, words, tmp_path, main, capsys):
    if text is not None:
        (tmp_path / "grid.yaml").write_text(text)
    refuse(main, capsys, sweep(tmp_path / "grid.yaml", tmp_path / "runs"), 1, words, f"{tmp_path}/grid.yaml")


def test_every_place_of_the_grid_is_one_run(write_grid, tmp_path):
    grid = write_grid(
        tasks={"listops": {"data.batch_size": 3}, "image": None},
        backends={"softmax": None, "linformer": {"model.num_heads": 4}},
        seeds=[0, 7],
        arguments={"data.batch_size": 2, "trainer.max_steps": 5},
        overrides={"small": {"model.embed_dim": 16}, "note": {"model.optimizer.class_path": "Adam"}},
    )
    cells = cells_of(read_grid(grid), tmp_path)
    assert len({cell.folder for cell in cells}) == len(cells) == 2 * 2 * 2 * 2
    plans = {cell.name: config for cell, config in plan(cells).items()}
    config = plans["listops/linformer/small/seed7"]
    assert config["seed_everything"] == 7
    assert (config["data"]["init_args"]["batch_size"], config["trainer"]["max_steps"]) == (3, 5), "the task's own wins"
    assert (config["model"]["num_heads"], config["model"]["embed_dim"]) == (4, 16)
    assert plans["image/softmax/note/seed0"]["data"]["init_args"]["batch_size"] == 2
    assert plans["image/softmax/note/seed0"]["model"]["optimizer"]["class_path"].endswith("Adam")


def test_later_layers_count_more_however_they_are_spelt(write_grid, tmp_path):
    warmup = "model.lr_scheduler.init_args.warmup_steps"
    scheduler = {"class_path": "skyformer.schedule.LinearOneCycle", "init_args": {"warmup_steps": 2}}
    grid = write_grid(
        arguments={"data.init_args.batch_size": 2, warmup: 7},
        tasks={"listops": {"data.batch_size": 3, "model.lr_scheduler": scheduler}},
        overrides={"own": {"data.init_args.batch_size": 4, warmup: 9}, "none": {}},
    )
    for cell, config in plan(cells_of(read_grid(grid), tmp_path)).items():
        batch_size, steps = {"own": (4, 9), "none": (3, 2)}[cell.override]
        assert config["data"]["init_args"]["batch_size"] == batch_size
        assert config["model"]["lr_scheduler"]["init_args"]["warmup_steps"] == steps


def test_backend_that_the_protocol_undoes_is_refused(write_grid, tmp_path):
    """Both files are of Skyformer's class, so that both come before the protocol, which sets the solver."""
    text = (ROOT / "configs/attention/skyformer.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("solver: cholesky", "solver: newton_schulz"))
    keys = {"backends": {"skyformer": {}, str(other): {}}}
    assert len(plan(cells_of(read_grid(write_grid(**keys)), tmp_path))) == 2
    with pytest.raises(RunError, match="listops/other and listops/skyformer are the same run"):
        plan(cells_of(read_grid(write_grid(**keys, configs=["protocol/paper"])), tmp_path))
    keys["backends"][str(other)] = {"model.attention.solver": "cholesky"}
    assert len(plan(cells_of(read_grid(write_grid(**keys, configs=["protocol/paper"])), tmp_path))) == 2


def test_protocol_holds_for_every_backend(write_grid, tmp_path):
    """Skyformer's own overlay would undo what the paper's protocol says of it; another's lacks its arguments."""
    cells = cells_of(read_grid(write_grid(backends=["skyformer", "softmax"], configs=["protocol/paper"])), tmp_path)
    skyformer, softmax = (config["model"] for config in plan(cells).values())
    assert skyformer["attention"]["init_args"]["solver"] == "newton_schulz"
    assert skyformer["attention"]["init_args"]["eval_landmarks"] == "fresh"
    assert softmax["attention"]["class_path"].endswith("SoftmaxAttention")
    assert skyformer["pooling"] == softmax["pooling"] == "padded_mean"


@pytest.mark.parametrize(("name", "runs"), [("nine_backends", 9 * 2), ("paper", 5 * 9 * 3)])
def test_shipped_grids(name, runs, tmp_path):
    path = ROOT / f"configs/sweep/{name}.yaml"
    assert path.read_text().startswith(f"# python run.py sweep --grid configs/sweep/{name}.yaml\n")
    cells = cells_of(read_grid(path), tmp_path)
    assert len(cells) == runs
    configs = plan([cell for cell in cells if cell.task in ("listops", "text")]).values()
    if name == "paper":
        assert {config["trainer"]["max_steps"] for config in configs} == {50_000}
        assert all(config["data"]["init_args"]["protocol"]["drop_last_test"] for config in configs)


def test_written_commands_are_those_of_the_sweep(write_grid, fake_python, main, monkeypatch):
    scheduler = {"class_path": "skyformer.schedule.LinearOneCycle", "init_args": {"warmup_steps": 2}}
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


@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
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


@pytest.mark.parametrize(
    "given",
    [
        ["--slurm.time=4:00:00"],
        ["--slurm.time", "1-04:00:00"],
        ["--slurm", "{time: 4:00:00}"],
        ['--slurm={"time":"4:00"}'],
    ],
)
def test_time_of_slurm_is_in_minutes(given, write_grid, main, capsys, tmp_path):
    refuse(main, capsys, sweep(write_grid(), tmp_path / "runs", *given), 1, "4:00", "number of minutes")


def test_run_keeps_its_number_of_threads(write_grid, fake_python, main):
    (fake_python / "status").write_text("143")
    assert stopped_with(main, sweep(write_grid(), fake_python, "--threads=2")) == 1
    assert calls(fake_python) == ["2 fit listops/skyformer/seed0"]
    (fake_python / "status").write_text("0")
    main(sweep(write_grid(), fake_python))
    assert calls(fake_python) == ["2 fit listops/skyformer/seed0", "2 test listops/skyformer/seed0"]


def test_status_starts_nothing(write_grid, fake_python, main, capsys):
    main(sweep(write_grid(overrides={"d64": {}}), fake_python, "--status=true"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["task", "backend", "override", "seed", "state", "step", "dev", "%", "test", "%", "left"]
    assert said[1].split() == ["listops", "skyformer", "d64", "0", "waiting", "-", "-", "-", "-"]
    assert said[-1] == "1 run: 1 waiting; time left not known yet."
    assert {path.name for path in fake_python.iterdir()} == {"status"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main, tiny_arguments) -> Path:
    """The runs of a sweep of which one was trained, by hand."""
    runs = tmp_path_factory.mktemp("trained")
    main(["fit", *tiny_arguments("listops", runs / "listops/skyformer/seed0"), "--trainer.max_steps=3"])
    return runs


def tiny_grid(data_dir: Path, **trainer) -> dict:
    """Arguments that make a run of ListOps tiny, as `tiny_arguments` does."""
    settings = {"max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 1, "accelerator": "cpu", **trainer}
    return {
        "data.data_dir": str(data_dir),
        **{f"data.{key}": value for key, value in TINY_DATA["listops"].items()},
        **{f"model.{key}": value for key, value in TINY_MODEL.items()},
        **{f"trainer.{key}": value for key, value in settings.items()},
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.dropout": 0.3}, "model.dropout: 0.1 in"),
        ({"trainer.max_steps": 2}, "trainer.max_steps: 3 in"),
        ({"trainer.limit_val_batches": 1}, "trainer.limit_val_batches: None in"),
        ({"data.batch_size": 7}, "data.init_args.batch_size: 8 in"),
        (
            {"trainer.callbacks": [{"class_path": "slow.Slow", "init_args": {"seconds": 0.1}}]},
            "trainer.callbacks: None in",
        ),
    ],
)
def test_folder_of_another_configuration_is_refused(change, said, trained, data_dir, write_grid, main, capsys):
    grid = write_grid(arguments={**tiny_grid(data_dir), **change})
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    refuse(main, capsys, sweep(grid, trained), 1, f"listops/skyformer/seed0: {said}", "--runs")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_longer_run_and_other_paths_go_on(trained, data_dir, write_grid, tmp_path):
    arguments = {**tiny_grid(data_dir), "trainer.max_steps": 4, "data.num_workers": 1, "trainer.logger": True}
    (cell,) = cells_of(read_grid(write_grid(arguments=arguments)), trained)
    check_folders(plan([cell]))


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
    monkeypatch.setattr("skyformer.sweep.events.progress_of", lambda *a: read.append(a) or progress_of(*a))

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
    assert ("give it more" in (tmp_path / "log.txt").read_text()) != came_further


def test_one_run_a_gpu_or_as_many_as_cores_hold(monkeypatch, write_grid, tmp_path):
    monkeypatch.setattr("skyformer.sweep.resources.available_cores", lambda: 8)
    (cell,) = cells_of(read_grid(write_grid()), tmp_path)
    config = {"trainer": {"devices": 2, "accelerator": "auto"}}
    assert default_parallel({cell: config}, [], 1) == 4
    assert default_parallel({cell: config}, [], 16) == 1
    assert default_parallel({cell: config}, ["0", "1", "2", "3", "4"], 1) == 2
    assert default_parallel({cell: {"trainer": {"devices": 2, "accelerator": "cpu"}}}, ["0"], 1) == 4
    with pytest.raises(RunError, match="devices=2, but this machine has 1 GPU"):
        default_parallel({cell: config}, ["0"], 1)
    assert [processes_of({"trainer": {"devices": d}}) for d in (1, "auto", -1, "3")] == [1, 1, 1, 3]
    assert least_used(["a", "b", "c"], ["a", "c", "a"], 2) == ["b", "c"]


def seen(state: State, step: int | None = None, seconds: float = 0.0, left: float | None = None) -> Progress:
    return Progress(state, step, 100, None, None, seconds, left, None)


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
