"""The Triton kernels compile for GPUs that are not here, and fit into their shared memory."""

import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the CPU builds of torch bring no Triton")

# Of a program, by compute capability: RTX 30 and 40; H100; RTX 50.
SHARED_MEMORY = {86: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
# Compiles what a launch would run, and launches nothing.
PROGRAM = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

def compile_only(self, *arguments, grid, warmup, **settings):
    kernel = run(self, *arguments, grid=grid, warmup=True, **settings)
    print(self.fn.__name__, kernel.metadata.shared)

triton.runtime.driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
from skyformer.ops import landmark_kernels, triton_kernels

triton_kernels.shared_memory = lambda device: int(sys.argv[3])
n, m, width, dropout_p, dtype = eval(sys.argv[2])
x, y, value = (torch.randn(1, 2, rows, width, dtype=dtype) for rows in (n, m, m))
mask = torch.ones(1, m, dtype=torch.bool) if n <= m else None
keys = torch.ones(1, 2, n, dtype=torch.int64) if dropout_p else None
settings = mask, keys, 1.0, 1.0, dropout_p, dtype
out = triton_kernels.kernel_sum(x, y, value, *settings)
triton_kernels.kernel_sum_gradients(out, x, y, value, *settings)
if n <= 128:
    solution = landmark_kernels.landmark_solution(x, out, None, 0.1)
    landmark_kernels.landmark_gradient(x, solution, out, None)
"""


@pytest.mark.long
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize(
    "case",
    [
        "128, 1024, 32, 0.0, torch.bfloat16",
        "128, 1024, 64, 0.0, torch.bfloat16",
        "256, 1024, 32, 0.0, torch.bfloat16",
        "64, 1024, 64, 0.0, torch.float16",
        "1024, 256, 64, 0.0, torch.float16",
        "1024, 1024, 128, 0.1, torch.bfloat16",
        "128, 1024, 32, 0.0, torch.float32",
        "1024, 1024, 128, 0.1, torch.float32",
    ],
)
def test_kernels_compile(case, architecture):
    """N, M, P, rate of dropout, type."""
    command = [sys.executable, "-c", PROGRAM, str(architecture), case, str(SHARED_MEMORY[architecture])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = [line.split() for line in done.stdout.splitlines()]
    assert len(sizes) >= 3
    assert all(int(size) <= SHARED_MEMORY[architecture] for _, size in sizes), sizes
