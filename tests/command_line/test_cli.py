"""The commands that a user types, end to end on tiny data, and what they say when something is wrong."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Union
from unittest.mock import Mock

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from refusals import refuse
from tiny_runs import ROOT
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from skyformer.error_messages import exit_on_error
from skyformer.model.classifier import SequenceClassifier
from skyformer.sweep.job import hold
from skyformer.training.run_folder import lock_run

CALLBACKS = "lightning.pytorch.callbacks"
ACCUMULATION = (
    f'{{"class_path": "{CALLBACKS}.GradientAccumulationScheduler", "init_args": {{"scheduling": {{"0": 2}}}}}}'
)
AVERAGING = f'{{"class_path": "{CALLBACKS}.StochasticWeightAveraging", "init_args": {{"swa_lrs": 0.01}}}}'
PRUNING = f'{{"class_path": "{CALLBACKS}.ModelPruning", "init_args": {{"pruning_fn": "l1_unstructured"}}}}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main, tiny_arguments) -> Path:
    """The folder of one finished run on ListOps."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", *tiny_arguments("listops", folder), "--test_after_fit=true"])
    return folder


def test_run_folder_holds_everything(trained):
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "result.json", "checkpoints", "metrics.csv"}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    result = json.loads((trained / "result.json").read_text())
    assert result["test/examples"] == 13
    assert 0 < result["chance"] < 1


def test_without_progress_bar(tmp_path, main, tiny_arguments, capsys):
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.enable_progress_bar=false"])
    assert "validation accuracy" not in capsys.readouterr().out


def test_checkpoint_is_data_only(trained):
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    assert yaml.safe_load(checkpoint["config"])["data"]["class_path"] == "datamodules.ListOps"


def test_saved_config_tests_and_predicts(trained, main, capsys):
    config = f"--config={trained}/config.yaml"
    before = json.loads((trained / "result.json").read_text())
    main(["test", config])
    assert json.loads((trained / "result.json").read_text()) == before
    assert "always guessing the most frequent label" in capsys.readouterr().out
    main(["predict", config])
    rows = list(csv.DictReader((trained / "predictions.csv").open()))
    assert [int(row["id"]) for row in rows] == list(range(13)), "every example once, in order"
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / 13 == pytest.approx(before["test/accuracy"], abs=1e-6)
    assert all(abs(sum(float(row[f"p{k}"]) for k in range(10)) - 1) < 1e-4 for row in rows)


@pytest.mark.parametrize("bar", ["true", "false"])
def test_evaluation_prints_and_writes_its_result(bar, trained, main, capsys):
    """The same for every command, whatever the screen shows beside."""
    records = {"test": "result.json", "validate": "validation.json"}
    for name in records.values():
        (trained / name).unlink(missing_ok=True)
    for command, name in records.items():
        cli = main([command, f"--config={trained}/config.yaml", f"--trainer.enable_progress_bar={bar}"])
        said, result = capsys.readouterr().out, json.loads((trained / name).read_text())
        split, prefix, examples = ("Test", "test", 13) if command == "test" else ("Validation", "val", 21)
        metrics = {key: round(float(value), 6) for key, value in cli.trainer.callback_metrics.items()}
        assert {key: result[key] for key in (f"{prefix}/accuracy", f"{prefix}/loss")}.items() <= metrics.items()
        assert result[f"{prefix}/examples"] == examples
        assert result["checkpoint"] == str(trained / "checkpoints/best.ckpt")
        assert said.count(f"{split} accuracy {metrics[f'{prefix}/accuracy']:.2%} on {examples} examples") == 1
        assert "validation accuracy" not in said


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluation_of_no_batch_is_refused(command, trained, main, capsys):
    limit = f"trainer.limit_{'val' if command == 'validate' else command}_batches=0"
    refuse(main, capsys, [command, f"--config={trained}/config.yaml", f"--{limit}"], 1, limit, command, "Fix:")


def test_test_after_fit_of_no_batch_is_refused(tmp_path, main, capsys, tiny_arguments):
    limit = "trainer.limit_test_batches=0"
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--test_after_fit=true", f"--{limit}"]
    refuse(main, capsys, arguments, 1, limit, "Fix:")


