"""`fit`, `validate`, `test`, `predict`: LightningCLI with safer defaults."""

import logging
import sys
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import yaml
from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed
from yaml.representer import RepresenterError

from skyformer import internals
from skyformer.exceptions import CheckpointError, RunError, unwrapping_value_errors
from skyformer.installation import program_name
from skyformer.model.checkpoint_io import BEST, AtomicCheckpointIO
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.schedule import TrainingParser
from skyformer.training import callbacks, slurm
from skyformer.training.config_checks import check_config, check_nulls, check_trainer, trainer_settings
from skyformer.training.ending import early_end
from skyformer.training.loggers import ContinuedLogger, TensorBoardLogger
from skyformer.training.memory import keep_freed_memory, limit_gpu_memory
from skyformer.training.overlays import OverlayFile, as_list
from skyformer.training.run_folder import (
    check_pretrained,
    check_same_run,
    find_checkpoint,
    flatten,
    lock_run,
    read_or_fall_back,
    run_folder,
)
from skyformer.yaml_text import load_dumped


def _quieten() -> None:
    """Hide messages of Lightning that are advertisements or do not apply here."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_saying)
    for message in (
        # Tests check that every example is predicted once.
        "You are using a custom batch sampler `EvalBatches` for prediction",
        # A resumed run writes into its former folder on purpose.
        "Checkpoint directory .* exists and is not empty",
        # Curves are written by steps, whatever the length of an epoch.
        "The number of training batches .* is smaller than the logging interval",
        # The configuration of a checkpoint is handed over as an argument.
        "LightningCLI's args parameter is intended to run from within Python",
        # Batches take a few milliseconds on a CPU. On a GPU they are made on the device.
        "The '.*_dataloader' does not have many workers",
        # Sums stay in full float32, and the expensive products are in bfloat16.
        "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
        # Lightning 2.6 calls torch's pytree in a way that torch 2.14 deprecates.
        ".*isinstance.treespec, LeafSpec.*",
        # A test needs no callback of the training: a moving average of the weights is stored as the weights.
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    ):
        warnings.filterwarnings("ignore", message=message)


def _dump_text_enumerations() -> None:
    """Some of Lightning's defaults, such as the interval of `Timer`, are text by class; YAML's dumper refuses them."""
    yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))


# Advertisements, and messages that our own lines replace.
_NOISE = (
    "litlogger", "litmodels", "TPU available: False", "`Trainer.fit` stopped: `max_steps=", "from the checkpoint",
    "that has Tensor Cores",
)  # fmt: skip


# The trainer's settings by which an evaluation passes over all of its examples, without a word.
_LIMITS = {"test": "limit_test_batches", "validate": "limit_val_batches", "predict": "limit_predict_batches"}


# Slowdown by bfloat16 above which a command prints a notice. It was 68 with AVX2, and CPUs with instructions for
# bfloat16 are faster in it.
_SLOW = 4.0


# Replaces Lightning's help, which names options that do not work here.
_SUBCOMMANDS = {
    "fit": "Train a model, or resume a run.",
    "validate": "Evaluate a checkpoint on the validation set.",
    "test": "Evaluate a checkpoint on the test set.",
    "predict": "Write the predictions of a checkpoint for the test set or for new inputs.",
}
_RESUME = (
    "Checkpoint to resume from: a file, `last` or `best` of the run's folder, or `auto`, which continues the run there "
    "or starts it. Default: start a run."
)
_EVALUATE = "Checkpoint to take: a file, or `best` or `last` of the run's folder. Default: `best`."
_HELP = {
    "weights_only": "Always true, so that loading a checkpoint cannot execute code; false is refused.",
    "verbose": "No effect; the result is always printed in one line.",
}


# Python caches `Optional[Union[int, float]]` by equality. If torch has created it with float first, Lightning gets that
# type. `limit_test_batches: 1` would then be parsed as 1.0, the whole test set.
_COUNT_OR_SHARE = int | float | None


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NOISE)


def _was_restoring(error: Exception) -> bool:
    """Return whether the error arose while Lightning restored a checkpoint."""
    names = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith(("resume_", "restore_", "_restore_")) for name in names)


def _raising_callback(error: Exception) -> str:
    """Return the name of Lightning's callback whose own code raised the error; empty for any other error.

    Errors of a user's own callback keep their traceback. So do errors from outside Lightning, such as a full disk.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if isinstance(error, OSError) or not frames[-1][0].f_globals["__name__"].startswith(("lightning.", "torch.nn.")):
        return ""
    for frame, _ in reversed(frames):
        made = type(frame.f_locals.get("self"))
        if issubclass(made, Callback):
            return made.__name__ if made.__module__.startswith("lightning.") else ""
    return ""


