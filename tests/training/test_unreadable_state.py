"""State that safe loading cannot read is refused at the first save."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from refusals import refuse

from skyformer.exceptions import CheckpointError
from skyformer.model.checkpoint_io import AtomicCheckpointIO

UNREADABLE = {
    "numpy.float64": np.float64(0.5),
    "numpy.ndarray": np.zeros(2),
    "pathlib.PosixPath": Path("a"),
    "collections.deque": deque([1]),
    "generator": (number for number in range(2)),
}


class Keeper(Callback):
    """A user's callback that begins to keep a value at an evaluation."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.kept: dict[str, Any] = {}

    def on_validation_end(self, *_: Any) -> None:
        self.kept = {"scores": [1.0, UNREADABLE[self.kind]]}

    def state_dict(self) -> dict[str, Any]:
        return self.kept


def test_callback_is_named_and_the_former_checkpoint_stays(tmp_path, main, capsys, tiny_arguments):
    callback = [f"--trainer.callbacks={__name__}.Keeper", "--trainer.callbacks.kind=numpy.float64"]
    arguments = ["fit", *tiny_arguments("listops", tmp_path), *callback, "--trainer.num_sanity_val_steps=0"]
    refuse(main, capsys, arguments, 1, "callback Keeper: its state holds a numpy.float64 (['scores'][1])", "Fix:")
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("kind", "as_key"), [*((kind, False) for kind in UNREADABLE), ("numpy.float64", True), ("pathlib.PosixPath", True)]
)
def test_type_is_named(kind, as_key, tmp_path):
    value = UNREADABLE[kind]
    state = {"fine": torch.ones(2), "inner": {value: 1} if as_key else (0, {"deep": value})}
    for checkpoint, name in (
        ({"callbacks": {"Good": {"a": 1}, "Keeper{'a': 1}": state}}, "callback Keeper{'a': 1}: its state"),
        ({"callbacks": {}, "hyper_parameters": state}, "the checkpoint's hyper_parameters"),
    ):
        with pytest.raises(CheckpointError) as refused:
            AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
        assert f"{name} holds a {kind} (['inner']" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_states_of_generators(tmp_path):
    """One is plain numbers, the other one holds an array."""
    path, states = tmp_path / "last.ckpt", (np.random.default_rng(0).bit_generator.state, np.random.get_state())
    AtomicCheckpointIO().save_checkpoint({"callbacks": {"Keeper": states[0]}}, path)
    assert torch.load(path, weights_only=True)["callbacks"]["Keeper"] == states[0]
    with pytest.raises(CheckpointError, match=r"callback Keeper: its state holds a numpy.ndarray \(\[1\]\)"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"Keeper": states[1]}}, path)
