"""Checkpoint files: written atomically, and loaded without executing code."""

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
from skyformer.yaml_text import load_dumped

LAST = "checkpoints/last.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"
BEST = "checkpoints/best.ckpt"
FIELDS = {"config": str, "global_step": int, "state_dict": dict}
_FIELDS_TO_RESUME = {"loops": dict, "callbacks": dict}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a temporary file and rename it.

    A crash or a full disk leaves the former file unchanged. A former `last.ckpt` is kept as `previous.ckpt`. Values
    that safe loading would not read are refused before writing.

    Lightning's own class writes to the system's temporary folder and moves the file. Across file systems this is a
    copy, which can be truncated.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # In memory first: these models are a few MB, and torch's own writer does not report a full disk.
        content, error = _pack(checkpoint)
        if error is not None:
            raise CheckpointError(_name_unreadable(checkpoint)) from error
        target = Path(path)
        former = target.parent / Path(PREVIOUS).name if target.name == Path(LAST).name else None
        write_atomically(target, content.getbuffer(), former)


def _pack(value: Any) -> tuple[io.BytesIO, Exception | None]:
    """Return the bytes of a value, and the error if safe loading does not read them."""
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
    """Name the callback or other part with a value that safe loading does not read, and the value's type."""
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
    """Find the innermost part that safe loading does not read, with its keys."""
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
    """Return a checkpoint's contents on the CPU, after checking its checksums. No code is executed.

    Raises:
        CheckpointError: for a corrupt file or one that this project did not write.
        OSError: for a file that the disk cannot read; the file may be intact.
    """
    content = path.read_bytes()
    try:
        _check_archive(content)
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # corruption raises many types: zip, pickle, end of file, memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {reason}. It is corrupt, or not a checkpoint",
            "name another one with --ckpt_path; `last` falls back to the previous checkpoint by itself",
        ) from error
    _check_contents(path, checkpoint)
    return checkpoint


def _check_archive(content: bytes) -> None:
    """Check the checksums that torch writes into a checkpoint but does not check."""
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
            and isinstance(load_dumped(checkpoint["config"]), dict)
        )

    try:
        whole = is_whole()
    except yaml.YAMLError:
        whole = False
    if not whole:
        raise CheckpointError(
            f"checkpoint {path} was not written by this project's runs: it lacks configuration, step, weights or state",
            "name another one with --ckpt_path",
        )
