"""A run is a function of its configuration and seed, whatever interrupts it."""

import csv
import signal
from pathlib import Path

import pytest
import torch
import yaml
from interrupted_runs import STOP, assert_same_training, curves, evaluations, run_process

from skyformer.model.classifier import SequenceClassifier


@pytest.mark.parametrize("task", ["listops", "pathfinder"])
def test_killed_run_resumes_to_the_last_bit(task, tmp_path, main, tiny_arguments):
    """SIGKILL at step 8 of an 11- or 12-batch epoch, with a checkpoint at step 7; resumed over the epoch's end."""
    extra = ["--last_checkpoint.every_n_train_steps=7", "--trainer.max_steps=16", "--trainer.val_check_interval=9"]
    killed = [*tiny_arguments(task, tmp_path / "killed"), *extra]
    assert run_process([*killed, STOP, "--trainer.callbacks.step=8"]) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)["global_step"] == 7
    main(["fit", *killed, "--ckpt_path=last"])
    main(["fit", *tiny_arguments(task, tmp_path / "whole"), *extra])
    assert_same_training(tmp_path / "killed", tmp_path / "whole", from_step=7)


@pytest.mark.long
def test_killed_evaluation_is_run_again(tmp_path, main, tiny_arguments):
    """SIGKILL in the middle of the evaluation after step 6."""
    killed = tiny_arguments("listops", tmp_path / "killed")
    assert run_process([*killed, STOP, "--trainer.callbacks.step=6", "--trainer.callbacks.in_evaluation=true"]) == -9
    main(["fit", *killed, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("listops", tmp_path / "whole")])
    assert_same_training(tmp_path / "killed", tmp_path / "whole", from_step=6)


def test_evaluation_with_random_landmarks_repeats_after_a_resume(tmp_path, main, tiny_arguments):
    """SIGTERM in the evaluation after step 6, whose landmarks are drawn at every call."""
    fresh = ["--model.attention.eval_landmarks=fresh", "--model.attention.num_landmarks=4"]
    stopped = [*tiny_arguments("listops", tmp_path / "stopped"), *fresh]
    stop = [STOP, "--trainer.callbacks.step=6", "--trainer.callbacks.in_evaluation=true"]
    with pytest.raises(SystemExit):
        main(["fit", *stopped, *stop, "--trainer.callbacks.name=SIGTERM"])
    main(["fit", *stopped, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("listops", tmp_path / "whole"), *fresh])
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "whole")


def test_smallest_loss_is_the_best(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), "--best_checkpoint.monitor=val/loss"])
    losses = {step + 1: float(loss) for step, (loss, _) in evaluations(tmp_path).items()}
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    assert losses[best] == min(losses.values()) < max(losses.values())


@pytest.mark.long
@pytest.mark.parametrize("in_evaluation", [True, False])
def test_run_that_was_killed_after_its_last_step(in_evaluation, tmp_path, main, tiny_arguments):
    """SIGKILL in the last evaluation, and right before the last step's checkpoint; then the run has all its steps."""
    killed = [*tiny_arguments("listops", tmp_path / "killed"), "--ckpt_path=auto"]
    stop = ["--trainer.callbacks.step=9", f"--trainer.callbacks.in_evaluation={in_evaluation}"]
    assert run_process([*killed, STOP, *stop]) == -9
    main(["fit", *killed])
    main(["fit", *killed])  # once more changes nothing
    main(["fit", *tiny_arguments("listops", tmp_path / "whole")])
    assert_same_training(tmp_path / "killed", tmp_path / "whole", from_step=6)
    assert list(evaluations(tmp_path / "killed")) == [2, 5, 8]


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_that_reaches_the_loader_too(name, code, tmp_path, main, tiny_arguments):
    """Two loader processes, and the signal to the whole group, as from a terminal or a scheduler."""
    arguments = [*tiny_arguments("listops", tmp_path), "--data.init_args.num_workers=2"]
    stop = [STOP, "--trainer.callbacks.step=4", f"--trainer.callbacks.name={name}", "--trainer.callbacks.group=true"]
    assert run_process([*arguments, *stop]) == code
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, main, tiny_arguments, capsys):
    arguments = tiny_arguments("listops", tmp_path / "stopped")
    stop = ["--trainer.callbacks.step=6", "--trainer.callbacks.name=SIGTERM", "--trainer.callbacks.in_evaluation=true"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, STOP, *stop])
    assert stopped.value.code == 143
    assert "Stopped at step 6. Resume it with --ckpt_path last." in capsys.readouterr().out
    assert list(evaluations(tmp_path / "stopped")) == [2]
    main(["fit", *arguments, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("listops", tmp_path / "whole")])
    assert_same_training(tmp_path / "stopped", tmp_path / "whole", from_step=6)


