"""Curves to Weights & Biases, offline: one W&B run for a run and all its resumes."""

import pytest

OFFLINE = ("--trainer.logger.init_args.offline=true",)


@pytest.fixture
def train(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    overlay = tiny_arguments("listops", tmp_path / "run", "trainer/wandb")
    arguments = [argument for argument in overlay if not argument.startswith("--trainer.logger")]

    def run(command: str, *extra: str) -> list[str]:
        """The ids of the W&B runs that are on disk after the command, by time."""
        import wandb

        main([command, *arguments, *OFFLINE, *extra])
        wandb.finish()
        folders = (tmp_path / "run/wandb").glob("offline-run-*")
        return [folder.name.split("-")[3] for folder in sorted(folders, key=lambda path: path.stat().st_mtime)]

    return run


def test_resume_and_test_continue_the_wandb_run(train, tmp_path):
    (first,) = train("fit", "--trainer.max_steps=3")
    assert (tmp_path / "run/wandb_id.txt").read_text() == first
    assert set(train("fit", "--trainer.max_steps=6", "--ckpt_path=last")) == {first}
    assert set(train("test")) == {first}


def test_new_run_in_a_folder_without_checkpoints_gets_an_id_of_its_own(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb_id.txt").write_text("former")
    (first,) = train("fit", "--trainer.max_steps=3")
    assert first != "former"
    assert (tmp_path / "run/wandb_id.txt").read_text() == first
