"""A run that ended before its last step says so: `fit`, `report`, `sweep --status`."""

import csv
import json
from typing import Any

import pytest
import sweep_runs
from interrupted_runs import curves
from lightning import Callback, Trainer
from sweep_runs import sweep, tiny_grid
from tiny_runs import NEVER_BETTER

from skyformer.sweep.grid import cells_of, read_grid
from skyformer.sweep.job import Attempt, write_attempts
from skyformer.training.callbacks import LastCheckpoint


def test_fit_ends_with_it(tmp_path, main, capsys, tiny_arguments):
    extra = ["--trainer.max_steps=60", *NEVER_BETTER, "--trainer.callbacks.patience=1", "--test_after_fit=true"]
    main(["fit", *tiny_arguments("listops", tmp_path), *extra])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    reason = "EarlyStopping, monitored metric val/accuracy did not improve in the last 1 records"
    assert last.startswith(f"Stopped early at step 6 of 60: {reason}")
    (record,) = json.loads((tmp_path / "record.json").read_text())
    assert (record["stopped_early"]["step"], record["stopped_early"]["max_steps"]) == (6, 60)


def test_run_of_some_epochs_takes_all_its_steps(tmp_path, main, capsys, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=60", "--trainer.max_epochs=1"])
    assert "Stopped early" not in capsys.readouterr().out


def test_time_that_is_over_is_the_reason(tmp_path, main, capsys, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_time={seconds: 0}"])
    assert capsys.readouterr().out.endswith("Stopped early at step 0 of 9: Timer, the time for training is over\n")


class EndAfter(Callback):
    """Ends training after some steps, as an early stopping callback does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


def test_wish_to_stop_before_the_smallest_number_of_steps(tmp_path, main, tiny_arguments, monkeypatch):
    """Training goes to step 15, with one checkpoint then, not one after each step."""
    saved = []
    monkeypatch.setattr(LastCheckpoint, "_save", lambda self, trainer: saved.append(trainer.global_step))
    extra = ["--trainer.limit_val_batches=0", "--trainer.min_steps=15", "--trainer.max_steps=20"]
    ended = [*tiny_arguments("listops", tmp_path), *extra, f"--trainer.callbacks={__name__}.EndAfter"]
    main(["fit", *ended, "--trainer.callbacks.step=2", "--last_checkpoint.every_n_train_steps=100"])
    assert saved[0] == 15


def test_resumed_run_keeps_the_row_of_the_step_that_ended_it(tmp_path, main, tiny_arguments):
    """The former checkpoint is of another step, whose row must not replace that of the last one."""
    extra = ["--trainer.limit_val_batches=0", "--last_checkpoint.every_n_train_steps=5", "--trainer.max_steps=9"]
    ended = [*tiny_arguments("listops", tmp_path / "ended"), *extra]
    main(["fit", *ended, f"--trainer.callbacks={__name__}.EndAfter", "--trainer.callbacks.step=8"])
    main(["fit", *ended, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("listops", tmp_path / "whole"), *extra])
    assert curves(tmp_path / "ended") == curves(tmp_path / "whole")


@pytest.mark.long
def test_report_and_sweep_say_it(tmp_path, data_dir, main, capsys):
    """Two runs of a sweep: one stops early at step 6 of 9, the other one takes all steps."""
    early = {"trainer.callbacks": [{"class_path": "EarlyStopping", "init_args": {
        "monitor": "val/accuracy", "mode": "max", "min_delta": 2, "patience": 1}}]}  # fmt: skip
    overrides = {"early": early, "whole": {"model.pooling": "cls"}}
    grid = sweep_runs.write_grid(tmp_path, arguments=tiny_grid(data_dir, max_steps=9), overrides=overrides)
    for cell in cells_of(read_grid(grid), tmp_path / "runs"):
        main(list(cell.fit))
        main(list(cell.test))
        write_attempts(cell.folder, [Attempt(1.0, 9, 1, "here", 2.0, 0)])
    capsys.readouterr()

    main(sweep(grid, tmp_path / "runs", "--status=true"))
    rows = {
        override: line for line in capsys.readouterr().out.splitlines() for override in overrides if override in line
    }
    assert "finished early" in rows["early"]
    assert "6/9" in rows["early"]
    assert "finished early" not in rows["whole"]
    assert "9/9" in rows["whole"]

    main(["report", f"--runs=[{tmp_path}/runs]", f"--output={tmp_path}/report"])
    assert "1 stopped early, the first at step 6" in (tmp_path / "report/accuracy.md").read_text()
    assert "6 steps, stopped early" in (tmp_path / "report/report.html").read_text()
    with (tmp_path / "report/runs.csv").open(newline="") as file:
        found = {row["steps"]: row["stopped_early"] for row in csv.DictReader(file)}
    assert found["6"].startswith("EarlyStopping, monitored metric val/accuracy did not improve")
    assert found["9"] == ""


def test_resumed_run_that_takes_all_steps_did_not_stop_early(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--ckpt_path=auto", *NEVER_BETTER]
    main([*arguments, "--trainer.callbacks.patience=1"])
    main([*arguments, "--trainer.callbacks.patience=9"])
    assert "Stopped early" not in capsys.readouterr().out.rpartition("step       9")[2]
    assert [("stopped_early" in record) for record in json.loads((tmp_path / "record.json").read_text())] == [
        True,
        False,
    ]
