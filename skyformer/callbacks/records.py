"""What remains of a run: its configuration, final metrics beside hyper-parameters, the result."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from skyformer.callbacks.checkpoints import LAST
from skyformer.loggers import TensorBoardLogger


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder when training starts, the same into every checkpoint, and
    TensorBoard's hyper-parameters with the final metrics after training.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Without the checkpoint of this very command: a run's configuration tests its best one.
        config = self.config.clone()
        config.ckpt_path = None
        self.text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self.config_filename
            if path.exists() and (folder / LAST).exists():  # a resumed run: what it began with stays beside
                number = 1 + len(list(folder.glob("config.*.yaml")))
                path.rename(folder / f"config.{number}.yaml")
            path.write_text(self.text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.text

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = yaml.safe_load(self.text)
        hparams = {name: config[name] for name in ("data", "model", "seed_everything")}
        metrics = {
            f"result/final_{name.replace('/', '_')}": float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        for checkpoint in trainer.checkpoint_callbacks:
            score = getattr(checkpoint, "best_model_score", None)
            if score is not None:
                metrics[f"result/best_{checkpoint.monitor.replace('/', '_')}"] = float(score)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and metrics:
                logger.log_hyperparams(hparams, metrics, trainer.global_step)


class TestResult(Callback):
    """Prints and writes, as `result.json`, the result of a test beside that of always guessing the commonest label.

    Both over the examples that were tested, on all processes.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.label_counts = torch.zeros(trainer.datamodule.num_classes, dtype=torch.int64, device=pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.label_counts += torch.bincount(batch.label, minlength=len(self.label_counts))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = trainer.strategy.reduce(self.label_counts, reduce_op="sum")
        examples = int(counts.sum())
        accuracy = float(trainer.callback_metrics["test/accuracy"])
        result = {
            "test/accuracy": round(accuracy, 6),
            "test/loss": round(float(trainer.callback_metrics["test/loss"]), 6),
            "test/examples": examples,
            "chance": round(int(counts.max()) / examples, 6),
            "checkpoint": trainer.ckpt_path and str(trainer.ckpt_path),
        }
        if trainer.is_global_zero:
            print(
                f"Test accuracy {accuracy:.2%} on {examples:,} examples; "
                f"always guessing the most frequent label gives {result['chance']:.2%}."
            )
            path = Path(trainer.default_root_dir, "result.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
