"""Self-pretraining on masked tokens, and runs that start from it."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from interrupted_runs import STOP, assert_same_training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import ROOT

from skyformer.exceptions import RunError
from skyformer.export.program import export_program
from skyformer.hf.hub import export_folder
from skyformer.loading import load_model
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.report.runs import find_runs
from skyformer.training.run_folder import run_folder

TASKS = sorted(path.stem for path in (ROOT / "configs/pretrain").glob("*.yaml"))
ATTENTIONS = sorted(path.stem for path in (ROOT / "configs/attention").glob("*.yaml"))
ONE_STEP = ("--trainer.max_steps=1", "--trainer.val_check_interval=1", "--model.lr_scheduler.init_args.warmup_steps=0")
HELD = ("--model.optimizer.init_args.lr=0", "--trainer.max_steps=3")  # weights stay as they started


@pytest.fixture(scope="module")
def pretraining(tiny_arguments):
    """The arguments of `configs/pretrain/<task>.yaml` alone, made tiny."""

    def arguments(task: str, folder: Path, *overlays: str) -> list[str]:
        given = tiny_arguments(task, folder, f"pretrain/{task}", *overlays)
        return [argument for argument in given if argument != f"--config={ROOT}/configs/{task}.yaml"]

    return arguments


@pytest.fixture(scope="module")
def source(tmp_path_factory, main, pretraining):
    """The folder of a run that was pretrained on Text."""
    folder = tmp_path_factory.mktemp("pretrained")
    main(["fit", *pretraining("text", folder)])
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=() if task in ("pathfinder", "retrieval") else pytest.mark.long) for task in TASKS],
)
def test_task_is_pretrained(task, tmp_path, main, pretraining):
    cli = main(["fit", *pretraining(task, tmp_path), *ONE_STEP])
    metrics = cli.trainer.callback_metrics
    assert cli.trainer.global_step == 1
    assert 0 < metrics["val/loss"] < 2 * math.log(cli.datamodule.vocab_size)
    assert 0 <= metrics["val/accuracy"] <= 1
    assert (tmp_path / "checkpoints/best.ckpt").exists()
    assert not hasattr(cli.model, "head")
    share = 0.5 if cli.datamodule.image_side else {"listops": 0.1}.get(task, 0.15)
    assert cli.model.masked_tokens.ratio == share


@pytest.mark.parametrize("task", TASKS)
def test_data_and_network_are_those_of_the_task(task):
    """Else the result would not fit it."""
    configs = [yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in (task, f"pretrain/{task}")]
    assert configs[0]["data"] == configs[1]["data"]
    for config in configs:
        for name in ("objective", "mask_ratio", "pooling", "optimizer"):
            config["model"].pop(name, None)
    assert configs[0]["model"] == configs[1]["model"]
    assert configs[0]["trainer"] == configs[1]["trainer"]


QUICK = ("skyformer", "reformer", "linformer")  # the plain way, keys that are the queries, positions that count


@pytest.mark.parametrize(
    "attention", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in ATTENTIONS]
)
def test_attention_is_pretrained(attention, tmp_path, main, pretraining):
    """In bfloat16, with gradients of two batches."""
    extra = ["--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=2"]
    cli = main(["fit", *pretraining("listops", tmp_path, f"attention/{attention}"), *ONE_STEP, *extra])
    assert attention in type(cli.model.encoder.blocks[0].attention.backend).__name__.lower()
    assert cli.trainer.callback_metrics["train/loss"] == pytest.approx(math.log(16), abs=1)
    assert cli.trainer.callback_metrics["val/loss"] == pytest.approx(math.log(16), abs=1)


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ("pretrain/pathfinder", ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4"]),
        pytest.param("retrieval", ["--model.mlm_weight=0.5", "--trainer.precision=bf16-mixed"], marks=pytest.mark.long),
    ],
    ids=["pretraining", "auxiliary"],
)
def test_stopped_run_resumes_to_the_last_bit(config, extra, tmp_path, main, tiny_arguments):
    """The masks of each step are a function of the seed and the step."""
    task = Path(config).name

    def arguments(folder: str) -> list[str]:
        return [*tiny_arguments(task, tmp_path / folder, config), "--trainer.max_steps=6", *extra]

    stop = [STOP, "--trainer.callbacks.step=3", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments("stopped"), *stop])
    assert stopped.value.code == 143
    main(["fit", *arguments("stopped"), "--ckpt_path=last"])
    main(["fit", *arguments("whole")])
    assert_same_training(tmp_path / "stopped", tmp_path / "whole", from_step=3)


def test_auxiliary_loss_has_a_curve(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), *ONE_STEP, "--model.mlm_weight=0.5"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert float(row["train/masked_loss"]) == pytest.approx(math.log(16), abs=1)
    assert float(row["train/loss"]) == pytest.approx(math.log(10) + 0.5 * math.log(16), abs=1)


def test_loss_that_is_not_a_number_is_traced_to_its_layer(tmp_path, main, pretraining, capsys):
    poison = ["--model.attention=poison.PoisonedAttention", "--trainer.callbacks+=poison.PoisonStep"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *pretraining("listops", tmp_path), *poison, "--trainer.callbacks.batch=1"])
    assert stopped.value.code == 1
    assert "error: the loss of step 1 is nan" in capsys.readouterr().err
    layers = json.loads((tmp_path / "non_finite.0.json").read_text())["layers"]
    assert layers["encoder.blocks.1.attention.backend"]["output"] in ("inf", "nan"), "where it began"
    assert layers["masked_tokens.output"]["output"] == "nan"


def test_fine_tuning_starts_from_the_whole_encoder(source, tmp_path, main, tiny_arguments, capfd, caplog):
    path = source / "checkpoints/best.ckpt"
    main(["fit", *tiny_arguments("text", tmp_path), *HELD, f"--model.init_from={path}"])
    given, started = read_checkpoint(path)["state_dict"], weights_of(tmp_path)
    assert {name for name in started if not name.startswith("encoder.")} == {
        f"head.layers.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }
    for name, weight in started.items():
        if name == "encoder.tokens.weight":
            assert torch.equal(weight, given[name][:257]), "all but the row of hidden bytes"
        elif name.startswith("encoder."):
            assert torch.equal(weight, given[name]), name
    said = caplog.text + "".join(capfd.readouterr())
    number = len([name for name in started if name.startswith("encoder.")])
    assert f", pretrained on masked tokens: {number} of {len(started)} tensors taken\n" in said
    assert "not taken: masked_tokens.output.weight, (257, 16) in the checkpoint, absent here" in said
    assert "not taken: head.layers.0.weight, absent in the checkpoint" in said
    assert "other data" not in said


def test_auxiliary_loss_takes_the_head_of_masked_tokens_too(source, tmp_path, main, tiny_arguments):
    start = f"--model.init_from={source}/checkpoints/last.ckpt"
    main(["fit", *tiny_arguments("text", tmp_path), *HELD, start, "--model.mlm_weight=0.1"])
    given, started = weights_of(source), weights_of(tmp_path)
    assert all(torch.equal(started[name], weight) for name, weight in given.items())


def test_pretraining_continues_on_other_data_and_says_so(source, tmp_path, main, pretraining, capfd, caplog):
    other = ("--data.init_args.val_size=8", f"--model.init_from={source}/checkpoints/last.ckpt")
    main(["fit", *pretraining("text", tmp_path), *HELD, *other])
    assert "it was pretrained on other data" in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("task", "extra", "said"),
    [
        ("retrieval", (), ["task: text in the checkpoint, retrieval now", "configs/pretrain/retrieval.yaml"]),
        ("text", ("--model.embed_dim=32",), ["model.embed_dim: 16 in the checkpoint, 32 now"]),
        ("text", ("--model.num_heads=4",), ["model.num_heads: 2 in the checkpoint, 4 now"]),
        (
            "text",
            ("--data.init_args.max_bytes=70",),
            ["encoder.positions.weight, (64, 16) in the checkpoint"],
        ),
        ("text", ("--model.attention=LinformerAttention",), ["attention.backend", "absent in the checkpoint"]),
    ],
)
def test_encoder_that_does_not_fit_is_refused(task, extra, said, source, tmp_path, main, tiny_arguments, capfd):
    start = f"--model.init_from={source}/checkpoints/last.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments(task, tmp_path), *HELD, start, *extra])
    assert stopped.value.code == 1
    error = capfd.readouterr().err
    assert "model.init_from: " in error
    assert "Fix: " in error
    assert not [text for text in said if text not in error], error
    assert not (tmp_path / "checkpoints").exists()


def test_another_vocabulary_is_refused(source, tmp_path, main, tiny_arguments, capfd):
    """Of a task with the same name."""
    checkpoint = read_checkpoint(source / "checkpoints/last.ckpt")
    checkpoint["state_dict"]["encoder.tokens.weight"] = torch.zeros(300, 16)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("text", tmp_path / "run"), f"--model.init_from={tmp_path}/other.ckpt"])
    assert stopped.value.code == 1
    assert "encoder.tokens.weight, (300, 16) in the checkpoint, (257, 16) here" in capfd.readouterr().err


def test_result_is_of_masked_tokens(source, main, pretraining, capsys):
    main(["test", *pretraining("text", source)])
    result = json.loads((source / "result.json").read_text())
    assert 20 < result["test/masked_tokens"] < 10 * 60 * 0.3
    assert 0 < result["chance"] < 1
    said = f"on {result['test/masked_tokens']:,} masked tokens; always guessing the most frequent one gives"
    assert said in capsys.readouterr().out


def test_what_needs_classes_is_refused(source, tmp_path, main, pretraining, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *pretraining("text", source)])
    assert stopped.value.code == 1
    assert "model.objective=masked_tokens: this model has no class scores" in capfd.readouterr().err
    path = source / "checkpoints/best.ckpt"
    with pytest.raises(RunError, match="has no class scores"):
        export_program(path, tmp_path / "model.pt2")
    with pytest.raises(RunError, match="has no class scores"):
        export_folder(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert load_model(path).encoder.tokens.num_embeddings == 258


def test_report_leaves_pretraining_out(source):
    with pytest.raises(RunError, match="pretraining, which has no accuracy on the task; left out"):
        find_runs([source])


def test_run_has_a_folder_of_its_own(source):
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = None
    assert run_folder(config) == Path("runs/pretrain/text/skyformer/seed0")


def test_tensorboard_shows_reconstructions(tmp_path, main, pretraining):
    logger = "--trainer.logger=skyformer.training.loggers.TensorBoardLogger"
    arguments = [argument for argument in pretraining("image", tmp_path) if "trainer.logger=" not in argument]
    main(["fit", *arguments, *ONE_STEP, logger, "--trainer.limit_val_batches=1"])
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (image,) = events.Images("images/reconstruction")
    assert (image.width, image.height) == (8 * 104, 3 * 122)


@pytest.mark.long
def test_processes_are_pretrained(tmp_path, pretraining):
    arguments = [*pretraining("retrieval", tmp_path, "trainer/ddp"), "--trainer.max_steps=3", "--test_after_fit=true"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "fit", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["test/masked_tokens"] > 20
