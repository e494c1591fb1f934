"""Handle a loss or gradients that are infinite or not a number."""

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from skyformer.attention import Attention
from skyformer.files import write_atomically
from skyformer.internals import scales_itself
from skyformer.model.cuda_graph import scales_loss
from skyformer.training.callbacks.seeds import batches_taken, seed_step

STEPS_UNREAD = 32  # whose batches a GPU holds


class NonFiniteLossError(RuntimeError):
    """The loss of a training step, or a gradient, is infinite or not a number."""


class NonFiniteLoss(Callback):
    """Check the loss and the gradients of every optimiser step, on all processes, before they reach the weights.

    Write `non_finite.<rank>.json` into the run's folder: the step, the batch's examples, and for each layer the norms
    of its weights and of its output on that batch. Checkpoints do not change. With float16 only the loss is checked,
    because loss scaling skips steps with infinite gradients.

    With `stop`, a single process and a fused optimiser, the check does not synchronise at every step. The optimiser
    changes nothing from a non-finite step on. The result is read after at most 32 steps and before each checkpoint.

    Args:
        action: `stop` the run at that step, or `skip` the step. Skipping drops the gradients and keeps weights and
            moments. The schedule continues, and `train/skipped_steps` counts the step.

    Raises:
        NonFiniteLossError: with `stop`.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        self.action = action
        self.skipped = 0
        self._batch: Any = None
        self._seen: list[_Seen] = []  # of the step under way
        self._unread: list[tuple[int, Tensor, list[_Seen]]] = []  # step, a number that tells whether it is finite
        self._all_finite: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen, self._unread, self._all_finite = [], [], None  # of an earlier fit that was stopped

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch, batch_idx, batches_taken(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        batch, number, taken = self._batch
        self._seen.append(_Seen(batch, number, taken, loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        seen, self._seen = self._seen, []
        total = torch.stack([entry.loss for entry in seen]).sum()
        if not scales_loss(trainer):
            groups = optimizer.param_groups
            gradients = [weight.grad for group in groups for weight in group["params"] if weight.grad is not None]
            total = total + torch.nn.utils.get_total_norm(gradients)
        if self.action == "stop" and trainer.world_size == 1 and _reads_found_inf(optimizer):
            finite = torch.isfinite(total)
            self._all_finite = finite if self._all_finite is None else self._all_finite & finite
            optimizer.found_inf = (~self._all_finite).float()  # type: ignore[attr-defined]
            self._unread.append((trainer.global_step, total, seen))
            return
        # One number for all processes, so that all stop or skip together. Reading it synchronises with the GPU.
        if not trainer.strategy.reduce_boolean_decision(math.isfinite(total.item()), all=True):
            self._act(trainer, pl_module, trainer.global_step, seen)
            optimizer.zero_grad(set_to_none=True)  # torch's optimisers leave parameters without gradient alone
            self.skipped += 1
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self._unread) >= STEPS_UNREAD:
            self._read(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at the first of the unread steps that is not finite."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        finite = torch.isfinite(torch.stack([total for _, total, _ in unread])).tolist()
        if not all(finite):
            step, _, seen = unread[finite.index(False)]
            self._act(trainer, pl_module, step, seen)

    def _act(self, trainer: Trainer, pl_module: LightningModule, step: int, seen: list["_Seen"]) -> None:
        culprits = [entry for entry in seen if not math.isfinite(entry.loss.item())]
        culprit = (culprits or seen)[0]
        record = {
            "step": step,
            "batch_of_the_epoch": culprit.number,
            "rank": trainer.global_rank,
            # Without its size where it is finite: float16 has scaled it by then.
            "loss": str(culprit.loss.item()) if culprits else "finite on this process",
            "examples": _names(trainer, culprit.batch),
            # For accumulated batches, dropout and landmarks are those of the last batch.
            "layers": layer_norms(trainer, pl_module, culprit.batch, seen[-1].taken),
        }
        path = Path(trainer.default_root_dir, f"non_finite.{trainer.global_rank}.json")
        write_atomically(path, json.dumps(record, indent=2) + "\n")
        if self.action == "stop":
            what = f"the loss of step {step} is {record['loss']}"
            what += "" if culprits else ", and the gradients are not"
            raise NonFiniteLossError(
                f"{what}; the batch's examples and the norms of the layers are in {path}. Weights and checkpoints are "
                "as before that step. Fix: try a smaller model.optimizer.init_args.lr, trainer.gradient_clip_val=1, or "
                "non_finite_loss.action=skip."
            )


class _Seen(NamedTuple):
    """A batch of a step: the batch, its number in the epoch and over all epochs, its loss."""

    batch: Any
    number: int
    taken: int
    loss: Tensor


def _reads_found_inf(optimizer: Optimizer) -> bool:
    """Return whether the optimiser skips a step if its `found_inf` is 1, as torch's fused ones do."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and scales_itself(optimizer)


def _names(trainer: Trainer, batch: Any) -> list[Any]:
    places = batch.example.tolist()
    if not hasattr(trainer.datamodule, "example_names"):
        return places
    names = trainer.datamodule.example_names("train")
    return [names[place] for place in places]


@torch.no_grad()
def layer_norms(trainer: Trainer, module: LightningModule, batch: Any, taken: int) -> dict[str, dict[str, str]]:
    """Return the Euclidean norms of weights and output of each layer with weights and each attention backend.

    They are sorted in the order of the computation, by name. Values are text, because JSON has no infinite numbers.
    Random numbers are those of the step after `taken` batches.
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
    seed_step(trainer, taken)
    try:
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            module.training_losses(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return norms
