"""Private parts of other libraries: in one module, and as they were when this was written."""

import ast
import inspect

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tiny_runs import ROOT
from torch import nn
from torch.utils.data import DataLoader

from skyformer import internals
from skyformer.ops import flash

OWN = {"_asdict", "_replace", "_load"}  # methods of named tuples, and one of this project


def private_uses(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) not in ("self", "cls", "super()") and node.attr not in OWN:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] not in ("skyformer", "datamodules"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))


def test_one_module_uses_private_names():
    modules = [path for folder in ("skyformer", "datamodules") for path in (ROOT / folder).rglob("*.py")]
    uses = {(path.relative_to(ROOT).as_posix(), name) for path in modules for name in private_uses(path)}
    assert {path for path, _ in uses} == {"skyformer/internals.py"}


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    def __init__(self):
        self.seen = []
        self.validations = []
        self.starts = 0

    def on_train_start(self, trainer, pl_module):
        self.starts += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        functions = (internals.is_accumulating, internals.is_validation_due, internals.metrics_to_log)
        self.seen.append(tuple(function(trainer) for function in functions))

    def on_validation_start(self, trainer, pl_module):
        self.validations.append(internals.step_of_metrics(trainer))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Eight batches of zeros, two a step; validation after the fourth and the eighth; every second step is logged."""
    watch, average = Watch(), WeightAveraging()
    trainer = Trainer(
        max_steps=4, accumulate_grad_batches=2, val_check_interval=4, log_every_n_steps=2, num_sanity_val_steps=0,
        callbacks=[watch, average], logger=CSVLogger(tmp_path_factory.mktemp("run")), accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(torch.zeros(8, 1))
    assert internals.average_model(average) is None
    trainer.fit(Line(), loader, loader)
    return trainer, watch, average


def test_training_loop(fitted):
    trainer, watch, average = fitted
    accumulating, due, logged = zip(*watch.seen, strict=True)
    assert accumulating == (True, False) * 4
    assert due == (False, False, False, True) * 2
    assert [sorted(metrics) for metrics in logged[1::2]] == [[], ["train/loss"]] * 2
    assert watch.validations == [1, 3], "the steps that were taken, from 0"
    assert len(internals.train_dataloader(trainer)) == 8
    assert isinstance(internals.average_model(average).module, Line)
    assert internals.cluster_environment(trainer).world_size() == 1


def test_training_without_a_step_left(fitted):
    trainer, watch, _ = fitted
    for expected in (1, 2):
        trainer.fit(Line(), DataLoader(torch.zeros(8, 1)), DataLoader(torch.zeros(8, 1)))
        assert watch.starts == expected, "Lightning itself passes over it"
        internals.train_even_if_done(trainer)
    assert trainer.global_step == 4


def test_processes_of_a_strategy():
    settings = {"accelerator": "cpu", "devices": 2, "logger": False, "enable_checkpointing": False}
    methods = [internals.start_method(Trainer(strategy=name, **settings)) for name in ("ddp_spawn", "ddp")]
    assert methods == ["spawn", None]


def test_compiled_modules_and_their_errors():
    layer = nn.Linear(1, 1)
    assert not internals.is_compiled(layer)
    layer.compile()
    assert internals.is_compiled(layer)

    def breaks(x):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(Exception, match="graph_break") as error:
        torch.compile(breaks, fullgraph=True, backend="eager")(torch.zeros(1))
    assert internals.is_compiler_error(error.value)
    assert not internals.is_compiler_error(RuntimeError())


def test_compiled_gradients_are_computed_without_autocast(monkeypatch):
    monkeypatch.setattr("torch._functorch.config.backward_pass_autocast", "same_as_forward")
    internals.keep_precision_of_compiled_gradients()
    assert torch._functorch.config.backward_pass_autocast == "off"


def test_optimisers_and_tensors():
    made = [torch.optim.Adam([torch.zeros(1)], fused=fused) for fused in (True, False)]
    assert [bool(internals.scales_itself(optimizer)) for optimizer in made] == [True, False]
    targets = [torch.zeros(2), torch.zeros(3)]
    internals.copy_all(targets, [torch.ones(2), torch.ones(3)])
    assert all((target == 1).all() for target in targets)
    assert list(inspect.signature(torch.cuda._sleep).parameters) == ["cycles"]
    assert None not in (flash.KERNEL, flash.GRADIENTS)


def test_arguments_of_a_parser():
    parser = ArgumentParser()
    parser.add_argument("--share", type=float | int)
    (action,) = (action for action in internals.actions_of(parser) if action.dest == "share")
    internals.replace_type(action, int | float)
    assert type(parser.parse_args(["--share=1"]).share) is int


def test_overridden_methods_exist():
    for base, names in {
        LightningCLI: "_set_seed _parse_ckpt_path _run_subcommand _prepare_subcommand_parser _get _parser",
        ExperimentWriter: "_check_log_dir_exists _rewrite_with_new_header",
        nn.Module: "_apply",
    }.items():
        assert all(callable(getattr(base, name)) for name in names.split())
    assert TensorBoardLogger(".")._kwargs == {}
    assert CSVLogger(".")._experiment is None
    assert "self._wandb_init" in inspect.getsource(WandbLogger.__init__)
    assert LightningModule()._trainer is None
