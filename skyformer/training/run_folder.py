"""A run's folder, and checks that a checkpoint fits the command that names it.

A run is in `runs/<task>/<backend>/seed<k>` unless the user names another folder.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.files import acquire_lock
from skyformer.exceptions import CheckpointError, RunError
from skyformer.files import next_free_path
from skyformer.model.checkpoint_io import BEST, LAST, PREVIOUS, read_checkpoint
from skyformer.model.earlier_versions import upgrade_config
from skyformer.model.initial_weights import read_initial
from skyformer.yaml_text import load_dumped

# Settings that may change on a resume. The results of training do not depend on them, except for the length of the run,
# the device and callbacks of the user. Settings of callbacks are compared when their states are restored.
FREE_ON_RESUME = (
    "ckpt_path",
    "config",
    "weights_only",
    "test_after_fit",
    "data.init_args.data_dir",
    "data.init_args.num_workers",
    "data.init_args.predict_source",
    "data.init_args.eval_batch_size",
    "last_checkpoint",
    "non_finite_loss",
    "predictions",
    "model.compile",
    "model.cuda_graph",
    "model.gradient_checkpointing",
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
# Settings that the weights depend on. They must not change for test, validate and predict either.
FIXED_FOR_WEIGHTS = ("model", "data")
FREE_FOR_WEIGHTS = (
    "data.init_args.augment",
    "data.init_args.batch_size",
    "data.init_args.data_dir",
    "data.init_args.data_seed",
    "data.init_args.val_size",
    "data.init_args.eval_batch_size",
    "data.init_args.level_schedule",
    "data.init_args.num_workers",
    "data.init_args.predict_source",
    "data.init_args.protocol.val_is_test",
    "data.init_args.protocol.drop_last_test",
    "data.init_args.protocol.published_val_size",
    "data.init_args.source",
    "data.init_args.split",
    "data.init_args.test_size",
    "data.init_args.train_size",
    "model.class_weights",
    "model.compile",
    "model.cuda_graph",
    "model.dropout",
    "model.gradient_checkpointing",
    "model.init_from",
    "model.label_smoothing",
    "model.lr_scheduler",
    "model.optimizer",
    "model.position_init",
    "model.query_key_gain",
    "model.stochastic_depth",
)
# Further settings that may change for a model that starts from a pretrained encoder.
FREE_FOR_FINE_TUNING = (
    "model.attention",
    "model.float32_attention",
    "model.mask_ratio",
    "model.mlm_weight",
    "model.objective",
    "model.pooling",
    "model.positions_lr_factor",
)
MASKED_TOKENS = "masked_tokens"  # the objective of pretraining


def run_folder(config: Mapping[str, Any]) -> Path:
    """Return the folder of a run with this configuration (of a subcommand, as plain dicts)."""
    named = config["trainer"].get("default_root_dir")
    if named:
        return Path(named).expanduser()
    runs = Path("runs", "pretrain") if is_pretraining(config) else Path("runs")
    return runs / task_name(config) / backend_name(config) / f"seed{config['seed_everything']}"


def is_pretraining(config: Mapping[str, Any]) -> bool:
    """Return whether a run with this configuration learns masked tokens in place of the task's classes."""
    return bool(config["model"].get("objective") == MASKED_TOKENS)


def task_name(config: Mapping[str, Any]) -> str:
    """Return the task of a configuration, from the name of its class: `pathfinder`."""
    return str(config["data"]["class_path"]).rpartition(".")[2].lower()


def backend_name(config: Mapping[str, Any]) -> str:
    """Return the attention backend of a configuration, from the name of its class without the ending: `skyformer`."""
    name: str = config["model"]["attention"]["class_path"].rpartition(".")[2]
    return name.removesuffix("Attention").lower()


