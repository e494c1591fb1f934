"""A run's folder, and whether a checkpoint belongs to the command that names it.

A run lives in `runs/<task>/<backend>/seed<k>` unless the user names another folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from skyformer.callbacks.checkpoints import BEST, LAST


class RunError(RuntimeError):
    """A command that does not fit the run's folder or checkpoint; the message says what to change."""


# What may differ between a checkpoint and the command that resumes it: nothing that the training's numbers depend on,
# but for the length of the run, which the schedule follows, the device, and callbacks that the user adds.
FREE_ON_RESUME = (
    "ckpt_path",
    "config",
    "weights_only",
    "test_after_fit",
    "data.init_args.data_dir",
    "data.init_args.num_workers",
    "data.init_args.eval_batch_size",
    "last_checkpoint",
    "best_checkpoint",
    "predictions",
    "model.compile",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.check_val_every_n_epoch",
    "trainer.default_root_dir",
    "trainer.deterministic",
    "trainer.enable_",
    "trainer.inference_mode",
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.max_",
    "trainer.min_",
    "trainer.num_sanity_val_steps",
    "trainer.profiler",
    "trainer.val_check_interval",
)
# What the weights depend on, so that it must be the same for test, validate and predict too.
FIXED_FOR_WEIGHTS = ("model", "data")
FREE_FOR_WEIGHTS = (
    "data.init_args.batch_size",
    "data.init_args.data_dir",
    "data.init_args.data_seed",
    "data.init_args.dev_size",
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    "data.init_args.protocol.dev_is_test",
    "data.init_args.protocol.drop_last_test",
    "data.init_args.protocol.published_dev_size",
    "data.init_args.source",
    "data.init_args.split",
    "data.init_args.test_size",
    "data.init_args.train_size",
    "model.compile",
    "model.dropout",
    "model.lr_scheduler",
    "model.optimizer",
)


def run_folder(config: Mapping[str, Any]) -> Path:
    """The folder of a run with this configuration (that of a subcommand, as plain dicts)."""
    named = config["trainer"].get("default_root_dir")
    if named:
        return Path(named)
    return Path("runs", task_name(config), backend_name(config), f"seed{config['seed_everything']}")


def task_name(config: Mapping[str, Any]) -> str:
    """The task of a configuration: the name of its class, `pathfinder`."""
    return str(config["data"]["class_path"]).rpartition(".")[2].lower()


def backend_name(config: Mapping[str, Any]) -> str:
    """The attention backend of a configuration: the name of its class without the ending, `skyformer`."""
    name: str = config["model"]["attention"]["class_path"].rpartition(".")[2]
    return name.removesuffix("Attention").lower()


def find_checkpoint(named: str | None, folder: Path, subcommand: str) -> Path | None:
    """The file that `--ckpt_path` means: a path, `last` or `best` of the run's folder; `best` by default but for fit.

    Raises:
        RunError: when it is not there, or when a new fit would write over a run.
    """
    if subcommand == "fit":
        _check_not_written_over(named, folder)
        if named is None:
            return None
    path = {None: folder / BEST, "best": folder / BEST, "last": folder / LAST}.get(named, Path(named or ""))
    if path.is_file():
        return path
    if named == "last":
        raise RunError(f"--ckpt_path last: there is nothing to continue, {path} does not exist. Leave it out to start.")
    fix = "Train first, or name another file with --ckpt_path."
    raise RunError(f"no checkpoint {path}. {fix}")


def _check_not_written_over(named: str | None, folder: Path) -> None:
    """Refuse to start in the folder of a run, from nothing or from another run's checkpoint."""
    held = [path for path in (folder / LAST, folder / BEST) if path.exists()]
    checkpoints = (folder / LAST).parent.resolve()
    own = named in ("last", "best") or (named is not None and Path(named).resolve().parent == checkpoints)
    if held and not own:
        raise RunError(
            f"{folder} already holds a run ({held[0]}). Add --ckpt_path last to go on with it, or "
            "--trainer.default_root_dir <folder> to start another."
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; nothing in it is executed.

    Raises:
        RunError: for a damaged file or one that this project did not write.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in many ways: zip, pickle, end of file, memory
        raise RunError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "config" not in checkpoint:
        raise RunError(f"checkpoint {path} was not written by this project's runs: it holds no configuration")
    return checkpoint


def check_same_run(path: Path, checkpoint: Mapping[str, Any], config: Mapping[str, Any], subcommand: str) -> None:
    """Refuse a checkpoint of another configuration.

    For fit, everything but `FREE_ON_RESUME` must be as it was; else, what the weights depend on.

    Raises:
        RunError: listing each key with both values.
    """
    before, now = _flatten(yaml.safe_load(checkpoint["config"])), _flatten(config)
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if subcommand == "fit":
        keys = [key for key in keys if not key.startswith(FREE_ON_RESUME)]
    else:
        keys = [key for key in keys if key.startswith(FIXED_FOR_WEIGHTS) and not key.startswith(FREE_FOR_WEIGHTS)]
    if keys:
        lines = [f"  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in keys]
        fix = (
            "Set them as they were, or start another run without --ckpt_path in another --trainer.default_root_dir."
            if subcommand == "fit"
            else "Use the configuration that the run was trained with: its folder holds config.yaml."
        )
        raise RunError("\n".join([f"checkpoint {path} belongs to another configuration:", *lines, fix]))


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    return dict(_walk(config, prefix))


def _walk(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _walk(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config
