"""Checkpoints are whole or absent, run no code, and a damaged one is said and passed over."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from damage import damages

from skyformer.exceptions import CheckpointError
from skyformer.model.checkpoint_io import read_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main, tiny_arguments):
    folder = tmp_path_factory.mktemp("checkpoints")
    main(["fit", *tiny_arguments("listops", folder)])
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "run")


def resume(main, tiny_arguments, folder, named="last"):
    return main(["fit", *tiny_arguments("listops", folder), f"--ckpt_path={named}", "--trainer.max_steps=12"])


def test_one_bit_anywhere_is_found_or_harmless(trained, tmp_path):
    """Harmless: in what a zip archive says beside the data, such as the time of a record."""
    whole = (trained / "checkpoints/last.ckpt").read_bytes()
    expected = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    found = 0
    for number in range(60):
        place = len(whole) * number // 60
        damaged = tmp_path / "bit.ckpt"
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << number % 8]) + whole[place + 1 :])
        try:
            weights = read_checkpoint(damaged)["state_dict"]
        except CheckpointError:
            found += 1
        else:
            assert all(torch.equal(weights[name], weight) for name, weight in expected["state_dict"].items())
    assert found > 30


def test_every_damage_of_a_checkpoint_is_refused(trained, tmp_path):
    whole = (trained / "checkpoints/last.ckpt").read_bytes()
    refused = []
    for name, damage in damages(seed=0).items():
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(damage(whole))
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            assert zipfile.ZipFile(path).testzip() is None, f"{name} passed"
    assert len(refused) >= 15
    assert all(str(tmp_path / "damaged.ckpt") in said for said in refused)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_checkpoint_of_a_stranger_runs_no_code(folder, tmp_path, main, capsys, tiny_arguments):
    marker = tmp_path / "executed"
    for name, content in {"pickled": pickle.dumps(Hostile(marker)), "zipped": None}.items():
        path = tmp_path / f"{name}.ckpt"
        if content is None:
            torch.save({"state_dict": {}, "global_step": 1, "config": Hostile(marker)}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(SystemExit) as stopped:
            main(["test", *tiny_arguments("listops", folder), f"--ckpt_path={path}"])
        assert stopped.value.code == 1
        assert str(path) in capsys.readouterr().err
    assert not marker.exists()


def test_tag_of_a_python_object_in_the_configuration_of_a_checkpoint(folder, tmp_path, main, capsys, tiny_arguments):
    path, marker = folder / "checkpoints/best.ckpt", tmp_path / "executed"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] = f"!!python/object/apply:os.system ['touch {marker}']"
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit):
        main(["test", *tiny_arguments("listops", folder)])
    assert str(path) in capsys.readouterr().err
    assert not marker.exists()


CHANGES = {
    **{f"without {key}": (key, None) for key in ("state_dict", "loops", "optimizer_states", "lr_schedulers", "config")},
    "step is text": ("global_step", "nine"),
    "weights are a list": ("state_dict", [1, 2]),
    "weights are numbers": ("state_dict", {"encoder.norm.weight": 1}),
    "other weights": ("state_dict", {"encoder.norm.weight": torch.zeros(3)}),
    "loops are a number": ("loops", 3),
    "loops are empty": ("loops", {}),
    "optimiser of another model": ("optimizer_states", [{"state": {}, "param_groups": [{"params": [0]}]}]),
    "optimiser is a text": ("optimizer_states", "adam"),
    "schedule is a number": ("lr_schedulers", 1),
    "callbacks are a list": ("callbacks", [1]),
    "callbacks without their fields": ("callbacks", {"LastCheckpoint": {}}),
    "place in the data is text": ("ListOps", "here"),
    "place in the data is far beyond": ("ListOps", {"epoch": 0, "batch": 10**9}),
    "place in the data is negative": ("ListOps", {"epoch": -3, "batch": -1}),
    "version is a number": ("pytorch-lightning_version", 7),
    "version is no version": ("pytorch-lightning_version", "seven"),
    "configuration is a number": ("config", "7"),
    "configuration is no YAML": ("config", "{"),
    "configuration nests without end": ("config", "{a: " * 2000),
    "hash of other data": ("data_hash", "0" * 16),
    "of two processes": ("num_processes", 2),
}


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=() if number % 2 else pytest.mark.long) for number, name in enumerate(CHANGES)]
)
def test_contents_that_do_not_fit_are_refused_in_one_line(change, folder, main, capsys, tiny_arguments):
    """Never a traceback of somebody else's library, and the file is still there."""
    path = folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    key, value = CHANGES[change]
    if value is None:
        del checkpoint[key]
    else:
        checkpoint[key] = value
    torch.save(checkpoint, path)
    (folder / "checkpoints/previous.ckpt").unlink()
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        resume(main, tiny_arguments, folder)
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "error: " in said
    assert "Traceback" not in said
    assert path.read_bytes() == before


