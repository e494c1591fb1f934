"""Checkpoints that are whole or absent, and that run no code."""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO

from skyformer.earlier_versions import in_todays_settings
from skyformer.files import write_whole
from skyformer.result import read_test_accuracy
from skyformer.yaml_text import load_yaml

LAST = "checkpoints/last.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"
BEST = "checkpoints/best.ckpt"
_FIELDS = {"config": str, "global_step": int, "state_dict": dict}
_FIELDS_TO_RESUME = {"loops": dict, "callbacks": dict}
_EXPORTED = (*_FIELDS, "epoch", "data_hash", "num_processes", "pytorch-lightning_version")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so a crash or a full disk leaves the former file as it was; of `last.ckpt`
    the former one is kept as `previous.ckpt`. What could not be read again is refused before anything is written.

    Lightning's own writes to the system's temporary folder and moves from there, which across file systems is a copy
    that can be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # In memory first: these models are a few MB, and torch's own writer does not say that a disk is full.
        content, error = _pack(checkpoint)
        if error is not None:
            raise CheckpointError(_name_unreadable(checkpoint)) from error
        target = Path(path)
        former = target.parent / Path(PREVIOUS).name if target.name == Path(LAST).name else None
        write_whole(target, content.getbuffer(), former)


def _pack(value: Any) -> tuple[io.BytesIO, Exception | None]:
    """The bytes of a value, and the error where safe loading does not read them."""
    content = io.BytesIO()
    try:
        torch.save(value, content)
        content.seek(0)
        torch.load(content, map_location="meta", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # pickle and torch raise many kinds
        return content, error
    return content, None


def _name_unreadable(checkpoint: Mapping[str, Any]) -> str:
    """Say which callback, or which other part, holds a value that safe loading does not read, and its type."""
    callbacks = checkpoint.get("callbacks", {})
    parts = {f"callback {name}: its state": state for name, state in callbacks.items()}
    parts |= {f"the checkpoint's {name}": part for name, part in checkpoint.items() if name != "callbacks"}
    name, part = next(((name, part) for name, part in parts.items() if _pack(part)[1]), ("the checkpoint", checkpoint))
    where, value = _find_unreadable(part, "")
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return (
        f"{name} holds a {kind}{f' ({where})' if where else ''}, which a checkpoint cannot store: loading it would "
        "execute code. Fix: return only tensors, numbers, text, lists and dicts from state_dict, such as float(value)"
    )


def _find_unreadable(value: Any, where: str) -> tuple[str, Any]:
    """The innermost part that safe loading does not read, with the keys that lead to it."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = [*((key, key) for key in value), *value.items()]
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, part in inner:
        if _pack(part)[1]:
            return _find_unreadable(part, f"{where}[{key!r}]")
    return where, value


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; every byte is held against the checksums in it, and nothing is executed.

    Raises:
        CheckpointError: for a damaged file or one that this project did not write.
        OSError: for a file that the disk does not give; that is no damage.
    """
    content = path.read_bytes()
    try:
        _check_archive(content)
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in many ways: zip, pickle, end of file, memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {reason}. It is damaged or none; name another one with --ckpt_path "
            "(last falls back by itself to the one before)."
        ) from error
    _check_contents(path, checkpoint)
    return checkpoint


def export_checkpoint(source: Path, target: Path, half: bool = False) -> int:
    """Write the weights and the configuration of a checkpoint, without what only a resume needs; return its bytes.

    The configuration leaves out where this machine keeps its data and runs, and its devices. The result of the run's
    test goes along where it is that of this checkpoint.

    Args:
        source, target: files.
        half: store weights and biases in float16; what a landmark draw depends on stays as it is.

    Raises:
        CheckpointError: for a source that cannot be read.
    """
    checkpoint = read_checkpoint(source)
    config = in_todays_settings(load_yaml(checkpoint["config"]))
    config["trainer"]["default_root_dir"] = None
    config["trainer"]["logger"] = None
    config["trainer"] |= {"accelerator": "auto", "strategy": "auto", "devices": 1, "num_nodes": 1}
    config["model"] |= {"compile": False, "cuda_graph": False}
    if config["model"].get("init_from"):
        config["model"]["init_from"] = Path(config["model"]["init_from"]).name
    for name, default in (("source", None), ("data_dir", "data")):
        if name in config["data"].get("init_args", {}):
            config["data"]["init_args"][name] = default
    kept = {name: checkpoint[name] for name in _EXPORTED if name in checkpoint}
    if half:
        kept["state_dict"] = {
            name: weight.half() if name.endswith((".weight", ".bias")) else weight
            for name, weight in kept["state_dict"].items()
        }
    kept |= {"config": yaml.safe_dump(config, sort_keys=False), "weights_only": True}
    folder = source.resolve().parent.parent
    if source.name == Path(BEST).name and read_test_accuracy(folder) is not None:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        kept["result"] = {name: value for name, value in result.items() if name != "checkpoint"}
    AtomicCheckpointIO().save_checkpoint(kept, target)
    return target.stat().st_size


def _check_archive(content: bytes) -> None:
    """torch reads a checkpoint without comparing the checksums that it wrote."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it holds compressed records, which torch does not write")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")


def _check_contents(path: Path, checkpoint: Any) -> None:
    def has_state() -> bool:
        return (
            all(isinstance(checkpoint.get(name), kind) for name, kind in _FIELDS_TO_RESUME.items())
            and isinstance(checkpoint["callbacks"].get("LastCheckpoint"), dict)
            and {"evaluation_is_due", "to_log"} <= checkpoint["callbacks"]["LastCheckpoint"].keys()
        )

    def is_whole() -> bool:
        return (
            isinstance(checkpoint, dict)
            and all(isinstance(checkpoint.get(name), kind) for name, kind in _FIELDS.items())
            and all(isinstance(weight, torch.Tensor) for weight in checkpoint["state_dict"].values())
            and (checkpoint.get("weights_only") is True or has_state())
            and isinstance(load_yaml(checkpoint["config"]), dict)
        )

    try:
        whole = is_whole()
    except yaml.YAMLError:
        whole = False
    if not whole:
        raise CheckpointError(
            f"checkpoint {path} was not written by this project's runs: it lacks configuration, step, weights or "
            "state. Name another one with --ckpt_path."
        )
