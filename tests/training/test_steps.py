"""How long a run is: in epochs, in steps, in a trial of a few steps; and the batches that it repeats or accumulates."""

import csv
import json
from pathlib import Path

import pytest
from refusals import refuse

from skyformer.model.classifier import SequenceClassifier
from skyformer.report.runs import find_runs

EPOCH = 12  # batches of 8 of the 100 examples
TRIAL = "--trainer.fast_dev_run=true"
PLATEAU = "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"


def logged(folder: Path, name: str) -> dict[int, float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


@pytest.fixture
def batches(monkeypatch) -> list[list[int]]:
    """The examples of each training batch, as the model gets them."""
    seen: list[list[int]] = []
    step = SequenceClassifier.training_step

    def record(self, batch, batch_index):
        seen.append(batch.example.tolist())
        return step(self, batch, batch_index)

    monkeypatch.setattr(SequenceClassifier, "training_step", record)
    return seen


@pytest.mark.parametrize("max_steps", [-1, pytest.param(1000, marks=pytest.mark.long)])
def test_steps_and_schedule_come_from_epochs(max_steps, tmp_path, main, tiny_arguments, caplog):
    """Also over a stop and a resume, and longer afterwards."""
    epochs = ["--trainer.max_epochs=2", f"--trainer.max_steps={max_steps}", "--trainer.val_check_interval=10"]
    command = ["fit", *tiny_arguments("listops", tmp_path), *epochs]
    stop = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=12", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main([*command, *stop])
    cli = main([*command, "--ckpt_path=last"])
    assert cli.trainer.global_step == cli.trainer.max_steps == 2 * EPOCH
    assert "trainer.max_epochs=2: 24 steps" in caplog.text
    rates = logged(tmp_path, "train/learning_rate")
    assert rates[EPOCH] == pytest.approx(1e-4 * EPOCH / (2 * EPOCH - 2))
    assert rates[2 * EPOCH - 1] == pytest.approx(1e-4 / (2 * EPOCH - 2))
    (run,) = find_runs([tmp_path])[0]
    assert (run.max_steps, run.steps, run.is_finished) == (2 * EPOCH, 2 * EPOCH, True)
    assert main([*command, "--ckpt_path=last", "--trainer.max_epochs=3"]).trainer.global_step == 3 * EPOCH


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["--trainer.max_steps=20"], 20),
        (["--trainer.max_steps=-1", "--trainer.accumulate_grad_batches=5"], 6),
        pytest.param(["--trainer.max_steps=-1", "--trainer.limit_train_batches=0.5"], 12, marks=pytest.mark.long),
        pytest.param(["--trainer.max_steps=-1", "--trainer.limit_train_batches=4"], 8, marks=pytest.mark.long),
    ],
)
def test_smaller_limit_counts_and_epochs_are_measured(settings, steps, tmp_path, main, tiny_arguments):
    cli = main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_epochs=2", *settings])
    assert cli.trainer.global_step == cli.trainer.max_steps == steps
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_warm_up_longer_than_the_epochs_is_refused(tmp_path, main, capsys, tiny_arguments):
    settings = ["--trainer.max_epochs=1", "--trainer.max_steps=50", "--model.lr_scheduler.init_args.warmup_steps=30"]
    words = ["warmup_steps=30", "total_steps=12", "--trainer.max_epochs"]
    refuse(main, capsys, ["fit", *tiny_arguments("listops", tmp_path), *settings], 1, *words)


def test_curriculum_longer_than_the_epochs_is_refused(tmp_path, main, capsys, tiny_arguments):
    settings = ["--trainer.max_epochs=1", "--trainer.max_steps=-1", "--data.init_args.level_schedule={easy: 40}"]
    words = ["data.level_schedule lasts 40 steps, the run 11"]
    refuse(main, capsys, ["fit", *tiny_arguments("pathfinder", tmp_path), *settings], 1, *words)


