"""A trained model from a checkpoint alone."""

from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentParser, Namespace

from skyformer.arguments import check_config
from skyformer.checkpoint_io import read_checkpoint
from skyformer.earlier_versions import in_todays_settings
from skyformer.model import SequenceClassifier
from skyformer.yaml_text import load_yaml


def load_model(path: str | Path) -> SequenceClassifier:
    """The model of a run's checkpoint, or of an exported one, on the CPU in evaluation mode.

    `model(tokens, mask)` gives class scores; see `SequenceClassifier.forward`. The task's data is not needed.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        RunError: for a checkpoint whose configuration this version cannot use.
    """
    checkpoint = read_checkpoint(Path(path).expanduser())
    config = in_todays_settings(load_yaml(checkpoint["config"]))
    parser = ArgumentParser()
    parser.add_class_arguments(SequenceClassifier, "model")
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    parsed = parser.parse_object({name: config[name] for name in ("model", "data")})
    check_config(parsed)
    only_data = ArgumentParser()
    only_data.add_subclass_arguments(lightning.LightningDataModule, "data")
    data = _only(only_data, data=parsed.data)
    for size in ("vocab_size", "num_classes", "max_length", "num_documents"):
        parsed.model[size] = getattr(data, size)
    parsed.model.image_side = getattr(data, "image_side", 0)
    only_model = ArgumentParser()
    only_model.add_class_arguments(SequenceClassifier, "model")
    with torch.random.fork_rng(devices=[]):  # initial weights are not kept, so they must not move the generator
        model: SequenceClassifier = _only(only_model, model=parsed.model)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def _only(parser: ArgumentParser, **config: Namespace) -> Any:
    """What one section of a configuration describes; `parser` knows that section alone."""
    (made,) = parser.instantiate(Namespace(**config)).values()
    return made
