"""Trained models as folders that `huggingface_hub` understands: weights, configuration and a model card."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from skyformer.exceptions import RunError
from skyformer.export.checkpoint import counted_result, portable_config
from skyformer.installation import command_line
from skyformer.loading import untrained_model
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.training.record import portable_words
from skyformer.yaml_text import load_dumped

try:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData, PyTorchModelHubMixin
except ImportError as error:
    raise ImportError("skyformer.hf.hub needs huggingface_hub. Fix: pip install -e '.[hf]'") from error

_ARENA = ("Image", "ListOps", "PathX", "Pathfinder", "Retrieval", "Text")
_CARD = """---
{{ card_data }}
---

# {{ run.method }} on {{ run.task }}

{% if is_of_arena -%}
A sequence classifier of [Long Range Arena](https://arxiv.org/abs/2011.04006), trained with `skyformer`.
{%- else -%}
A classifier trained with `skyformer`. Its task is not one of Long Range Arena.
{%- endif %}

| | |
|---|---|
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
`config.json` has all settings of the model and the data.

```python
from skyformer.hf.hub import HubClassifier

model = HubClassifier.from_pretrained("<this folder or repository>")
scores = model(tokens, mask)  # (B, N) token ids, (B, N) bool with True = a real token → (B, classes)
```
"""


class HubClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="skyformer",
    license="apache-2.0",
    tags=["efficient-attention"],
):
    """A trained `SequenceClassifier` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    `save_pretrained(folder)` writes `model.safetensors`, `config.json` and a model card. `push_to_hub(repository)` and
    `save_pretrained(folder, push_to_hub=True)` upload the same files. `from_pretrained` takes a folder or a repository,
    and returns the model in evaluation mode. Neither reads a pickle.

    Args:
        config: the contents of `config.json`: `model` and `data` of a run's configuration, and `run`, for the card.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.classifier = untrained_model(config)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """Class scores `(B, classes)`; see `SequenceClassifier.forward`."""
        return self.classifier(tokens, mask, position)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """The model of a run's checkpoint, or of an exported one, in evaluation mode.

        The card has the accuracy if the run was tested with this checkpoint. It has command and commit if the
        checkpoint is in its run's folder. Folders of this machine are omitted.

        Args:
            path: the file; `~` is the home folder.

        Raises:
            CheckpointError: for a checkpoint that cannot be read.
            RunError: for a checkpoint whose configuration this version cannot use, or a model that was pretrained only.
        """
        path = Path(path).expanduser()
        checkpoint = read_checkpoint(path)
        config = portable_config(load_dumped(checkpoint["config"]))
        kept = {name: config[name] for name in ("model", "data")}
        model = cls({**kept, "run": _describe(config, checkpoint, path)})
        model.classifier.check_classifies()
        model.classifier.load_state_dict(checkpoint["state_dict"])
        return model.eval()

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Self:
        """Load as the base class does, but refuse a file that lacks a weight."""
        return super()._from_pretrained(strict=strict, **arguments)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of `config.json`'s `run`: task, method, protocol, accuracy, command, commit."""
        config: Any = self._hub_mixin_config
        run = config["run"]
        data = self._hub_mixin_info.model_card_data.to_dict()
        is_of_arena = run["task"] in _ARENA
        if is_of_arena:
            data["tags"] = [*data["tags"], "long-range-arena"]
        if run["accuracy"] is not None:
            data["model_name"] = f"{run['method']} on {run['task']}"
            data["eval_results"] = [
                EvalResult(
                    task_type="token-classification" if config["model"]["pooling"] == "none" else "text-classification",
                    dataset_type=f"{'lra-' if is_of_arena else ''}{run['task'].lower()}",
                    dataset_name=f"{'Long Range Arena: ' if is_of_arena else ''}{run['task']}",
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_value=run["accuracy"],
                )
            ]
        named = {"run": run, "facts": _facts(run), "is_of_arena": is_of_arena}
        return ModelCard.from_template(ModelCardData(**data), template_str=_CARD, **named, **kwargs)


def _describe(config: dict[str, Any], checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the facts of the model card as plain JSON values; None for an unknown one."""
    records: Any = []
    with suppress(OSError, ValueError):
        records = json.loads((path.resolve().parent.parent / "record.json").read_text(encoding="utf-8"))
    record = records[-1] if isinstance(records, list) and records else {}
    code = record.get("code", {})
    result = counted_result(path) or checkpoint.get("result") or {}
    protocol = config["data"].get("init_args", {}).get("protocol") or {}
    return {
        "task": config["data"]["class_path"].rpartition(".")[2],
        "method": config["model"]["attention"]["class_path"].rpartition(".")[2].removesuffix("Attention"),
        "protocol": protocol,
        "accuracy": result.get("test/accuracy"),
        "examples": result.get("test/examples"),
        "chance": result.get("chance"),
        "steps": checkpoint.get("global_step"),
        "seed": config.get("seed_everything"),
        "data_hash": checkpoint.get("data_hash"),
        "command": command_line(portable_words(record.get("command") or [])) or None,
        "commit": code.get("commit") and code["commit"] + (" with local changes" if code.get("dirty") else ""),
        "versions": record.get("versions", {}),
    }


def _facts(run: dict[str, Any]) -> dict[str, str]:
    """The rows of the card's table."""
    accuracy = "not tested"
    if run["accuracy"] is not None:
        accuracy = f"{run['accuracy']:.2%} on {run['examples']:,} examples; guessing gives {run['chance']:.2%}"
    facts = {
        "task": run["task"],
        "method": run["method"],
        "protocol": ", ".join(f"{name}={value}" for name, value in sorted(run["protocol"].items())) or "the default",
        "test accuracy": accuracy,
        "steps": f"{run['steps']:,}" if run["steps"] is not None else "unknown",
        "seed": run["seed"],
        "data hash": run["data_hash"],
        "command": f"`{run['command']}`" if run["command"] else "unknown",
        "commit": run["commit"] or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(run["versions"].items())) or "unknown",
    }
    return {name: str(value) for name, value in facts.items()}


def export_folder(source: Path, target: Path) -> int:
    """Write a checkpoint's model as such a folder; return the bytes of its weights.

    Args:
        source: the checkpoint.
        target: the folder, which must be empty or absent: a model card that is there would be kept.

    Raises:
        CheckpointError, RunError: as `HubClassifier.from_checkpoint`; also for a folder that holds files.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"--output {target} exists and is not an empty folder. Fix: name another, or remove it")
    HubClassifier.from_checkpoint(source).save_pretrained(target)
    return (target / "model.safetensors").stat().st_size
