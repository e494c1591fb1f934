"""What a run shows and keeps: curves, pictures, whole checkpoints; compiled, extended, loaded from Python."""

import csv
import errno
import io
import math
import re
from functools import partial

import pytest
import torch
from lightning import Callback
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from skyformer.attention import SkyformerAttention
from skyformer.model.checkpoint_io import AtomicCheckpointIO
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.encoder import Block, Encoder
from skyformer.model.schedule import LinearOneCycle
from skyformer.training.callbacks.landmark_diagnostics import measure


@pytest.fixture(scope="module")
def events(tmp_path_factory, main, tiny_arguments) -> EventAccumulator:
    """TensorBoard's view of a tiny Pathfinder run."""
    folder = tmp_path_factory.mktemp("board")
    arguments = [a for a in tiny_arguments("pathfinder", folder) if "trainer.logger" not in a]
    length = "--data.init_args.drop_black=false"  # the same for every image
    main(["fit", *arguments, length, "--trainer.max_steps=6", "--trainer.log_every_n_steps=2"])
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    return accumulator.Reload()


def test_tensorboard_has_every_curve(events):
    expected = {
        "train/loss",
        "train/accuracy",
        "train/grad_norm",
        "val/loss",
        "val/accuracy",
        "train/learning_rate",
        "speed/examples_per_second",
        "speed/tokens_per_second",
        "speed/peak_memory_mb",
        *(f"{name}/layer{i}" for i in (0, 1) for name in ("condition_number", "spectral_error")),
    }
    assert expected <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/loss")] == [2, 5]


def test_tensorboard_has_the_image_sheet(events):
    assert [image.step for image in events.Images("images/val")] == [2, 5]
    assert events.Images("images/val")[0].width == 8 * 104


def test_tensorboard_has_hyper_parameters_with_the_result(events):
    assert {"result/best_val_accuracy", "result/final_val_loss"} <= set(events.Tags()["scalars"])
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in (b"batch_size", b"num_landmarks", b"lr", b"SkyformerAttention"):
        assert name in start


def test_rates_are_plausible(events):
    examples, tokens = events.Scalars("speed/examples_per_second"), events.Scalars("speed/tokens_per_second")
    for one, other in zip(examples, tokens, strict=True):
        assert other.value / one.value == pytest.approx(1024, rel=1e-4)


def test_model_loads_from_a_checkpoint_in_python(tmp_path, main, tiny_arguments):
    cli = main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=3"])
    loaded = SequenceClassifier.load_from_checkpoint(tmp_path / "checkpoints/last.ckpt").eval()
    tokens = torch.randint(1, 16, (2, 33))
    assert torch.equal(loaded(tokens), cli.model.eval()(tokens))


