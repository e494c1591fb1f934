"""`report`: what it says of runs is what they logged."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from report_runs import groups_in, write_checkpoint, write_run

from skyformer.report.groups import group_runs
from skyformer.report.pictures import running_mean, training_table
from skyformer.report.runs import find_runs
from skyformer.report.style import ORDER, place, style_of

LOGGER = "--trainer.logger=skyformer.training.loggers.TensorBoardLogger"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, main, tiny_arguments):
    """Two backends on a task each, and one more on the first task."""
    folder = tmp_path_factory.mktemp("runs")
    for task, attention in (("listops", "linformer"), ("listops", "skyformer"), ("text", "linformer")):
        main(["fit", *tiny_arguments(task, folder / task / attention, f"attention/{attention}"), LOGGER])
    return folder


def test_report_holds_what_the_runs_logged(runs, tmp_path, main):
    main(["report", f"--runs=[{runs}]", f"--output={tmp_path / 'out'}"])
    text = (tmp_path / "out/training.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["text", "listops"]
    names = re.findall(r"^\| (\w+) +\|", text, re.MULTILINE)
    assert names == ["method", "Linformer", "method", "Skyformer", "Linformer"]
    curve = next(run for run in find_runs([runs])[0] if run.backend == "skyformer").curve("train/loss")
    assert curve.step.tolist() == list(range(9))
    row = next(line for line in text.splitlines() if line.startswith("| Skyformer")).split("|")
    assert [cell.strip() for cell in row[2:6]] == ["0", "9", f"{curve.value.mean():.3f}", f"{curve.value.mean():.3f}"]
    assert len({len(line) for line in text.split("## listops")[1].splitlines() if line.startswith("|")}) == 1
    with Image.open(tmp_path / "out/loss_curves.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    for backend in ("skyformer", "linformer"):
        assert tuple(bytes.fromhex(style_of(backend).color[1:])) in colors, "its line is drawn"


def test_seconds_a_step_are_the_examples_over_their_rate(runs):
    ((run,), _) = find_runs([runs / "text"])
    assert (run.task, run.backend, run.examples_per_step) == ("text", "linformer", 4)
    (row,) = training_table(group_runs([run]), "text")
    rates = run.curve("speed/examples_per_second").value
    assert len(rates) == 9
    assert row["s/step"] == f"{(4 / rates).mean():.3g}"
    assert len(run.curve("no/such").value) == 0


def test_seconds_a_step_have_three_digits_and_leave_out_a_speed_of_nothing(tmp_path):
    folder = write_run(tmp_path / "run", steps=30)
    text = (folder / "metrics.csv").read_text().replace(",32.0,", ",8000.0,").replace("29,2.0,8000.0", "29,2.0,0.0")
    (folder / "metrics.csv").write_text(text)
    (row,) = training_table(groups_in(tmp_path), "listops")
    assert row["s/step"] == "0.004"


def test_folder_without_a_run_is_refused(tmp_path, main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", f"--runs=[{tmp_path}]", f"--output={tmp_path}/out"])
    assert stopped.value.code == 1
    assert f"no run in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_that_holds_no_run_is_named(tmp_path, main, capsys):
    write_run(tmp_path / "softmax", attention="softmax")
    (tmp_path / "empty").mkdir()
    folders = ", ".join(str(tmp_path / name) for name in ("softmax", "empty", "sotfmax"))
    main(["report", f"--runs=[{folders}]", f"--output={tmp_path}/out"])
    said = capsys.readouterr().err
    assert f"no run in {tmp_path}/empty\n" in said
    assert f"no run in {tmp_path}/sotfmax, which is no folder\n" in said
    assert f"no run in {tmp_path}/softmax" not in said
    assert "sotfmax, which is no folder" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("text", ["a: [", "data: {}", "- 1", "\udcff"])
def test_damaged_configuration_is_named(text, tmp_path, main, capsys):
    (tmp_path / "config.yaml").write_text(text, errors="surrogateescape")
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["report", f"--runs=[{tmp_path}]", f"--output={tmp_path}/out"])
    assert f"{tmp_path}/config.yaml is not the configuration of a run" in capsys.readouterr().err


def test_picture_without_matplotlib_says_what_to_install(runs, tmp_path, main, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stopped:
        main(["report", f"--runs=[{runs}]", f"--output={tmp_path}"])
    assert stopped.value.code == 1
    assert "pip install -e '.[report]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} >= {"training.md", "accuracy.md", "runs.csv"}, "tables need none"


def test_running_mean():
    assert running_mean(np.arange(4), np.array([1.0, 2.0, 3.0, 6.0]), 2).tolist() == [1.0, 1.5, 2.5, 4.5]
    assert running_mean(np.arange(1), np.array([4.0]), 30).tolist() == [4.0]


def test_steps_are_counted_and_not_what_was_logged():
    """Every tenth step logged: a mean over 30 steps is one over three numbers."""
    steps, values = np.arange(9, 60, 10), np.array([6.0, 3.0, 0.0, 3.0, 6.0, 9.0])
    assert running_mean(steps, values, 30).tolist() == [6.0, 4.5, 3.0, 2.0, 3.0, 6.0]


def test_losses_of_a_run_that_logged_every_fifth_step(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), LOGGER, "--trainer.log_every_n_steps=5"])
    ((run,), _) = find_runs([tmp_path])
    (row,) = training_table(group_runs([run]), "listops")
    assert run.curve("train/loss").step.tolist() == [4]
    assert row["first loss"] == row["last loss"] == f"{run.curve('train/loss').value[0]:.3f}"


@pytest.mark.parametrize("log_every", [50, 100, 200])
def test_run_that_stopped_after_its_last_log_is_not_finished(log_every, tmp_path):
    """Evaluated at step 60 of 100, in the last interval between two logs."""
    write_run(tmp_path / "run", steps=60, trainer__log_every_n_steps=log_every)
    ((run,), _) = find_runs([tmp_path])
    assert (run.steps, run.is_finished) == (60, False)


@pytest.mark.parametrize(("in_checkpoint", "steps"), [(95, 95), (100, 100), (None, 90)])
def test_checkpoint_counts_the_steps_after_the_last_log(in_checkpoint, steps, tmp_path):
    folder = write_run(tmp_path / "run", steps=90, trainer__log_every_n_steps=30)
    if in_checkpoint:
        write_checkpoint(folder, in_checkpoint)
    ((run,), _) = find_runs([tmp_path])
    assert (run.steps, run.is_finished) == (steps, steps == 100)


def test_run_that_logged_too_seldom_is_known_by_its_checkpoint(tmp_path, main, tiny_arguments):
    logger = "--trainer.logger=skyformer.training.loggers.CSVLogger"
    main(["fit", *tiny_arguments("listops", tmp_path), logger, "--trainer.log_every_n_steps=5",
          "--trainer.val_check_interval=4"])  # fmt: skip
    ((run,), _) = find_runs([tmp_path])
    assert max(curve.step.max() for curve in run.curves.values()) < 8
    assert run.steps == 9


def test_every_method_looks_like_itself_alone():
    looks = [(style_of(name).color, style_of(name).linestyle) for name in ORDER]
    assert len(set(looks)) == len(ORDER) == 9
    assert len({style_of(name).marker for name in [*ORDER, "mine"]}) == 10, "in grey, too"
    assert style_of("mine") == style_of("mine")
    assert style_of("mine").label == "mine"
    assert style_of("mine").color not in {style_of(name).color for name in ORDER}
    variant = style_of("nystromformer_without_convolution")
    assert (variant.label, variant.color) == ("Nyströmformer without convolution", style_of("nystromformer").color)
    assert sorted(["mine", "softmax", "skyformer"], key=place) == ["skyformer", "softmax", "mine"]
