"""The command line in processes of its own, quickly: each is forked from one that has imported everything."""

import multiprocessing
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")


def start(arguments: list[str], log: Path) -> multiprocessing.process.BaseProcess:
    """Start `python run.py <arguments>` in a session of its own, with its output in `log`."""
    _CONTEXT.set_forkserver_preload(["run", "skyformer.cli", "lightning.pytorch.callbacks"])
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{ROOT}"  # the server looks there for what to import
    try:
        process = _CONTEXT.Process(target=_main, args=(arguments, log))
        process.start()
    finally:
        del os.environ["PYTHONPATH"]
        if former is not None:
            os.environ["PYTHONPATH"] = former
    return process


def run_to_its_end(arguments: list[str], log: Path) -> int:
    """The exit status; negative for a signal, as in `subprocess`."""
    process = start(arguments, log)
    process.join()
    return process.exitcode


def _main(arguments: list[str], log: Path) -> None:
    import torch

    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.setsid()
    torch.set_num_threads(1)
    sys.argv = ["run.py", *arguments]
    import run

    run.main(arguments)
