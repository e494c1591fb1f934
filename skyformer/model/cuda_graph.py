"""Forward and backward pass of a training step as CUDA graphs, one for each shape of a batch.

A step of a small model launches hundreds of kernels, and the processor needs longer to launch them than the GPU to run
them. A graph launches them all at once.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from skyformer.internals import copy_all

WARM_UP_STEPS = 3  # before capture: compile, pick algorithms, allocate what stays allocated


class CaptureError(RuntimeError):
    """A computation that cannot be a CUDA graph, since the processor waits for one of its results."""


class GraphedStep:
    """Computes `function(*inputs)` and the gradients of its first result by replaying a CUDA graph.

    Random numbers come from the default generator of the device, as without a graph, and depend on its state when the
    graph is replayed. Graphs of all shapes share their memory, so one runs at a time. What a module is set to when a
    shape first comes, such as a dropout rate or which parameters are frozen, stays so in its graph.

    Args:
        function: tensors, or None in place of one → a tuple of tensors, the first a scalar loss. It must not wait for
            the device.
        module: whose gradients are taken. Its parameters stay where they are.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], module: nn.Module) -> None:
        self.function = function
        self.module = module
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.gradients: list[Tensor | None] | None = None
        self.graphs: dict[Any, tuple[Any, list[Tensor | None], tuple[Tensor, ...]]] = {}
        self.pool: Any = None
        self.warm_up_stream = torch.cuda.Stream()  # one, since each keeps a workspace for products

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """What `function` returns, without a graph of gradients. The next call overwrites it.

        Raises:
            CaptureError: before anything has been captured, when the function waits for the device.
        """
        shapes = tuple(None if value is None else (value.shape, value.dtype) for value in inputs)
        if shapes not in self.graphs:
            with unchanged_state(self.module):
                self.graphs[shapes] = self._capture(inputs)
        graph, places, results = self.graphs[shapes]
        for place, value in zip(places, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        graph.replay()
        return results

    def set_gradients(self) -> None:
        """Give each parameter its gradient of the last call; the tensors are the same at each call."""
        for parameter, gradient in zip(self.parameters, self.gradients or [], strict=True):
            parameter.grad = gradient

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> tuple[Any, list[Tensor | None], tuple[Tensor, ...]]:
        places = [None if value is None else value.clone() for value in inputs]
        stream = self.warm_up_stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._run(places)
            self._check_waits(places)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that pins memory, may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            results = self._run(places)
        self.pool = self.pool or graph.pool()
        return graph, places, results

    def _check_waits(self, places: list[Tensor | None]) -> None:
        # A capture that fails would leave the generator of random numbers unusable.
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the check does not find every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._run(places)
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0]) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def _run(self, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        results = self.function(*inputs)
        gradients = torch.autograd.grad(results[0], self.parameters, allow_unused=True)
        if self.gradients is None:
            self.gradients = [None if gradient is None else torch.zeros_like(gradient) for gradient in gradients]
        kept = [gradient for gradient in self.gradients if gradient is not None]
        copy_all(kept, [gradient for gradient in gradients if gradient is not None])
        return tuple(result.detach() for result in results)


@contextmanager
def unchanged_state(module: nn.Module) -> Iterator[None]:
    """Leave buffers and random numbers as they were, so that runs inside do not count as training."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = {buffer.device for buffer in (*module.parameters(), *module.buffers()) if buffer.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        with torch.no_grad():
            for buffer, former in buffers:
                buffer.copy_(former)


def scales_loss(trainer: Trainer) -> bool:
    """Return whether gradients are those of a multiple of the loss, as in float16."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def reason_against_graph(trainer: Trainer) -> str | None:
    """What stands against CUDA graphs in this run; None where they work."""
    needs = {
        f"a run of one process (got {trainer.world_size})": trainer.world_size == 1,
        f"trainer.accumulate_grad_batches=1 (got {trainer.accumulate_grad_batches})": (
            trainer.accumulate_grad_batches == 1
        ),
        f"a precision without loss scaling (got trainer.precision={trainer.precision})": not scales_loss(trainer),
        f"a CUDA device (got {trainer.strategy.root_device.type})": trainer.strategy.root_device.type == "cuda",
    }
    return next((f"it needs {need}" for need, is_met in needs.items() if not is_met), None)
