"""`--model.init_from`: a new run that starts from the weights of another one."""

import pytest
import torch

from skyformer.model.checkpoint_io import read_checkpoint

HELD = ("--model.optimizer.init_args.lr=0", "--trainer.max_steps=3")  # weights stay as they started


@pytest.fixture(scope="module")
def source(tmp_path_factory, main, tiny_arguments):
    folder = tmp_path_factory.mktemp("source")
    main(["fit", *tiny_arguments("pathfinder", folder)])
    return folder / "checkpoints/last.ckpt"


def weights_of(path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def test_run_starts_from_all_weights_of_the_same_network(source, tmp_path, main, tiny_arguments, capfd, caplog):
    extra = ("--data.batch_size=2", "--seed_everything=5", f"--model.init_from={source}")
    main(["fit", *tiny_arguments("pathfinder", tmp_path), *HELD, *extra])
    started = read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    for name, weight in weights_of(source).items():
        assert torch.equal(started["state_dict"][name], weight), name
    assert started["global_step"] == 3, "its own steps"
    number = len(weights_of(source))
    assert f"step 9: {number} of {number} tensors taken\n" in caplog.text + "".join(capfd.readouterr())


def test_another_task_takes_what_fits_and_says_what_does_not(source, tmp_path, main, tiny_arguments, capfd, caplog):
    main(["fit", *tiny_arguments("listops", tmp_path), *HELD, f"--model.init_from={source}"])
    given, started = weights_of(source), weights_of(tmp_path / "checkpoints/last.ckpt")
    left_out = {name for name in started if name not in given or started[name].shape != given[name].shape}
    assert {"head.layers.2.weight", "encoder.tokens.weight"} <= left_out
    assert not any(name.startswith("encoder.blocks.0.mlp") for name in left_out)
    said = caplog.text + "".join(capfd.readouterr())
    for name in started:
        assert torch.equal(started[name], given[name]) if name not in left_out else f"not taken: {name}, " in said
    assert "not taken: head.layers.2.bias, (2,) in the checkpoint, (10,) here" in said


def test_exported_half_precision_weights_become_float32(source, tmp_path, main, tiny_arguments):
    small = tmp_path / "small.ckpt"
    main(["export", f"--ckpt_path={source}", f"--output={small}", "--half=true"])
    main(["fit", *tiny_arguments("pathfinder", tmp_path / "run"), *HELD, f"--model.init_from={small}"])
    started = weights_of(tmp_path / "run/checkpoints/last.ckpt")
    for name, weight in weights_of(small).items():
        assert torch.equal(started[name], weight.float()), name
        assert started[name].dtype == torch.float32


def test_resume_does_not_start_over(source, tmp_path, main, tiny_arguments):
    """The checkpoint that it started from may be gone by then."""
    start = tmp_path / "start.ckpt"
    start.write_bytes(source.read_bytes())
    arguments = [*tiny_arguments("pathfinder", tmp_path / "run"), f"--model.init_from={start}"]
    main(["fit", *arguments, "--trainer.max_steps=6"])
    start.unlink()
    main(["fit", *arguments, "--trainer.max_steps=9", "--ckpt_path=last"])
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 9


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--model.init_from=nowhere.ckpt",), "model.init_from: no such checkpoint (got nowhere.ckpt)"),
        (("--model.embed_dim=12",), "tensors taken"),
    ],
)
def test_what_cannot_be_taken_is_said(extra, said, source, tmp_path, main, tiny_arguments, capfd, caplog):
    arguments = [*tiny_arguments("pathfinder", tmp_path), *HELD, f"--model.init_from={source}", *extra]
    if said.startswith("model"):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *arguments])
        assert stopped.value.code == 1
    else:
        main(["fit", *arguments])
    assert said in caplog.text + "".join(capfd.readouterr())


def test_checkpoint_of_another_network_is_refused(tmp_path, main, tiny_arguments, capfd, caplog):
    other = {"config": "{}", "global_step": 1, "state_dict": {"weight": torch.zeros(3)}, "weights_only": True}
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("pathfinder", tmp_path / "run"), f"--model.init_from={tmp_path}/other.ckpt"])
    assert stopped.value.code == 1
    assert "no weight of" in capfd.readouterr().err
