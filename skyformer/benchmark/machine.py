"""Measure the machine's rates, which give the floor."""

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any, get_args

import torch

from skyformer.benchmark.cases import Precision
from skyformer.internals import hold_gpu

_SIDE = 2048  # of the matrices
_TOO_LONG = 5.0  # seconds
_REPEATS = 5  # of a product or a copy; the median counts
BLOCK = 5  # runs between two waits for a GPU
_COPY = 1 << 26  # numbers: 256 MB in float32


class GpuClock:
    """Times work on the current CUDA device; tests without a GPU replace it."""

    def wait(self) -> None:
        """Let the CPU wait until the device has finished all work."""
        torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], held: float) -> float:
        """Device time of one run by two events, without its waits for launches.

        The device is held for `held` seconds, in which the CPU launches all kernels of `work`.
        """
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        hold_gpu(held)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


GPU = GpuClock()


@cache
def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Measure the operations per second of a 2,048³ matrix product; a multiply-add counts as two.

    In a precision that the CPU lacks, a 256³ product is used, because the larger one would take minutes.
    """
    quick = _product_rate(256, dtype, device)
    return quick if 2 * _SIDE**3 / quick > _TOO_LONG else _product_rate(_SIDE, dtype, device)


def _product_rate(side: int, dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers stay the same
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right, device, _REPEATS)


@cache
def bfloat16_slowdown() -> float:
    """Measure how many times as long a 256³ product takes on the CPU in bfloat16 as in float32.

    Without instructions for bfloat16 (AVX-512 BF16, AMX) torch computes in a plain loop.
    """
    return _product_rate(256, torch.float32, "cpu") / _product_rate(256, torch.bfloat16, "cpu")


@cache
def copy_rate(device: str) -> float:
    """Measure the bytes per second, read and written, of a copy larger than the caches."""
    source = torch.ones(_COPY, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, _REPEATS)


def gpu_rates() -> dict[str, Any]:
    """Return the GPU's name, the rate of products in each precision and that of copies."""
    products = {name: matmul_rate(getattr(torch, name), "cuda") for name in get_args(Precision)}
    return {"device": torch.cuda.get_device_name(), "matmul_per_s": products, "copy_per_s": copy_rate("cuda")}


def seconds_of(work: Callable[[], object], device: str, repeats: int, warm_up: int = 1) -> float:
    """Median time of `work`, after `warm_up` runs that do not count.

    On a GPU by the clock, over blocks of runs that end when the device has finished: that is what training takes,
    launches included.
    """
    for _ in range(warm_up):
        work()
    if device == "cuda":
        GPU.wait()
    return median(_seconds(work, device) for _ in range(repeats))


def device_seconds_of(work: Callable[[], object], seconds: float, repeats: int) -> float:
    """Median time of `work` on the GPU, by events, after runs that do not count.

    It includes a wait if `work` reads a result, or has more launches than the GPU queues (about a thousand).

    Args:
        work: what to time.
        seconds: time of a run by the clock, see `seconds_of`. Its launches take no longer.
        repeats: number of timings.
    """
    return median(GPU.seconds_of(work, 1.5 * seconds) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: str) -> float:
    runs = BLOCK if device == "cuda" else 1
    begin = time.perf_counter()
    for _ in range(runs):
        work()
    if device == "cuda":
        GPU.wait()
    return (time.perf_counter() - begin) / runs
