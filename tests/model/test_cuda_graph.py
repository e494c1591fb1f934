"""CUDA graphs of the training step: where they cannot be, a run says so; where they can, it is the run without."""

import csv
from typing import ClassVar

import pytest
import torch
from fake_graphs import FakeStep, use_fake_graphs
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tiny_backends import BACKENDS
from torch import nn

from skyformer.attention import LinformerAttention, PerformerAttention, SoftmaxAttention
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.cuda_graph import unchanged_state
from skyformer.model.optimizer import fused

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses(folder) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize(
    ("arguments", "need"),
    [
        ([], "a CUDA device (got cpu)"),
        (["--trainer.accumulate_grad_batches=3"], "trainer.accumulate_grad_batches=1 (got 3)"),
        (["--model.gradient_checkpointing=true"], "model.gradient_checkpointing=false (got true)"),
        pytest.param(
            ["--trainer.precision=16-mixed", "--trainer.accelerator=cuda"],
            "a precision without loss scaling (got trainer.precision=16-mixed)",
            marks=needs_gpu,
        ),
    ],
)
def test_run_without_graphs_says_why(arguments, need, tmp_path, main, tiny_arguments, caplog):
    main(["fit", *tiny_arguments("listops", tmp_path), *arguments, "--model.cuda_graph=true"])
    assert f"model.cuda_graph=true has no effect: it needs {need}. Training runs without" in caplog.text
    assert len(losses(tmp_path)) == 9


@needs_gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_graphed_run_is_the_run_without(compiled, precision, tmp_path, main, tiny_arguments, caplog):
    """With dropout, landmark draws and batches of several widths."""
    assert_graphed_is_plain(
        tmp_path, main, tiny_arguments, f"--trainer.precision={precision}", f"--model.compile={compiled}"
    )
    assert "has no effect" not in caplog.text


@needs_gpu
@pytest.mark.parametrize("setting", ["--model.objective=masked_tokens", "--model.mlm_weight=0.5"])
def test_graphed_run_hides_the_tokens_of_the_run_without(setting, tmp_path, main, tiny_arguments, caplog):
    assert_graphed_is_plain(tmp_path, main, tiny_arguments, setting)
    assert "has no effect" not in caplog.text


def assert_graphed_is_plain(tmp_path, main, tiny_arguments, *settings) -> None:
    runs = []
    for graphed in ("false", "true"):
        folder = tmp_path / graphed
        main(
            [
                "fit",
                *tiny_arguments("listops", folder),
                "--trainer.accelerator=cuda",
                *settings,
                f"--model.cuda_graph={graphed}",
                "--trainer.deterministic=true",
            ]
        )
        runs.append(losses(folder))
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]


