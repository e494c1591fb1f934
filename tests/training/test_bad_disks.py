"""A run on a disk that is full, read-only, another one, somebody else's: a clear error, and nothing half-made."""

import shutil
import stat

import pytest
from disks import as_nobody, fill, mounted
from runs_compared import assert_same_run

from skyformer.model.checkpoint_io import read_checkpoint


def stops(main, capsys, arguments: list[str], *words: str) -> None:
    """The command ends with status 1 and one line of ours on stderr that has all these words."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 1, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    for word in words:
        assert word in lines[0], f"{word!r} not in: {lines[0]}"
    assert "error is unexpected" not in said


def partials(folder) -> list[str]:
    return [str(path) for path in folder.rglob("*.partial")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, main, tiny_arguments):
    """A run that nothing befell, and the size of its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    main(["fit", *tiny_arguments("listops", folder)])
    return folder, (folder / "checkpoints/last.ckpt").stat().st_size


@pytest.mark.parametrize("checkpoints", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 3))])
def test_disk_that_fills_up_keeps_what_was_whole(checkpoints, whole, tmp_path, main, capsys, tiny_arguments):
    """Room for this number of checkpoints: the next one fails. With room again, the run continues to the same end."""
    folder, size = whole
    with mounted(tmp_path / "disk", 4000) as disk:
        ballast = fill(disk, leave=int((checkpoints + 0.7) * size))
        arguments = ["fit", *tiny_arguments("listops", disk / "run"), "--ckpt_path=auto"]
        stops(main, capsys, arguments, "No space left on device", str(disk / "run/checkpoints"), "Fix: free some space")
        assert not partials(disk)
        kept = list((disk / "run/checkpoints").glob("*.ckpt"))
        assert len(kept) == checkpoints
        assert all(read_checkpoint(path)["global_step"] > 0 for path in kept)
        ballast.unlink()
        main(arguments)
        assert_same_run(disk / "run", folder)


@pytest.mark.parametrize("leave", [0, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "logger", ["skyformer.training.loggers.CSVLogger", "skyformer.training.loggers.TensorBoardLogger"]
)
def test_full_disk_from_the_start(logger, leave, tmp_path, main, capsys, tiny_arguments):
    with mounted(tmp_path / "disk", 1000) as disk:
        fill(disk, leave)
        arguments = ["fit", *tiny_arguments("listops", disk / "run"), f"--trainer.logger={logger}"]
        stops(main, capsys, arguments, "No space left on device", "Fix: free some space")
        assert not partials(disk)
        assert not list(disk.rglob("*.ckpt"))


def test_log_on_a_full_disk_is_whole_after_a_resume(tmp_path, main, capsys, tiny_arguments):
    with mounted(tmp_path / "disk", 1000) as disk:
        main(["fit", *tiny_arguments("listops", disk / "run"), "--trainer.max_steps=3"])
        ballast = fill(disk, leave=0)
        arguments = ["fit", *tiny_arguments("listops", disk / "run"), "--ckpt_path=last"]
        stops(main, capsys, arguments, "No space left on device", str(disk / "run"))
        ballast.unlink()
        main(arguments)
        assert not partials(disk)


def test_read_only_folder(tmp_path, main, capsys, tiny_arguments):
    with mounted(tmp_path / "disk", 1000, read_only=True) as disk:
        arguments = ["fit", *tiny_arguments("listops", disk / "run")]
        stops(main, capsys, arguments, "Read-only file system", str(disk / "run"), "can be written to")


def test_results_that_cannot_be_written(whole, tmp_path, main, capsys, tiny_arguments):
    """Test and predict on a run in a read-only folder."""
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222 | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0))
    for above in tmp_path.relative_to("/tmp").parents if tmp_path.is_relative_to("/tmp") else []:
        ("/tmp" / above).chmod(0o755) if str(above) != "." else None
    tmp_path.chmod(0o755)
    for command in ("test", "predict"):
        with as_nobody():
            stops(main, capsys, [command, *tiny_arguments("listops", folder)], "Permission denied", str(folder))


def test_folder_of_somebody_else(tmp_path, main, capsys, tiny_arguments):
    (tmp_path / "closed").mkdir(mode=0o700)
    with as_nobody():
        arguments = ["fit", *tiny_arguments("listops", tmp_path / "closed/run")]
        stops(main, capsys, arguments, "Permission denied", str(tmp_path), "change its permissions")


def test_folder_that_is_a_file(tmp_path, main, capsys, tiny_arguments):
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/run"):
        stops(main, capsys, ["fit", *tiny_arguments("listops", tmp_path / name)], str(tmp_path / "file"), "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_name_that_is_too_long(tmp_path, main, capsys, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path / ("n" * 300))]
    stops(main, capsys, arguments, "File name too long", "shorter path")


def test_folder_on_another_disk_with_no_room_for_temporary_files(whole, tmp_path, main, tiny_arguments, monkeypatch):
    with mounted(tmp_path / "disk", 4000) as disk, mounted(tmp_path / "temporary", 4) as temporary:
        monkeypatch.setenv("TMPDIR", str(temporary))
        main(["fit", *tiny_arguments("listops", disk / "run")])
        assert_same_run(disk / "run", whole[0])


def test_spaces_and_letters_of_other_alphabets(whole, tmp_path, main, tiny_arguments):
    folder = tmp_path / "Läufe und данные 训练" / "run [1], 'a'=b"
    arguments = tiny_arguments("listops", folder)
    stop = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, *stop])
    main(["fit", *arguments, "--ckpt_path=last"])
    assert_same_run(folder, whole[0])
    main(["test", f"--config={folder}/config.yaml"])
    main(["predict", f"--config={folder}/config.yaml"])
    assert (folder / "predictions.csv").exists()
    assert (folder / "result.json").exists()


def test_picture_that_cannot_be_written(tmp_path, main, capsys, tiny_arguments):
    run = tmp_path / "run"
    arguments = [a for a in tiny_arguments("listops", run) if "trainer.logger" not in a]
    main(["fit", *arguments, "--trainer.max_steps=3"])
    with mounted(tmp_path / "disk", 1000, read_only=True) as disk:
        words = ("Read-only file system", str(disk))
        stops(main, capsys, ["report", f"--runs=[{run}]", f"--output={disk}/report"], *words)