def test_protocol_that_does_not_touch_the_weights_may_differ(trained, main):
    changes = ["--data.protocol.drop_last_test=true", "--data.protocol.published_val_size=true"]
    main(["test", f"--config={trained}/config.yaml", *changes])
    assert json.loads((trained / "result.json").read_text())["test/examples"] == 8


def test_result_counts_what_was_tested(trained, main):
    main(["test", f"--config={trained}/config.yaml", "--trainer.limit_test_batches=1", "--data.eval_batch_size=2"])
    result = json.loads((trained / "result.json").read_text())
    assert result["test/examples"] == 2
    assert result["chance"] in (0.5, 1.0)


def test_number_of_batches_stays_a_whole_number(trained, main, monkeypatch):
    """With older versions of torch, Python's cache of types gives the parser these two in the other order."""
    prepare = LightningCLI._prepare_subcommand_parser

    def float_first(*args, **kwargs):
        parser = prepare(*args, **kwargs)
        (action,) = (action for action in parser._actions if action.dest == "trainer.limit_test_batches")
        action._typehint = Union[float, int, None]  # noqa: UP007
        return parser

    monkeypatch.setattr(LightningCLI, "_prepare_subcommand_parser", float_first)
    arguments = ["test", f"--config={trained}/config.yaml", "--data.eval_batch_size=2"]
    cli = main([*arguments, "--trainer.limit_test_batches=1"])
    assert isinstance(cli.trainer.limit_test_batches, int), "1.0 would be the whole test set"
    assert cli.trainer.limit_test_batches == 1
    assert main([*arguments, "--trainer.limit_test_batches=0.5"]).trainer.limit_test_batches == 0.5


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background with Ctrl-C ignored, tests too."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", ["test", "validate", "predict"])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_during_an_evaluation_shows_in_the_exit_status(name, code, command, trained, main):
    stop = ["--trainer.callbacks=stop_at.StopInTest", f"--trainer.callbacks.name={name}"]
    with pytest.raises(SystemExit) as stopped:
        main([command, f"--config={trained}/config.yaml", *stop])
    assert stopped.value.code == code


def test_schedule_steps_with_the_training_steps(trained):
    """Warm-up over two steps, then down to zero at step nine."""
    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["last_epoch"] == 9
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0)


def test_second_fit_does_not_write_over_a_run(trained, main, capsys):
    arguments = ["fit", f"--config={trained}/config.yaml"]
    refuse(main, capsys, arguments, 1, str(trained), "--ckpt_path last", "--trainer.default_root_dir")


def test_two_runs_do_not_train_in_one_folder(tmp_path, main, capsys, tiny_arguments):
    with ExitStack() as held:
        lock_run(held, tmp_path)
        refuse(main, capsys, ["fit", *tiny_arguments("listops", tmp_path)], 1, str(tmp_path), "is in use")
    main(["fit", *tiny_arguments("listops", tmp_path)])


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, ""), OSError(errno.EOPNOTSUPP, "")])
def test_file_system_without_locks_is_said(error, tmp_path, main, capsys, tiny_arguments, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", Mock(side_effect=error))
    arguments = [*tiny_arguments("listops", tmp_path / "run"), f"--data.init_args.data_dir={tmp_path}/data"]
    main(["fit", *arguments, "--trainer.max_steps=3"])
    said = capsys.readouterr().out
    assert f"{tmp_path}/data is on a file system without file locks" in said
    assert f"{tmp_path}/run is on a file system without file locks" in said
    with hold(tmp_path, 0) as free:
        assert free


@pytest.mark.parametrize(("before", "now"), [(["trainer/ema"], []), ([], ["trainer/ema"])])
def test_moving_average_is_not_taken_for_the_weights(before, now, tmp_path, main, capsys, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path, *before)])
    arguments = [*tiny_arguments("listops", tmp_path, *now), "--ckpt_path=last", "--trainer.max_steps=12"]
    refuse(main, capsys, ["fit", *arguments], 1, "a moving average of the weights")


def test_resume_from_elsewhere_does_not_write_over_a_run(trained, tmp_path, main, capsys, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path)])
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    arguments = [*tiny_arguments("listops", tmp_path), f"--ckpt_path={trained}/checkpoints/last.ckpt"]
    refuse(main, capsys, ["fit", *arguments], 1, str(tmp_path), "already holds a run")
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before


