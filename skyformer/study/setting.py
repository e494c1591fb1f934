"""A study's setting, from its arguments, and its output."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import SUPPRESS, ArgumentParser, Namespace
from lightning import LightningDataModule
from torch import Tensor

from skyformer.benchmark.cases import overlay_path
from skyformer.exceptions import RunError
from skyformer.files import write_atomically, write_table
from skyformer.installation import program_name
from skyformer.loading import make_data, make_model
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.earlier_versions import upgrade_config
from skyformer.model.schedule import ScheduleArguments
from skyformer.report.table import markdown_table
from skyformer.training.config_checks import check_config, check_nulls
from skyformer.training.run_folder import backend_name, task_name
from skyformer.yaml_text import load_dumped

# What else a task's YAML says; a study makes nothing of it.
_OTHERS = (
    "best_checkpoint", "ckpt_path", "last_checkpoint", "non_finite_loss", "predictions", "test_after_fit", "trainer",
    "verbose", "weights_only",
)  # fmt: skip


def make_parser(study: str, description: str, backends: list[str] | None, output: str) -> ArgumentParser:
    """The arguments that all studies take: `--config`, `--checkpoint`, `--output`, model and data; and `--backends`
    with this default, unless it is None.
    """
    parser = ScheduleArguments(prog=f"{program_name()} study {study}", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--config", action="config", help="A task's YAML file, then overlays; later ones win.")
    add("--checkpoint", type=str | None, help="Weights and configuration of a run, in place of an initialised model.")
    if backends is not None:
        add("--backends", type=list[str], default=backends, help="Overlays of configs/attention, or YAML files.")
    add("--output", type=str, default=output, help="Folder to write to.")
    add("--seed_everything", type=int, default=0, help="Of the initialised model, the order of examples, the draws.")
    parser.add_class_arguments(SequenceClassifier, "model")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    for name in _OTHERS:
        add(f"--{name}", type=Any, help=SUPPRESS)
    return parser


@dataclass
class Setting:
    """A parsed command: the data, and how to make models that differ in their attention only.

    Attributes:
        config: configuration of the command, with the arguments of its study.
        data: prepared and set up.
        state: weights of `--checkpoint`; None for an initialised model.
    """

    parser: ArgumentParser
    arguments: list[str]
    config: Namespace
    data: Any
    state: dict[str, Tensor] | None

    @classmethod
    def read(cls, parser: ArgumentParser, arguments: list[str], path: str | None = None) -> "Setting":
        """From a command line; the configuration of a checkpoint comes before all others.

        Args:
            path: the checkpoint; default: the last one that `--checkpoint` names.

        Raises:
            RunError: for a value that makes no sense.
            CheckpointError: for a checkpoint that cannot be read.
            SystemExit: 2 for a wrong argument.
        """
        state = None
        for named in [path] if path else checkpoints_of(arguments)[-1:]:
            checkpoint = read_checkpoint(Path(named).expanduser())
            state = checkpoint["state_dict"]
            text = yaml.safe_dump(upgrade_config(load_dumped(checkpoint["config"])))
            arguments = ["--config", text, *arguments, "--checkpoint", named]
        config = parser.parse_args(arguments)
        check_nulls(parser, config)
        check_config(Namespace(data=config.data, model=config.model))
        data = make_data(config.data)
        data.stages = []  # studies look at the task's own examples
        data.prepare_data()
        data.setup("fit")
        return cls(parser, arguments, config, data, state)

    @property
    def task(self) -> str:
        return task_name(self.config.as_dict())

    @property
    def backend(self) -> str:
        return backend_name(self.config.as_dict())

    @property
    def source(self) -> str:
        """The origin of the weights, for a title."""
        return f"{self.config.checkpoint} ({self.backend})" if self.config.checkpoint else "initialised weights"

    @property
    def max_steps(self) -> int:
        """The number of steps of the configured run, which its schedule uses."""
        return int((self.config.trainer or {}).get("max_steps", 1))

    def make_model(
        self, backend: str | None = None, max_length: int | None = None, seed: int | None = None
    ) -> SequenceClassifier:
        """The model with this attention (None: the configuration's own), in evaluation mode.

        All models have equal common weights, whatever random numbers a backend draws. With a backend whose queries are
        its keys (Reformer), these include the projections of query and value.

        Args:
            backend: name of an overlay of configs/attention, or a YAML file.
            max_length: number of positions, if more than the task's own are needed.
            seed: seed of the initial weights; default: `seed_everything`.

        Raises:
            RunError: for an unknown backend, or more positions than a checkpoint has.
        """
        longest = max(self.data.max_length, max_length or 0)
        if self.state is not None and longest > self.data.max_length:
            raise RunError(
                f"{self.config.checkpoint} has positions for {self.data.max_length:,} tokens, not for {longest:,}. "
                "Fix: ask for fewer"
            )
        torch.manual_seed(self.config.seed_everything if seed is None else seed)
        start = torch.get_rng_state()
        model = self._make(backend, longest)
        if self.state is not None:
            _load_shared(model, self.state)
        elif backend is not None:
            torch.set_rng_state(start)
            _load_shared(model, self._make("softmax", longest).state_dict())
        return model.eval()

    def _parse(self, backend: str | None) -> Namespace:
        if backend is None:
            return self.config
        path = overlay_path(backend)
        config = self.parser.parse_args([*self.arguments, f"--config={path}"])
        check_config(Namespace(data=config.data, model=config.model))
        return config

    def _make(self, backend: str | None, max_length: int) -> SequenceClassifier:
        model = self._parse(backend).model.clone()
        if max_length > self.data.max_length:
            # Such a sequence is no image.
            model.position_init = "normal" if model.position_init == "sinusoidal_2d" else model.position_init
            model.positions = "rotary" if model.positions == "rotary_2d" else model.positions
        return make_model(model, self.data, max_length)


def checkpoints_of(arguments: list[str]) -> list[str]:
    """Return all values of `--checkpoint`, which are needed before the other arguments can be parsed."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--checkpoint", action="append", default=[])
    return early.parse_known_args(arguments)[0].checkpoint


