"""Learning-rate schedule of the paper's experiments."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class LinearOneCycle(LambdaLR):
    """Linear warm-up to the optimiser's rate, then linear decay to zero; one call of `step()` per training step.

    torch's `OneCycleLR` also cycles β₁ and keeps the number of steps it was made with, so a run could not be extended.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: length of the run, positive.
        warmup_steps: steps before the peak, fewer than `total_steps`.

    Raises:
        ValueError: for numbers of steps that do not go together.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> None:
        if total_steps < 1:
            raise ValueError(f"a schedule over the run needs trainer.max_steps of at least 1, got {total_steps}")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"warmup_steps={warmup_steps} must be at least 0 and below trainer.max_steps={total_steps}; "
                "set --model.lr_scheduler.warmup_steps"
            )

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            return max(0.0, (total_steps - step) / (total_steps - warmup_steps))

        super().__init__(optimizer, factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of steps; the next step's rate is this schedule's, also where it is longer than before."""
        super().load_state_dict(state_dict)
        groups = zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor(self.last_epoch)
