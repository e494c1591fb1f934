"""A user's own data module: what works, and the messages where it does not."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from own_data import OwnData
from refusals import refuse

NOT_RESUMABLE = "resuming from a checkpoint that ended before the epoch ended"


@pytest.fixture
def own_arguments(tiny_arguments):
    """Those of a tiny run on `own_data.OwnData`."""

    def build(folder: Path) -> list[str]:
        shared = [argument for argument in tiny_arguments("listops", folder) if not argument.startswith("--data.")]
        return [*shared, "--data.class_path=own_data.OwnData"]

    return build


def test_lightning_warns_that_own_loaders_do_not_resume(tmp_path, main, own_arguments):
    main(["fit", *own_arguments(tmp_path), "--trainer.max_steps=4"])
    with pytest.warns(match=NOT_RESUMABLE):
        main(["fit", *own_arguments(tmp_path), "--trainer.max_steps=6", "--ckpt_path=last"])


def test_no_such_warning_for_loaders_that_resume(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=4"])
    with warnings.catch_warnings(record=True) as caught:
        main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=6", "--ckpt_path=last"])
    for text in (NOT_RESUMABLE, "You have overridden"):
        assert not [warning for warning in caught if text in str(warning.message)]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_batch_without_the_fields_is_refused(command, tmp_path, main, own_arguments, capsys, monkeypatch):
    monkeypatch.setattr("skyformer.cli.find_checkpoint", lambda *named: None)
    words = ["data.class_path", "tokens, mask, label, example, position", "got list", "datamodules.batches.Batch("]
    refuse(main, capsys, [command, *own_arguments(tmp_path), "--data.init_args.plain=true"], 1, *words)


def test_loaders_without_a_length(tmp_path, main, own_arguments):
    ends = ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    limits = ["--data.class_path=own_data.EndlessData", *ends]
    main(["fit", *own_arguments(tmp_path), *limits, "--test_after_fit=true"])
    assert json.loads((tmp_path / "result.json").read_text())["test/examples"] == 8
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 9
    main(["fit", *own_arguments(tmp_path), *limits, "--trainer.max_steps=12", "--ckpt_path=last"])
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


def test_class_with_the_name_of_a_shipped_task(tmp_path, main, own_arguments, monkeypatch):
    """Its configuration is not taken for one of an earlier version of that task."""
    monkeypatch.setattr("own_data.Text", type("Text", (OwnData,), {"__module__": "own_data"}), raising=False)
    arguments = [argument.replace("own_data.OwnData", "own_data.Text") for argument in own_arguments(tmp_path)]
    main(["fit", *arguments, "--trainer.max_steps=4"])
    cli = main(["test", f"--ckpt_path={tmp_path}/checkpoints/best.ckpt"])
    assert type(cli.datamodule).__name__ == "Text"