@pytest.mark.long
def test_evaluation_by_epochs_over_an_interval_in_batches(tmp_path, main, capsys, tiny_arguments):
    command = ["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=26"]
    command.append("--trainer.check_val_every_n_epoch=1")
    words = ["trainer.val_check_interval=1000", "the 12 batches of an epoch", "--trainer.val_check_interval 1.0"]
    refuse(main, capsys, [*command, "--trainer.val_check_interval=1000"], 1, *words)
    main([*command, "--trainer.val_check_interval=1.0"])
    assert list(logged(tmp_path, "val/loss")) == [EPOCH - 1, 2 * EPOCH - 1]


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.long), 3])
def test_overfitting_repeats_the_same_batches(number, tmp_path, main, tiny_arguments, batches):
    main(["fit", *tiny_arguments("listops", tmp_path), f"--trainer.overfit_batches={number}"])
    assert len(batches) == 9
    assert batches == batches[:number] * (9 // number)
    assert len({tuple(batch) for batch in batches}) == number


def test_overfitting_on_a_curriculum_is_refused(tmp_path, main, capsys, tiny_arguments):
    settings = ["--trainer.overfit_batches=1", "--data.init_args.level_schedule={easy: 4}"]
    words = ["data.level_schedule", "trainer.overfit_batches=1", "Fix"]
    refuse(main, capsys, ["fit", *tiny_arguments("pathfinder", tmp_path), *settings], 1, *words)


@pytest.mark.long
def test_loss_is_the_mean_over_accumulated_batches(tmp_path, main, tiny_arguments):
    """A rate of 0 and no noise: the batches' losses are the same one by one. The last step of an epoch has two."""
    still = ["--model.optimizer.init_args.lr=0", "--model.dropout=0", "--model.attention.init_args.num_landmarks=128"]
    settings = [*still, "--model.attention.init_args.landmark_draw=uniform", "--trainer.max_epochs=1"]
    for folder, accumulated in (("single", 1), ("accumulated", 5)):
        extra = [f"--trainer.accumulate_grad_batches={accumulated}", "--trainer.max_steps=-1"]
        main(["fit", *tiny_arguments("listops", tmp_path / folder), *settings, *extra])
    for name in ("train/loss", "train/accuracy"):
        single = list(logged(tmp_path / "single", name).values())
        steps = [single[0:5], single[5:10], single[10:12]]
        expected = {number: sum(step) / len(step) for number, step in enumerate(steps)}
        assert logged(tmp_path / "accumulated", name) == pytest.approx(expected, rel=1e-4)


def test_gradient_is_the_mean_over_accumulated_batches(tmp_path, main, tiny_arguments):
    """At a rate of 0 and without noise, on the same batches: the epoch's last step has two of them, not ten."""
    still = ["--model.optimizer.init_args.lr=0", "--model.dropout=0", "--model.attention.init_args.num_landmarks=128"]
    norms = {}
    for accumulated in (2, 10):
        arguments = tiny_arguments("listops", tmp_path / str(accumulated))
        length = ["--trainer.max_epochs=1", "--trainer.max_steps=-1", "--model.lr_scheduler.init_args.warmup_steps=0"]
        main(["fit", *arguments, *still, *length, f"--trainer.accumulate_grad_batches={accumulated}"])
        norms[accumulated] = list(logged(tmp_path / str(accumulated), "train/grad_norm").values())
    assert len(norms[2]) == 6
    assert len(norms[10]) == 2
    assert norms[10][-1] == pytest.approx(norms[2][-1], rel=1e-4)


def test_more_accumulated_batches_than_an_epoch_has_are_refused(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--trainer.accumulate_grad_batches=30"]
    refuse(main, capsys, arguments, 1, "trainer.accumulate_grad_batches=30", f"{EPOCH} batches", "Fix")


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        ["--model.lr_scheduler.init_args.warmup_steps=1000"],
        ["--test_after_fit=true", "--ckpt_path=auto"],
        ["--trainer.max_epochs=2", "--trainer.max_steps=-1"],
        [PLATEAU],
    ],
)
def test_trial_writes_nothing_and_passes(settings, tmp_path, scratch, main, tiny_arguments, capsys, caplog):
    arguments = [each for each in tiny_arguments("listops", tmp_path / "run") if "warmup_steps" not in each]
    cli = main(["fit", *arguments, TRIAL, *settings])
    assert cli.trainer.global_step == 1
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "run").exists()
    assert ("Test accuracy" in capsys.readouterr().out) == ("--test_after_fit=true" in settings)
    assert "still at chance" not in caplog.text


@pytest.mark.long
def test_trial_beside_a_run(tmp_path, scratch, main, tiny_arguments, capsys):
    """A run's folder stays as it is, whatever is tried in it; and a trial does not resume."""
    arguments = tiny_arguments("listops", tmp_path / "run")
    main(["fit", *arguments])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for command in ("fit", "test", "validate", "predict"):
        main([command, *arguments, TRIAL])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert "Wrote" not in capsys.readouterr().out
    refuse(main, capsys, ["fit", *arguments, TRIAL, "--ckpt_path=last"], 1, "trainer.fast_dev_run", "last", "leave out")


def test_trial_of_a_curriculum(tmp_path, main, tiny_arguments):
    arguments = tiny_arguments("pathfinder", tmp_path / "run")
    cli = main(["fit", *arguments, "--trainer.fast_dev_run=2", "--data.init_args.level_schedule={easy: 4}"])
    assert cli.trainer.global_step == 2


def test_length_is_in_the_record(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path)])
    assert json.loads((tmp_path / "record.json").read_text())[-1]["max_steps"] == 9
