"""A run's folder is where its files are, whether it was copied, moved or continued in another folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refuse

STEP = "global_step"


@pytest.fixture(scope="module")
def original(tmp_path_factory, main, tiny_arguments) -> Path:
    """The folder of a finished run; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "original"
    main(["fit", *tiny_arguments("listops", folder)])
    return folder


@pytest.fixture
def copied(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copied"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_copied_run_is_tested_in_its_own_folder(original, copied, main):
    before = contents(original)
    cli = main(["test", f"--config={copied}/config.yaml"])
    assert json.loads((copied / "result.json").read_text())["checkpoint"] == str(copied / "checkpoints/best.ckpt")
    assert cli.trainer.ckpt_path == str(copied / "checkpoints/best.ckpt")
    assert contents(original) == before


def test_moved_run_goes_on_in_its_own_folder(original, copied, main):
    before = contents(original)
    moved = copied.rename(copied.with_name("moved"))
    config = f"--config={moved}/config.yaml"
    cli = main(["fit", config, "--ckpt_path=auto", "--trainer.max_steps=12"])
    assert load(moved / "checkpoints/last.ckpt")[STEP] == 12
    assert [logger.save_dir for logger in cli.trainer.loggers] == [str(moved)]
    assert len((moved / "metrics.csv").read_text().splitlines()) > len(
        (original / "metrics.csv").read_text().splitlines()
    )
    assert contents(original) == before


def test_folder_on_the_command_line_counts_more(copied, tmp_path, main):
    main(
        ["fit", f"--config={copied}/config.yaml", f"--trainer.default_root_dir={tmp_path}/new", "--trainer.max_steps=3"]
    )
    assert load(tmp_path / "new/checkpoints/last.ckpt")[STEP] == 3
    assert (tmp_path / "new/metrics.csv").exists()


def test_file_called_config_outside_a_run_means_the_folder_that_it_names(original, tmp_path, main, capsys):
    shutil.copy(original / "config.yaml", tmp_path)
    refuse(main, capsys, ["fit", f"--config={tmp_path}/config.yaml"], 1, f"{original} already holds a run")


def as_the_best(path: Path, score: float) -> None:
    """Let a checkpoint remember this score of its best one."""
    checkpoint = load(path)
    state = checkpoint["callbacks"]["BestCheckpoint"]
    state["best_model_score"] = torch.tensor(score)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(score))
    torch.save(checkpoint, path)


def go_on(tiny_arguments, main, start: Path, folder: Path):
    arguments = [*tiny_arguments("listops", folder), f"--ckpt_path={start}", "--trainer.max_steps=12"]
    return main(["fit", *arguments, "--test_after_fit=true"])


def test_best_checkpoint_goes_along_with_its_score(copied, tmp_path, main, tiny_arguments):
    """No later evaluation beats the score, so the best checkpoint of the other folder stays the best."""
    best = (copied / "checkpoints/best.ckpt").read_bytes()
    as_the_best(copied / "checkpoints/last.ckpt", 2.0)
    go_on(tiny_arguments, main, copied / "checkpoints/last.ckpt", tmp_path / "new")
    assert (tmp_path / "new/checkpoints/best.ckpt").read_bytes() == best
    assert (tmp_path / "new/result.json").exists()


def test_score_whose_checkpoint_is_gone_is_forgotten(copied, tmp_path, main, tiny_arguments):
    as_the_best(copied / "checkpoints/last.ckpt", 2.0)
    (copied / "checkpoints/best.ckpt").unlink()
    go_on(tiny_arguments, main, copied / "checkpoints/last.ckpt", tmp_path / "new")
    assert load(tmp_path / "new/checkpoints/best.ckpt")[STEP] == 9, "the first evaluation after the resume"


@pytest.mark.long
def test_best_checkpoint_of_a_later_step_does_not_go_along(copied, tmp_path, main, tiny_arguments):
    """A resume from step 6 of a run whose best evaluation came at step 9."""
    best, start = copied / "checkpoints/best.ckpt", copied / "checkpoints/previous.ckpt"
    torch.save({**load(best), STEP: 9}, best)
    as_the_best(start, 2.0)
    assert load(start)[STEP] == 6
    go_on(tiny_arguments, main, start, tmp_path / "new")
    assert load(tmp_path / "new/checkpoints/best.ckpt")[STEP] == 6, "the first evaluation after the resume"
    assert len(load(tmp_path / "new/checkpoints/last.ckpt")["callbacks"]["BestCheckpoint"]["best_k_models"]) == 1


@pytest.mark.long
def test_top_checkpoints_go_along(tmp_path, main, tiny_arguments):
    arguments = [*tiny_arguments("listops", tmp_path / "old", "trainer/top_three")]
    main(["fit", *arguments])
    names = {path.name for path in (tmp_path / "old/checkpoints").glob("top-*")}
    start = f"--ckpt_path={tmp_path}/old/checkpoints/last.ckpt"
    main(["fit", *arguments, f"--trainer.default_root_dir={tmp_path}/new", start])  # has all its steps
    assert {path.name for path in (tmp_path / "new/checkpoints").glob("top-*")} == names
    assert len(names) == 3


@pytest.mark.long
def test_home_folder_in_paths(copied, main, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    home = ["--trainer.default_root_dir=~/copied", "--ckpt_path=~/copied/checkpoints/last.ckpt"]
    logger = ["--trainer.logger.save_dir=~/logs"]
    cli = main(["fit", "--config=~/copied/config.yaml", *home, *logger, "--trainer.max_steps=12"])
    assert cli.trainer.global_step == 12
    assert (copied.parent / "logs/metrics.csv").exists()
    main(["report", "--runs=[~/copied]", "--output=~/report"])
    assert (copied.parent / "report/report.html").exists()