def test_warm_up_leaves_buffers_and_random_numbers_alone():
    """Performer counts its calls and draws its features again."""
    backend = PerformerAttention(2, 8, 16, redraw_every=1).train()
    inputs = [torch.randn(1, 2, 16, 8) for _ in range(3)]
    before, generator = [buffer.clone() for buffer in backend.buffers()], torch.get_rng_state()
    with unchanged_state(backend):
        for _ in range(3):
            backend(*inputs, None)
            torch.rand(1)
        assert int(backend.calls) == 3
    assert all(torch.equal(buffer, former) for buffer, former in zip(backend.buffers(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("sharing", ["none", "heads", "key_value", "layers"])
def test_gradients_have_the_strides_of_their_parameters(sharing, monkeypatch):
    """CUDA's fused optimisers need that. Linformer's gradients are transposed if N is `max_length`."""
    use_fake_graphs(monkeypatch)
    backend = LinformerAttention(2, 8, 16, projected_length=4, sharing=sharing)
    step = FakeStep(lambda x: (backend(x, x, x, None).square().mean(),), backend)
    step(torch.randn(1, 2, 16, 8))
    step.set_gradients()
    assert all(parameter.grad.stride() == parameter.stride() for parameter in backend.parameters())


def test_shape_without_memory_for_a_graph_runs_without_one(monkeypatch, caplog):
    use_fake_graphs(monkeypatch)
    backend = LinformerAttention(2, 8, 16, projected_length=4)

    def attend(x):
        if x.shape[2] > 8:
            raise torch.OutOfMemoryError
        return (backend(x, x, x, None).square().mean(),)

    step = FakeStep(attend, backend)
    small, large = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 16, 8)
    assert step(small) is not None
    assert step(large) is None
    assert step(large) is None
    assert step(small) is not None
    assert caplog.text.count("for lack of GPU memory") == 1


def test_term_that_the_graph_lacks_is_refused():
    model = SequenceClassifier(SoftmaxAttention, torch.optim.AdamW, max_length=16)
    model._graphed_step = object()
    model._is_graphed = True
    with pytest.raises(MisconfigurationException, match="adds a term to the loss"):
        model.backward(torch.ones((), requires_grad=True))


class Thaw(Callback):
    """Changes what a graph holds: trains the embedding from step 3 on, and with other dropout from step 6 on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.encoder.tokens.requires_grad_(trainer.global_step >= 3)
        pl_module.encoder.dropout.p = 0.1 if trainer.global_step < 6 else 0.5


@pytest.mark.parametrize("most", [pytest.param(128, marks=pytest.mark.long), 2])
def test_changed_settings_and_too_many_shapes(most, tmp_path, main, tiny_arguments, monkeypatch, caplog):
    """Lengths differ by batch. Beyond the bound a batch runs without a graph, and one line says so."""
    monkeypatch.setattr("skyformer.model.cuda_graph.MAX_GRAPHS", most)
    runs, weights = [], []
    for graphed in ("false", "true"):
        folder = tmp_path / graphed
        captured = use_fake_graphs(monkeypatch)
        given = [*tiny_arguments("listops", folder), f"--model.cuda_graph={graphed}"]
        cli = main(["fit", *given, "--trainer.callbacks+=test_cuda_graph.Thaw"])
        runs.append(losses(folder))
        weights.append(cli.model.state_dict())
        assert (len(captured) > 0) == (graphed == "true")
    assert len(captured) == 2 if most == 2 else len(captured) >= 3
    assert runs[0] == runs[1]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert caplog.text.count("training has 2 CUDA graphs, one for each shape") == (most == 2)


class _SeesAutocast(torch.autograd.Function):
    seen: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        _SeesAutocast.seen.append(torch.is_autocast_enabled("cpu"))
        return grad


def test_backward_pass_is_outside_autocast(monkeypatch):
    """As Lightning's own is: float32 parts of a method keep float32 gradients."""
    use_fake_graphs(monkeypatch)
    monkeypatch.setattr(_SeesAutocast, "seen", [])
    layer = nn.Linear(1, 1)
    step = FakeStep(lambda x: (_SeesAutocast.apply(layer(x)).sum(),), layer)
    with torch.autocast("cpu", torch.bfloat16):
        step(torch.ones(1, 1))
    assert set(_SeesAutocast.seen) == {False}


def test_parameter_that_a_shape_leaves_out(monkeypatch):
    """It has no gradient after that shape, and its own after others, whichever comes first."""
    use_fake_graphs(monkeypatch)
    layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    def loss(x):
        return (sum(layer(x).sum() for layer in layers[: x.shape[0]]),)

    step = FakeStep(loss, layers)
    for width in (1, 2, 1, 2):
        step(torch.ones(width, 1))
        step.set_gradients()
        assert layers[0].weight.grad.item() == width
        assert (layers[1].weight.grad is None) == (width == 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_steps_leave_the_settings_of_a_graph_alone(name, monkeypatch):
    use_fake_graphs(monkeypatch)
    attention = type(BACKENDS[name]())
    model = SequenceClassifier(attention, torch.optim.AdamW, max_length=64, embed_dim=16).train()
    step = FakeStep(model._loss_and_accuracy, model)
    before = list(step._settings())
    model._loss_and_accuracy(torch.randint(256, (2, 64)), None, None, torch.tensor([0, 1]))
    assert list(step._settings()) == before


def test_fused_optimizer_keeps_its_defaults():
    """Those of groups that are added later."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = fused(torch.optim.AdamW([weight], lr=0.5, weight_decay=0.25))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    first, second = ({**group, "params": None} for group in optimizer.param_groups)
    assert first == second
    assert (first["lr"], first["weight_decay"], first["fused"]) == (0.5, 0.25, True)
