"""`python run.py benchmark`: the cost of attention on this machine."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentParser

from skyformer.attention import BACKENDS
from skyformer.benchmark.cases import Case, Form, Part, Precision, cases_of
from skyformer.benchmark.machine import gpu_rates
from skyformer.benchmark.peers import PEERS, installed_peers
from skyformer.benchmark.released import released_rows
from skyformer.benchmark.results import print_table, write_csv
from skyformer.benchmark.worker import ERROR, measure
from skyformer.exceptions import RunError
from skyformer.files import write_atomically
from skyformer.installation import command_parser
from skyformer.training.record import hardware

TEXT, IMAGE = "4x4096", "16x1024"
_BACKENDS: list[str] = ["skyformer"]
_FORMS: list[Form] = ["eager"]


def run_benchmark(args: list[str]) -> list[dict[str, Any]]:
    """Measure each case, on a CPU in a process of its own, print a table, write `benchmark.json` and `.csv`, and `.png`
    with `--picture true`.

    Args:
        args: arguments after `benchmark`.

    Raises:
        RunError: for an unknown backend, peer or size, or a case that cannot run.
        SystemExit: 2 for a wrong argument.
    """
    config = _parser().parse_args(args)
    if config.repeats < 5:
        raise RunError(f"--repeats {config.repeats} must be at least 5: their median counts")
    has_graphs = config.device == "cuda" and config.part == "step"
    if config.all:
        for name, default in (("backends", _BACKENDS), ("forms", _FORMS)):
            if config[name] != default:
                raise RunError(f"--all measures all {name} (got --{name} {config[name]}). Fix: leave one of them out")
        config.backends = list(BACKENDS)
        config.forms = [form for form in get_args(Form) if form != "graphed" or has_graphs]
    peers = config.peers
    if peers is None:
        peers = installed_peers(config.backends)
    if unknown := [peer for peer in peers if peer not in PEERS]:
        raise RunError(f"--peers {unknown[0]} is not one of {', '.join(PEERS)}")
    if "graphed" in config.forms and not has_graphs:
        raise RunError("--forms graphed needs --device cuda and --part step: a graph holds a step's passes on a GPU")
    common = {name: config[name] for name in ("part", "device", "repeats", "dropout")}
    if config.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch finds no CUDA device. Fix: --device cpu")
    cases = [
        case
        for form in config.forms
        for case in cases_of(config.backends, peers, config.sizes, config.precisions, form=form, **common)
    ]
    output = Path(config.output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    # Measured on a GPU: they say nothing about a CPU.
    compares = config.part == "step" and config.device == "cuda"
    references = released_rows(config.backends, config.sizes) if compares else []
    machine = {**hardware(), "torch": torch.__version__}
    if config.device == "cuda":
        machine |= gpu_rates()  # before the cases: it starts CUDA's libraries and raises the clocks once for all
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        size = f"{case.batch_size}x{case.length}"
        print(f"{number}/{len(cases)} {case.name} {size} {case.precision} {case.form}", file=sys.stderr, flush=True)
        rows.append({**asdict(case), **(_run_here(case) if case.device == "cuda" else _run(case))})
        content = {"machine": machine, "rows": rows, "references": references}
        write_atomically(output / "benchmark.json", json.dumps(content, indent=1) + "\n")
        write_csv([*rows, *references], output / "benchmark.csv")
    print_table([*rows, *references], machine.get("device", machine["processor"]))
    if config.picture:
        from skyformer.benchmark.picture import draw_scaling

        draw_scaling(rows, output / "benchmark.png")
    return rows


def _run_here(case: Case) -> dict[str, Any]:
    """`_run` in this process: a GPU takes seconds to start, and its memory can be measured by case."""
    try:
        return measure(case)
    except RunError:
        raise
    except Exception as error:  # Triton's and the compiler's too
        return {"failed": (str(error).splitlines() or [type(error).__name__])[0]}
    finally:
        torch.compiler.reset()
        with suppress(RuntimeError):  # after an illegal access every call fails, and so do the next cases
            torch.cuda.empty_cache()


def _run(case: Case) -> dict[str, Any]:
    """The measurements; `{"failed": why}` where the case needs more than the machine has."""
    done = subprocess.run(
        [sys.executable, "-m", "skyformer.benchmark.worker", case.to_json()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    if done.returncode == ERROR:
        raise RunError(said[0])
    return {"failed": said[0]}


def _parser() -> ArgumentParser:
    parser = command_parser(
        "benchmark", "Time, memory and operations of attention layers and training steps, with the machine's limit."
    )
    add = parser.add_argument
    add("--part", type=Part, default="step", help="A whole training step, or an attention layer.")
    add("--backends", type=list[str], default=_BACKENDS, help="Overlays of configs/attention, or YAML files.")
    add("--all", action="store_true", help="All nine backends, in every form that part and device have.")
    add(
        "--peers",
        type=list[str] | None,
        help="Libraries to compare a layer with; default: those of the backends, if installed.",
    )
    add("--sizes", type=list[str], default=[IMAGE, TEXT], help="<batch>x<tokens>.")
    add("--precisions", type=list[Precision], default=["float32"], help="float32, bfloat16 (autocast).")
    add("--device", type=Literal["cpu", "cuda"], default="cpu", help="Where it runs.")
    add("--forms", type=list[Form], default=_FORMS, help="eager, compiled, graphed; the last on a GPU.")
    add("--dropout", type=float, default=0.0, help="Of the encoder and of attention weights.")
    add("--repeats", type=int, default=5, help="Timings, after one or more that do not count.")
    add("--picture", type=bool, default=False, help="Draw time and memory against length.")
    add("--output", type=str, default="report/benchmark", help="Folder to write to.")
    return parser
