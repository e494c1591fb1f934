"""Every backend under every precision of Lightning."""

import pytest
import torch
from tiny_runs import ROOT

from skyformer.benchmark.machine import bfloat16_slowdown

OVERLAYS = [f"attention/{path.stem}" for path in sorted((ROOT / "configs/attention").glob("*.yaml"))]
# Other tests run `32-true`, and on a CPU `16-mixed` is `bf16-mixed`.
DTYPES = {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}


PAIRS = [(overlay, precision) for overlay in (*OVERLAYS, "protocol/paper") for precision in DTYPES]


def every_method_and_precision_once(overlay: str, precision: str) -> bool:
    return precision == "bf16-mixed" or overlay == "attention/skyformer"


@pytest.mark.parametrize(
    ("overlay", "precision"),
    [pytest.param(*pair, marks=() if every_method_and_precision_once(*pair) else pytest.mark.long) for pair in PAIRS],
)
def test_backend_trains(overlay, precision, tmp_path, main, tiny_arguments):
    arguments = tiny_arguments("listops", tmp_path, overlay)
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--model.lr_scheduler.init_args.warmup_steps=0"]
    cli = main(["fit", *arguments, *short, f"--trainer.precision={precision}"])
    assert {parameter.dtype for parameter in cli.model.parameters()} == {DTYPES[precision]}
    losses = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.endswith("/loss")}
    assert losses.keys() == {"train/loss", "val/loss"}
    assert all(2 < loss < 3 for loss in losses.values())


@pytest.mark.parametrize(
    ("precision", "slowdown", "expected"),
    [("bf16-mixed", 68.0, True), ("bf16-mixed", 0.5, False), ("32-true", 68.0, False)],
)
def test_commands_say_that_bfloat16_is_slow(
    precision, slowdown, expected, tmp_path, main, tiny_arguments, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr("skyformer.benchmark.machine.bfloat16_slowdown", lambda: slowdown)
    short = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--model.lr_scheduler.init_args.warmup_steps=0"]
    main(["fit", *tiny_arguments("listops", tmp_path), *short, f"--trainer.precision={precision}"])
    notice = "a product takes 68 times as long as in float32. Fix: --trainer.precision 32-true"
    assert (notice in caplog.text) == expected
    caplog.clear()
    main(["validate", *tiny_arguments("listops", tmp_path), f"--trainer.precision={precision}"])
    assert (notice in caplog.text) == expected


def test_bfloat16_slowdown_draws_no_random_number_of_the_run():
    state = torch.get_rng_state()
    assert bfloat16_slowdown() > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_run_reports_the_loss_of_all_examples(precision, tmp_path, main, tiny_arguments):
    """The mean of the examples' losses, summed in float32: 300 examples of a loss near 2.3 in float16 or bfloat16."""
    many = ["--data.init_args.val_size=300", "--data.init_args.eval_batch_size=1", "--trainer.max_steps=3"]
    cli = main(["fit", *tiny_arguments("listops", tmp_path), *many, f"--trainer.precision={precision}"])
    model, losses = cli.model.eval(), []
    for batch in cli.datamodule.val_dataloader():
        with torch.no_grad():
            scores = model(batch.tokens, batch.mask, batch.position)
        losses.append(float(torch.nn.functional.cross_entropy(scores.double(), batch.label)))
    assert len(losses) == 300
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(sum(losses) / 300, rel=1e-5)
