"""A loss that is infinite or not a number: the run stops at that step and says where it came from, or leaves it out."""

import csv
import json
import math

import pytest
import torch

POISONED = ["--model.attention=poison.PoisonedAttention", "--trainer.callbacks+=poison.PoisonStep"]


def arguments(tiny_arguments, folder, *extra: str) -> list[str]:
    return ["fit", *tiny_arguments("listops", folder), *POISONED, "--trainer.callbacks.batch=4", *extra]


def test_run_stops_at_that_step_and_names_its_examples(tmp_path, main, capsys, tiny_arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tiny_arguments, tmp_path, "--last_checkpoint.every_n_train_steps=1"))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "error: the loss of step 4 is nan" in said
    assert str(tmp_path / "non_finite.0.json") in said
    record = json.loads((tmp_path / "non_finite.0.json").read_text())
    assert (record["step"], record["batch_of_the_epoch"], record["loss"]) == (4, 4, "nan")
    assert len(record["examples"]) == 8
    norms = record["layers"]
    assert float(norms["encoder.blocks.0.attention.backend"]["output"]) > 0
    assert norms["encoder.blocks.1.attention.backend"]["output"] in ("inf", "nan"), "where it began"
    assert float(norms["encoder.tokens"]["weights"]) > 0
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize(
    ("overlays", "steps", "skipped"), [((), 9, 4), (("trainer/bf16",), 9, 4), (("trainer/accumulate",), 3, 1)]
)
def test_skipped_step_leaves_weights_and_moments_alone(overlays, steps, skipped, tmp_path, main, tiny_arguments):
    """With accumulation, the whole optimiser step that the batch belongs to."""
    given = ["fit", *tiny_arguments("listops", tmp_path, *overlays), *POISONED, "--trainer.callbacks.batch=4"]
    cli = main([*given, "--non_finite_loss.action=skip", f"--trainer.max_steps={steps}"])
    assert cli.trainer.global_step == steps
    with (tmp_path / "metrics.csv").open(newline="") as file:
        counts = {int(row["step"]): row["train/skipped_steps"] for row in csv.DictReader(file) if row["train/loss"]}
    assert [step for step in counts if counts[step]] == list(range(skipped, steps))
    assert set(counts.values()) == {"", "1.0"}
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())
    assert float(state["optimizer_states"][0]["state"][0]["step"]) == steps - 1
    assert state["callbacks"]["NonFiniteLoss"] == {"skipped": 1}


def test_gradient_that_is_not_finite(tmp_path, main, capsys, tiny_arguments):
    poison = ["--trainer.callbacks+=poison.PoisonGradient", "--trainer.callbacks.step=4"]
    given = ["fit", *tiny_arguments("listops", tmp_path), *poison, "--last_checkpoint.every_n_train_steps=1"]
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 1
    assert "the loss of step 4 is finite on this process, and the gradients are not" in capsys.readouterr().err
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
    cli = main([*given, "--ckpt_path=last", "--non_finite_loss.action=skip"])
    assert float(cli.trainer.callback_metrics["train/skipped_steps"]) == 1
    assert all(torch.isfinite(weight).all() for weight in cli.model.state_dict().values())


def test_count_of_skipped_steps_survives_a_resume(tmp_path, main, tiny_arguments):
    given = arguments(tiny_arguments, tmp_path, "--non_finite_loss.action=skip")
    main(given)
    cli = main([*given, "--ckpt_path=last", "--trainer.max_steps=12"])
    assert float(cli.trainer.callback_metrics["train/skipped_steps"]) == 1


def test_fused_optimiser_reads_later_with_the_weights_of_before(tmp_path, main, capsys, tiny_arguments):
    """Nine steps in a row without a look at the loss of the fourth; each step after it changes nothing."""
    fused = ["--model.optimizer.init_args.fused=true", "--trainer.val_check_interval=9"]
    records = []
    for name, every in (("each", 1), ("end", 100)):
        folder = tmp_path / name
        with pytest.raises(SystemExit) as stopped:
            main(arguments(tiny_arguments, folder, *fused, f"--last_checkpoint.every_n_train_steps={every}"))
        assert stopped.value.code == 1
        assert "error: the loss of step 4 is nan" in capsys.readouterr().err
        records.append(json.loads((folder / "non_finite.0.json").read_text()))
    assert not (tmp_path / "end/checkpoints/last.ckpt").exists()
    each, end = ({key: record[key] for key in ("step", "batch_of_the_epoch", "loss", "examples")} for record in records)
    assert each == end
    weights = [{name: found.get("weights") for name, found in record["layers"].items()} for record in records]
    assert weights[0] == weights[1]


def test_fused_optimiser_stops_at_a_gradient_that_is_not_finite(tmp_path, main, capsys, tiny_arguments):
    poison = ["--trainer.callbacks+=poison.PoisonGradient", "--trainer.callbacks.step=4"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("listops", tmp_path), *poison, "--model.optimizer.init_args.fused=true"])
    assert stopped.value.code == 1
    assert "the loss of step 4 is finite on this process, and the gradients are not" in capsys.readouterr().err


def test_validation_loss_is_not_a_number_where_that_of_a_batch_is_not(tmp_path, main, tiny_arguments):
    """And not the mean of the other batches."""
    poison = ["--model.attention=poison.PoisonedAttention", "--trainer.callbacks+=poison.PoisonEvaluation"]
    cli = main(["fit", *tiny_arguments("listops", tmp_path), *poison, "--trainer.max_steps=3"])
    assert math.isnan(cli.trainer.callback_metrics["val/loss"])
    assert math.isfinite(cli.trainer.callback_metrics["train/loss"])
