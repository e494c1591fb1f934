"""A checkpoint to share: small, whole, enough to test with, and not enough to resume from."""

import json
import os
import shutil

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer

from skyformer.export.command import _own_loggers, with_its_configuration
from skyformer.model.checkpoint_io import read_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, main, tiny_arguments):
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_arguments("pathfinder", folder), "--test_after_fit=true"])
    return folder


@pytest.fixture
def exported(run, tmp_path, main, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["export", f"--ckpt_path={run}/checkpoints/best.ckpt", "--output=shared/pathfinder.ckpt"])
    return tmp_path / "shared/pathfinder.ckpt"


def test_exported_checkpoint_reproduces_the_test(run, exported, tmp_path, main, data_dir):
    main(["test", "--ckpt_path", str(exported), f"--data.data_dir={data_dir}"])
    found, expected = (json.loads((place / "result.json").read_text()) for place in (tmp_path / "runs/pathfinder", run))
    for name in ("test/accuracy", "test/loss", "test/examples"):
        assert found[name] == expected[name]


def test_exported_checkpoint_holds_weights_and_configuration(run, exported):
    whole = run / "checkpoints/best.ckpt"
    checkpoint, original = read_checkpoint(exported), read_checkpoint(whole)
    assert {"optimizer_states", "lr_schedulers", "loops", "callbacks"}.isdisjoint(checkpoint)
    assert exported.stat().st_size < whole.stat().st_size / 2
    assert all(torch.equal(weight, original["state_dict"][name]) for name, weight in checkpoint["state_dict"].items())
    config = yaml.safe_load(checkpoint["config"])
    assert config["trainer"]["default_root_dir"] is None
    assert config["data"]["init_args"]["data_dir"] == "data"
    assert config["data"]["init_args"]["train_size"] == 44
    assert str(run.parent) not in checkpoint["config"], "no place of this machine"
    assert config["trainer"]["accelerator"] == "auto", "the run named its own"
    result = json.loads((run / "result.json").read_text())
    assert checkpoint["result"] == {name: value for name, value in result.items() if name != "checkpoint"}


def test_no_run_resumes_from_it(exported, tmp_path, main, tiny_arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("pathfinder", tmp_path / "new"), f"--ckpt_path={exported}"])
    assert stopped.value.code == 1
    assert "holds weights only, so no run can resume from it" in capsys.readouterr().err


def test_second_export_keeps_the_result(exported, tmp_path, main):
    main(["export", f"--ckpt_path={exported}", "--output=again.ckpt", "--half=true"])
    assert read_checkpoint(tmp_path / "again.ckpt")["result"] == read_checkpoint(exported)["result"]


class Recorder(Callback):
    """A callback that only its author's machine has, and that must not run elsewhere."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert stage == "fit", "code of the training run"


def test_callbacks_of_a_run_do_not_go_along(tmp_path, main, tiny_arguments, data_dir, monkeypatch):
    main(["fit", *tiny_arguments("listops", tmp_path / "run"), f"--trainer.callbacks={__name__}.Recorder"])
    monkeypatch.chdir(tmp_path)
    main(["export", "--ckpt_path=run/checkpoints/best.ckpt", "--output=shared.ckpt"])
    assert "Recorder" not in read_checkpoint(tmp_path / "shared.ckpt")["config"]
    for checkpoint in ("run/checkpoints/best.ckpt", "shared.ckpt"):
        main(["test", f"--ckpt_path={checkpoint}", f"--data.data_dir={data_dir}"])


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_checkpoint_of_a_run_brings_its_configuration(command, run, tmp_path, main):
    """Its results go to its run's folder; other arguments still count."""
    cli = main([command, f"--ckpt_path={run}/checkpoints/best.ckpt", "--data.eval_batch_size=3"])
    assert cli.trainer.default_root_dir == str(run)
    assert cli.datamodule.eval_batch_size == 3
    if command == "predict":
        assert (run / "predictions.csv").exists()


def test_missing_checkpoint_is_said(tmp_path, main, capsys):
    with pytest.raises(SystemExit):
        main(["export", f"--ckpt_path={tmp_path}/none.ckpt", f"--output={tmp_path}/x.ckpt"])
    assert f"--ckpt_path {tmp_path}/none.ckpt is not a file. Fix: " in capsys.readouterr().err


