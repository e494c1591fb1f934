"""CUDA graphs of the training step: where they cannot be, a run says so; where they can, it is the run without."""

import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from skyformer.attention import PerformerAttention, SoftmaxAttention
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.cuda_graph import unchanged_state

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses(folder) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize(
    ("arguments", "need"),
    [
        ([], "a CUDA device (got cpu)"),
        (["--trainer.accumulate_grad_batches=3"], "trainer.accumulate_grad_batches=1 (got 3)"),
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
def test_graphed_run_is_the_run_without(compiled, precision, tmp_path, main, tiny_arguments):
    """With dropout, landmark draws and batches of several widths."""
    assert_graphed_is_plain(
        tmp_path, main, tiny_arguments, f"--trainer.precision={precision}", f"--model.compile={compiled}"
    )


@needs_gpu
@pytest.mark.parametrize("setting", ["--model.objective=masked_tokens", "--model.mlm_weight=0.5"])
def test_graphed_run_hides_the_tokens_of_the_run_without(setting, tmp_path, main, tiny_arguments):
    assert_graphed_is_plain(tmp_path, main, tiny_arguments, setting)


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


def test_term_that_the_graph_lacks_is_refused():
    model = SequenceClassifier(SoftmaxAttention, torch.optim.AdamW, max_length=16)
    model._graphed_step = object()
    with pytest.raises(MisconfigurationException, match="adds a term to the loss"):
        model.backward(torch.ones((), requires_grad=True))
