"""The base class of all tasks: prepare the data once, memory-map it, make batches."""

import atexit
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader, Sampler

from datamodules.augmentation import choose, num_views
from datamodules.batches import Batch, EvalBatches, ScheduledBatches, TrainBatches
from datamodules.collate import JoinedSplits, SplitBatches
from datamodules.examples import Example, identity
from datamodules.files import PreparedDataError, usable_folder
from datamodules.image_batches import ImageBatches
from datamodules.prepared.format import data_hash, folder_name, load, verify
from datamodules.prepared.layout import MAX_IDS, Layout
from datamodules.prepared.split import Split
from datamodules.prepared.writing import RawSplits, prepare
from datamodules.protocol import OURS, Protocol
from datamodules.sources.new_inputs import as_split

BATCH_TIMEOUT = 600  # seconds; a worker without shared memory never delivers, and the main process would wait for ever
MAX_WORKERS = 1024  # processes; a typo could start far more
MAX_DEVICE_BYTES = 2_000_000_000  # of one split's arrays on a GPU
MAX_DEVICE_SHARE = 4  # at most this fraction of the GPU's free memory, as 1/n


class _ResumableLoader(DataLoader[Batch]):
    """Resume mid-epoch at the next batch, by Lightning's protocol for such loaders.

    The state is empty, because the sampler computes its position from the number of batches taken.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class SequenceDataModule(LightningDataModule, ABC):
    """Base of all tasks. A task gives its class constants, its settings and its raw examples.

    Class constants of a task:

    - `task`, `vocab_size`, `num_classes`, `class_names`, `citation`, `licence`
    - `max_length`: an instance may override it
    - `num_documents`: documents per example
    - `image_side`: 0 for tasks without images
    - `first_id`: the id of the stored token 0
    - `published_val_size`: number of validation examples behind the published numbers
    - `augmentations`: those that keep the label (`augmentation.py`)
    - `pad_multiple`: see `SplitBatches`
    - `token_labels`: whether each token has a label of its own; the model then needs `pooling: none`

    Attributes:
        drop_black: whether black pixels are dropped; False for tasks without images.
        stages: easier data to train on first, each with its number of optimiser steps.
        test_case_names: names of the kinds of test examples, each with an accuracy of its own. Test example i is of
            kind i modulo their number.

    Args:
        data_dir: folder of all prepared data.
        batch_size: examples a batch and process.
        eval_batch_size: the same for validation, test and prediction; default `batch_size`.
        num_workers: loader processes. With 0, training on a GPU keeps a split in GPU memory if it fits, and makes the
            batches there. Otherwise batches are copied from a memory map in a few milliseconds.
        protocol: settings that reproduce published numbers.
        augment: names of the task's augmentations, or true for the first of them. The view of a training example is
            a function of (seed, epoch, example).
        predict_source: new inputs for `predict`, in place of the test set. A file with one input a line (for Retrieval
            two texts, separated by a tab), or a picture or a folder of them.

    Raises:
        ValueError: for an invalid value, naming its key.
    """

    task: ClassVar[str]
    vocab_size: int
    num_classes: int
    max_length: int
    num_documents: int = 1
    image_side: int = 0
    first_id: ClassVar[int] = 0
    class_names: ClassVar[tuple[str, ...]]
    citation: ClassVar[str]
    licence: ClassVar[str]
    published_val_size: ClassVar[int | None] = None
    augmentations: ClassVar[tuple[str, ...]] = ()
    pad_multiple: ClassVar[int] = 32
    token_labels: ClassVar[bool] = False
    test_case_names: tuple[str, ...] = ()
    drop_black: bool = False

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        protocol: Protocol = OURS,
        augment: bool | list[str] = False,
        predict_source: str | None = None,
    ) -> None:
        super().__init__()
        if num_workers > MAX_WORKERS:
            raise ValueError(f"data.num_workers={num_workers} must be at most {MAX_WORKERS}")
        minima = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
        if eval_batch_size is not None:
            minima["eval_batch_size"] = (eval_batch_size, 1)
        for name, (value, least) in minima.items():
            if value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        self.data_dir = usable_folder(data_dir)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.protocol = protocol
        self.chosen_augmentations = choose(augment, self.augmentations, type(self).__name__)
        self.predict_source = predict_source
        self.splits: dict[str, SplitBatches] = {}
        self.new_names: list[str] = []
        self.stages: list[tuple[SequenceDataModule, int]] = []
        self.resume_at: tuple[int, int] | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that the prepared arrays depend on, as plain JSON values."""

    @abstractmethod
    def raw_splits(self) -> RawSplits:
        """The examples of each split, lazily."""

    @abstractmethod
    def new_examples(self, path: Path) -> Iterator[Example]:
        """Yield the inputs of a file or folder for `predict`, each with a name that locates it.

        The label is 0. With `token_labels`, it is 0 for each token to predict, and `UNLABELLED` for the others.
        """

    @abstractmethod
    def expected_bytes(self) -> int:
        """Return an estimate of the size of the prepared folder."""

    def source_sizes(self) -> dict[str, int]:
        """Return file sizes by name, which detect a changed source; empty for a generated or downloaded task.

        Raises:
            PreparedDataError: when the source is not there (any more).
        """
        return {}

    @property
    def folder(self) -> Path:
        """The folder of the prepared arrays."""
        return self.data_dir / folder_name(self.task, self.settings)

    @property
    def layout(self) -> Layout:
        """Return the valid contents of this task's arrays with these settings.

        Raises:
            ValueError: for too many token ids or classes.
        """
        if max(self.vocab_size, self.num_classes) > MAX_IDS:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} and data.num_classes={self.num_classes} must be at most {MAX_IDS}"
            )
        is_image = self.image_side > 0
        return Layout(
            num_documents=self.num_documents,
            num_classes=self.num_classes,
            max_length=self.max_length,
            fixed_length=is_image,
            lowest_token=0 if is_image or self.first_id else 1,  # 0 is padding then
            highest_token=self.vocab_size - 1 - self.first_id,
            token_labels=self.token_labels,
        )

    @property
    def data_hash(self) -> str | None:
        """Return 16 hexadecimal digits that identify the contents of the prepared folder, wherever it is.

        In training, the hashes of the easier stages follow, joined by `+`. None if new inputs are predicted.

        Raises:
            PreparedDataError: when it is not prepared.
        """
        if self._predicts_new_inputs:
            return None
        stages = [stage for stage, _ in self.stages] if self._trains else []
        return "+".join(data_hash(data.folder) for data in (self, *stages))

    @property
    def _trains(self) -> bool:
        """Return False if the trainer only evaluates, which needs no stages."""
        return self.trainer is None or self.trainer.state.fn == "fit"

    @property
    def _predicts_new_inputs(self) -> bool:
        """Return whether no prepared data is needed."""
        return self.predict_source is not None and self.trainer is not None and self.trainer.state.fn == "predict"

    def prepare_data(self) -> None:
        """Prepare the folder if it is missing, and check its checksums.

        Raises:
            PreparedDataError: if it cannot be made, if it has changed since, or if the stages do not fit the run.
        """
        if self._predicts_new_inputs:
            return
        if self._trains:
            self._check_stages()
            for stage, _ in self.stages:
                stage.prepare_data()
        try:
            source = self.source_sizes()
        except (PreparedDataError, OSError):  # nothing is there; if the folder isn't either, reading says so
            source = {}
        dtypes = self.layout.dtypes
        prepare(self.data_dir, self.task, self.settings, self.raw_splits, self.expected_bytes, dtypes, source)
        verify(self.folder)

    def setup(self, stage: str) -> None:
        if self._predicts_new_inputs:
            path = Path(self.predict_source or "").expanduser()
            arrays, self.new_names = as_split(path, self.new_examples(path), self.token_labels)
            self.splits["predict"] = self._batches(arrays)
            return
        for split in ("train", "val", "test"):
            if split not in self.splits:
                self.splits[split] = self._load(split)
        if self._trains:
            for data, _ in self.stages:
                data.trainer = self.trainer  # it names the device
                data.splits = {"train": data.splits.get("train") or data._load("train")}

    def _check_stages(self) -> None:
        if not self.stages or self.trainer is None or self.trainer.fast_dev_run:
            return
        if self.trainer.overfit_batches > 0:
            raise PreparedDataError(
                f"data.level_schedule changes the examples, trainer.overfit_batches={self.trainer.overfit_batches} "
                "keeps the same ones. Fix: set one of them to its default (null, 0.0)."
            )
        total, longest = sum(steps for _, steps in self.stages), self.trainer.max_steps
        if 0 <= longest <= total:
            raise PreparedDataError(
                f"data.level_schedule lasts {total:,} steps, the run {longest:,} (trainer.max_steps). Fix: shorten the "
                "schedule, or set a larger --trainer.max_steps."
            )

    @property
    def plateau(self) -> str:
        """Describe how long training usually stays at chance and what shortens this; empty without a plateau."""
        return ""

    @property
    def curriculum(self) -> str:
        """Describe the easier examples that training begins with; empty without stages."""
        return ", then ".join(f"{data.stage_name} first ({steps:,} steps)" for data, steps in self.stages)

    def stage_at(self, step: int) -> tuple[int, str]:
        """Return number and name of the stage of this optimiser step; steps count from 0."""
        ends = list(accumulate(steps for _, steps in self.stages))
        number = bisect_right(ends, step)
        return number, [*(data for data, _ in self.stages), self][number].stage_name

    @property
    def stage_name(self) -> str:
        """The name of these examples in a curriculum."""
        return f"the examples of {self.task}"

    def _load(self, split: str) -> SplitBatches:
        arrays = load(self.folder, self.settings, self.val_split if split == "val" else split, self.layout)
        return self._batches(arrays, self.chosen_augmentations if split == "train" else ())

    def _batches(self, arrays: Split, augmentations: Sequence[str] = ()) -> SplitBatches:
        device = self._device_for(arrays)
        if self.image_side:
            return ImageBatches(arrays, self.drop_black, augmentations, device=device)
        pad_to = self.max_length if self.protocol.pad_to_max_length else None
        return SplitBatches(arrays, self.pad_multiple, pad_to, first_id=self.first_id, device=device)

    def _device_for(self, arrays: Split) -> torch.device | None:
        """Return the GPU that can hold these arrays; None if batches are made on the CPU."""
        if self.trainer is None or self.num_workers > 0 or self.trainer.strategy.root_device.type != "cuda":
            return None
        device = self.trainer.strategy.root_device
        free, total = torch.cuda.mem_get_info(device)
        allowed = total * torch.cuda.get_per_process_memory_fraction(device)  # several runs may share a GPU
        limit = min(MAX_DEVICE_BYTES, min(free, allowed) // MAX_DEVICE_SHARE)
        return device if arrays.tokens.nbytes + arrays.offsets.nbytes + arrays.labels.nbytes <= limit else None

    @property
    def prepared_splits(self) -> tuple[str, ...]:
        """The splits in the prepared folder; the validation set may be the test set."""
        return ("train", "val", "test") if self.val_split == "val" else ("train", "test")

    @property
    def val_split(self) -> str:
        """The prepared split that is the validation set."""
        return "val"

    def example_names(self, split: str) -> list[str]:
        """Return the name of each example of a split, from its place in the source."""
        if split == "predict":
            return self.new_names
        parts = self._training_splits if split == "train" else [self.splits[split]]
        return [name for part in parts for name in part.split.names()]

    @property
    def _training_splits(self) -> list[SplitBatches]:
        return [data.splits["train"] for data in (*(stage for stage, _ in self.stages), self)]

    def train_dataloader(self) -> DataLoader[Batch]:
        self._check_stages()  # once more: of a run whose length is set in epochs the steps are known by now
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        splits, views = self._training_splits, num_views(self.chosen_augmentations)
        batches = [
            TrainBatches(split.lengths, self.batch_size, seed, *self._rank(), self._place, views) for split in splits
        ]
        if not self.stages:
            return self._loader(splits[0], batches[0])
        ends = [self._batches_before(steps, len(batches[-1])) for steps in accumulate(n for _, n in self.stages)]
        return self._loader(JoinedSplits(splits), ScheduledBatches(batches, ends, lambda: self._taken, self._place))

    def _batches_before(self, step: int, batches: int) -> int:
        """Return the batches of this number of optimiser steps; the last step of an epoch may accumulate fewer."""
        per_step = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        in_epoch = self._batches_an_epoch(batches)
        epochs, rest = divmod(step, -(-in_epoch // per_step))
        return epochs * in_epoch + rest * per_step

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data: the next batch, as (epoch, batch of the epoch)."""
        assert self.trainer is not None
        epoch, batch = divmod(self._taken, int(self.trainer.num_training_batches))
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume_at = state_dict["epoch"], state_dict["batch"]

    @property
    def _taken(self) -> int:
        """Return the number of batches taken, over all epochs."""
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _place(self, batches: int) -> tuple[int, int]:
        """Return the epoch and batch that come next, given the batches per epoch.

        It follows from the number of batches taken. Lightning's count of epochs can be one behind after a resume at the
        end of an epoch.

        Raises:
            PreparedDataError: for a checkpoint whose own counts differ.
        """
        batches = self._batches_an_epoch(batches)
        place = divmod(self._taken, batches)
        expected, self.resume_at = self.resume_at, None
        if expected not in (None, place):
            raise PreparedDataError(
                f"the checkpoint is at batch {expected[1]} of epoch {expected[0]} and has taken {self._taken} batches "
                f"of {batches} an epoch; it was not written by this run. Fix: name another one with --ckpt_path."
            )
        if self.trainer is not None and self.trainer.overfit_batches > 0:
            return 0, place[1]  # the first epoch's batches, again and again
        return place

    def _batches_an_epoch(self, batches: int) -> int:
        """Return how many batches of an epoch are used. Lightning does not know this before the first epoch."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return max(1, min(limit, batches) if isinstance(limit, int) else int(limit * batches))

    def val_dataloader(self) -> DataLoader[Batch]:
        size = self.published_val_size if self.protocol.published_val_size else None
        return self._eval_loader("val", size)

    def test_dataloader(self) -> DataLoader[Batch]:
        size = len(self.splits["test"]) // self.eval_batch_size * self.eval_batch_size
        return self._eval_loader("test", size if self.protocol.drop_last_test else None)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("predict" if self._predicts_new_inputs else "test")

    def _eval_loader(self, split: str, num_examples: int | None = None) -> DataLoader[Batch]:
        lengths = self.splits[split].lengths
        batches = EvalBatches(lengths, self.eval_batch_size, *self._rank(), num_examples)
        return self._loader(self.splits[split], batches)

    def _loader(self, split: SplitBatches | JoinedSplits, batches: Sampler[list[int]]) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        parts = split.splits if isinstance(split, JoinedSplits) else [split]
        # A separate generator: each new iterator draws a seed, which must not change the random numbers of training.
        return _ResumableLoader(
            split,
            batch_sampler=batches,
            collate_fn=identity,
            num_workers=self.num_workers,
            timeout=BATCH_TIMEOUT if self.num_workers else 0,
            persistent_workers=self.num_workers > 0,
            pin_memory=on_gpu and not any(part.device for part in parts),
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
        )

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore Ctrl-C and the scheduler's signals in a loader process: the main process needs it to finish the step."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill workers after an error. multiprocessing would send SIGTERM, which workers ignore, and wait forever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
