"""Settings of callbacks that a resume changes: the new value holds, or the resume is refused."""

from typing import Any

import pytest
import yaml
from lightning import Callback
from refusals import refuse
from tiny_runs import NEVER_BETTER


class Stateful(Callback):
    """A user's callback; its state does not hold its setting by name."""

    def __init__(self, limit: int, label: str = "") -> None:
        self.bound = limit

    def state_dict(self) -> dict[str, Any]:
        return {"bound": self.bound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bound = state_dict["bound"]


class Stateless(Callback):
    def __init__(self, limit: int) -> None:
        self.limit = limit


@pytest.fixture
def arguments(tmp_path, tiny_arguments):
    return ["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=12", "--ckpt_path=auto"]


def test_new_patience_holds(tmp_path, main, arguments):
    for _ in range(2):  # once more changes nothing
        stopped = main([*arguments, *NEVER_BETTER, "--trainer.callbacks.patience=1"])
        assert stopped.trainer.global_step == 6
    resumed = main([*arguments, *NEVER_BETTER, "--trainer.callbacks.patience=30"])
    assert resumed.trainer.global_step == 12
    assert resumed.trainer.early_stopping_callback.wait_count == 3, "the count continues"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["trainer"]["callbacks"][-1]["init_args"]["patience"] == 30


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ([f"{__name__}.Stateful", "limit=3"], [f"{__name__}.Stateful", "limit=4"], "Stateful limit: 3"),
        (["skyformer.training.callbacks.TopCheckpoints", "save_top_k=2", "monitor=val/loss"],
         ["skyformer.training.callbacks.TopCheckpoints", "save_top_k=2"], "TopCheckpoints monitor: 'val/loss'"),
        (["EMAWeightAveraging", "decay=0.9"], ["EMAWeightAveraging", "decay=0.5"], "EMAWeightAveraging decay: 0.9"),
    ],
)  # fmt: skip
def test_changed_setting_of_a_restored_callback_is_refused(before, now, words, tmp_path, main, capsys, arguments):
    def written(callback):
        return [f"--trainer.callbacks={callback[0]}", *(f"--trainer.callbacks.{part}" for part in callback[1:])]

    main([*arguments, "--trainer.max_steps=3", *written(before)])
    config = (tmp_path / "config.yaml").read_text()
    refuse(main, capsys, [*arguments, *written(now)], 1, f"{words} in the checkpoint", " now", "Fix: set them")
    assert (tmp_path / "config.yaml").read_text() == config
    main([*arguments, "--trainer.max_steps=6", *written(before)])


def test_setting_of_a_callback_without_state_is_free(main, arguments):
    callback = f"--trainer.callbacks={__name__}.Stateless"
    main([*arguments, "--trainer.max_steps=3", callback, "--trainer.callbacks.limit=1"])
    cli = main([*arguments, callback, "--trainer.callbacks.limit=2"])
    assert [callback.limit for callback in cli.trainer.callbacks if isinstance(callback, Stateless)] == [2]


def test_what_counts_as_best_does_not_change(main, capsys, arguments):
    main([*arguments, "--trainer.max_steps=3"])
    change = "--best_checkpoint.monitor=val/loss"
    refuse(main, capsys, [*arguments, change], 1, "best_checkpoint.monitor: 'val/accuracy' in the checkpoint")