def distinct_names(settings: Sequence[Setting]) -> list[str]:
    """The method of each setting, with the source of its weights if several of a task share the method."""
    methods = [(setting.task, setting.backend) for setting in settings]
    return [
        backend if methods.count((task, backend)) == 1 else f"{backend} {setting.source}"
        for (task, backend), setting in zip(methods, settings, strict=True)
    ]


def _load_shared(model: SequenceClassifier, state: dict[str, Tensor]) -> None:
    """Take what has the same name; a method's own parameters stay as they were drawn."""
    own = model.state_dict()
    taken = {name: _fitted(value, own[name].shape) for name, value in state.items() if name in own}
    model.load_state_dict({name: value for name, value in taken.items() if value is not None}, strict=False)


def _fitted(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Fit a weight to this shape; None if this is not possible.

    If only one of two methods has equal queries and keys, the rows of the key are dropped, or copied from the query.
    """
    if weight.shape == shape:
        return weight
    thirds, halves = weight.split(max(1, len(weight) // 3)), weight.split(max(1, len(weight) // 2))
    if weight.shape[1:] == shape[1:] and 2 * len(weight) == 3 * shape[0]:
        return torch.cat([thirds[0], thirds[2]])
    if weight.shape[1:] == shape[1:] and 3 * len(weight) == 2 * shape[0]:
        return torch.cat([halves[0], halves[0], halves[1]])
    return None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Equal-keyed rows as CSV."""
    write_table(path, list(rows[0]), rows)


def print_tables(path: Path, title: str, tables: Sequence[tuple[str, Sequence[dict[str, str]]]]) -> None:
    """Print tables under their captions, and write them as Markdown.

    Args:
        path: the file.
        title: its first line.
        tables: captions, and rows as `markdown_table` takes them.
    """
    parts = [f"# {title}\n", *(f"{caption}\n\n{markdown_table(rows)}" for caption, rows in tables)]
    text = "\n".join(parts)
    print(text)
    write_atomically(path, text)
