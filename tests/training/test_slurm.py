"""SLURM jobs: the number of their processes; the signal before their end leaves a checkpoint and queues them again."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from refusals import refuse

STOP = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGUSR1"]
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Path:
    """What `scontrol` was asked, in the environment of a job that `srun` started."""
    path = tmp_path / "asked"
    tool = tmp_path / "bin/scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {path}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    for name, value in {**JOB, "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    return path


def fit(main, tiny_arguments, folder: Path, *extra: str) -> int:
    """Status of the command that a batch script holds: the same at the first start and after each requeue."""
    try:
        main(["fit", *tiny_arguments("listops", folder), "--ckpt_path=auto", *extra])
    except SystemExit as error:
        return error.code
    return 0


def losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def test_job_is_queued_again_and_goes_on(tmp_path, main, tiny_arguments, asked, monkeypatch):
    assert fit(main, tiny_arguments, tmp_path / "job", *STOP) == 138
    assert asked.read_text() == "requeue 77\n"
    assert torch.load(tmp_path / "job/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert fit(main, tiny_arguments, tmp_path / "job") == 0
    assert fit(main, tiny_arguments, tmp_path / "whole") == 0
    assert losses(tmp_path / "job") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "job")) == 9


def test_task_of_an_array_is_queued_again_alone(tmp_path, main, tiny_arguments, asked, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert fit(main, tiny_arguments, tmp_path / "job", *STOP) == 138
    assert asked.read_text() == "requeue 70_7\n"


def test_scontrol_that_fails_is_said(tmp_path, main, tiny_arguments, asked, capsys):
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert fit(main, tiny_arguments, tmp_path / "job", *STOP) == 138
    said = capsys.readouterr().out
    assert "SLURM did not queue job 77 again (no such job). Fix: " in said
    assert "--ckpt_path last" in said


TWO = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("variables", "settings", "words"),
    [
        # A batch script that names python without srun.
        ({}, ["--trainer.devices=2"], ["trainer.devices=2", "got 1 from SLURM", "srun --nodes=1 --ntasks-per-node=2"]),
        ({}, ["--trainer.num_nodes=3"], ["trainer.num_nodes=3", "got 1 from SLURM", "srun --nodes=3"]),
        (TWO, ["--trainer.devices=1"], ["trainer.devices=1", "got 2 from SLURM"]),
        (TWO, ["--trainer.devices=4"], ["trainer.devices=4", "got 2 from SLURM"]),
        ({**TWO, "SLURM_NTASKS_PER_NODE": "1"}, ["--trainer.devices=2"], ["devices=2", "--ntasks-per-node=1"]),
        ({"SLURM_NTASKS": "2"}, ["--trainer.devices=2"], ["--ntasks=2", "--ntasks-per-node"]),
        (TORCHRUN, ["--trainer.devices=1"], ["trainer.devices=1", "got 2 from TorchElastic", "--nproc-per-node 1"]),
    ],
)
@pytest.mark.parametrize("command", ["fit", pytest.param("test", marks=pytest.mark.long)])
def test_other_number_of_processes_is_refused(
    command, variables, settings, words, asked, tmp_path, main, tiny_arguments, monkeypatch, capsys
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("skyformer.cli.find_checkpoint", lambda *named: None)
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # a process of rank 1 logs nothing
    arguments = tiny_arguments("listops", tmp_path / "run", "trainer/ddp")
    refuse(main, capsys, [command, *arguments, *settings], 1, *words)
    assert not (tmp_path / "run").exists()


def test_processes_that_a_user_starts_otherwise(asked, tmp_path, main, tiny_arguments):
    """Lightning's own environment, named in the configuration, replaces SLURM's."""
    named = ["--trainer.plugins=lightning.pytorch.plugins.environments.LightningEnvironment"]
    cli = main(["fit", *tiny_arguments("listops", tmp_path / "run"), *named])
    assert cli.trainer.global_step == 9
