"""Forward and backward pass of a training step as CUDA graphs, one for each shape of a batch and setting of the model.

A step of a small model launches hundreds of kernels, and the CPU needs longer to launch them than the GPU to run
them. A graph launches them all at once.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from skyformer.internals import copy_all

WARM_UP_STEPS = 3  # before capture: compile, pick algorithms, make permanent allocations
MAX_GRAPHS = 128  # each takes memory and the time of some steps; lengths up to 16,384 have about 70 widths


class CaptureError(RuntimeError):
    """A computation that cannot be a CUDA graph, since the CPU waits for one of its results."""


class GraphedStep:
    """Computes `function(*inputs)` and the gradients of its first result by replaying a CUDA graph.

    Random numbers come from the default generator of the device, as without a graph, and depend on its state when the
    graph is replayed. Graphs share their memory, so one runs at a time. There is one for each combination of shapes and
    settings: which parameters are frozen, and the numbers that the modules hold, such as dropout rates.

    Args:
        function: tensors, or None in place of one → a tuple of tensors, the first a scalar loss. It must not wait for
            the device.
        module: the module whose gradients are taken. Its parameters stay where they are.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], module: nn.Module) -> None:
        self.function = function
        self.module = module
        self.numbers = list(_numbers(module))
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.graphs: dict[Any, _Graph | None] = {}  # None: memory did not suffice
        self.replayed: _Graph | None = None
        self.pool: Any = None
        self.warm_up_stream = torch.cuda.Stream()  # one, since each keeps a workspace for products
        self.said_full = False

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...] | None:
        """Return the results of `function`, detached from autograd. The next call overwrites it.

        None for a combination of shapes and settings without a graph: there are `MAX_GRAPHS`, or too little memory.

        Raises:
            CaptureError: before anything is captured, if the function waits for the device.
        """
        key = (*(None if value is None else (value.shape, value.dtype) for value in inputs), *self._settings())
        if key not in self.graphs:
            if len(self.graphs) >= MAX_GRAPHS:
                self._say_full()
                return None
            with unchanged_state(self.module):
                self.graphs[key] = self._capture(inputs)
        graph = self.graphs[key]
        if graph is None:
            return None
        self.replayed = graph
        for place, value in zip(graph.inputs, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        graph.graph.replay()
        return graph.results

    def set_gradients(self) -> None:
        """Give each parameter its gradient of the last call; the tensors are the same at each call."""
        assert self.replayed is not None
        for parameter in self.module.parameters():
            parameter.grad = self.gradients[parameter] if parameter in self.replayed.trained else None

    def _settings(self) -> Iterator[Any]:
        yield from (parameter.requires_grad for parameter in self.module.parameters())
        yield from (attributes.get(name) for attributes, name in self.numbers)

    def _say_full(self) -> None:
        if not self.said_full:
            self.said_full = True
            rank_zero_info(
                f"model.cuda_graph=true: training has {MAX_GRAPHS} CUDA graphs, one for each shape of a batch and each "
                "setting of the model. Batches of other shapes run without one."
            )

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> "_Graph | None":
        places = [None if value is None else value.clone() for value in inputs]
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        stream = self.warm_up_stream
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._run(places, parameters)
                self._check_waits(places, parameters)
        except torch.OutOfMemoryError:
            rank_zero_info("model.cuda_graph=true: batches of one shape run without a graph, for lack of GPU memory.")
            return None
        finally:
            torch.cuda.current_stream().wait_stream(stream)  # before buffers are restored
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that pins memory, may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            results, trained = self._run(places, parameters)
        self.pool = self.pool or graph.pool()
        return _Graph(graph, places, results, trained)

    def _check_waits(self, places: list[Tensor | None], parameters: list[nn.Parameter]) -> None:
        # A capture that fails would leave the generator of random numbers unusable.
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the check does not find every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._run(places, parameters)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(str(error).splitlines()[0]) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def _run(
        self, inputs: list[Tensor | None], parameters: list[nn.Parameter]
    ) -> tuple[tuple[Tensor, ...], set[nn.Parameter]]:
        """The results, and the parameters that got a gradient: one that the shape leaves out gets none."""
        results = self.function(*inputs)
        gradients = gradients_of(results[0], parameters)
        found = {
            parameter: gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
        for parameter in found:
            if parameter not in self.gradients:
                self.gradients[parameter] = torch.zeros_like(parameter)  # fused optimisers need its strides
        copy_all([self.gradients[parameter] for parameter in found], list(found.values()))
        return tuple(result.detach() for result in results), set(found)


class _Graph(NamedTuple):
    """A captured step: where its inputs and results are, and the parameters that it computes a gradient for."""

    graph: Any
    inputs: list[Tensor | None]
    results: tuple[Tensor, ...]
    trained: set[nn.Parameter]


def _numbers(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the numbers and switches that a forward pass may depend on: the attributes of a module, and a name.

    Whole numbers of the outermost module and of metrics count what has been seen.
    """
    for part in module.modules():
        if not isinstance(part, Metric):
            kinds = (bool, float) if part is module else (bool, int, float)
            for name, value in vars(part).items():
                if isinstance(value, kinds) and not name.startswith("_"):
                    yield vars(part), name


def gradients_of(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return the gradient of each parameter, None for one without. Autocast is off, as in Lightning's backward pass."""
    with torch.autocast(loss.device.type, enabled=False):
        return torch.autograd.grad(loss, parameters, allow_unused=True)


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


def reason_against_graph(trainer: Trainer, recomputes: bool) -> str | None:
    """Return the reason against CUDA graphs in this run; None if they work.

    `recomputes` is `model.gradient_checkpointing`, which reads the state of the random numbers.
    """
    needs = {
        "model.gradient_checkpointing=false (got true)": not recomputes,
        f"a run of one process without DDP (got {trainer.world_size}, {type(trainer.strategy).__name__})": isinstance(
            trainer.strategy, SingleDeviceStrategy
        ),
        f"trainer.accumulate_grad_batches=1 (got {trainer.accumulate_grad_batches})": (
            trainer.accumulate_grad_batches == 1
        ),
        f"a precision without loss scaling (got trainer.precision={trainer.precision})": not scales_loss(trainer),
        f"a CUDA device (got {trainer.strategy.root_device.type})": trainer.strategy.root_device.type == "cuda",
    }
    return next((f"it needs {need}" for need, is_met in needs.items() if not is_met), None)