def test_result_of_other_weights_or_data_does_not_go_along(run, tmp_path, main, monkeypatch):
    """Tested on other data, and trained on after the test."""
    folder = shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    best = folder / "checkpoints/best.ckpt"
    with pytest.warns(UserWarning, match="the data differs"):
        main(["test", f"--ckpt_path={best}", "--data.test_size=9", f"--data.data_dir={tmp_path}/data"])
    assert json.loads((folder / "result.json").read_text())["test/examples"] == 9
    main(["export", f"--ckpt_path={best}", "--output=other_data.ckpt"])
    assert "result" not in read_checkpoint(tmp_path / "other_data.ckpt")
    shutil.copy(run / "result.json", folder / "result.json")
    os.utime(folder / "result.json", (0, 0))
    main(["export", f"--ckpt_path={best}", "--output=older.ckpt"])
    assert "result" not in read_checkpoint(tmp_path / "older.ckpt")


def test_test_by_checkpoint_keeps_the_curves_of_the_run(tmp_path, main, tiny_arguments):
    """A run with CSV curves: event files next to them would hide them in a report."""
    main(["fit", *tiny_arguments("listops", tmp_path / "run")])
    main(["test", f"--ckpt_path={tmp_path}/run/checkpoints/best.ckpt"])
    assert (tmp_path / "run/result.json").exists()
    assert not list((tmp_path / "run").glob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (False, False),
        ({"class_path": "wandb.Logger", "init_args": {"save_dir": "x"}}, False),
        (
            [{"class_path": "ext.Logger"}, {"class_path": "skyformer.training.loggers.CSVLogger"}],
            [{"class_path": "skyformer.training.loggers.CSVLogger", "init_args": {"save_dir": "."}}],
        ),
    ],
)
def test_loggers_of_other_packages_do_not_go_along(given, kept):
    assert _own_loggers(given) == kept


def test_copied_run_logs_into_its_own_folder(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path / "first")])
    rows = (tmp_path / "first/metrics.csv").read_text()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    main(["test", f"--ckpt_path={tmp_path}/copy/checkpoints/best.ckpt"])
    assert (tmp_path / "first/metrics.csv").read_text() == rows
    assert not (tmp_path / "first/result.json").exists()
    assert (tmp_path / "copy/result.json").exists()


@pytest.mark.parametrize("option", [["--config", "x.yaml"], ["--config=x.yaml"], ["-c", "x.yaml"], ["-c=x.yaml"]])
def test_named_configuration_is_taken_in_place_of_the_checkpoints(option):
    given = ["test", *option, "--ckpt_path", "x.ckpt"]
    assert with_its_configuration(given) == given


def test_checkpoint_of_an_earlier_version_is_tested_as_it_was(run, tmp_path, main):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    for name in ("augment", "level_schedule", "drop_black"):
        del config["data"]["init_args"][name]
    config["data"]["init_args"]["protocol"]["zero_is_padding"] = True
    torch.save({**checkpoint, "config": yaml.safe_dump(config)}, folder / "checkpoints/best.ckpt")
    cli = main(["test", f"--ckpt_path={folder}/checkpoints/best.ckpt"])
    assert cli.datamodule.drop_black
    found, expected = (json.loads((place / "result.json").read_text()) for place in (folder, run))
    other = {"checkpoint": "", "checkpoint_sha256": ""}
    assert found | other == expected | other


def test_half_the_size_gives_nearly_the_same_scores(run, tmp_path, main, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    best = f"--ckpt_path={run}/checkpoints/best.ckpt"
    main(["export", best, "--output=whole.ckpt"])
    main(["export", best, "--output=half.ckpt", "--half=true"])
    whole, half = (read_checkpoint(tmp_path / f"{name}.ckpt")["state_dict"] for name in ("whole", "half"))
    name = "encoder.blocks.0.attention.backend.eval_noise"
    assert torch.equal(whole[name], half[name])
    assert half["encoder.tokens.weight"].dtype == torch.float16
    main(["test", "--ckpt_path=half.ckpt", "--trainer.default_root_dir=tested", f"--data.data_dir={data_dir}"])
    losses = [json.loads((place / "result.json").read_text())["test/loss"] for place in (run, tmp_path / "tested")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
