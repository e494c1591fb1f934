"""What a run was made with stays in its folder, and other data than the training's does not pass in silence."""

import hashlib
import json
import shutil

import pytest
import yaml
from tiny_runs import ROOT

from skyformer.installation import command_line
from skyformer.training.record import code_state, portable_words


@pytest.fixture
def own_data(tmp_path, tiny_arguments):
    """Arguments of a run whose prepared data is its own."""
    arguments = tiny_arguments("listops", tmp_path / "run")
    return [*arguments, f"--data.init_args.data_dir={tmp_path}/data"]


def change_data(tmp_path, capsys, main, own_data) -> None:
    """Other examples in a folder of the same settings, as from another version of the generator."""
    (folder,) = (tmp_path / "data").glob("listops-*")
    other = ["--data.init_args.data_seed=1", f"--data.init_args.data_dir={tmp_path}/other"]
    main(["prepare", *(a for a in own_data if a.startswith(("--data", "--config"))), *other])
    (made,) = (tmp_path / "other").glob("listops-*")
    meta, former = (json.loads((path / "meta.json").read_text()) for path in (made, folder))
    shutil.rmtree(folder)
    made.rename(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, "settings": former["settings"]}))
    capsys.readouterr()


def test_record_says_what_the_run_was_made_with(tmp_path, main, own_data):
    main(["fit", *own_data])
    main(["fit", *own_data, "--ckpt_path=last", "--trainer.max_steps=12"])
    first, second = json.loads((tmp_path / "run/record.json").read_text())
    assert (first["from_step"], second["from_step"]) == (0, 9)
    for record in (first, second):
        assert record["seed"] == 0
        assert record["num_processes"] == 1
        assert len(record["data_hash"]) == 16
        assert record["versions"]["torch"].startswith("2.")
        assert record["hardware"]["cores"] >= 1
        assert record["hardware"]["processor"]
        assert record["code"] == code_state()
    assert yaml.safe_load((tmp_path / "run/config.1.yaml").read_text())["trainer"]["max_steps"] == 9


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/home/me/run.py", "fit", "--config", "configs/text.yaml"], "python run.py fit --config configs/text.yaml"),
        (["/x/bin/skyformer", "fit", "--data.data_dir=/data", "--data.seed=1"], "skyformer fit --data.seed=1"),
        ([], ""),
        (
            ["run.py", "fit", "--ckpt_path", "last", "--data.init_args.source", "/s", "-c", "a"],
            "python run.py fit -c a",
        ),
        (
            ["run.py", "fit", "--config", f"{ROOT}/configs/text.yaml", "--config=/home/me/own.yaml"],
            "python run.py fit --config configs/text.yaml --config=own.yaml",
        ),
    ],
)
def test_command_names_no_folders(words, expected):
    assert command_line(portable_words(words)) == expected


def test_result_identifies_the_tested_checkpoint(tmp_path, main, own_data):
    main(["fit", *own_data, "--test_after_fit=true"])
    result = json.loads((tmp_path / "run/result.json").read_text())
    tested = (tmp_path / "run/checkpoints/best.ckpt").read_bytes()
    assert result["checkpoint_sha256"] == hashlib.sha256(tested).hexdigest()


def test_damaged_record_stays_beside(tmp_path, main, own_data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/record.json").write_text("[{")
    main(["fit", *own_data])
    assert (tmp_path / "run/record.1.json").read_text() == "[{"
    assert len(json.loads((tmp_path / "run/record.json").read_text())) == 1


def test_resume_with_other_data_is_refused(tmp_path, main, capsys, own_data):
    main(["fit", *own_data])
    change_data(tmp_path, capsys, main, own_data)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *own_data, "--ckpt_path=last", "--trainer.max_steps=12"])
    assert stopped.value.code == 1
    assert "the data differs from what the checkpoint was trained on: hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["test", *(pytest.param(command, marks=pytest.mark.long) for command in ("predict", "validate"))]
)
def test_evaluation_on_other_data_warns(command, tmp_path, main, capsys, own_data):
    main(["fit", *own_data])
    change_data(tmp_path, capsys, main, own_data)
    with pytest.warns(UserWarning, match="the data differs from what the checkpoint was trained on"):
        main([command, f"--config={tmp_path}/run/config.yaml"])
