"""What happens when a loss is infinite or not a number."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from skyformer.attention import Attention
from skyformer.callbacks.seeds import seed_step
from skyformer.files import write_whole


class NonFiniteLossError(RuntimeError):
    """The loss of a training step is infinite or not a number."""


class NonFiniteLoss(Callback):
    """Looks at the loss of every step, on all processes, before it reaches the weights.

    Writes `non_finite.<rank>.json` into the run's folder: the step, the batch's examples, and for each layer the norm
    of its weights and of its output on that batch. The checkpoints stay as they were before.

    Args:
        action: `stop` the run at that step, or `skip` the step: its gradients are dropped, weights and the optimiser's
            moments stay as they are, the schedule goes on, and `train/skipped_steps` counts it.

    Raises:
        NonFiniteLossError: under `stop`.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        self.action = action
        self.skipped = 0
        self._skips_this_step = False

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # One number for all processes, so that all stop, or skip, together. It makes a GPU wait for its step.
        if trainer.strategy.reduce_boolean_decision(math.isfinite(loss.item()), all=True):
            return
        path = self._write(trainer, pl_module, loss)
        if self.action == "stop":
            raise NonFiniteLossError(
                f"the loss of step {trainer.global_step} is {_said(loss)}; the batch's examples and the norms of the "
                f"layers are in {path}. Weights and checkpoints are as before that step. Try a smaller "
                "model.optimizer.init_args.lr, trainer.gradient_clip_val=1, or non_finite_loss.action=skip."
            )
        self._skips_this_step = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._skips_this_step:
            optimizer.zero_grad(set_to_none=True)  # torch's optimisers leave parameters without gradient alone
            self._skips_this_step = False
            self.skipped += 1
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def _write(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> Path:
        examples = self._batch.example.tolist()
        names = trainer.datamodule.example_names("train") if hasattr(trainer.datamodule, "example_names") else None
        seed_step(trainer)  # the same dropout and landmarks as in the step
        record = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch_of_the_epoch": self._batch_idx,
            "rank": trainer.global_rank,
            "loss": _said(loss),
            "examples": [names[place] if names else place for place in examples],
            "layers": layer_norms(trainer, pl_module, self._batch),
        }
        path = Path(trainer.default_root_dir, f"non_finite.{trainer.global_rank}.json")
        write_whole(path, json.dumps(record, indent=2) + "\n")
        return path


def _said(loss: Tensor) -> str:
    """Without its size where it is finite: float16 has scaled it by then."""
    return "finite on this process" if math.isfinite(loss.item()) else str(loss.item())


@torch.no_grad()
def layer_norms(trainer: Trainer, module: LightningModule, batch: Any) -> dict[str, dict[str, str]]:
    """For each layer that holds weights, and each attention backend, by name: the Euclidean norms of its weights and
    of its output on this batch, in the order of the computation. As text, since JSON has no number that is none.
    """
    norms: dict[str, dict[str, str]] = {}

    def record(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            weights = [weight.detach() for weight in layer.parameters(recurse=False)]
            found = {"weights": torch.nn.utils.get_total_norm(weights)} if weights else {}
            if isinstance(output, Tensor):
                found["output"] = output.float().norm()
            norms[name] = {key: f"{value.item():.6g}" for key, value in found.items()}

        return hook

    hooks = [
        layer.register_forward_hook(record(name))
        for name, layer in module.named_modules()
        if isinstance(layer, Attention) or any(True for _ in layer.parameters(recurse=False))
    ]
    try:
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            module(batch.tokens, batch.mask, batch.position)
    finally:
        for hook in hooks:
            hook.remove()
    return norms
