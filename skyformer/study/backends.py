"""The attentions that a study compares: by overlay or YAML file, their names, how one is made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from skyformer.attention import Attention
from skyformer.benchmark.cases import read_attention
from skyformer.exceptions import RunError
from skyformer.model.encoder import AttentionFactory
from skyformer.training.config_checks import check_config
from skyformer.training.run_folder import backend_name

Description = dict[str, Any]  # class path and arguments, as in YAML


def read_backends(named: Sequence[str]) -> dict[str, tuple[str, Description]]:
    """Read overlays of configs/attention or YAML files. Return name and attention by the label in tables.

    The label is the name of the class, or of the file if several share a class.

    Raises:
        RunError: for an unknown backend, no backend at all, or two of one name.
    """
    if not named:
        raise RunError("--backends []: name one or more")
    read = {backend: read_attention(backend, 0.0)[1] for backend in named}
    by_class = {backend: backend_name({"model": {"attention": attention}}) for backend, attention in read.items()}
    shared = [name for name in by_class.values() if list(by_class.values()).count(name) > 1]
    names = {backend: Path(backend).stem if name in shared else name for backend, name in by_class.items()}
    if len(set(names.values())) < len(named):
        raise RunError(f"--backends {list(named)}: two have equal names. Fix: rename a file")
    return {name: (backend, read[backend]) for backend, name in names.items()}


def with_defaults(attention: Description) -> Description:
    """Return a backend with the defaults of the arguments that its YAML does not name.

    Raises:
        RunError: for an unknown class or argument, saying why.
    """
    with _naming(attention):
        _, config = _parse(attention)
    return config.attention.as_dict()


def make_attention(attention: Description, num_heads: int, head_dim: int, length: int, seed: int) -> Attention:
    """A backend as in YAML, its random numbers drawn from this seed, in float64 and in evaluation mode.

    Raises:
        RunError: for a class or arguments that cannot be, saying why.
    """
    with _naming(attention):
        parser, config = _parse(attention)
        check_config(Namespace(model=config))
        torch.manual_seed(seed)
        made = parser.instantiate(config).attention(num_heads, head_dim, length)
    return made.double().eval()


def _parse(attention: Description) -> tuple[ArgumentParser, Namespace]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attention", type=AttentionFactory)
    return parser, parser.parse_object({"attention": attention})


@contextmanager
def _naming(attention: Description) -> Iterator[None]:
    """Errors name the class."""
    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        said = " ".join(str(error.__cause__ or error).split())[:500]
        raise RunError(f"{attention.get('class_path')}: {said}") from error


@contextmanager
def same_draws() -> Iterator[None]:
    """Lets a backend that samples again at each call, as with `eval_landmarks: fresh`, sample the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