def test_evaluation_that_is_made_up_is_compiled_after_a_training_step(tmp_path, main, tiny_arguments, monkeypatch):
    """On a GPU the compiler chooses kernels by the first batches that it sees."""
    arguments = tiny_arguments("listops", tmp_path)
    stop = ["--trainer.callbacks.step=6", "--trainer.callbacks.name=SIGTERM", "--trainer.callbacks.in_evaluation=true"]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, STOP, *stop])
    seen = []

    def compile_for(model, tokens, *others):
        seen.append((model.global_step, model.trainer.validating, model.training, tokens.shape[0]))
        model._is_compiled = True

    monkeypatch.setattr(SequenceClassifier, "_must_compile", property(lambda model: not model._is_compiled))
    monkeypatch.setattr(SequenceClassifier, "_compile_for", compile_for)
    main(["fit", *arguments, "--ckpt_path=last"])
    assert seen == [(6, False, True, 8)]


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.long) for step in (1, 6, 12, 13)] + [11])
def test_stopped_run_resumes_to_the_last_bit(step, tmp_path, main, tiny_arguments):
    """SIGTERM at the start, in the middle, before, at and after the end of an epoch of twelve batches."""
    arguments = [*tiny_arguments("listops", tmp_path / "stopped"), "--trainer.max_steps=16"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, STOP, f"--trainer.callbacks.step={step}", "--trainer.callbacks.name=SIGTERM"])
    assert stopped.value.code == 143
    main(["fit", *arguments, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("listops", tmp_path / "whole"), "--trainer.max_steps=16"])
    assert_same_training(tmp_path / "stopped", tmp_path / "whole", from_step=step)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_run_that_goes_from_the_end_of_an_epoch_to_the_end_of_the_next(workers, tmp_path, main, tiny_arguments):
    """Epochs of twelve batches; the run ends by their number."""
    extra = ["--trainer.max_steps=50", "--trainer.max_epochs=3", f"--data.init_args.num_workers={workers}"]
    arguments = [*tiny_arguments("listops", tmp_path / "stopped"), *extra, "--ckpt_path=auto"]
    for step in (12, 24):
        with pytest.raises(SystemExit):
            main(["fit", *arguments, STOP, f"--trainer.callbacks.step={step}", "--trainer.callbacks.name=SIGTERM"])
    assert main(["fit", *arguments]).trainer.global_step == 36
    main(["fit", *tiny_arguments("listops", tmp_path / "whole"), *extra])
    assert_same_training(tmp_path / "stopped", tmp_path / "whole", from_step=1)


OPTIONS = ["--model.positions=rotary", "--model.norm=rms", "--model.feed_forward=geglu", "--model.pooling=attention"]
OPTIONS += ["--model.stochastic_depth=0.3", "--data.init_args.augment=[permute]"]


@pytest.mark.parametrize(
    ("name", "overlays", "extra"),
    [
        ("workers", (), ["--data.init_args.num_workers=2"]),
        pytest.param(
            "accumulation", ("trainer/accumulate",), ["--trainer.accumulate_grad_batches=2"], marks=pytest.mark.long
        ),
        pytest.param("bf16", ("trainer/bf16",), [], marks=pytest.mark.long),
        pytest.param("positions", (), ["--model.positions_lr_factor=0.1"], marks=pytest.mark.long),
        pytest.param("options", (), OPTIONS, marks=pytest.mark.long),
    ],
)
def test_variants_resume_to_the_last_bit(name, overlays, extra, tmp_path, main, tiny_arguments):
    def arguments(folder: str) -> list[str]:
        return [*tiny_arguments("listops", tmp_path / folder, *overlays), *extra]

    with pytest.raises(SystemExit):
        main(["fit", *arguments("stopped"), STOP, "--trainer.callbacks.step=5", "--trainer.callbacks.name=SIGTERM"])
    main(["fit", *arguments("stopped"), "--ckpt_path=last"])
    main(["fit", *arguments("whole")])
    assert_same_training(tmp_path / "stopped", tmp_path / "whole", from_step=5)


def test_sigterm_exits_with_143(tmp_path, tiny_arguments):
    arguments = tiny_arguments("listops", tmp_path)
    stop = ["--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    assert run_process([*arguments, STOP, *stop]) == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_ctrl_c_leaves_a_checkpoint(tmp_path, main, tiny_arguments):
    stop = ["--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGINT"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("listops", tmp_path), STOP, *stop])
    assert stopped.value.code == 130
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_moved_run_remembers_its_best_score(tmp_path, main, tiny_arguments):
    """The folder is renamed between stop and resume; a later, worse evaluation must not replace the best one."""
    stop = ["--trainer.callbacks.step=7", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main(["fit", *tiny_arguments("listops", tmp_path / "here"), STOP, *stop])
    (tmp_path / "here").rename(tmp_path / "there")
    path = tmp_path / "there/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["BestCheckpoint"]
    state["best_model_score"] = torch.tensor(2.0)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(2.0))
    torch.save(checkpoint, path)
    best = (tmp_path / "there/checkpoints/best.ckpt").read_bytes()
    main(["fit", *tiny_arguments("listops", tmp_path / "there"), "--ckpt_path=last"])
    assert (tmp_path / "there/checkpoints/best.ckpt").read_bytes() == best