def test_run_without_a_checkpoint_leaves_its_log_aside(tmp_path, main, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path)]
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,9\n")
    main(arguments)
    assert (tmp_path / "metrics.1.csv").read_text() == "step,train/loss\n0,9\n"
    assert "\n0,9\n" not in (tmp_path / "metrics.csv").read_text()


def test_nothing_to_continue(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--ckpt_path=last"]
    refuse(main, capsys, arguments, 1, "last.ckpt does not exist. Fix: leave it out")


def test_folder_whose_name_looks_like_a_number(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *tiny_arguments("listops", "1e3"), "--trainer.max_steps=3"])
    main(["fit", *tiny_arguments("listops", "1e3"), "--trainer.max_steps=4", "--ckpt_path=last"])
    assert (tmp_path / "1e3/checkpoints/last.ckpt").exists()


def test_no_checkpoint_to_test(tmp_path, main, capsys, tiny_arguments):
    refuse(main, capsys, ["test", *tiny_arguments("listops", tmp_path)], 1, "best.ckpt", "Fix: train first")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--model.optimizer.init_args.lr=0.9", "model.optimizer.init_args.lr: 0.0001 in the checkpoint, 0.9 now"),
        ("--data.init_args.batch_size=4", "data.init_args.batch_size"),
        ("--seed_everything=7", "seed_everything"),
        ("--model.num_layers=1", "model.num_layers"),
    ],
)
def test_resume_refuses_what_it_could_not_honour(change, named, trained, main, capsys):
    arguments = ["fit", f"--config={trained}/config.yaml", "--ckpt_path=last", change]
    refuse(main, capsys, arguments, 1, named, "another configuration")


def test_checkpoint_of_another_backend(trained, main, capsys):
    other = f"--config={ROOT}/configs/attention/softmax.yaml"
    arguments = ["test", f"--config={trained}/config.yaml", other]
    refuse(main, capsys, arguments, 1, "SkyformerAttention", "SoftmaxAttention", "config.yaml")


def test_checkpoint_of_another_task(trained, main, capsys, tiny_arguments, tmp_path):
    arguments = ["test", *tiny_arguments("pathfinder", tmp_path), f"--ckpt_path={trained}/checkpoints/best.ckpt"]
    refuse(main, capsys, arguments, 1, "data.class_path", "datamodules.ListOps", "datamodules.Pathfinder")


@pytest.mark.parametrize("change", ["max_length=128", "protocol.brackets=false"])
def test_checkpoint_of_the_same_task_with_other_settings(change, trained, main, capsys):
    arguments = ["test", f"--config={trained}/config.yaml", f"--data.init_args.{change}"]
    refuse(main, capsys, arguments, 1, "data.init_args", "another configuration")