def test_result_does_not_depend_on_the_batch(tmp_path, main, tiny_arguments):
    """The same model, tested in batches of 1 and of 13."""
    arguments = tiny_arguments("listops", tmp_path)
    main(["fit", *arguments])
    losses = []
    for size in (1, 13):
        cli = main(["test", *arguments, f"--data.init_args.eval_batch_size={size}"])
        losses.append(float(cli.trainer.callback_metrics["test/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_curves_hold_the_step_that_they_name(tmp_path, main, tiny_arguments):
    """Logged every third step: the learning rate beside a step is that step's."""
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.log_every_n_steps=3"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = {int(row["step"]): row["train/learning_rate"] for row in csv.DictReader(file) if row["train/loss"]}
    expected = {2: 1.0, 5: 4 / 7, 8: 1 / 7}  # warm-up over two of nine steps
    assert {step: float(rate) for step, rate in rates.items()} == pytest.approx(
        {s: 1e-4 * r for s, r in expected.items()}
    )


class StopLate(Callback):
    """Keeps the loss that callbacks see after each step, and asks for the end after one that is not logged."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))
        trainer.should_stop = trainer.global_step == self.step


def test_callbacks_see_every_loss_and_a_late_stop_writes_its_own(tmp_path, main, tiny_arguments):
    curves = []
    for every, stop in ((1, -1), (4, 6)):
        arguments = tiny_arguments("listops", tmp_path / str(every))
        extra = ["--trainer.callbacks+=test_training.StopLate", f"--trainer.callbacks.step={stop}"]
        cli = main(["fit", *arguments, f"--trainer.log_every_n_steps={every}", *extra])
        (seen,) = (callback.seen for callback in cli.trainer.callbacks if isinstance(callback, StopLate))
        with (tmp_path / str(every) / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        curves.append({int(row["step"]): {k: v for k, v in row.items() if k.startswith("train/")} for row in rows})
        assert "train/loss" not in cli.trainer.progress_bar_metrics, "Lightning reads that at every step"
    all_steps, few = curves
    assert list(few) == [3, 5]
    assert few == {step: all_steps[step] for step in few}
    assert seen == [pytest.approx(float(all_steps[step]["train/loss"])) for step in range(6)]


def test_no_steps_are_logged_where_logging_is_turned_off(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.log_every_n_steps=0"])
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [2, 5, 8]
    assert not any(row.get("train/loss") or row.get("speed/examples_per_second") for row in rows)


def test_average_follows_the_weights_until_it_starts(tmp_path, main, tiny_arguments):
    """Evaluations and checkpoints before that are those of a run without one, also over a resume."""
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step=7"]
    losses = {}
    for folder, extra in (("plain", []), ("late", average)):
        command = ["fit", *tiny_arguments("listops", tmp_path / folder), *extra, "--ckpt_path=auto"]
        for steps in (3, 7):
            main([*command, f"--trainer.max_steps={steps}", "--model.lr_scheduler=null"])
        with (tmp_path / folder / "metrics.csv").open(newline="") as file:
            losses[folder] = [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]]
    assert losses["plain"] == losses["late"]
    plain, late = (torch.load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in losses)
    assert all(torch.equal(late[name], weight) for name, weight in plain.items())


def test_averaged_weights_are_tested_after_fit(tmp_path, main, tiny_arguments):
    """By the average's overlay; Performer's random features are the current ones, not an average."""
    arguments = tiny_arguments("listops", tmp_path, "attention/performer", "trainer/ema")
    arguments += ["--model.attention.init_args.redraw_every=2", "--test_after_fit=true"]
    cli = main(["fit", *arguments, "--model.optimizer.init_args.lr=0.1"])
    best, last = (torch.load(tmp_path / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    name = "encoder.tokens.weight"
    assert torch.equal(cli.model.state_dict()[name], best["state_dict"][name])
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])
    drawn = [name for name in last["state_dict"] if name.endswith((".projection", ".calls"))]
    assert len(drawn) == 4
    assert all(torch.equal(last["state_dict"][name], last["current_model_state"][name]) for name in drawn)


def test_validate_leaves_the_curves_alone(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path)])
    curves = (tmp_path / "metrics.csv").read_bytes()
    main(["validate", *tiny_arguments("listops", tmp_path), "--ckpt_path=best"])
    assert (tmp_path / "metrics.csv").read_bytes() == curves
    assert (tmp_path / "validation.json").exists()
    assert not list(tmp_path.glob("events*"))


@pytest.mark.long
def test_health_is_measured_behind_a_compiled_encoder(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.setattr(Block, "compile", lambda self, **_: nn.Module.compile(self, backend="eager"))
    main(["fit", *tiny_arguments("listops", tmp_path, "trainer/compile")])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        errors = [row["spectral_error/layer1"] for row in csv.DictReader(file) if row["val/loss"]]
    assert len(errors) == 3
    assert all(errors)


@pytest.mark.long
def test_compiled_run_trains_alike_and_its_checkpoint_fits_both(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.setattr(Block, "compile", lambda self, **_: nn.Module.compile(self, backend="eager"))
    compiled = main(["fit", *tiny_arguments("listops", tmp_path / "compiled", "trainer/compile")])
    eager = main(["fit", *tiny_arguments("listops", tmp_path / "eager")])
    for name, weight in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    main(["test", *tiny_arguments("listops", tmp_path / "compiled")])


@pytest.mark.long
def test_compiled_run_draws_what_an_eager_one_does(tmp_path, main, tiny_arguments):
    """With the real compiler, landmarks and dropout included: every loss, to what sums in another order may differ."""
    losses = []
    for name, overlays in (("compiled", ["trainer/compile"]), ("eager", [])):
        main(["fit", *tiny_arguments("listops", tmp_path / name, *overlays)])
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]])
    assert len(losses[0]) == 9
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)


def test_progress_bar_in_a_terminal(tmp_path, main, tiny_arguments, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr("skyformer.training.callbacks.progress.Console", lambda: console)
    main(["fit", *tiny_arguments("listops", tmp_path), "--test_after_fit=true"])
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"Training .* 9/9 .*loss \d\.\d{3}", text)
    assert re.search(r"Testing .* 2/2", text)
    assert "step       9   validation loss" in text


def test_progress_bar_before_the_first_logged_loss(tmp_path, main, tiny_arguments, monkeypatch):
    """The first batches of an accumulating step end at step 0, a multiple of the interval without a loss."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("skyformer.training.callbacks.progress.Console", lambda: console)
    settings = ["--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=3"]
    assert main(["fit", *tiny_arguments("listops", tmp_path), *settings]).trainer.global_step == 9


def test_health_of_an_exact_approximation():
    """Every row a landmark: no error but the ridge's; a few landmarks: a large one. Condition ≤ (D + γ) / γ."""
    query, key, value = torch.randn(3, 2, 2, 20, 8, generator=torch.Generator().manual_seed(0))
    whole = SkyformerAttention(2, 8, 20, num_landmarks=40, ridge=1e-3).eval()
    few = SkyformerAttention(2, 8, 20, num_landmarks=2, ridge=1e-3).eval()
    mask = torch.ones(2, 20, dtype=torch.bool)
    assert measure(whole, query, key, value, mask)[1] < 0.01
    assert measure(few, query, key, value, mask)[1] > 0.3
    assert 1 < measure(whole, query, key, value, None)[0] < 40 / 1e-3 + 1


@pytest.mark.parametrize("size", [math.nan, 1e30])
def test_health_of_a_layer_that_overflows_is_not_a_number(size):
    query, key, value = torch.full((3, 2, 2, 20, 8), size)
    assert math.isnan(measure(SkyformerAttention(2, 8, 20).eval(), query, key, value, None)[1])


def test_full_disk_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def half(checkpoint, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_one_cycle_rises_and_falls():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LinearOneCycle(optimizer, total_steps=10, warmup_steps=4)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (-1, 0), (5, 5), (5, -1)])
def test_one_cycle_refuses(total, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=re.escape("steps")):
        LinearOneCycle(optimizer, total, warmup)


@pytest.mark.long
def test_bucketed_lengths_compile_a_bounded_number_of_graphs():
    """The first length, any length, any batch size, for all blocks together; and as many for evaluation."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    encoder = Encoder(16, 128, partial(SkyformerAttention, num_landmarks=8), embed_dim=16, hidden_dim=16).train()
    for block in encoder.blocks:
        block.compile(backend=keep)
    sizes = [(8, 100), (8, 90), (8, 128), (8, 33), (8, 60), (8, 9), (3, 60), (5, 44)]
    for batch, length in sizes:
        encoder(torch.zeros(batch, length, dtype=torch.int64), torch.ones(batch, length, dtype=torch.bool))
    assert len(graphs) <= 3
    encoder.eval()
    for batch, length in sizes:
        encoder(torch.zeros(batch, length, dtype=torch.int64), torch.ones(batch, length, dtype=torch.bool))
    assert len(graphs) <= 5