@pytest.mark.long
def test_best_checkpoint_of_a_repeated_evaluation_goes_on_alike(tmp_path, main, tiny_arguments):
    """SIGKILL in the evaluation after step 3; both runs then continue from their best checkpoint, that of step 3."""
    extra = ["--trainer.max_steps=8", "--trainer.val_check_interval=3"]
    killed, whole = ([*tiny_arguments("listops", tmp_path / name), *extra] for name in ("killed", "whole"))
    assert run_process([*killed, STOP, "--trainer.callbacks.step=3", "--trainer.callbacks.in_evaluation=true"]) == -9
    main(["fit", *killed, "--ckpt_path=last"])
    main(["fit", *whole])
    for arguments in (killed, whole):
        main(["fit", *arguments, "--ckpt_path=best"])
    assert_same_training(tmp_path / "killed", tmp_path / "whole", from_step=3)


def test_resumed_run_s_configuration_tests_the_best_checkpoint(tmp_path, main, tiny_arguments):
    stop = ["--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main(["fit", *tiny_arguments("listops", tmp_path), STOP, *stop])
    main(["fit", *tiny_arguments("listops", tmp_path), "--ckpt_path=last"])
    cli = main(["test", f"--config={tmp_path}/config.yaml"])
    assert str(cli.trainer.ckpt_path).endswith("best.ckpt")


def test_extended_run_follows_the_longer_schedule(tmp_path, main, tiny_arguments):
    arguments = tiny_arguments("listops", tmp_path)
    main(["fit", *arguments])
    cli = main(["fit", *arguments, "--ckpt_path=last", "--trainer.max_steps=18"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = {int(row["step"]): row["train/learning_rate"] for row in csv.DictReader(file) if row["train/loss"]}
    assert float(rates[9]) == pytest.approx(1e-4 * 9 / 16), "not the zero that the shorter schedule ended with"
    assert cli.trainer.global_step == 18
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)
    assert len(curves(tmp_path)) == 18, "the first nine steps are still in the log"


def as_an_earlier_version_wrote_it(path: Path, drop_black: bool) -> None:
    """Take from a checkpoint's configuration what did not exist, and put back what did."""
    checkpoint = torch.load(path, weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    for name in ("augment", "level_schedule", "drop_black"):
        del config["data"]["init_args"][name]
    for name in ("position_init", "query_key_gain"):
        del config["model"][name]
    del config["model"]["lr_scheduler"]["init_args"]["total_steps"]
    config["data"]["init_args"]["protocol"]["zero_is_padding"] = drop_black
    torch.save({**checkpoint, "config": yaml.safe_dump(config)}, path)


FORMER = ["--data.init_args.augment=false", "--model.position_init=normal", "--data.init_args.drop_black=false"]
FORMER += ["--model.query_key_gain=null"]


@pytest.mark.long
def test_run_of_an_earlier_version_resumes_with_its_own_settings(tmp_path, main, tiny_arguments, capsys):
    arguments = [*tiny_arguments("pathfinder", tmp_path)]
    main(["fit", *arguments, *FORMER])
    as_an_earlier_version_wrote_it(tmp_path / "checkpoints/last.ckpt", drop_black=False)
    with pytest.raises(SystemExit):
        main(["fit", *arguments, "--ckpt_path=last", "--trainer.max_steps=12"])
    said = capsys.readouterr().err
    for line in (
        '--model.position_init "normal"',
        "--model.query_key_gain null",
        "--data.init_args.augment false",
        "--data.init_args.drop_black false",
    ):
        assert line in said
    levels = '--data.init_args.level_schedule={"easy": 2}'
    with pytest.raises(SystemExit):
        main(["fit", *arguments, *FORMER, levels, "--ckpt_path=last", "--trainer.max_steps=12"])
    assert "(--data.init_args.level_schedule null)" in capsys.readouterr().err
    cli = main(["fit", *arguments, *FORMER, "--ckpt_path=last", "--trainer.max_steps=12"])
    assert cli.trainer.global_step == 12


def test_setting_of_an_earlier_version_in_a_file_is_named(tmp_path, main, tiny_arguments, capsys):
    (tmp_path / "old.yaml").write_text("data: {init_args: {protocol: {zero_is_padding: true}}}")
    with pytest.raises(SystemExit):
        main(["fit", *tiny_arguments("pathfinder", tmp_path / "run"), f"--config={tmp_path}/old.yaml"])
    assert "Fix: remove it and add --data.init_args.drop_black true" in capsys.readouterr().err
