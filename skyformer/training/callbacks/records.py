"""Write the records of a run: configuration, versions and machine, final metrics, result."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import SaveConfigCallback

from skyformer.exceptions import RunError
from skyformer.files import next_free_path, write_atomically
from skyformer.internals import average_model
from skyformer.model.checkpoint_io import LAST, PREVIOUS
from skyformer.training.callback_settings import check_callback_settings
from skyformer.training.callbacks.label_counts import CaseCounts, LabelCounter, pretrains
from skyformer.training.ending import early_end
from skyformer.training.loggers import TensorBoardLogger
from skyformer.training.record import make_record
from skyformer.training.result import sha256_of
from skyformer.training.run_folder import check_same_data
from skyformer.yaml_text import load_dumped


class RunConfig(SaveConfigCallback):
    """Write `config.yaml` and `record.json` into the run's folder when training starts.

    Add the configuration, the data hash and the number of processes to every checkpoint. After training, write
    TensorBoard's hyper-parameters with the final metrics.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Without this command's checkpoint, so that a run's configuration tests its best one.
        config = self.config.clone()
        config.ckpt_path = None
        self.text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        # jsonargparse writes this, with a warning, for a value without a text form.
        if lost := re.findall(r"([\w.]+): Unable to serialize instance (.*)", self.text):
            key, value = lost[0]
            raise RunError(
                f"{key}: config.yaml cannot hold it (got {value}). Fix: set it to text, a number or null, or leave out "
                "the class that takes it"
            )
        self.data_hash = getattr(trainer.datamodule, "data_hash", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        here = trainer.global_step, self.data_hash
        first = trainer.strategy.broadcast(here)
        if not trainer.strategy.reduce_boolean_decision(here == first, all=True):
            raise RunError(
                f"the processes of this run differ: process {trainer.global_rank} has step and data {here}, the first "
                f"one {first}. Fix: let all of them see the same {trainer.default_root_dir} and data.data_dir."
            )
        for callback in trainer.callbacks:
            # Lightning copies the model before it moves it to a GPU.
            if isinstance(callback, WeightAveraging) and (average := average_model(callback)) is not None:
                average.to(pl_module.device)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            resumed = (folder / LAST).exists() or (folder / PREVIOUS).exists()
            _write_config(folder / self.config_filename, self.text, resumed)
            curriculum = getattr(trainer.datamodule, "curriculum", "")
            seed = self.config.seed_everything
            steps = trainer.global_step, trainer.max_steps
            record = make_record(seed, self.data_hash, trainer.world_size, *steps, curriculum)
            _add_record(folder / "record.json", record)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for callback in trainer.callbacks:
            # Until a moving average starts, Lightning would evaluate and save the initial weights in its place.
            average = average_model(callback) if isinstance(callback, WeightAveraging) else None
            if average is not None and average.n_averaged == 0:
                average.module.load_state_dict(pl_module.state_dict())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.text
        checkpoint["data_hash"] = self.data_hash
        checkpoint["num_processes"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        fits = trainer.state.fn == "fit"
        check_same_data(checkpoint, self.data_hash, trainer.world_size, fits)
        if fits:
            check_callback_settings(trainer, checkpoint, load_dumped(checkpoint["config"]), load_dumped(self.text))
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
        if fits and averages != ("current_model_state" in checkpoint):
            was, now = ("without", "with") if averages else ("with", "without")
            raise RunError(
                f"the checkpoint is of a run {was} a moving average of the weights (trainer.callbacks), this one is "
                f"{now}. Fix: set it as it was, or start another run."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end = early_end(trainer)
        if end is not None and trainer.is_global_zero:
            _note_early_end(Path(trainer.default_root_dir, "record.json"), end.as_dict())
        config = load_dumped(self.text)
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


def _write_config(path: Path, text: str, resumed: bool) -> None:
    """Write the configuration. A resumed run keeps a different earlier one as `config.1.yaml`."""
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text and resumed:
        path.rename(next_free_path(path.parent, path.stem, path.suffix))
    write_atomically(path, text)


def _add_record(path: Path, record: dict[str, Any]) -> None:
    """Append a record for this start or resume."""
    records = []
    with suppress(OSError, ValueError):  # none yet, or damaged: then it is kept
        records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or (path.exists() and not records):
        path.rename(next_free_path(path.parent, path.stem, path.suffix))
        records = []
    write_atomically(path, json.dumps([*records, record], indent=2) + "\n")


def _note_early_end(path: Path, end: dict[str, Any]) -> None:
    """Add to the record of the last start how it ended."""
    with suppress(OSError, ValueError, LookupError, TypeError):  # damaged since then
        records = json.loads(path.read_text(encoding="utf-8"))
        records[-1]["stopped_early"] = end
        write_atomically(path, json.dumps(records, indent=2) + "\n")


class EvaluationResult(LabelCounter):
    """Print the result of `test` and `validate`, with the accuracy of always guessing the most frequent label.

    Write it as `result.json` and `validation.json`. Both numbers cover the evaluated examples, or their masked or
    labelled tokens, on all processes. If the task has `test_case_names`, `test` also gives the accuracy of each. The
    file has the evaluated checkpoint's SHA-256.
    """

    cases: CaseCounts | None

    def counts_in(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        return trainer.state.fn != "fit"

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        names = getattr(trainer.datamodule, "test_case_names", ())
        self.cases = CaseCounts(names, pl_module.device) if names and not pretrains(pl_module) else None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, *args)
        if self.cases is not None:
            self.cases.add(batch, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        by_case = {} if self.cases is None else self.cases.accuracies(trainer)
        rounded = {name: round(accuracy, 6) for name, accuracy in by_case.items()}
        self._report(trainer, "test", "Test", "result.json", {"test/accuracy_by_case": rounded} if rounded else {})
        if trainer.is_global_zero:
            for name, accuracy in by_case.items():
                print(f"  {name}: {accuracy:.2%}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._report(trainer, "val", "Validation", "validation.json")

    def _report(
        self, trainer: Trainer, prefix: str, split: str, file_name: str, more: dict[str, Any] | None = None
    ) -> None:
        total, chance = self.labels.total_and_chance(trainer)
        examples = self.labels.num_examples(trainer)
        counts, noun = {"examples": total}, "label"
        if pretrains(trainer.lightning_module):
            counts, noun = {"masked_tokens": total}, "one"
        elif total != examples:
            counts = {"labelled_tokens": total, "examples": examples}
        accuracy, loss = (float(trainer.callback_metrics[f"{prefix}/{name}"]) for name in ("accuracy", "loss"))
        result: dict[str, Any] = {
            f"{prefix}/accuracy": round(accuracy, 6),
            f"{prefix}/loss": round(loss, 6),
            **{f"{prefix}/{name}": count for name, count in counts.items()},
            "data_hash": (getattr(trainer.datamodule, "data_hash", None) or "").partition("+")[0] or None,
            "chance": round(chance, 6),
            "checkpoint": trainer.ckpt_path and str(trainer.ckpt_path),
            **(more or {}),
        }
        if trainer.is_global_zero:
            counted = " of ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
            print(
                f"{split} accuracy {accuracy:.2%} on {counted}; "
                f"always guessing the most frequent {noun} gives {result['chance']:.2%}."
            )
            if result["checkpoint"]:
                result["checkpoint_sha256"] = sha256_of(Path(result["checkpoint"]))
            write_atomically(Path(trainer.default_root_dir, file_name), json.dumps(result, indent=2) + "\n")