def find_checkpoint(named: str | None, folder: Path, subcommand: str) -> Path | None:
    """Return the file that `--ckpt_path` means; None to start a new run.

    It is a path, or `last` or `best` of the run's folder. `best` is the default except for fit. For fit, `auto` is
    `last` if there is a run, so one command starts and continues it.

    Raises:
        RunError: if it does not exist, or if a new fit would overwrite a run.
    """
    can_resume = any((folder / name).exists() for name in (LAST, PREVIOUS))
    if subcommand == "fit":
        if named == "auto":
            if not can_resume:  # best.ckpt may be there, from before the first one to resume from; it is written again
                return None
            named = "last"
        _check_not_written_over(named, folder, can_resume or (folder / BEST).exists())
        if named is None:
            return None
    if named == "last" and not (folder / LAST).exists() and (folder / PREVIOUS).exists():
        return folder / PREVIOUS  # stopped while one took the other's place
    path = {None: folder / BEST, "best": folder / BEST, "last": folder / LAST}.get(named) or Path(
        named or ""
    ).expanduser()
    if path.is_file():
        return path
    if named == "last":
        raise RunError(f"--ckpt_path last: {path} does not exist. Fix: leave it out to start a run.")
    fix = "Fix: train first, or name another file with --ckpt_path."
    raise RunError(f"no checkpoint {path}. {fix}")


def read_or_fall_back(path: Path, named: str | None, subcommand: str) -> tuple[Path, dict[str, Any]]:
    """Read the checkpoint at `path`. If `last` or `auto` named it and it is corrupt, read the previous one.

    For fit, a corrupt one is renamed to `last.damaged.<k>.ckpt`, so that it does not replace the previous one.

    Returns:
        The path that was read, and its contents.

    Raises:
        CheckpointError: if none is intact.
        OSError: if the disk cannot read it.
    """
    previous = path.parent / Path(PREVIOUS).name
    try:
        return path, read_checkpoint(path)
    except CheckpointError as error:
        if named not in ("last", "auto") or path == previous or not previous.exists():
            raise
        checkpoint = read_checkpoint(previous)
        with suppress(FileNotFoundError):  # another process of this run was first
            if subcommand == "fit":
                os.replace(path, next_free_path(path.parent, "last.damaged", ".ckpt"))
        step = checkpoint["global_step"]
        print(f"{error.problem}.\nResuming from the previous checkpoint, {previous}, step {step:,}.", flush=True)
        return previous, checkpoint


def _check_not_written_over(named: str | None, folder: Path, has_run: bool) -> None:
    """Refuse to start in the folder of a run, from nothing or from another run's checkpoint."""
    checkpoints = (folder / LAST).parent
    own = named in ("last", "best") or (
        named is not None and Path(named).expanduser().resolve().parent == checkpoints.resolve()
    )
    if has_run and not own:
        raise RunError(
            f"{folder} already holds a run ({checkpoints}). Fix: add --ckpt_path last to continue it, or "
            "--trainer.default_root_dir <folder> to start another."
        )


