"""CUDA graphs of the training step: where they cannot be, a run says so; where they can, it is the run without."""

import csv

import pytest
import torch

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
    runs = []
    for graphed in ("false", "true"):
        folder = tmp_path / graphed
        main(
            [
                "fit",
                *tiny_arguments("listops", folder),
                "--trainer.accelerator=cuda",
                f"--trainer.precision={precision}",
                f"--model.compile={compiled}",
                f"--model.cuda_graph={graphed}",
                "--trainer.deterministic=true",
            ]
        )
        runs.append(losses(folder))
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]
