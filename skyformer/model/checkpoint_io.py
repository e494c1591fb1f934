"""Checkpoints that are whole or absent, and that run no code."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO

from skyformer.exceptions import CheckpointError
from skyformer.files import write_atomically
from skyformer.yaml_text import load_yaml

LAST = "checkpoints/last.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"
BEST = "checkpoints/best.ckpt"
FIELDS = {"config": str, "global_step": int, "state_dict": dict}
_FIELDS_TO_RESUME = {"loops": dict, "callbacks": dict}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file and renames it: a crash or a full disk leaves the former file as it was; of `last.ckpt`
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
        write_atomically(target, content.getbuffer(), former)


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
            and all(isinstance(checkpoint.get(name), kind) for name, kind in FIELDS.items())
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
