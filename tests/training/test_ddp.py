"""Several processes on the CPU: the same training, each example evaluated once, one that dies ends the run."""

import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from tiny_runs import HELPERS, ROOT

PLAIN = ["--model.attention.init_args.dropout=0", "--model.dropout=0", "--trainer.max_steps=6", "--test_after_fit=true"]
EXAMPLES = {"listops": 13, "retrieval": 7}
TOTAL = {"listops": 32, "retrieval": 8, "text": 8}  # examples a batch, of all processes
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HELPERS)}
# With torchrun, processes are started by it, and each is told its place.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# A batch script has these; srun would start another process for each task.
SLURM_JOB = {
    **{f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")},
    **{f"SLURM_{name}": "1" for name in ("JOB_ID", "NTASKS", "NNODES")},
    "SLURM_JOB_NAME": "lra",
    "SLURM_NODELIST": "localhost",
}


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def run_processes(
    task: str,
    processes: int,
    folder: Path,
    tiny_arguments,
    *extra: str,
    torchrun: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess:
    """Fit with softmax, the batch shared out."""
    environment = {**ENVIRONMENT, **variables}
    arguments = tiny_arguments(task, folder, "attention/softmax", "trainer/ddp")
    launcher = [*TORCHRUN, f"--nproc-per-node={processes}"] if torchrun else [sys.executable]
    settings = [f"--trainer.devices={processes}", f"--data.init_args.batch_size={TOTAL[task] // processes}", *PLAIN]
    command = [*launcher, str(ROOT / "run.py"), "fit", *arguments, *settings, *extra]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("task", "processes", "torchrun", "variables"),
    [("listops", 2, False, {}), *(pytest.param(*case, marks=pytest.mark.long) for case in (
        ("retrieval", 2, True, SLURM_JOB), ("listops", 4, True, {}), ("retrieval", 4, False, {})))],
)  # fmt: skip
def test_processes_train_as_one_with_the_whole_batch(
    task, processes, torchrun, variables, tmp_path, main, tiny_arguments
):
    one = [*tiny_arguments(task, tmp_path / "one", "attention/softmax"), *PLAIN]
    main(["fit", *one, f"--data.init_args.batch_size={TOTAL[task]}"])
    see = ["--trainer.callbacks+=poison.MetricsOfRank", f"--trainer.callbacks.folder={tmp_path}"]
    launch = {"torchrun": torchrun, "variables": variables}
    done = run_processes(task, processes, tmp_path / "many", tiny_arguments, *see, **launch)
    assert done.returncode == 0, done.stderr

    assert len(losses(tmp_path / "one")) == 6
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    last = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("one", "many")]
    for name, weight in last[0]["state_dict"].items():
        torch.testing.assert_close(last[1]["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "many")]
    assert results[1]["test/accuracy"] == pytest.approx(results[0]["test/accuracy"], abs=1e-6)
    assert results[1]["test/loss"] == pytest.approx(results[0]["test/loss"], rel=1e-4)
    assert results[1]["test/examples"] == EXAMPLES[task]
    for stage in ("fit", "test"):
        seen = [json.loads((tmp_path / f"{stage}.{rank}.json").read_text()) for rank in range(processes)]
        assert all(metrics == seen[0] for metrics in seen)
        assert any(name.endswith("accuracy") for name in seen[0])


@pytest.mark.long
def test_process_that_dies_ends_the_run_with_a_message(tmp_path, tiny_arguments):
    """SIGKILL to the second process at step 3; the first would wait for it."""
    die = ["--trainer.callbacks+=stop_at.StopAt", "--trainer.callbacks.step=3", "--trainer.callbacks.rank=1"]
    done = run_processes("listops", 2, tmp_path / "run", tiny_arguments, *die)
    assert done.returncode not in (0, 2)
    assert re.search("another process of this run is gone|Child process .* terminated with code -9", done.stderr)
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.long
def test_error_in_the_first_process_alone_ends_all(tmp_path, tiny_arguments):
    """Only it prepares data; the others wait for it."""
    missing = [f"--data.init_args.data_dir={tmp_path}/data", f"--data.init_args.source={tmp_path}/nothing"]
    done = run_processes("text", 2, tmp_path / "run", tiny_arguments, *missing)
    assert done.returncode == 1
    assert f"error: {tmp_path}/nothing" in done.stderr


@pytest.mark.long
def test_sampler_of_lightning_is_refused(tmp_path, tiny_arguments):
    done = run_processes("listops", 2, tmp_path / "run", tiny_arguments, "--trainer.use_distributed_sampler=true")
    assert done.returncode == 1
    assert "error: trainer.use_distributed_sampler" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_infinite_loss_in_one_process_stops_all(rank, tmp_path, tiny_arguments):
    poisoned = [
        "--trainer.callbacks+=poison.PoisonStep",
        "--trainer.callbacks.batch=2",
        f"--trainer.callbacks.rank={rank}",
    ]
    backend = ["--model.attention.class_path=poison.PoisonedAttention"]
    done = run_processes("listops", 2, tmp_path / "run", tiny_arguments, *backend, *poisoned)
    assert done.returncode == 1
    assert "the loss of step 2 is nan" in done.stderr
    records = [json.loads((tmp_path / f"run/non_finite.{r}.json").read_text()) for r in (0, 1)]
    assert records[rank]["loss"] == "nan"
    assert records[1 - rank]["loss"] == "finite on this process"


@pytest.mark.long
def test_signal_to_the_first_process_stops_all_with_a_checkpoint(tmp_path, tiny_arguments):
    stop = ["--trainer.callbacks+=stop_at.StopAt", "--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    done = run_processes("listops", 2, tmp_path / "run", tiny_arguments, *stop, "--trainer.callbacks.rank=0")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    resumed = run_processes("listops", 2, tmp_path / "run", tiny_arguments, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    whole = run_processes("listops", 2, tmp_path / "whole", tiny_arguments)
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_resume_with_another_number_of_processes_is_refused(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path)]
    main(arguments)
    path = tmp_path / "checkpoints/last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "num_processes": 2}, path)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--ckpt_path=last", "--trainer.max_steps=12"])
    assert stopped.value.code == 1
    assert "a run of 2 process(es), this one has 1" in capsys.readouterr().err