def test_damaged_checkpoint(tmp_path, trained, main, capsys):
    whole = (trained / "checkpoints/best.ckpt").read_bytes()
    damaged = tmp_path / "cut.ckpt"
    damaged.write_bytes(whole[: len(whole) // 2])
    arguments = ["test", f"--config={trained}/config.yaml", f"--ckpt_path={damaged}"]
    refuse(main, capsys, arguments, 1, str(damaged), "cannot be read")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("--model.attention.init_args.num_landmark=8", 2, ["num_landmark"]),
        ("--model.attention.init_args.num_landmarks=0", 1, ["num_landmarks=0", "at least 1"]),
        ("--model.attention.init_args.ridge=-1", 1, ["ridge=-1"]),
        ("--model.attention.init_args.solver=lu", 2, ["solver", "cholesky"]),
        ("--model.positions_lr_factor=-1", 1, ["positions_lr_factor=-1"]),
        ("--model.class_weights=[1,2]", 1, ["class_weights has 2 numbers for 10 classes", "[1.0, 2.0]", "Fix: "]),
        ("--model.class_weights=[1,1,1,1,1,1,1,1,1,0]", 1, ["class_weights=", "above 0"]),
        ("--model.label_smoothing=1", 1, ["label_smoothing=1.0", "[0, 1)"]),
        ("--model.num_heads=3", 1, ["num_heads=3", "embed_dim=16"]),
        ("--data.init_args.batch_size=0", 1, ["data.batch_size=0"]),
        ("--data.init_args.batch_size=101", 1, ["data.batch_size=101", "100"]),
        ("--data.init_args.min_length=63", 1, ["min_length=63", "max_length=64"]),
        ("--data.init_args.nonsense=1", 2, ["nonsense"]),
        ("--trainer.max_step=3", 2, ["--trainer.max_step=3"]),
        ("--trainer.max_steps=-1", 1, ["max_steps"]),
        ("--last_checkpoint.every_n_train_steps=0", 1, ["every_n_train_steps=0"]),
        ("--model.optimizer.init_args.lr=-1", 1, ["model.optimizer", "-1"]),
        ("--best_checkpoint.monitor=val/acuracy", 2, ["val/acuracy"]),
        ("--seed_everything=-1", 1, ["seed_everything"]),
        ("--seed_everything=false", 1, ["seed_everything"]),
        (f"--trainer.callbacks+={CALLBACKS}.LearningRateFinder", 1, ["trainer.callbacks", "model.optimizer"]),
        (f"--trainer.callbacks+={CALLBACKS}.BatchSizeFinder", 1, ["trainer.callbacks", "data.init_args.batch_size"]),
        (f"--trainer.callbacks+={ACCUMULATION}", 1, ["trainer.callbacks", "Fix", "trainer.accumulate_grad_batches"]),
        (f"--trainer.callbacks+={AVERAGING}", 1, ["trainer.callbacks", "no checkpoint", "configs/trainer/ema.yaml"]),
        (f"--trainer.callbacks+={PRUNING}", 1, ["pruning_fn: config.yaml cannot hold it", "l1_unstructured"]),
        (f"--trainer.callbacks+={CALLBACKS}.BackboneFinetuning", 1, ["trainer.callbacks", "resume", "model.init_from"]),
        ("--trainer.strategy=ddp_spawn", 1, ["trainer.strategy", "spawn", "--trainer.strategy ddp"]),
        ("--trainer.strategy=ddp_fork", 1, ["trainer.strategy", "fork", "--trainer.strategy ddp"]),
        ("--trainer.barebones=true", 1, ["trainer.barebones=true", "Fix: leave it out"]),
        ("--trainer.enable_checkpointing=false", 1, ["trainer.enable_checkpointing=false", "Fix: leave it out"]),
        ("--trainer.callbacks+=poison.NotYaml", 1, ["trainer.callbacks", "got <Signals.SIGTERM"]),
        ("--weights_only=false", 1, ["weights_only=false", "Fix: leave it out"]),
    ],
)
def test_wrong_argument(change, code, words, tmp_path, main, capsys, tiny_arguments):
    arguments = tiny_arguments("listops", tmp_path / "run")
    refuse(main, capsys, ["fit", *arguments, change], code, *words)
    assert not (tmp_path / "run/checkpoints").exists()


def test_compiler_that_is_missing_is_said_in_one_line(tmp_path, main, capsys, tiny_arguments, monkeypatch):
    def training_step(model, batch, batch_index):
        raise InductorError(InvalidCxxCompiler(), None)

    monkeypatch.setattr(SequenceClassifier, "training_step", training_step)
    words = ["model.compile", "No working C++ compiler", "Fix: --model.compile false"]
    said = refuse(main, capsys, ["fit", *tiny_arguments("listops", tmp_path)], 1, *words)
    assert "Traceback" not in said


def test_schedule_that_cannot_work_is_said_before_data_is_made(tmp_path, main, capsys, tiny_arguments):
    arguments = [*tiny_arguments("listops", tmp_path / "run"), f"--data.data_dir={tmp_path}/data"]
    words = ["model.lr_scheduler", "warmup_steps=9", "total_steps=9", "set --model.lr_scheduler.warmup_steps"]
    refuse(main, capsys, ["fit", *arguments, "--model.lr_scheduler.warmup_steps=9"], 1, *words)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("key", "value"), [("level", "extreme"), ("resolution", "31")])
def test_wrong_kind_of_pathfinder(key, value, tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("pathfinder", tmp_path), f"--data.init_args.{key}={value}"]
    refuse(main, capsys, arguments, 2, key, value)


