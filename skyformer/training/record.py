"""Record the origin of a run: versions, code, data, seed, machine."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from datamodules.examples import available_cores
from skyformer.installation import CONFIGS

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "numba", "tensorboard")


def make_record(
    seed: Any, data_hash: str | None, num_processes: int, step: int, max_steps: int = -1, curriculum: str = ""
) -> dict[str, Any]:
    """Return everything that a run's numbers depend on apart from its configuration, as plain JSON values.

    Args:
        seed: `seed_everything`.
        data_hash: hash of the prepared data; None for data without one.
        num_processes: number of processes of the run, over all machines.
        step: step that the run starts from.
        max_steps: last step of the run, also if its length is set in epochs; -1 without a limit.
        curriculum: description of the easier examples that training began with; empty without any.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "from_step": step,
        "max_steps": max_steps,
        "seed": seed,
        "data_hash": data_hash,
        "curriculum": curriculum,
        "num_processes": num_processes,
        "code": code_state(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": hardware(),
    }


def portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the name and the folders of the machine that it was made on."""
    hardware = {name: value for name, value in (record.get("hardware") or {}).items() if name != "host"}
    command = [str(word) for word in record.get("command") or []]
    return {**record, "command": portable_words(command), "hardware": hardware}


# Arguments that name folders of this machine.
_PLACES = ("data_dir", "source", "default_root_dir", "ckpt_path", "save_dir", "init_from")


def portable_words(command: Sequence[str]) -> list[str]:
    """Return the words of a command line (`sys.argv`) without the folders of the machine that it ran on."""
    kept, is_value = [Path(word).name for word in command[:1]], False
    for word in command[1:]:
        option, equals, _ = word.partition("=")
        if word.startswith("-") and option.rpartition(".")[2].lstrip("-") in _PLACES:
            is_value = not equals
        elif not is_value or word.startswith("--"):
            kept.append(_without_folder(word))
            is_value = False
        else:
            is_value = False
    return kept


def _without_folder(word: str) -> str:
    """The same argument; of an absolute path, such as that of a configuration, its name or its place in the project."""
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    project = CONFIGS.parent
    return f"{option}{equals}{path.relative_to(project) if path.is_relative_to(project) else path.name}"


def code_state() -> dict[str, Any]:
    """Return the git commit of this project's checkout and whether it has changes; None without checkout or git."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain")
    return {"skyformer": _version("skyformer"), "commit": commit, "dirty": None if changes is None else changes != ""}


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GB of 10⁹ bytes, GPUs, operating system."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gb": pages and round(pages / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "host": platform.node(),
    }


def processor_name() -> str:
    """Return the processor's name, which Linux has only in a file, and its family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    described = [
        fields.get("model name"),
        *(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields),
    ]
    return ", ".join(text for text in described if text) or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return git's output for the checkout of this file, if it is a checkout of this project."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