def lock_run(held: ExitStack, folder: Path) -> None:
    """Keep other processes from training in this folder until `held` is closed, or this process ends.

    Raises:
        RunError: when another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(folder / ".lock")
    except Timeout as error:
        raise RunError(
            f"{folder} is in use: another process trains in it. Fix: wait for its end, or set another "
            "--trainer.default_root_dir."
        ) from error
    if lock is None:
        warning = "is on a file system without file locks. Make sure that no other process trains in it."
        print(f"{folder} {warning}", flush=True)
    else:
        held.callback(lock.release)


def check_same_run(path: Path, checkpoint: Mapping[str, Any], config: Mapping[str, Any], subcommand: str) -> None:
    """Refuse a checkpoint of another configuration.

    For fit, everything except `FREE_ON_RESUME` must be equal. For other commands, only what the weights depend on.

    Raises:
        RunError: listing each key with both values.
    """
    former = upgrade_config(load_dumped(checkpoint["config"]))
    before, now = flatten(former), flatten(config)
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if subcommand == "fit":
        keys = [key for key in keys if not key.startswith(FREE_ON_RESUME)]
    else:
        keys = [key for key in keys if key.startswith(FIXED_FOR_WEIGHTS) and not key.startswith(FREE_FOR_WEIGHTS)]
    if keys:
        lines = [f"  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in keys]
        arguments = " ".join(f"--{key} {json.dumps(value)}" for key, value in _whole(former, keys).items())
        fix = (
            f"Fix: set them as they were ({arguments}), or start another run without --ckpt_path in another "
            "--trainer.default_root_dir."
            if subcommand == "fit"
            else "Fix: use the configuration that the run was trained with: its folder holds config.yaml."
        )
        raise RunError("\n".join([f"checkpoint {path} belongs to another configuration:", *lines, fix]))


def check_pretrained(config: Mapping[str, Any]) -> None:
    """Refuse a `model.init_from` that was pretrained on another task, or with another encoder.

    Equal shapes are not enough: Text and Retrieval have equal shapes, and so have two and four heads. Checkpoints of
    other runs may differ (`load_initial_weights`).

    Raises:
        RunError: listing each setting with both values.
        CheckpointError: where there is no such checkpoint.
    """
    if not (named := config["model"].get("init_from")):
        return
    former = upgrade_config(load_dumped(read_initial(Path(named).expanduser())["config"]))
    if not is_pretraining({"model": {}, **former}):
        return
    before, now = flatten({"model": former["model"]}), flatten({"model": config["model"]})
    free = (*FREE_FOR_WEIGHTS, *FREE_FOR_FINE_TUNING)
    lines = [
        f"  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    tasks = task_name(former), task_name(config)
    if tasks[0] != tasks[1]:
        lines.insert(0, f"  task: {tasks[0]} in the checkpoint, {tasks[1]} now")
    if lines:
        fix = f"Fix: set them as they were, or pretrain such an encoder with configs/pretrain/{tasks[1]}.yaml."
        raise RunError("\n".join([f"model.init_from: {named} was pretrained with other settings:", *lines, fix]))


def _whole(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of these keys. For a missing key, return the value of the nearest parent key."""
    values: dict[str, Any] = {}
    for key in keys:
        value: Any = config
        parts = key.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(value, Mapping) or part not in value:
                parts = parts[:depth]
                break
            value = value[part]
        values[".".join(parts)] = value
    return values


def check_same_data(checkpoint: Mapping[str, Any], data_hash: str | None, num_processes: int, fits: bool) -> None:
    """Refuse to continue with other data or another number of processes; warn of other data in an evaluation.

    Args:
        checkpoint: contents of the checkpoint.
        data_hash: hash of the current prepared data; None if it has none.
        num_processes: number of processes of this run.
        fits: whether the run trains.

    Raises:
        RunError: with both values.
    """
    if data_hash is None and not fits:
        return  # new inputs, or a data module that has no hash
    before, processes = checkpoint.get("data_hash"), checkpoint.get("num_processes")
    if not fits and before:
        before = before.partition("+")[0]  # an evaluation does not see what training began with
    if before != data_hash:
        text = f"the data differs from what the checkpoint was trained on: hash {data_hash} now, {before} then"
        if fits:
            raise RunError(f"{text}. Fix: set data.data_dir or data.source as they were, or start another run.")
        rank_zero_warn(f"{text}; the result is for the current data.", category=DataWarning)
    if fits and processes != num_processes:
        raise RunError(
            f"the checkpoint is of a run of {processes} process(es), this one has {num_processes}: batches and random "
            "numbers would differ. Fix: use as many (trainer.devices, trainer.num_nodes), or start another run."
        )


class DataWarning(UserWarning):
    """An evaluation uses other data than the user may expect."""


def flatten(config: Any) -> dict[str, Any]:
    """Nested mappings as one: `{"trainer.max_steps": 9}`."""
    return dict(_walk(config, ""))


def _walk(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _walk(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config
