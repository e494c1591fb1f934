"""Callbacks and loggers of Lightning, and optimisers of torch, as users name them: they work, or one line says why."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from refusals import refuse

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
    assert cli.trainer.progress_bar_metrics["train/loss"] == pytest.approx(
        float(cli.trainer.callback_metrics["train/loss"])
    )


OPTIMIZERS = {name: made for name, made in vars(torch.optim).items() if isinstance(made, type)}


USUAL = {"AdamW", "SGD", "LBFGS", "Muon", "SparseAdam"}  # the last three are the ones that differ


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in USUAL else pytest.mark.long) for n in sorted(OPTIMIZERS.keys() - {"Optimizer"})],
)
def test_optimizers_of_torch(name, tmp_path, main, capsys, tiny_arguments):
    arguments = [*tiny_arguments("listops", tmp_path), f"--model.optimizer={name}", "--trainer.max_steps=3"]
    if name in ("Muon", "SparseAdam"):
        refuse(main, capsys, ["fit", *arguments], 1, f"model.optimizer: {name}")
    else:
        assert main(["fit", *arguments]).trainer.global_step == 3


@pytest.mark.parametrize(("overlays", "algorithm"), [(["trainer/bf16"], "norm"), ([], "value")])
def test_clipping_with_a_fused_optimizer(overlays, algorithm, tmp_path, main, tiny_arguments):
    """It trains as the same optimiser in its other form does, and otherwise than without clipping."""
    weights = []
    for fused, clip in ((True, 0.01), (False, 0.01), (True, None)):
        settings = {"gradient_clip_val": clip or "null", "gradient_clip_algorithm": algorithm, "max_steps": 3}
        cli = main(
            [
                "fit",
                *tiny_arguments("listops", tmp_path / f"{fused}-{clip}", *overlays),
                f"--model.optimizer.init_args.fused={str(fused).lower()}",
                "--model.optimizer.init_args.eps=1.0e-2",  # far above zero, so that the size of gradients matters
                *(f"--trainer.{name}={value}" for name, value in settings.items()),
            ]
        )
        weights.append(cli.model.encoder.positions.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-8)
    assert (weights[0] - weights[2]).abs().max() > 1e-7


class PlainLogger(Logger):
    """A logger without a folder."""

    name = version = "plain"

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class BareLogger(PlainLogger):
    def __init__(self) -> None:
        super().__init__()


@pytest.mark.parametrize("kind", [PlainLogger, BareLogger])
def test_logger_without_a_folder(kind, tmp_path, main, tiny_arguments):
    arguments = [argument for argument in tiny_arguments("listops", tmp_path) if "trainer.logger=" not in argument]
    cli = main(["fit", *arguments, f"--trainer.logger={__name__}.{kind.__name__}"])
    assert cli.trainer.logger.steps
