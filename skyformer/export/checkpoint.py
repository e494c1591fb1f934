"""Write a checkpoint's weights and configuration to a small file."""

import json
from pathlib import Path
from typing import Any

import yaml

from skyformer.model.checkpoint_io import BEST, FIELDS, AtomicCheckpointIO, read_checkpoint
from skyformer.model.earlier_versions import upgrade_config
from skyformer.training.result import read_test_accuracy
from skyformer.yaml_text import load_dumped

# Parts of a trainer that do not belong to a model, and that would run code of the user who trained it.
EXTENSIONS = {"callbacks": None, "logger": None, "plugins": None, "profiler": None}
_EXPORTED = (*FIELDS, "epoch", "data_hash", "num_processes", "pytorch-lightning_version")


def export_checkpoint(source: Path, target: Path, half: bool = False) -> int:
    """Write the weights and the configuration of a checkpoint, without what only a resume needs; return its bytes.

    The configuration omits this machine's folders and devices. The result of the run's test is included if it is that
    of this checkpoint.

    Args:
        source, target: files.
        half: store weights and biases in float16. Numbers of a landmark draw keep their dtype.

    Raises:
        CheckpointError: for a source that cannot be read.
    """
    checkpoint = read_checkpoint(source)
    config = portable_config(load_dumped(checkpoint["config"]))
    kept = {name: checkpoint[name] for name in _EXPORTED if name in checkpoint}
    if half:
        kept["state_dict"] = {
            name: weight.half() if name.endswith((".weight", ".bias")) else weight
            for name, weight in kept["state_dict"].items()
        }
    kept |= {"config": yaml.safe_dump(config, sort_keys=False), "weights_only": True}
    if (result := counted_result(source) or checkpoint.get("result")) is not None:
        kept["result"] = result
    AtomicCheckpointIO().save_checkpoint(kept, target)
    return target.stat().st_size


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's nested configuration without its machine's folders and devices, and without `EXTENSIONS`."""
    config = upgrade_config(config)
    config["trainer"] |= EXTENSIONS | {"default_root_dir": None}
    config["trainer"] |= {"accelerator": "auto", "strategy": "auto", "devices": 1, "num_nodes": 1}
    config["model"] |= {"compile": False, "cuda_graph": False}
    if config["model"].get("init_from"):
        config["model"]["init_from"] = Path(config["model"]["init_from"]).name
    for name, default in (("source", None), ("data_dir", "data")):
        if name in config["data"].get("init_args", {}):
            config["data"]["init_args"][name] = default
    return config


def counted_result(source: Path) -> dict[str, Any] | None:
    """Return the result of the run's test if it is that of this checkpoint in its run's folder."""
    folder = source.resolve().parent.parent
    if source.name != Path(BEST).name or read_test_accuracy(folder) is None:
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {name: value for name, value in result.items() if name != "checkpoint"}
