"""`trainer.deterministic=true`: a run repeats and resumes to the last bit, and every backend has what it takes."""

import pytest
import torch
from interrupted_runs import STOP, assert_same_training, curves
from tiny_backends import BACKENDS
from torch.utils._python_dispatch import TorchDispatchMode

from skyformer.model.classifier import SequenceClassifier

# torch.use_deterministic_algorithms lists them: on a GPU they raise a RuntimeError then.
REFUSED = (
    "adaptive_", "avg_pool3d_backward", "bincount", "embedding_bag", "fractional_max_pool", "grid_sampler", "histc",
    "kthvalue", "max_unpool", "median", "nll_loss2d", "put_", "reflection_pad", "scatter_reduce", "upsample",
)  # fmt: skip


@pytest.mark.parametrize(
    "backend", ["skyformer", *(pytest.param(name, marks=pytest.mark.long) for name in ("softmax", "kernelized"))]
)
def test_run_repeats_and_resumes(backend, tmp_path, main, tiny_arguments):
    """Two whole runs of six steps, and one that is stopped after the third step."""

    def run(name: str, *extra: str) -> None:
        settings = ["--trainer.deterministic=true", "--trainer.max_steps=6", "--model.dropout=0.1"]
        main(["fit", *tiny_arguments("listops", tmp_path / name, f"attention/{backend}"), *settings, *extra])

    run("first")
    assert torch.are_deterministic_algorithms_enabled()
    run("second")
    with pytest.raises(SystemExit):
        run("stopped", STOP, "--trainer.callbacks.step=3", "--trainer.callbacks.name=SIGTERM")
    run("stopped", "--ckpt_path=last")
    assert len(curves(tmp_path / "first")) == 6
    assert_same_training(tmp_path / "second", tmp_path / "first", from_step=0)
    assert_same_training(tmp_path / "stopped", tmp_path / "first", from_step=0)


class Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_needs_no_operator_that_is_refused(name):
    torch.use_deterministic_algorithms(True)
    model = SequenceClassifier(
        lambda *sizes: BACKENDS[name](), torch.optim.AdamW, max_length=4096, embed_dim=16, num_heads=2
    )
    mask = torch.arange(200) < torch.tensor([[200], [150]])
    with Operators() as operators:
        loss, _ = model.train()._loss_and_accuracy(torch.randint(256, (2, 200)), mask, None, torch.tensor([0, 1]))
        loss.backward()
    assert {"embedding_dense_backward", "nll_loss_backward"} <= operators.names
    assert not [operator for operator in operators.names if operator.startswith(REFUSED)]