def test_damaged_last_one_falls_back_to_the_one_before(folder, main, capsys, tiny_arguments):
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    cli = resume(main, tiny_arguments, folder)
    said = capsys.readouterr().out
    assert "cannot be read" in said
    assert "Fix: " not in said
    assert "Resuming from the previous checkpoint" in said
    assert "step 6" in said
    assert cli.trainer.global_step == 12
    assert json.loads((folder / "record.json").read_text())[-1]["from_step"] == 6
    assert (folder / "checkpoints/last.damaged.1.ckpt").exists()
    assert read_checkpoint(last)["global_step"] == 12


def test_stopped_between_two_checkpoints(folder, main, tiny_arguments):
    (folder / "checkpoints/last.ckpt").unlink()
    assert resume(main, tiny_arguments, folder, "auto").trainer.global_step == 12


def test_both_damaged(folder, main, capsys, tiny_arguments):
    for name in ("last", "previous"):
        (folder / f"checkpoints/{name}.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        resume(main, tiny_arguments, folder)
    assert stopped.value.code == 1
    assert "cannot be read" in capsys.readouterr().err
    assert (folder / "checkpoints/last.ckpt").exists(), "nothing is set aside in vain"


def test_auto_starts_and_goes_on(tmp_path, main, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--ckpt_path=auto"]
    assert main(arguments).trainer.global_step == 9
    assert main([*arguments, "--trainer.max_steps=12"]).trainer.global_step == 12
    assert json.loads((tmp_path / "record.json").read_text())[1]["from_step"] == 9


def test_auto_starts_anew_where_only_the_best_one_is_there(folder, main, tiny_arguments):
    """As after an evaluation in the middle of accumulated batches, before the first checkpoint to resume from."""
    for name in ("last", "previous"):
        (folder / f"checkpoints/{name}.ckpt").unlink()
    assert resume(main, tiny_arguments, folder, "auto").trainer.global_step == 12
    assert json.loads((folder / "record.json").read_text())[-1]["from_step"] == 0


def test_top_checkpoints_are_kept_across_a_resume(tmp_path, main, tiny_arguments):
    arguments = ["fit", *tiny_arguments("listops", tmp_path, "trainer/top_three"), "--trainer.val_check_interval=1"]
    main([*arguments, "--trainer.max_steps=6"])
    assert len(list((tmp_path / "checkpoints").glob("top-step*.ckpt"))) == 3
    main([*arguments, "--trainer.max_steps=12", "--ckpt_path=last"])
    assert len(list((tmp_path / "checkpoints").glob("top-step*.ckpt"))) == 3


def test_every_so_many_minutes(tmp_path, main, tiny_arguments, monkeypatch):
    """A clock that goes a minute ahead each time that it is read."""
    minutes = iter(range(10**6))
    monkeypatch.setattr("skyformer.training.callbacks.checkpoints.monotonic", lambda: 60.0 * next(minutes))
    saved, save = [], torch.save

    def watched(checkpoint, file):
        saved.append(checkpoint)
        save(checkpoint, file)

    monkeypatch.setattr("skyformer.model.checkpoint_io.torch.save", watched)
    arguments = ["fit", *tiny_arguments("listops", tmp_path), "--trainer.val_check_interval=100"]
    main([*arguments, "--last_checkpoint.every_n_minutes=2.5"])
    assert [checkpoint["global_step"] for checkpoint in saved] == [3, 6, 9]
