"""Runs one case in a process of its own: `python -m skyformer.benchmark.worker '<case as JSON>'`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from skyformer.benchmark.cases import Case
from skyformer.benchmark.counting import count_needed
from skyformer.benchmark.machine import copy_rate, device_seconds_of, matmul_rate, seconds_of
from skyformer.benchmark.peers import UNCOUNTED
from skyformer.benchmark.subjects import Work, make_subject
from skyformer.exceptions import RunError
from skyformer.training.callbacks.throughput import peak_memory_mb
from skyformer.training.memory import keep_freed_memory

ERROR = 3  # exit status: the case cannot be run, and stderr says why
_PROCESS = Path("/proc/self")


def measure(case: Case) -> dict[str, Any]:
    """Seconds, bytes and operations of a case, and the machine's rates at that time.

    `forward_s`, `seconds`: medians of a forward pass without gradients (None for a graph), and of all, by the clock.
    `device_seconds`: of all on the GPU, by events; None on a CPU. `peak_mb`: the highest memory above that of the
    process which holds weights and inputs. `operations`, `bytes`: the needed ones, see `count_needed`. `floor_s`: the
    larger of operations over the rate of products in this precision, and bytes over the rate of copies.
    """
    if case.device == "cpu":
        keep_freed_memory()
    forward, both = make_subject(case)
    peak_mb = _peak_above_idle(both, case.device)
    warm_up = 3 if case.form != "eager" or case.device == "cuda" else 1
    seconds = seconds_of(both, case.device, case.repeats, warm_up)
    device_seconds = device_seconds_of(both, seconds, case.repeats) if case.device == "cuda" else None
    # Of a graph, the forward pass is no part by itself.
    forward_s = seconds_of(forward, case.device, case.repeats, warm_up) if case.form != "graphed" else None
    is_counted = case.form == "eager" and case.name not in UNCOUNTED
    operations, moved = count_needed(forward, both) if is_counted else (0, 0)
    products = matmul_rate(getattr(torch, case.precision), case.device)
    copies = copy_rate(case.device)
    return {
        "seconds": seconds,
        "device_seconds": device_seconds,
        "forward_s": forward_s,
        "peak_mb": peak_mb,
        "tokens_per_s": case.tokens / seconds,
        "operations": operations,
        "bytes": moved,
        "matmul_per_s": products,
        "copy_per_s": copies,
        "floor_s": max(operations / products, moved / copies),
        "threads": torch.get_num_threads(),
    }


def _peak_above_idle(work: Work, device: str) -> float:
    """Return the peak memory of the work above that of the idle process, in MB of 10⁶ bytes."""
    if device == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - allocated) / 1e6
    if not (_PROCESS / "clear_refs").exists():  # no Linux: the peak so far, imports included
        work()
        return peak_memory_mb(torch.device(device))
    (_PROCESS / "clear_refs").write_text("5")  # let the high-water mark begin at what is resident now
    idle = int((_PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    work()
    status = (_PROCESS / "status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6 - idle


if __name__ == "__main__":
    try:
        print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
    except RunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(ERROR) from error
