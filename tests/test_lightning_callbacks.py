"""Callbacks of Lightning and optimisers of torch, as users name them: they work, or one line names them and the fix."""

import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from test_cli import refuse

ADD = "--trainer.callbacks+="


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        ([f"{ADD}EarlyStopping", "--trainer.callbacks.monitor=val_loss"], ["EarlyStopping", "val_loss", "val/loss"]),
        ([f"{ADD}LearningRateMonitor", "--trainer.logger=false"], ["LearningRateMonitor", "no logger"]),
    ],
)
def test_callback_that_cannot_work(callback, words, tmp_path, main, capsys, tiny_arguments):
    said = refuse(main, capsys, ["fit", *tiny_arguments("listops", tmp_path), *callback], 1, *words, "Fix: ")
    assert "trainer.callbacks: " in said
    assert "Traceback" not in said


def test_another_progress_bar(tmp_path, main, tiny_arguments):
    cli = main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=3", f"{ADD}TQDMProgressBar"])
    (bar,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, ProgressBar))
    assert isinstance(bar, TQDMProgressBar)


OPTIMIZERS = {name: made for name, made in vars(torch.optim).items() if isinstance(made, type)}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"Optimizer"}))
def test_optimizers_of_torch(name, tmp_path, main, capsys, tiny_arguments):
    arguments = [*tiny_arguments("listops", tmp_path), f"--model.optimizer={name}", "--trainer.max_steps=3"]
    if name in ("Muon", "SparseAdam"):
        refuse(main, capsys, ["fit", *arguments], 1, f"model.optimizer: {name}")
    else:
        assert main(["fit", *arguments]).trainer.global_step == 3


@pytest.mark.parametrize("overlay", ["trainer/bf16", None])
def test_clipping_with_a_fused_optimizer(overlay, tmp_path, main, capsys, tiny_arguments):
    clipped = ["--model.optimizer.init_args.fused=true", "--trainer.gradient_clip_val=1", "--trainer.max_steps=3"]
    arguments = ["fit", *tiny_arguments("listops", tmp_path, *filter(None, [overlay])), *clipped]
    if overlay:
        refuse(main, capsys, arguments, 1, "model.optimizer", "gradient_clip_val=1", "bf16-mixed", "fused to false")
    else:
        assert main(arguments).trainer.global_step == 3
