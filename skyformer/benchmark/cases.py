"""Cases to measure: one backend or peer, at one size, in one precision."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from skyformer.exceptions import RunError
from skyformer.installation import CONFIGS, find_overlay
from skyformer.yaml_text import load_yaml

OVERLAYS = CONFIGS / "attention"
Part = Literal["layer", "step"]
Precision = Literal["float32", "bfloat16"]
Form = Literal["eager", "compiled", "graphed"]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: name of the backend or peer, as the table shows it.
        part: `layer`, attention with its projections, forward and backward; or `step`, a whole training step of the
            encoder with its head: forward, backward, AdamW.
        attention: class path and arguments of a backend, as in YAML; empty for a peer.
        batch_size, length: B and N.
        precision: precision of autocast.
        device: `cpu` or `cuda`.
        form: `eager`; `compiled`, through `torch.compile`; or `graphed`, compiled with both passes of a step as one
            CUDA graph, as `model.cuda_graph` does.
        repeats: timings after the warm-up; their median counts.
        dropout: rate in the encoder, and on the attention weights of a backend with that argument.
        num_layers, embed_dim, hidden_dim, num_heads: the paper's.
    """

    name: str
    part: Part
    batch_size: int
    length: int
    attention: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    device: str = "cpu"
    form: Form = "eager"
    repeats: int = 5
    dropout: float = 0.0
    num_layers: int = 2
    embed_dim: int = 64
    hidden_dim: int = 128
    num_heads: int = 2

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_attention(named: str, dropout: float) -> tuple[str, dict[str, Any]]:
    """The name of a backend and its class path with arguments, from the name of an overlay or the path of one.

    Raises:
        RunError: where there is no such overlay, or the file is no overlay.
    """
    path = overlay_path(named)
    try:
        attention = load_yaml(path.read_text(encoding="utf-8"))["model"]["attention"]
        arguments = dict(attention.get("init_args") or {})
        class_path = str(attention["class_path"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} names no model.attention.class_path ({error})") from error
    if "dropout" in arguments:
        arguments["dropout"] = dropout
    return path.stem, {"class_path": class_path, "init_args": arguments}


def overlay_path(named: str) -> Path:
    """The file of a backend, from the name of an overlay of configs/attention, or of another folder there, such as
    `protocol/nystromformer_without_convolution`, or the path of one.

    Raises:
        RunError: where it does not exist.
    """
    return find_overlay(named, OVERLAYS.parent if "/" in named else OVERLAYS, "--backends")


def read_size(text: str) -> tuple[int, int]:
    """`16x1024` → (16, 1024), B and N.

    Raises:
        RunError: for anything else.
    """
    batch_size, _, length = text.partition("x")
    if not (batch_size.isdecimal() and length.isdecimal() and int(batch_size) and int(length)):
        raise RunError(f"--sizes {text}: a size is <batch>x<tokens>, such as 16x1024")
    return int(batch_size), int(length)


def cases_of(
    backends: Sequence[str], peers: Sequence[str], sizes: Sequence[str], precisions: Sequence[Precision], **common: Any
) -> Iterator[Case]:
    """Return all cases of a command, size by size, with a backend's peers after it."""
    named = [read_attention(backend, common["dropout"]) for backend in backends]
    for size in sizes:
        batch_size, length = read_size(size)
        for precision in precisions:
            given = {"batch_size": batch_size, "length": length, "precision": precision, **common}
            for name, attention in named:
                yield Case(name=name, attention=attention, **given)
            for peer in peers if common["part"] == "layer" else ():
                yield Case(name=peer, **given)
