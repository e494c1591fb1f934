"""`sweep` through a real SLURM: arrays, the time limit of a job, cancelled and failed jobs."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import slurm_cluster
import yaml
from slurm_cluster import wait_until
from sweep_runs import tiny_grid
from tiny_runs import HELPERS, ROOT

from skyformer.sweep.job import read_attempts

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of commands that find a SLURM of this test's own, and its callbacks."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm"), cpus=2) as environment:
        yield {**environment, "PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def sweep(slurm, tmp_path, data_dir):
    """`sweep({"seeds": [0]}, "--wait=true")`: runs the command in a process of its own."""

    def run(keys: dict, *arguments: str, **trainer) -> subprocess.CompletedProcess[str]:
        grid = {"tasks": ["listops"], "backends": ["skyformer"], "seeds": [0]}
        own = {**tiny_grid(data_dir, **trainer), **keys.pop("arguments", {})}
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**grid, **keys, "arguments": own}))
        command = [sys.executable, str(ROOT / "run.py"), "sweep", f"--grid={tmp_path}/grid.yaml"]
        command += [f"--runs={tmp_path}/runs", "--executor=slurm", *arguments]
        return subprocess.run(command, env=slurm, capture_output=True, text=True, check=False, timeout=1200)

    return run


def test_array_of_runs(sweep, tmp_path):
    keys = {"backends": ["skyformer", "softmax"], "seeds": [0, 1]}
    done = sweep(dict(keys), "--slurm.time=10")
    assert done.returncode == 0, done.stderr
    assert "Submitted as job" in done.stdout
    again = sweep(dict(keys), "--wait=true")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Submitted" not in again.stdout, "they were queued or running"
    assert "4 runs: 4 finished" in again.stdout
    jobs = {path.read_text().split("_")[0] for path in tmp_path.rglob("slurm_job.txt")}
    assert len(jobs) == 1
    for folder in (path.parent for path in tmp_path.rglob("slurm_job.txt")):
        assert len(json.loads((folder / "record.json").read_text())) == 1
        assert json.loads((folder / "result.json").read_text())["test/examples"] == 13


def test_run_that_meets_its_time_limit_goes_on_by_itself(sweep, tmp_path):
    """Two minutes for each job and more than two minutes of training."""
    slow = {"trainer.callbacks": [{"class_path": "slow.Slow", "init_args": {"seconds": 1.0}}]}
    done = sweep({"arguments": slow}, "--slurm.time=2", "--slurm.signal_delay_s=40", "--wait=true", max_steps=100,
                 val_check_interval=100)  # fmt: skip
    folder = tmp_path / "runs/listops/skyformer/seed0"
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "log.txt").read_text()
    records = json.loads((folder / "record.json").read_text())
    assert len(records) >= 2
    assert all(record["from_step"] > 0 for record in records[1:]), "from its checkpoint"
    assert len(read_attempts(folder)) == len(records)
    assert json.loads((folder / "result.json").read_text())["test/examples"] == 13


def test_failed_job_is_listed_and_retried(sweep, tmp_path):
    missing = {"data.source": str(tmp_path / "release")}
    done = sweep({"arguments": missing}, "--wait=true")
    assert done.returncode == 1
    assert "listops/skyformer/seed0 failed with status 1" in done.stdout
    assert str(tmp_path / "release") in done.stdout
    assert "Submitted" not in sweep({"arguments": missing}).stdout
    mended = sweep({}, "--retry=true", "--wait=true")
    assert mended.returncode == 0, mended.stdout + mended.stderr


def test_cancelled_job_goes_on(sweep, slurm, tmp_path):
    slow = {
        "trainer.callbacks": [{"class_path": "slow.Slow", "init_args": {"seconds": 0.5}}],
        "last_checkpoint.every_n_train_steps": 2,
    }
    trainer = {"max_steps": 60, "val_check_interval": 30}
    assert sweep({"arguments": slow}, **trainer).returncode == 0
    folder = tmp_path / "runs/listops/skyformer/seed0"
    wait_until((folder / "checkpoints/last.ckpt").exists)  # it trains
    status = sweep({"arguments": slow}, "--status=true", **trainer)
    assert "running" in status.stdout
    subprocess.run(["scancel", (folder / "slurm_job.txt").read_text().strip()], env=slurm, check=True, timeout=60)
    command = ["squeue", "--noheader"]
    wait_until(lambda: not subprocess.run(command, env=slurm, capture_output=True, timeout=60).stdout)
    assert read_attempts(folder)[-1].status == 143
    done = sweep({"arguments": slow}, "--wait=true", **trainer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record["from_step"] > 0 for record in json.loads((folder / "record.json").read_text())] == [False, True]


def test_parameters_that_slurm_lacks_are_refused(sweep, tmp_path):
    done = sweep({}, "--slurm.partitions=test")
    assert done.returncode == 1
    assert "partitions" in done.stderr
    done = sweep({}, "--slurm.partition=no-such")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr
    assert not list(tmp_path.rglob("slurm_job.txt"))
