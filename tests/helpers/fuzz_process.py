"""One command in a process that can neither eat the machine nor run forever, and what came of it."""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 20
MORE_MEMORY = 2 * 1024**3  # bytes of address space beyond those of a process that has imported everything
OPEN_FILES = 256  # so that 10³⁰ loader processes end early
_CONTEXT = multiprocessing.get_context("forkserver")


class Outcome(NamedTuple):
    """What came of a command.

    Attributes:
        status: exit status, 0 where it returned; None where it was stopped at the limit or raised.
        said: on stderr.
        exception: the traceback of what it raised in place of `SystemExit`.
    """

    status: int | None
    said: str
    exception: str | None = None


class _LaunchError(BaseException):
    """The command would start other processes by the dozen, or on other machines: legal, and not for a test."""


def outcome(main: Callable[[list[str]], Any], arguments: Sequence[str]) -> Outcome:
    """Run a command here."""
    said = io.StringIO()
    status, exception = 0, None
    with contextlib.redirect_stderr(said):
        try:
            main(list(arguments))
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
            if stopped.code is not None and not isinstance(stopped.code, int):
                said.write(str(stopped.code))
        except _LaunchError:
            status = None
        except BaseException:  # KeyboardInterrupt and GeneratorExit too: none of them may leave `main`
            status, exception = None, traceback.format_exc()
    return Outcome(status, said.getvalue(), exception)


def in_a_process(arguments: Sequence[str], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run `python run.py <arguments>` in this folder, forked from a process that has imported everything."""
    _CONTEXT.set_forkserver_preload(["run", "skyformer.cli", "fuzz_process", "skyformer.report.pictures", "numba"])
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{ROOT}"  # the server looks there for what to import
    with tempfile.TemporaryDirectory() as place:
        result = Path(place, "outcome.json")
        try:
            process = _CONTEXT.Process(target=_run, args=(list(arguments), folder, result))
            process.start()
        finally:
            os.environ.pop("PYTHONPATH")
            if former is not None:
                os.environ["PYTHONPATH"] = former
        process.join(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
        process.join()
        if result.exists():
            return Outcome(**json.loads(result.read_text()))
        over = process.exitcode in (-signal.SIGKILL, -signal.SIGXCPU)
        log = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
        return Outcome(None, log, None if over else f"process ended with {process.exitcode}")


def _run(arguments: list[str], folder: Path, result: Path) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(HOME=str(folder), TMPDIR=str(folder))
    with open("log", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _set_limits()
    _launch_nothing()
    import torch

    import run

    torch.set_num_threads(1)
    sys.argv = ["run.py"]  # as Lightning expects where it is given arguments
    found = outcome(run.main, arguments)
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found._asdict()))
    partial.rename(result)
    sys.stdout.flush()
    os._exit(0)  # whatever the command left running


def _set_limits() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MORE_MEMORY, MORE_MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _launch_nothing() -> None:
    from lightning.fabric.strategies.launchers import subprocess_script
    from lightning.pytorch.strategies.launchers import multiprocessing as launchers
    from lightning.pytorch.strategies.launchers import subprocess_script as trainer_script

    from skyformer.benchmark import command

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise _LaunchError

    subprocess_script.subprocess = trainer_script.subprocess = SimpleNamespace(Popen=refuse)
    launchers.mp = SimpleNamespace(**{**vars(launchers.mp), "start_processes": refuse})
    command.subprocess = SimpleNamespace(run=_worker_in_a_fork)


def _worker_in_a_fork(arguments: Sequence[str], **settings: Any) -> SimpleNamespace:
    """`subprocess.run` of a benchmark's worker, without importing everything anew."""
    paths = Path("worker.out").absolute(), Path("worker.err").absolute()
    child = os.fork()
    if child == 0:
        for number, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        status = 0
        try:
            sys.argv = list(arguments[2:])
            runpy.run_module(arguments[2], run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (path.read_text(errors="replace") for path in paths)
    for path in paths:
        path.unlink()
    return SimpleNamespace(returncode=status, stdout=out, stderr=err)