def test_truncated_prepared_file(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path / "run"), f"--data.init_args.data_dir={tmp_path}/data"]
    main([*arguments, "--trainer.max_steps=1", "--model.lr_scheduler.init_args.warmup_steps=0"])
    (tokens,) = (tmp_path / "data").glob("listops-*/train/tokens.bin")
    tokens.write_bytes(tokens.read_bytes()[:-5])
    arguments.append(f"--trainer.default_root_dir={tmp_path}/again")
    refuse(main, capsys, arguments, 1, str(tokens), "Fix: remove the folder")


def test_timer_by_class_path(tmp_path, main, tiny_arguments):
    """Its interval is a member of an enumeration by default."""
    arguments = [*tiny_arguments("listops", tmp_path), f"--trainer.callbacks+={CALLBACKS}.Timer"]
    main(["fit", *arguments, "--trainer.max_steps=3"])
    *_, timer = yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"
    cli = main(["fit", f"--config={tmp_path}/config.yaml", "--ckpt_path=last", "--trainer.max_steps=6"])
    assert cli.trainer.global_step == 6


@pytest.mark.parametrize("command", [["report", "--runs=[trained]"], ["fit", "--help"]])
def test_terminal_that_knows_ascii_only(command, trained, tmp_path, main, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    command = [part.replace("trained", str(trained)) for part in command]
    with suppress(SystemExit):
        main([*command, *([f"--output={tmp_path}"] if command[0] == "report" else [])])
    shown.flush()
    assert len(shown.buffer.getvalue()) > 200


def test_file_that_the_locale_cannot_read(main, capsys, monkeypatch):
    def read(*args: object) -> None:
        "§".encode().decode("ascii")

    monkeypatch.setattr("skyformer.__main__.check_files", read)
    refuse(main, capsys, ["fit"], 1, "got ascii", "PYTHONUTF8=1")


def test_first_help_says_what_each_command_does(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Train and compare attention methods on long sequences." in said
    for text in ("fit Train a model, or resume a run.", "test Evaluate a checkpoint on the test set.", "extract"):
        assert text in said
    main(["study", "--help"])
    assert "approximation, locality" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_speaks_of_what_works(command, main, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    said = said[said.rindex("--ckpt_path CKPT_PATH") :]
    assert "a file" in said
    assert "`last`" in said
    assert "`best`" in said
    assert ("`auto`" in said) == (command == "fit")
    assert "false is refused" in said
    for word in ("hpc", "registry", "trainer.fit"):
        assert word not in said


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader timed out after 600 seconds",
        "DataLoader worker (pid 13) is killed by signal: Bus error.",
        "Too many open files. Communication with the workers is no longer possible.",
    ],
)
def test_loader_without_shared_memory_or_files_is_said_in_one_line(said, capsys):
    with pytest.raises(SystemExit), exit_on_error():
        raise RuntimeError(said)
    line = capsys.readouterr().err
    assert line.startswith(f"error: the DataLoader's worker processes stopped responding ({said}")
    assert "Fix: --data.num_workers 0" in line


@pytest.mark.long  # the worker is given ten seconds to end
def test_worker_that_never_delivers_ends_the_run(tmp_path, main, capsys, tiny_arguments, monkeypatch):
    monkeypatch.setattr("datamodules.base.BATCH_TIMEOUT", 0.1)
    monkeypatch.setattr("datamodules.collate.SplitBatches.__getitems__", lambda split, batch: time.sleep(60))
    arguments = [*tiny_arguments("listops", tmp_path), "--data.num_workers=1"]
    refuse(main, capsys, ["fit", *arguments], 1, "DataLoader timed out", "--data.num_workers 0")


LEFT_BEHIND = """
import multiprocessing, time
from datamodules import base

def work(ready):
    base._leave_signals_to_the_main_process(0)
    ready.set()
    time.sleep(600)

ready = multiprocessing.Event()
multiprocessing.Process(target=work, args=(ready,), daemon=True).start()
ready.wait()
"""


@pytest.mark.long
def test_worker_that_an_error_left_does_not_keep_the_command_from_ending():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LEFT_BEHIND], env=environment, check=True, timeout=60)