@pytest.mark.long
def test_two_nodes_as_the_page_says(tmp_path, main, tiny_arguments):
    """Two torchrun agents on this machine, with the command of `docs/gpus.md` and a tiny task."""
    (line,) = re.findall(r"^torchrun --nnodes.*\\\n.*$", (ROOT / "docs/gpus.md").read_text(), flags=re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {"MAIN_NODE": "127.0.0.1", "PORT": str(free.getsockname()[1])}
    tiny = [
        a
        for a in tiny_arguments("pathfinder", tmp_path / "run", "attention/softmax")
        if not a.endswith("pathfinder.yaml")
    ]
    extra = shlex.join([*tiny, *PLAIN, "--data.init_args.batch_size=2"])
    agents = [
        subprocess.Popen(
            ["bash", "-ec", f"torchrun() {{ {sys.executable} -m torch.distributed.run \"$@\"; }}\n{line} {extra}"],
            env={**ENVIRONMENT, **variables, "NODE": str(node)}, cwd=ROOT, text=True, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for node in (0, 1)
    ]  # fmt: skip
    for agent in agents:
        said = agent.communicate(timeout=180)
        assert agent.returncode == 0, said
    main(
        [
            "fit",
            *tiny_arguments("pathfinder", tmp_path / "one", "attention/softmax"),
            *PLAIN,
            "--data.init_args.batch_size=8",
        ]
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert json.loads((tmp_path / "run/record.json").read_text())[0]["num_processes"] == 4


@pytest.mark.long
def test_port_that_is_in_use_ends_all_processes(tmp_path, tiny_arguments):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run_processes("listops", 2, tmp_path, tiny_arguments, variables={"MASTER_PORT": port})
    assert ended.returncode == 1
    assert f"is in use (got MASTER_PORT={port}). Fix: set another MASTER_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr
