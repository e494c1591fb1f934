"""The LightningModule: encoder, head, loss, metrics, optimiser and schedule."""

from collections.abc import Sequence
from copy import deepcopy
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from skyformer.exceptions import RunError
from skyformer.internals import is_compiled, keep_precision_of_compiled_gradients, scales_itself, train_dataloader
from skyformer.model.cuda_graph import (
    CaptureError,
    GraphedStep,
    gradients_of,
    reason_against_graph,
    scales_loss,
    unchanged_state,
)
from skyformer.model.encoder import COMPILE_OPTIONS, AttentionFactory, Encoder
from skyformer.model.head import UNLABELLED, ClassificationHead, Pooling
from skyformer.model.initial_weights import load_initial_weights
from skyformer.model.layers import FeedForward, Norm
from skyformer.model.masked_tokens import MaskedBatch, MaskedTokens, evaluation_draws
from skyformer.model.metrics import make_metrics
from skyformer.model.optimizer import OptimizerFactory, make_optimizer_and_scheduler, monitored
from skyformer.model.positions import PositionInit, Positions
from skyformer.model.schedule import STEP_ARGUMENTS, SchedulerFactory
from skyformer.model.steps import set_steps
from skyformer.ops.checks import check_choice
from skyformer.ops.dropout import check_probability
from skyformer.ops.kernel import at_least_float32

COMPILED_TOKENS = 1 << 17  # the most in a batch that the compiler chooses its kernels by
Objective = Literal["classify", "masked_tokens"]


class Prediction(NamedTuple):
    """The result of `predict` for a batch.

    Attributes:
        example: `(B,)` int64, the example's index in its split.
        label: `(B,)` int64.
        probabilities: `(B, classes)` float32.
    """

    example: Tensor
    label: Tensor
    probabilities: Tensor


class TokenPrediction(NamedTuple):
    """The result of `predict` for the L labelled tokens of a batch, without pooling.

    Attributes:
        example: `(L,)` int64, the example's index in its split.
        position: `(L,)` int64, the token's position in its sequence.
        label, prediction: `(L,)` int64.
        probability: `(L,)` float32, of the prediction.
    """

    example: Tensor
    position: Tensor
    label: Tensor
    prediction: Tensor
    probability: Tensor


class SequenceClassifier(LightningModule):
    """Classify token sequences with an encoder and any attention.

    Curves named `train/…` are of a step. Like its gradient, they are the mean over its accumulated batches and all
    processes, which have equal weights. That is the mean over all examples of the step, except with token labels,
    masked tokens or `class_weights`. Curves named `val/…` and `test/…` are of all examples.

    A batch has `tokens (B, N)` int64, `mask (B, N)` bool or None, `label (B,)` and `example (B,)` int64. `position (B,
    N)` is int64 or None. For examples of two documents, tokens and mask are `(B, 2, N)`. With `pooling: none`, label is
    `(B, N)`, and loss and accuracy are those of labelled tokens; −100 is no label.

    Args:
        attention: makes one backend a layer, from (num_heads, head_dim, max_length). In YAML a class path.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the schedule from the optimiser. It steps after every training step. A schedule that follows
            a metric (`ReduceLROnPlateau`) steps after every validation. A missing `total_steps`, `T_max` or
            `total_iters` is the length of the run (`schedule.make_schedule`). None for a constant rate.
        vocab_size, num_classes, max_length, num_documents, image_side: sizes of the task; linked from the data.
        num_layers, embed_dim, hidden_dim, num_heads, dropout, gradient_checkpointing: see `Encoder`.
        norm, feed_forward, stochastic_depth: see `Encoder`.
        float32_attention, positions, position_init, query_key_gain: see `Encoder`.
        pooling: see `ClassificationHead`.
        class_weights: one number above 0 per class. The training loss is then the weighted mean of the examples'
            losses, as in `torch.nn.CrossEntropyLoss`. The validation and test losses are unweighted.
        label_smoothing: fraction of a label that is spread over all classes, in [0, 1); in the training loss only.
        positions_lr_factor: learning rate of learned positions as a multiple of the optimiser's. Adam moves each
            position by the full rate even if its gradients are noise, as they mostly are.
        objective: `classify`, or `masked_tokens` to pretrain the encoder by predicting masked tokens (`MaskedTokens`).
            Loss and accuracy are then those of masked tokens, and there is no classification head.
        mask_ratio: probability that a token is masked.
        mlm_weight: weight of the masked-token loss in the training loss. Above 0, it takes a second pass through the
            encoder. Validation and test measure classification only.
        init_from: a checkpoint whose weights a new run starts from (`load_initial_weights`). Optimiser, schedule, data
            and step count are the new run's own.
        compile: run the encoder's blocks through `torch.compile`; checkpoints are the same either way.
        cuda_graph: on one GPU, run the forward and backward passes of a training step as one CUDA graph
            (`cuda_graph.py`). Checkpoints are the same either way. If this is not possible, training prints the reason
            and runs without.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        attention: AttentionFactory,
        optimizer: OptimizerFactory,
        lr_scheduler: SchedulerFactory | None = None,
        vocab_size: int = 256,
        num_classes: int = 2,
        max_length: int = 1024,
        num_documents: int = 1,
        image_side: int = 0,
        num_layers: int = 2,
        embed_dim: int = 64,
        hidden_dim: int = 128,
        num_heads: int = 2,
        dropout: float = 0.1,
        norm: Norm = "layer",
        feed_forward: FeedForward = "gelu",
        stochastic_depth: float = 0.0,
        float32_attention: bool = False,
        positions: Positions = "learned",
        position_init: PositionInit = "normal",
        query_key_gain: float | None = None,
        gradient_checkpointing: bool = False,
        pooling: Pooling = "mean",
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        positions_lr_factor: float = 1.0,
        objective: Objective = "classify",
        mask_ratio: float = 0.15,
        mlm_weight: float = 0.0,
        init_from: str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name in ("attention", "optimizer", "lr_scheduler"):
            # From YAML these are class paths. From Python they are functions, which a checkpoint must not hold.
            if callable(self.hparams[name]):
                del self.hparams[name]
        self.objective = _checked_objective(objective, mlm_weight, class_weights, label_smoothing)
        self.mlm_weight = mlm_weight
        has_mask_id = objective == "masked_tokens" or mlm_weight > 0
        self.encoder = Encoder(
            vocab_size + has_mask_id,
            max_length,
            attention,
            num_layers=num_layers,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            dropout=dropout,
            norm=norm,
            feed_forward=feed_forward,
            stochastic_depth=stochastic_depth,
            float32_attention=float32_attention,
            positions=positions,
            position_init=position_init,
            query_key_gain=query_key_gain,
            gradient_checkpointing=gradient_checkpointing,
            image_side=image_side,
        )
        if not 0 <= positions_lr_factor < inf:
            raise ValueError(f"positions_lr_factor={positions_lr_factor} must be a number, 0 or more")
        if positions_lr_factor != 1 and positions != "learned":
            raise ValueError(
                f"positions_lr_factor={positions_lr_factor} is for learned positions (got positions={positions}). Fix: "
                "--model.positions_lr_factor 1"
            )
        self.positions_lr_factor = positions_lr_factor
        self.label_smoothing = check_probability("label_smoothing", label_smoothing)
        self.register_buffer("class_weights", _checked_weights(class_weights, num_classes), persistent=False)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must be above 0 and below 1")
        self.labels_tokens = objective == "classify" and pooling == "none"
        if objective == "classify":
            self.head = ClassificationHead(embed_dim, hidden_dim, num_classes, pooling, num_documents)
        self.masked_tokens = MaskedTokens(embed_dim, vocab_size, mask_ratio) if has_mask_id else None
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.init_from = init_from
        self.compile_encoder = compile
        self.cuda_graph = cuda_graph
        self._graphed_step: GraphedStep | None = None
        self._is_compiled = False
        self._is_graphed = False  # the batch under way
        self._step_losses: list[Tensor] = []  # what `_loss_and_accuracy` gave for each batch of the step under way
        self._curves: dict[str, Any] = {}  # of the last step
        classes = num_classes if objective == "classify" else None
        self.metrics = nn.ModuleDict({split: make_metrics(classes) for split in ("val", "test")})

    def __deepcopy__(self, memo: dict[int, Any]) -> "SequenceClassifier":
        """Copy for callbacks that average weights.

        The factories hold no state and are shared. Those that come from YAML cannot be copied.
        """
        memo |= {id(factory): factory for factory in (self.optimizer_factory, self.scheduler_factory)}
        copied = memo[id(self)] = type(self).__new__(type(self))
        state: Any = self.__getstate__()
        copied.__dict__.update(deepcopy(state, memo))
        return copied

    def on_train_start(self) -> None:
        if self.init_from is not None and self.trainer.global_step == 0:  # a resume has restored its own weights
            data_hash = getattr(self.trainer.datamodule, "data_hash", None)
            load_initial_weights(self, Path(self.init_from).expanduser(), data_hash)
        self._graphed_step = None  # that of an earlier fit
        if self.cuda_graph:
            reason = reason_against_graph(self.trainer, self.encoder.gradient_checkpointing)
            if reason is None:
                self._graphed_step = GraphedStep(self._loss_and_accuracy, self)
            else:
                rank_zero_info(f"model.cuda_graph=true has no effect: {reason}. Training runs without CUDA graphs.")

    def on_train_end(self) -> None:
        self._graphed_step = None  # and its memory

    def setup(self, stage: str) -> None:
        if stage == "fit":
            set_steps(self.trainer)

    def configure_model(self) -> None:
        # In place, to keep parameter names; a second call has no effect. Block by block, because all blocks share one
        # compilation. On a GPU, a compiled embedding would add its gradients in an order that varies between runs.
        if self.compile_encoder:
            keep_precision_of_compiled_gradients()
            for part in [*self.encoder.blocks, self.encoder.norm]:
                if not is_compiled(part):
                    part.compile(options=COMPILE_OPTIONS)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """Class scores `(B, classes)`; `(B, N, classes)` with `pooling: none`.

        Args:
            tokens: `(B, N)` int64, or `(B, 2, N)` for two documents, which the encoder processes separately.
            mask: bool of the same shape, True = a real token; None where all are.
            position: `(B, N)` int64, the positions of the tokens in the full sequence of `max_length`, if masked tokens
                were dropped; None for 0 … N − 1.

        Raises:
            RunError: for a model without class scores.
        """
        self.check_classifies()
        tokens, mask, position = self._sequences(tokens, mask, position)
        length = tokens.shape[1] if position is None else self.encoder.max_length
        return self.head(self.encoder(tokens, mask, position), mask, length)

    def check_classifies(self) -> None:
        """Refuse a model that was pretrained only.

        Raises:
            RunError: naming its objective.
        """
        if self.objective != "classify":
            raise RunError(
                f"model.objective={self.objective}: this model has no class scores. Fix: train one with "
                "--model.init_from <its checkpoint>"
            )

    def scores_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return class scores `(L, classes)` and labels `(L,)` of a batch's examples, or of its labelled tokens."""
        return self._labelled(*self._inputs(batch), batch.label)

    def _labelled(
        self, tokens: Tensor, mask: Tensor | None, position: Tensor | None, label: Tensor, fixed_shapes: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return class scores `(L, classes)` and labels `(L,)` of the examples, or without pooling of labelled tokens.

        With `fixed_shapes`, tokens without a label are kept, so that a GPU need not wait for the number of labels.
        """
        if not self.labels_tokens:
            return self(tokens, mask, position), label
        if fixed_shapes:
            return self(tokens, mask, position).flatten(0, 1), label.flatten()
        is_labelled = label != UNLABELLED
        return self.head.layers(self.encoder(tokens, mask, position)[is_labelled]), label[is_labelled]

    def _sequences(
        self, tokens: Tensor, mask: Tensor | None, position: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return one sequence per document, with dropped tokens restored if the backend needs absolute positions."""
        if tokens.dim() == 3:
            tokens, mask = tokens.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        if position is not None and self.encoder.needs_absolute_positions:
            return *restore_dropped_tokens(tokens, mask, position, self.encoder.max_length), None
        return tokens, mask, position

    def _masked_batch(
        self, tokens: Tensor, mask: Tensor | None, position: Tensor | None, example: Tensor | None = None
    ) -> MaskedBatch:
        """Mask tokens and predict them; the mask depends on the example, and in training on the step."""
        assert self.masked_tokens is not None
        documents = tokens.shape[1] if tokens.dim() == 3 else 1
        tokens, mask, position = self._sequences(tokens, mask, position)
        if example is None:
            draws, is_on_gpu = torch.rand(tokens.shape, device=tokens.device), tokens.device.type == "cuda"
            return self.masked_tokens(self.encoder, tokens, mask, position, draws, fixed_shapes=is_on_gpu)
        draws = evaluation_draws(example, documents, self.encoder.max_length).to(tokens.device)
        draws = draws[:, : tokens.shape[1]] if position is None else draws.gather(1, position)
        return self.masked_tokens(self.encoder, tokens, mask, position, draws)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        losses = self._step(*self._inputs(batch), batch.label)
        loss = losses[0]
        accumulated = self.trainer.accumulate_grad_batches
        first = batch_index - batch_index % accumulated
        self._log_losses(losses, is_first=batch_index == first)
        # Lightning divides by `accumulated`, but the last step of an epoch may have fewer batches.
        return loss * (accumulated / min(accumulated, self.trainer.num_training_batches - first))

    def _log_losses(self, losses: tuple[Tensor, ...], is_first: bool) -> None:
        """At every step, since callbacks may read it."""
        if is_first:
            self._step_losses = []
        self._step_losses.append(torch.stack([loss.detach() for loss in losses]))
        # The gradient of a step weights batches and processes equally too. They have equal numbers of examples, but not
        # of labelled or masked tokens, nor equal sums of `class_weights`.
        means = self.trainer.strategy.reduce(torch.stack(self._step_losses).mean(dim=0), reduce_op="mean")
        # Lightning reads what a bar shows at every step, and a GPU waits.
        bar = self.trainer.progress_bar_callback
        shown = bar is not None and not getattr(bar, "reads_callback_metrics", False)
        for name, mean in zip(("loss", "accuracy", "masked_loss"), means, strict=False):
            self.log(f"train/{name}", mean, prog_bar=shown and name == "loss")

    def _step(self, *inputs: Any) -> tuple[Tensor, ...]:
        """`_loss_and_accuracy`, with the gradients where a graph computes them."""
        if self._must_compile:
            self._compile_for(*inputs)
        self._is_graphed = False
        if self._graphed_step is not None:
            try:
                results = self._graphed_step(*inputs)
            except CaptureError as error:
                self._graphed_step = None
                rank_zero_info(f"model.cuda_graph=true has no effect: {error}. Training runs without CUDA graphs.")
            else:
                if results is not None:
                    self._is_graphed = True
                    return results
        return self._loss_and_accuracy(*inputs)

    @property
    def _must_compile(self) -> bool:
        return self.compile_encoder and self.device.type == "cuda" and not self._is_compiled

    def compile_ahead(self) -> None:
        """Compile as the first training step would, for a resumed run that begins with an evaluation."""
        if self._must_compile:
            with torch.random.fork_rng(devices=[]):  # a loader draws a seed
                batch = next(iter(train_dataloader(self.trainer)))
            batch = self.trainer.strategy.batch_to_device(batch)
            with self.trainer.precision_plugin.train_step_context():
                self._compile_for(*self._inputs(batch), batch.label)

    def _compile_for(self, tokens: Tensor, mask: Tensor | None, position: Tensor | None, label: Tensor) -> None:
        """Compile for batches like this one, of any size.

        The compiler chooses its kernels by the first sizes that it sees. A resumed run begins with other sizes, so its
        sums would differ. After two sizes the compiler makes the sizes dynamic.
        """
        self._is_compiled = True
        batch = max(4, min(tokens.shape[0], COMPILED_TOKENS // self.encoder.max_length))
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        for part in (1, 2):
            length = max(1, self.encoder.max_length // part)
            shape = (batch // part, *tokens.shape[1:-1], length)
            example, places = tokens.new_zeros(shape), torch.arange(shape[-1], device=tokens.device)
            with unchanged_state(self):
                loss, *_ = self._loss_and_accuracy(
                    example,
                    None if mask is None else torch.ones_like(example, dtype=torch.bool),
                    None if position is None else places.expand(shape).contiguous(),
                    label.new_zeros(shape[: label.dim()]),
                )
                gradients_of(loss, weights)

    def training_losses(self, batch: Any) -> tuple[Tensor, ...]:
        """Return loss and accuracy of a training step on this batch, and that of masked tokens with `mlm_weight`."""
        return self._loss_and_accuracy(*self._inputs(batch), batch.label)

    def _loss_and_accuracy(
        self, tokens: Tensor, mask: Tensor | None, position: Tensor | None, label: Tensor
    ) -> tuple[Tensor, ...]:
        """Return loss and accuracy of a training batch, float32 at least; with `mlm_weight` also the masked loss."""
        if self.objective == "masked_tokens":
            masked = self._masked_batch(tokens, mask, position)
            return masked.loss, masked.accuracy
        scores, label = self._labelled(tokens, mask, position, label, fixed_shapes=tokens.device.type == "cuda")
        exact = scores.to(at_least_float32(scores))
        weights = None if self.class_weights is None else self.class_weights.to(exact)
        loss = F.cross_entropy(exact, label, weights, label_smoothing=self.label_smoothing)
        accuracy = (scores.argmax(dim=-1) == label).sum() / (label != UNLABELLED).sum()
        if self.masked_tokens is None:
            return loss, accuracy
        masked = self._masked_batch(tokens, mask, position)
        return loss + self.mlm_weight * masked.loss, accuracy, masked.loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._graphed_step is None or not self._is_graphed:
            super().backward(loss, *args, **kwargs)
            return
        if loss.requires_grad:
            raise MisconfigurationException(
                "model.cuda_graph=true: training_step adds a term to the loss that the graph does not compute. Fix: "
                "set model.cuda_graph to false"
            )
        self._graphed_step.set_gradients()  # the graph has computed them

    @property
    def _is_logged_step(self) -> bool:
        """Return whether Lightning writes the curves after the current step, which it has not counted yet."""
        interval = self.trainer.log_every_n_steps
        return interval > 0 and ((self.trainer.global_step + 1) % interval == 0 or self.trainer.should_stop)

    def validation_step(self, batch: Any, batch_index: int) -> Tensor | MaskedBatch:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_index: int) -> Tensor | MaskedBatch:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_index: int) -> Prediction | TokenPrediction:
        scores, label = self.scores_and_labels(batch)
        probabilities = scores.float().softmax(dim=-1)
        if batch.label.dim() == 1:
            return Prediction(batch.example, label, probabilities)
        row, position = (batch.label != UNLABELLED).nonzero(as_tuple=True)
        probability, prediction = probabilities.max(dim=-1)
        return TokenPrediction(batch.example[row], position, label, prediction, probability)

    def _inputs(self, batch: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        missing = [name for name in ("tokens", "mask", "label", "example", "position") if not hasattr(batch, name)]
        if missing:  # a user's own data module
            raise MisconfigurationException(
                f"data.class_path: a batch lacks {', '.join(missing)} (got {type(batch).__name__}). Fix: let the data "
                "module's loaders return datamodules.batches.Batch(tokens, mask, label, example)"
            )
        if self.objective == "classify" and self.labels_tokens != (batch.label.dim() == 2):
            labelled, fix = ("token", "none") if batch.label.dim() == 2 else ("example", "mean")
            raise MisconfigurationException(
                f"model.pooling={self.head.pooling}: the data has a label for each {labelled}. Fix: --model.pooling "
                f"{fix}"
            )
        return batch.tokens, batch.mask, batch.position

    def _evaluate(self, batch: Any, split: str) -> Tensor | MaskedBatch:
        """Log loss and accuracy of one batch; return the scores or the masked tokens for callbacks."""
        metrics: Any = self.metrics[split]
        shown: Tensor | MaskedBatch
        if self.objective == "masked_tokens":
            shown = self._masked_batch(*self._inputs(batch), batch.example)
            metrics["loss"].update(shown.loss, weight=shown.number)
            metrics["accuracy"].update(shown.accuracy, weight=shown.number)
        else:
            shown, label = self.scores_and_labels(batch)
            loss = F.cross_entropy(shown.to(at_least_float32(shown)), label)
            metrics["loss"].update(loss, weight=len(label))
            metrics["accuracy"].update(shown, label)
        for name, metric in metrics.items():
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(batch.label))
        return shown

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self._curves = {
            "train/grad_norm": torch.nn.utils.get_total_norm(gradients),
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }
        if self._is_logged_step:
            self.log_dict(self._curves)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        if self.trainer.should_stop:  # a callback's wish, after which Lightning writes the curves of this step too
            self.log_dict(self._curves)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # A trial of a few steps shows the first ones of a schedule, whatever its warm-up.
        steps = None if self.trainer.fast_dev_run else self.trainer.max_steps
        optimizer, scheduler = self.make_optimizer_and_scheduler(steps)
        if scales_itself(optimizer) and self.trainer.gradient_clip_val and scales_loss(self.trainer):
            raise MisconfigurationException(
                "model.optimizer: Lightning does not clip the gradients of a fused optimiser in float16 (got "
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}, trainer.precision="
                f"{self.trainer.precision}). Fix: set model.optimizer.init_args.fused to false"
            )
        if scheduler is None:
            return optimizer
        # Lightning steps plateau schedules by batches or epochs, not after evaluations.
        schedule = {"scheduler": scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        mixed = type(self.trainer.precision_plugin) is MixedPrecision and not scales_loss(self.trainer)
        if not (gradient_clip_val and scales_itself(optimizer) and mixed):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Lightning also refuses a fused optimiser in bfloat16, which does not scale gradients.
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        # Before the evaluation's checkpoints are written: a run that resumes from one has this step behind it.
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, ReduceLROnPlateau):
                    metrics: Any = self.metrics["val"]
                    config.scheduler.step(metrics[monitored(config.scheduler).removeprefix("val/")].compute())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with another length if the schedule stores its length in its state."""
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        _, scheduler = self.make_optimizer_and_scheduler(self.trainer.max_steps)
        for state in checkpoint["lr_schedulers"] if scheduler else []:
            for name in STEP_ARGUMENTS:
                if name in state and state[name] != (now := getattr(scheduler, name, None)):
                    raise RunError(
                        f"model.lr_scheduler: {type(scheduler).__name__} has {name}={state[name]} in the checkpoint, "
                        f"{now} now, and cannot change it. Fix: set trainer.max_steps and trainer.max_epochs as they "
                        "were; a run with skyformer.model.schedule.LinearOneCycle can be extended"
                    )

    def make_optimizer_and_scheduler(self, steps: int | None) -> tuple[Optimizer, LRScheduler | None]:
        """Make an optimiser and a schedule from the factories, see `optimizer.make_optimizer_and_scheduler`.

        Args:
            steps: training steps of the run; -1 for no limit, None where they are not known yet.

        Raises:
            MisconfigurationException: for an invalid value, naming the key.
        """
        return make_optimizer_and_scheduler(
            self.optimizer_factory,
            self.scheduler_factory,
            self,
            steps,
            self.positions_lr_factor,
            prefers_fused=self.device.type == "cuda" and not scales_loss(self.trainer),
        )


def restore_dropped_tokens(tokens: Tensor, mask: Tensor | None, position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens and mask `(B, length)` with token 0 at the positions of masked tokens that were left out."""
    empty = tokens.new_zeros((len(tokens), length))
    real = torch.ones_like(tokens) if mask is None else mask.to(tokens.dtype)
    # Added, since padding has position 0 too.
    return empty.scatter_add(1, position, tokens * real), empty.scatter_add(1, position, real) > 0


def _checked_objective(
    objective: Objective, mlm_weight: float, class_weights: list[float] | None, label_smoothing: float
) -> Objective:
    check_choice("objective", objective, Objective)
    if not 0 <= mlm_weight < inf:
        raise ValueError(f"mlm_weight={mlm_weight} must be a number, 0 or more")
    of_classes = {"mlm_weight": mlm_weight, "class_weights": class_weights, "label_smoothing": label_smoothing}
    for name, value in of_classes.items():
        if objective == "masked_tokens" and value:
            raise ValueError(f"{name}={value} has no effect with objective=masked_tokens. Fix: leave it out")
    return objective


def _checked_weights(weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """`(classes,)` float32, or None without weights."""
    if weights is None:
        return None
    if len(weights) != num_classes:
        raise ValueError(
            f"class_weights has {len(weights)} numbers for {num_classes} classes (got {list(weights)}). Fix: give one "
            "number a class, in the order of the labels"
        )
    if not all(0 < weight < inf for weight in weights):
        raise ValueError(f"class_weights={list(weights)} must be numbers above 0")
    return torch.tensor(weights, dtype=torch.float32)
