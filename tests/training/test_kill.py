"""Drawn cases: a task, a backend, a way to run and a point to be killed at; the resumed run is the run never killed."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from kill_at import IN_EVALUATION, IN_FILES, IN_TRAINING
from processes import run_to_its_end
from runs_compared import assert_same_run
from tiny_runs import ROOT, TINY_DATA

STEPS = 10
BACKENDS = sorted(path.stem for path in (ROOT / "configs/attention").glob("*.yaml"))
PAIRS = [(task, backend) for task in TINY_DATA for backend in BACKENDS]
# Overlays, arguments of all three runs, loader workers of the run that is killed, of the resumed one, of the whole one.
WAYS = {
    "plain": ((), [], (0, 0, 0)),
    "bf16": (("trainer/bf16",), [], (0, 0, 0)),
    "accumulation": (("trainer/accumulate",), ["--trainer.accumulate_grad_batches=2"], (0, 0, 0)),
    "ema": (("trainer/ema",), [], (0, 0, 0)),
    "top": (("trainer/top_three",), [], (0, 0, 0)),
    "early stopping": (("trainer/early_stopping",), [], (0, 0, 0)),
    "workers": ((), [], (2, 0, 1)),
}


class Case(NamedTuple):
    task: str
    backend: str
    way: str
    point: str
    step: int


def draw(task: str, backend: str) -> Case:
    """The rest of a case at random, the same for the same arguments."""
    rng = np.random.default_rng([1, *task.encode(), *backend.encode()])
    point = str(rng.choice([*IN_TRAINING, *IN_EVALUATION, *IN_FILES]))
    return Case(task, backend, str(rng.choice(list(WAYS))), point, int(rng.integers(1, STEPS - 1)))


@pytest.mark.long
@pytest.mark.parametrize(("task", "backend"), PAIRS)
def test_every_task_and_backend_resumes_to_the_last_bit(task, backend, tmp_path, tiny_arguments):
    case = draw(task, backend)
    overlays, extra, workers = WAYS[case.way]

    def fit(folder: str, num_workers: int, *more: str) -> int:
        arguments = tiny_arguments(case.task, tmp_path / folder, f"attention/{case.backend}", *overlays)
        settings = [f"--trainer.max_steps={STEPS}", "--last_checkpoint.every_n_train_steps=2", *extra, *more]
        loader = f"--data.init_args.num_workers={num_workers}"
        return run_to_its_end(["fit", *arguments, *settings, loader, "--ckpt_path=auto"], tmp_path / f"{folder}.log")

    die = ["--trainer.callbacks+=kill_at.KillAt", f"--trainer.callbacks.point={case.point}"]
    assert fit("killed", workers[0], *die, f"--trainer.callbacks.step={case.step}") == -9, said(tmp_path / "killed.log")
    assert fit("killed", workers[1]) == 0, said(tmp_path / "killed.log")
    assert fit("whole", workers[2]) == 0, said(tmp_path / "whole.log")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def said(log: Path) -> str:
    return log.read_text()[-3000:]
