"""Examples and tokens a second, and peak memory."""

import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from skyformer.internals import is_accumulating


class Throughput(Callback):
    """Logs `speed/examples_per_second`, `speed/tokens_per_second` (padding not counted) and `speed/peak_memory_mb`.

    Counts are of this process and exclude validation. Memory is the peak so far: allocated memory on a CUDA device, and
    otherwise resident memory of the process.
    """

    def __init__(self) -> None:
        self.since = 0.0
        self.examples = 0
        self.tokens: Any = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.examples += len(batch.label)
        # Kept as a tensor until it is logged: reading it would make a GPU wait.
        self.tokens = self.tokens + (batch.tokens.numel() if batch.mask is None else batch.mask.sum())
        every = trainer.log_every_n_steps  # 0 turns logging off
        if is_accumulating(trainer) or not every or trainer.global_step % every:
            return
        tokens = float(self.tokens)
        seconds = time.perf_counter() - self.since
        pl_module.log_dict(
            {
                "speed/examples_per_second": self.examples / seconds,
                "speed/tokens_per_second": tokens / seconds,
                "speed/peak_memory_mb": peak_memory_mb(pl_module.device),
            }
        )
        self._restart()

    def _restart(self) -> None:
        self.since = time.perf_counter()
        self.examples = 0
        self.tokens = 0


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory so far, in MB of 10⁶ bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return float("nan")  # has no such count
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
