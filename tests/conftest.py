"""Tiny versions of the tasks, prepared once for all tests, and the command line that users type."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import setuptools  # noqa: F401, before a test imports distutils, which setuptools then refuses
import tiny_sources
from download_server import Server
from filelock import FileLock
from tiny_runs import build_arguments

# torch and Lightning are imported where they are used: xdist's first process runs no test and need not wait for them.
if TYPE_CHECKING:
    from skyformer.cli import SkyformerCLI

# cuBLAS reads this once, at a process's first product; deterministic runs on a GPU need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_finish() -> None:
    """What is there by now stays until the end: searching it for garbage again and again takes a while."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, so no written file needs to be on the disk at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order everywhere; and tiny matrices gain nothing from a second thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def default_algorithms() -> Iterator[None]:
    """A run with `trainer.deterministic=true` sets this for its whole process."""
    yield
    import torch

    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the whole test run, and in `sources` the raw data of the tasks that are not generated."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "data"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            for task, write in tiny_sources.WRITERS.items():
                write(folder / "sources" / task)
            _compile_drawing(folder)
    return folder


def _compile_drawing(folder: Path) -> None:
    """Numba compiles for seconds; the other workers wait and read its cache."""
    from datamodules import ListOps, Pathfinder

    sizes = {"data_dir": folder, "train_size": 1, "val_size": 1, "test_size": 1, "batch_size": 1}
    Pathfinder(**sizes).prepare_data()
    ListOps(min_length=8, max_length=64, **sizes).prepare_data()


@pytest.fixture(scope="session")
def tiny_arguments(data_dir: Path) -> Callable[..., list[str]]:
    """`build_arguments` on the data of this test run: `tiny_arguments("listops", folder, *overlays)`."""
    return partial(build_arguments, data_dir)


@pytest.fixture(scope="session")
def main() -> Iterator[Callable[[list[str]], "SkyformerCLI"]]:
    """What `python run.py` calls."""
    import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py"])  # pytest's own arguments are not the program's
        yield run.main


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting those that decode pictures would take most of the time."""
    from torch.utils.data import DataLoader

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
