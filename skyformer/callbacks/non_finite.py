"""What happens when a loss or its gradients are infinite or not a number."""

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
    """The loss of a training step, or a gradient, is infinite or not a number."""


class NonFiniteLoss(Callback):
    """Looks at the loss and the gradients of every optimiser step, on all processes, before they reach the weights.

    Writes `non_finite.<rank>.json` into the run's folder: the step, the batch's examples, and for each layer the norm
    of its weights and of its output on that batch. The checkpoints stay as they were before. With float16, whose loss
    scaling leaves out steps with infinite gradients by itself, only the loss counts.

    Args:
        action: `stop` the run at that step, or `skip` the step: its gradients are dropped, weights and the optimiser's
            moments stay as they are, the schedule goes on, and `train/skipped_steps` counts it.

    Raises:
        NonFiniteLossError: under `stop`.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        self.action = action
        self.skipped = 0
        self._batch: Any = None
        self._seen: list[tuple[Any, int, Tensor]] = []  # batch, its number, loss; of the step under way

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._seen.append((*self._batch, loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        seen, self._seen = self._seen, []
        total = torch.stack([loss for *_, loss in seen]).sum()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            total = total + torch.nn.utils.get_total_norm(gradients)
        # One number for all processes, so that all stop, or skip, together. Reading it makes a GPU wait for its step.
        if not trainer.strategy.reduce_boolean_decision(math.isfinite(total.item()), all=True):
            self._act(trainer, pl_module, seen)
            optimizer.zero_grad(set_to_none=True)  # torch's optimisers leave parameters without gradient alone
            self.skipped += 1
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def _act(self, trainer: Trainer, pl_module: LightningModule, seen: list[tuple[Any, int, Tensor]]) -> None:
        culprits = [entry for entry in seen if not math.isfinite(entry[2].item())]
        batch, number, loss = (culprits or seen)[0]
        record = {
            "step": trainer.global_step,
            "batch_of_the_epoch": number,
            "rank": trainer.global_rank,
            # Without its size where it is finite: float16 has scaled it by then.
            "loss": str(loss.item()) if culprits else "finite on this process",
            "examples": _names(trainer, batch),
            "layers": layer_norms(trainer, pl_module, batch),
        }
        path = Path(trainer.default_root_dir, f"non_finite.{trainer.global_rank}.json")
        write_whole(path, json.dumps(record, indent=2) + "\n")
        if self.action == "stop":
            what = f"the loss of step {trainer.global_step} is {record['loss']}"
            what += "" if culprits else ", and the gradients are not"
            raise NonFiniteLossError(
                f"{what}; the batch's examples and the norms of the layers are in {path}. Weights and checkpoints are "
                "as before that step. Try a smaller model.optimizer.init_args.lr, trainer.gradient_clip_val=1, or "
                "non_finite_loss.action=skip."
            )


def _names(trainer: Trainer, batch: Any) -> list[Any]:
    places = batch.example.tolist()
    if not hasattr(trainer.datamodule, "example_names"):
        return places
    names = trainer.datamodule.example_names("train")
    return [names[place] for place in places]


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
    seed_step(trainer)  # of accumulated batches the last one's dropout and landmarks, else the same as in the step
    try:
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            module(batch.tokens, batch.mask, batch.position)
    finally:
        for hook in hooks:
            hook.remove()
    return norms