def _say_slow_precision(trainer: Trainer) -> None:
    if not trainer.precision.startswith("bf16") or trainer.strategy.root_device.type != "cpu":
        return
    from skyformer.benchmark.machine import bfloat16_slowdown

    if (times := bfloat16_slowdown()) > _SLOW:
        rank_zero_info(
            f"trainer.precision={trainer.precision} is slow on this CPU: a product takes {times:.0f} times as long as "
            "in float32. Fix: --trainer.precision 32-true"
        )


class SkyformerCLI(LightningCLI):
    """One model, a data module by class path, a run in one folder.

    It differs from LightningCLI as follows:

    - A checkpoint that disagrees with the command line is an error.
    - `--ckpt_path last` is an error if there is nothing to continue.
    - A folder that holds a run is not overwritten.
    - Checkpoints are written atomically.
    - Schedules step after every training step.
    """

    def __init__(self, args: list[str] | None) -> None:
        self.arguments = sys.argv[1:] if args is None else args
        keep_freed_memory()
        _quieten()
        _dump_text_enumerations()
        super().__init__(
            SequenceClassifier,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=callbacks.RunConfig,
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [
                    callbacks.StepSeed(),
                    callbacks.Throughput(),
                    callbacks.LandmarkDiagnostics(),
                    callbacks.ImageSheet(),
                    callbacks.CurriculumCurve(),
                    callbacks.PlateauNotice(),
                    callbacks.EvaluationResult(),
                    callbacks.StopEvaluationOnSigterm(),
                ],
                "enable_model_summary": False,
                # Our samplers share batches between processes themselves, and evaluate each example once.
                "use_distributed_sampler": False,
            },
            auto_configure_optimizers=False,
            # `--trainer.max_step` is a mistake, not an abbreviation.
            parser_class=TrainingParser,
            parser_kwargs={
                "prog": program_name(),
                "allow_abbrev": False,
                "description": "Train and compare attention methods on long sequences.",
                "epilog": "Also, each with --help: prepare, extract, export, sweep, report, study, benchmark, configs.",
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Lightning's, or the given one alone: making all four parsers would take half of the start."""
        every = LightningCLI.subcommands()
        given = next(iter(self.arguments), "")
        return {given: every[given]} if given in every else every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(dump_header=[f"lightning.pytorch=={lightning.__version__}"], **kwargs)
        parser.add_argument("-c", "--config", action=OverlayFile, help="A YAML file; of several, later ones win.")
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        described = {name: {"description": text} for name, text in _SUBCOMMANDS.items()}
        super()._add_subcommands(parser, **{**described, **kwargs})
        internals.describe_subcommands(parser, _SUBCOMMANDS)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in internals.actions_of(parser):
            if action.dest == "ckpt_path":
                action.help = _RESUME if subcommand == "fit" else _EVALUATE
            action.help = _HELP.get(action.dest, action.help)
            internals.replace_type(action, _COUNT_OR_SHARE)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(callbacks.LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(callbacks.BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(callbacks.NonFiniteLoss, "non_finite_loss")
        parser.add_lightning_class_args(callbacks.PredictionWriter, "predictions")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint after fit.")
        for size in ("vocab_size", "num_classes", "max_length", "num_documents"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")
        # A user's own data module need not have it.
        parser.link_arguments(
            "data", "model.image_side", lambda data: getattr(data, "image_side", 0), apply_on="instantiate"
        )

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise RunError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint never changes the command line. `before_instantiate_classes` compares the two."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        check_nulls(self._parser(self.config.subcommand), self.config[self.config.subcommand])

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_config(config)
        if config.seed_everything is False:
            raise RunError("seed_everything=false: a run needs a seed to be repeatable. Fix: give a number")
        evaluates = "test" if self.subcommand == "fit" and config.test_after_fit else self.subcommand
        if config.trainer.get(limit := _LIMITS.get(evaluates, "")) == 0:
            raise RunError(f"trainer.{limit}=0 leaves {evaluates} without a batch. Fix: leave it out, or raise it")
        # Lightning takes the model's hyper-parameters from `config_dump`. It would dump the configuration once more.
        self.config_dump = plain = self._plain_config()
        folder = run_folder(plain)
        config.trainer.default_root_dir = str(folder)
        if config.trainer.fast_dev_run:
            self.scratch = TemporaryDirectory(prefix="fast_dev_run_")  # callbacks write as ever, and nothing remains
            config.trainer.default_root_dir = self.scratch.name
        self._name_loggers(config, folder)
        if config.weights_only is False:
            raise RunError(
                "weights_only=false: checkpoints hold plain values only, so that loading one cannot execute code. "
                "Fix: leave it out"
            )
        config.weights_only = True
        if "verbose" in config:
            config.verbose = False  # EvaluationResult says it in one line
        path = None
        if self.subcommand != "fit" or not config.trainer.fast_dev_run:
            path = find_checkpoint(config.ckpt_path, folder, self.subcommand)
        elif config.ckpt_path not in (None, "auto"):
            raise RunError(
                f"trainer.fast_dev_run trains from initial weights (got --ckpt_path {config.ckpt_path}). Fix: leave "
                "out --ckpt_path"
            )
        self.checkpoint: dict[str, Any] = {}
        if path is not None:
            path, self.checkpoint = read_or_fall_back(path, config.ckpt_path, self.subcommand)
            if self.subcommand == "fit" and self.checkpoint.get("weights_only"):
                raise RunError(f"checkpoint {path} holds weights only, so no run can resume from it. Fix: name another")
            check_same_run(path, self.checkpoint, plain, self.subcommand)
        elif self.subcommand == "fit":
            check_pretrained(plain)
        config.ckpt_path = path and str(path)

    def instantiate_classes(self) -> None:
        with unwrapping_value_errors():
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        ended = False
        self.lock = ExitStack()
        try:
            super()._run_subcommand(subcommand)
            if distributed.is_available() and distributed.is_initialized():
                distributed.barrier()  # a process that ends first would close the others' connections
            ended = True
        except (RunError, CheckpointError):
            raise
        except Exception as error:
            if internals.is_compiler_error(error):
                said = str(error).strip().partition("\n")[0][:500].rstrip(".")
                raise RunError(
                    f"model.compile: torch.compile failed ({said}). Fix: --model.compile false, or install what is "
                    "missing; on a CPU it needs a C++ compiler, g++ or the one that CXX names"
                ) from error
            reason = " ".join(str(error).split())[:500]
            name = _raising_callback(error)
            if name and not _was_restoring(error):
                raise RunError(
                    f"trainer.callbacks: {name} cannot work here ({reason.rstrip('.')}). Fix: change its arguments, or "
                    "remove it"
                ) from error
            if not _was_restoring(error):
                raise
            raise CheckpointError(
                f"checkpoint {self.config[subcommand].ckpt_path} does not fit this run ({type(error).__name__}: "
                f"{reason}). Fix: name another one with --ckpt_path, or start without one in another folder."
            ) from error
        finally:
            self.lock.close()
            if self.config[subcommand].trainer.fast_dev_run:
                self.scratch.cleanup()
            # Without this, gloo's threads sometimes abort at exit, which fails a correct run. NCCL would wait for
            # processes that failed or ended.
            begun = distributed.is_available() and distributed.is_initialized()
            if not begun:  # processes that this one started would wait half an hour for it
                for process in getattr(self.trainer.strategy.launcher, "procs", []):
                    process.kill()
            if begun and (ended or distributed.get_backend() == "gloo"):
                distributed.destroy_process_group()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        plugins = as_list(given.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        has_bar = any(isinstance(callback, ProgressBar) for callback in as_list(given.get("callbacks")))
        if given.get("enable_progress_bar") is not False and not has_bar:
            self.trainer_defaults["callbacks"].append(callbacks.StepProgressBar())
        try:
            trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
            slurm.leave_requeue_to_us(trainer)
            slurm.check_processes(trainer)
            check_trainer(trainer)
            limit_gpu_memory(trainer.strategy.root_device)
        except RunError:
            raise
        except Exception as error:  # Lightning's own checks raise many types, and seldom name the key
            said = " ".join(str(error).split())[:500].rstrip(".")
            settings = trainer_settings(self.config[self.subcommand].trainer, said)
            raise RunError(f"trainer: {said}. Set here: {settings}") from error
        if self.subcommand == "fit" and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger | ContinuedLogger):
                    logger.start_at(self.checkpoint.get("global_step", 0))
        _say_slow_precision(trainer)
        return trainer

    def before_fit(self) -> None:
        if self.trainer.is_global_zero:
            lock_run(self.lock, Path(self.trainer.default_root_dir))
        if self.checkpoint and self.trainer.limit_train_batches != 0:
            internals.train_even_if_done(self.trainer)  # its last evaluation may be missing
        # Wrong values show before any data is made; how many steps epochs have, only the data tells.
        by_steps = self.trainer.max_epochs == -1 and not self.trainer.fast_dev_run
        self.model.make_optimizer_and_scheduler(self.trainer.max_steps if by_steps else None)
        size = sum(parameter.numel() for parameter in self.model.parameters())
        folder = self.trainer.default_root_dir
        if not self.trainer.fast_dev_run:
            rank_zero_info(f"{folder}: {size:,} parameters. Watch it with\n  tensorboard --logdir {folder}")

    def after_fit(self) -> None:
        end = early_end(self.trainer)
        self._test_after_fit()
        if end is not None and self.trainer.is_global_zero:
            print(end, flush=True)

    def _test_after_fit(self) -> None:
        if self.config[self.subcommand].test_after_fit:
            folder = Path(self.trainer.default_root_dir)
            if self.trainer.fast_dev_run:  # there is no checkpoint: use the current weights
                self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
                return
            if not (folder / BEST).exists():
                raise RunError(
                    f"test_after_fit: {folder} has no {BEST}, since no validation took place. Fix: train longer than "
                    f"trainer.val_check_interval={self.trainer.val_check_interval} batches, or lower it"
                )
            path = find_checkpoint("best", folder, "test")
            internals.forget_average(self.trainer)
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=str(path), weights_only=True, verbose=False
            )

    def _plain_config(self) -> dict[str, Any]:
        """The subcommand's configuration as plain values."""
        config = self.config[self.subcommand]
        try:
            dump = self._parser(self.subcommand).dump(config, skip_unset=False, skip_validation=True)
        except RepresenterError as error:
            given = repr(error.args[-1])
            keys = [key for key, value in flatten(config.as_dict()).items() if given in repr(value)]
            raise RunError(
                f"{', '.join(keys)}: config.yaml cannot hold it (got {given}). Fix: set it to text, a number, or "
                "a class path with such arguments"
            ) from error
        return load_dumped(dump)

    def _name_loggers(self, config: Any, folder: Path) -> None:
        """Use TensorBoard unless loggers are named. Loggers with a folder write into the run's folder.

        `validate` logs nothing: its numbers would become points of the training's curves, at step 0.
        """
        if self.subcommand == "validate":
            config.trainer.logger = False
            return
        if config.trainer.logger in (None, True):
            config.trainer.logger = Namespace(
                class_path="skyformer.training.loggers.TensorBoardLogger", init_args=Namespace(save_dir=".")
            )
        for logger in filter(None, as_list(config.trainer.logger)):
            arguments = logger.get("init_args") or {}
            if "save_dir" in arguments:  # a logger that writes files
                named = arguments["save_dir"]
                logger.init_args.save_dir = str(folder if named in (None, ".") else Path(named).expanduser())
