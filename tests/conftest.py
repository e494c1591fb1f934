"""Tiny versions of the tasks, prepared once for all tests, and the command line that users type."""

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_sources
import torch
from download_server import Server
from torch.utils.data import DataLoader

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import run  # noqa: E402  the repository's root is not a package
from skyformer.cli import SkyformerCLI  # noqa: E402

TINY_DATA: dict[str, dict[str, Any]] = {
    "image": {"val_size": 20, "batch_size": 4},
    "listops": {"min_length": 8, "max_length": 64, "train_size": 100, "val_size": 21, "test_size": 13, "batch_size": 8},
    "pathfinder": {"train_size": 44, "val_size": 10, "test_size": 7, "batch_size": 4},
    "pathx": {"train_size": 4, "val_size": 1, "test_size": 1, "batch_size": 1},
    "retrieval": {"max_bytes": 60, "batch_size": 4},
    "text": {"max_bytes": 60, "val_size": 10, "batch_size": 4},
}
TINY_TRAINER = {
    "max_steps": 9,
    "val_check_interval": 3,
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "logger": "skyformer.training.loggers.CSVLogger",
}
TINY_MODEL = {"embed_dim": 16, "hidden_dim": 16, "lr_scheduler.init_args.warmup_steps": 2}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order everywhere; and tiny matrices gain nothing from a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the whole test run, and in `sources` the raw data of the tasks that are not generated."""
    folder = tmp_path_factory.mktemp("data")
    for task, write in tiny_sources.WRITERS.items():
        write(folder / "sources" / task)
    return folder


def build_arguments(data_dir: Path, task: str, folder: Path, *overlays: str) -> list[str]:
    """Arguments of a shipped task's configuration, with overlays such as `trainer/bf16`, made tiny."""
    data = {**TINY_DATA[task], "data_dir": data_dir}
    if task in tiny_sources.WRITERS:
        data["source"] = data_dir / "sources" / task
    return [
        *(f"--config={ROOT}/configs/{name}.yaml" for name in (task, *overlays)),
        *(f"--data.init_args.{key}={value}" for key, value in data.items()),
        *(f"--model.{key}={value}" for key, value in TINY_MODEL.items()),
        *(f"--trainer.{key}={value}" for key, value in TINY_TRAINER.items()),
        f"--trainer.default_root_dir={folder}",
    ]


@pytest.fixture(scope="session")
def tiny_arguments(data_dir: Path) -> Callable[..., list[str]]:
    """`build_arguments` on the data of this test run: `tiny_arguments("listops", folder, *overlays)`."""
    return partial(build_arguments, data_dir)


@pytest.fixture(scope="session")
def main() -> Iterator[Callable[[list[str]], SkyformerCLI]]:
    """What `python run.py` calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py"])  # pytest's own arguments are not the program's
        yield run.main


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting those that decode pictures would take most of the time."""
    monkeypatch.setattr(
        "datamodules.examples.DataLoader", lambda *args, **settings: DataLoader(*args, **{**settings, "num_workers": 0})
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a test writes its raw data."""
    return tmp_path / "source"


@pytest.fixture
def prepared_dir(tmp_path: Path) -> Path:
    """Where that is prepared."""
    return tmp_path / "data"


@pytest.fixture
def prepare(tmp_path):
    """`prepare(Text, source, ...)`: a module whose loaders are ready and whose evaluation splits are one batch."""

    def build(task, source, data_dir="data", eval_batch_size=64, **settings):
        source = None if source is None else str(source)
        data = task(
            data_dir=str(tmp_path / data_dir), source=source, eval_batch_size=eval_batch_size, num_workers=0, **settings
        )
        data.prepare_data()
        data.setup("fit")
        return data

    return build


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts to fetch a file."""
    monkeypatch.setattr("datamodules.sources.download.PAUSE", 0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
