"""Load a trained model from a checkpoint alone."""

from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentParser, Namespace

from skyformer.exceptions import unwrapping_value_errors
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.earlier_versions import upgrade_config
from skyformer.model.schedule import ScheduleArguments
from skyformer.training.config_checks import check_config
from skyformer.yaml_text import load_dumped


def load_model(path: str | Path) -> SequenceClassifier:
    """Load the model of a run's checkpoint or of an exported one, on the CPU in evaluation mode.

    `model(tokens, mask)` gives class scores; see `SequenceClassifier.forward`. The task's data is not needed.

    Args:
        path: the file; `~` is the home folder.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        RunError: for a checkpoint whose configuration this version cannot use.
    """
    checkpoint = read_checkpoint(Path(path).expanduser())
    model = untrained_model(load_dumped(checkpoint["config"]))
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def untrained_model(config: dict[str, Any]) -> SequenceClassifier:
    """Make the model of a run's configuration, with initial weights, on the CPU.

    Args:
        config: nested; `model` and `data` are read. The task's data is not needed.

    Raises:
        RunError: for a configuration that this version cannot use.
    """
    config = upgrade_config(config)
    parser = ScheduleArguments()
    parser.add_class_arguments(SequenceClassifier, "model")
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    parsed = parser.parse_object({name: config[name] for name in ("model", "data")})
    check_config(parsed)
    data = make_data(parsed.data)
    with torch.random.fork_rng(devices=[]):  # initial weights are replaced, so they must not advance the generator
        return make_model(parsed.model, data, data.max_length)


def make_data(settings: Namespace) -> Any:
    """Make a data module from the `data` section of a configuration.

    Raises:
        RunError: for an invalid value.
    """
    only_data = ArgumentParser()
    only_data.add_subclass_arguments(lightning.LightningDataModule, "data")
    return instantiate(only_data, data=settings)


def make_model(settings: Namespace, data: Any, max_length: int) -> SequenceClassifier:
    """Make a model from the `model` section of a configuration, for the task of a data module.

    Raises:
        RunError: for an invalid value.
    """
    settings = settings.clone()
    for size in ("vocab_size", "num_classes", "num_documents"):
        settings[size] = getattr(data, size)
    settings.max_length = max_length
    settings.image_side = getattr(data, "image_side", 0)
    only_model = ScheduleArguments()
    only_model.add_class_arguments(SequenceClassifier, "model")
    model: SequenceClassifier = instantiate(only_model, model=settings)
    return model


def instantiate(parser: ArgumentParser, **config: Namespace) -> Any:
    """Instantiate one section of a configuration; `parser` knows only that section.

    Raises:
        RunError: for an invalid value.
    """
    with unwrapping_value_errors():
        (made,) = parser.instantiate(Namespace(**config)).values()
    return made
