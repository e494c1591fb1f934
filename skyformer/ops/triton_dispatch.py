"""Decide where the Triton kernels compute, and call them.

Importing this module does not import Triton, which takes time and which a machine without a GPU need not have.
"""

import importlib.util
import os
import warnings

import torch
from torch import Tensor

from skyformer.ops.kernel import product_dtype

MAX_WIDTH = 128  # of a row of x, y and value
MAX_LANDMARKS = 128  # whose system a program holds in registers
TYPES = (torch.float32, torch.float16, torch.bfloat16)
_IS_INSTALLED = importlib.util.find_spec("triton") is not None
_can_launch: bool | None = None  # not tried yet
_DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"  # Triton's interpreter runs on a CPU


def has_kernels(x: Tensor, y: Tensor, value: Tensor) -> bool:
    """Return whether the Triton kernels can compute a sum over κ(x, y) with `value`.

    They need Triton and a CUDA device that multiplies bfloat16 (compute capability 8.0: A100, RTX 30 and later).
    Tensors are float32 or of a lower precision, with rows of at most 128 numbers, and at least one row. An exported
    program has torch's operators only. With `TRITON_INTERPRET=1` in the environment the kernels run in Triton's
    interpreter on a CPU, for tests.
    """
    tensors = (x, y, value)
    return (
        _IS_INSTALLED
        and x.device.type == _DEVICE
        and (_DEVICE == "cpu" or _gpu_has_kernels(x.device))
        and not is_exporting()
        and product_dtype(x) in TYPES
        and all(tensor.dtype in TYPES for tensor in tensors)
        and all(0 < tensor.shape[-1] <= MAX_WIDTH and tensor.numel() > 0 for tensor in tensors)
    )


def _gpu_has_kernels(device: torch.device) -> bool:
    # torch.compile folds the first call into a constant, and itself needs what a launch needs.
    new_enough = torch.cuda.get_device_properties(device).major >= 8
    return new_enough and (torch.compiler.is_compiling() or can_launch())


def can_launch() -> bool:
    """Return whether Triton can launch kernels here; warn once if not.

    Its first launch compiles a C program, which needs a C compiler and Python's headers. Without them torch's own
    operators compute, more slowly.
    """
    global _can_launch
    if _can_launch is None:
        import triton

        try:
            _can_launch = triton.runtime.driver.active.utils is not None
        except Exception as error:  # of the compiler, the file system or the driver
            _can_launch = False
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                f"attention runs without Triton kernels, since Triton cannot compile its launcher ({reason}). Fix: "
                "install a C compiler and the headers of this Python",
                stacklevel=2,
            )
    return _can_launch


def is_exporting() -> bool:
    """Return whether a program is being exported. Older versions of torch also report an export during compilation."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def gaussian_product(
    x: Tensor, y: Tensor, value: Tensor, x_scale: float, y_scale: float, mask: Tensor | None
) -> Tensor:
    """`triton_kernels.gaussian_product`, with Triton imported on the first call."""
    from skyformer.ops import triton_kernels

    return triton_kernels.gaussian_product(x, y, value, x_scale, y_scale, mask)


def gaussian_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout_p: float
) -> Tensor:
    """`triton_kernels.gaussian_attention`, with Triton imported on the first call."""
    from skyformer.ops import triton_kernels

    return triton_kernels.gaussian_attention(query, key, value, mask, scale, dropout_p)


def has_solver(landmarks: Tensor, right: Tensor) -> bool:
    """Return whether the Triton kernels can solve the landmark system: as `has_kernels`, with at most 128 landmarks."""
    return landmarks.shape[-2] <= MAX_LANDMARKS and has_kernels(landmarks, landmarks, right)


def landmark_solution(landmarks: Tensor, right: Tensor, mask: Tensor | None, ridge: float) -> Tensor:
    """`landmark_kernels.landmark_solution`, with Triton imported on the first call."""
    from skyformer.ops import landmark_kernels

    return landmark_kernels.landmark_solution(landmarks, right, mask, ridge)
