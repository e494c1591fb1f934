"""What the tasks share: prepare once, map, batch."""

import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from datamodules.batches import Batch, EvalBatches, TrainBatches
from datamodules.collate import DroppedZeroBatches, SplitBatches
from datamodules.examples import as_it_is
from datamodules.files import usable_folder
from datamodules.layout import Layout
from datamodules.prepared import PreparedDataError, data_hash, folder_name, load, verify
from datamodules.protocol import Protocol
from datamodules.writing import RawSplits, prepare

MOST_WORKERS = 1024  # processes; a slip of the finger would start them without end


class SequenceDataModule(LightningDataModule, ABC):
    """Base of all tasks. A task gives its class constants, its settings and its raw examples.

    Class constants: `task`, `vocab_size`, `num_classes`, `max_length` (that of the instance where a setting decides),
    `num_documents` an example, `image_side` (0 for tasks without images), `first_id` (the id of the stored token 0),
    `class_names`, `citation`, `licence`, `published_dev_size` (how much of the dev set the published numbers saw).

    Args:
        data_dir: folder of all prepared data.
        batch_size: examples a batch and process.
        eval_batch_size: the same for validation, test and prediction; default `batch_size`.
        num_workers: loader processes. Batches are copied from a memory map in a few milliseconds, so none are needed on
            a CPU.
        protocol: departures that published numbers need.

    Raises:
        ValueError: for a value that makes no sense, naming its key.
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
    published_dev_size: ClassVar[int | None] = None

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int,
        protocol: Protocol,
    ) -> None:
        super().__init__()
        if num_workers > MOST_WORKERS:
            raise ValueError(f"data.num_workers={num_workers} must be at most {MOST_WORKERS}")
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
        self.splits: dict[str, SplitBatches] = {}
        self.resume_at: tuple[int, int] | None = None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the prepared arrays depend on, as plain JSON values."""

    @abstractmethod
    def raw_splits(self) -> RawSplits:
        """The examples of each split, lazily."""

    @abstractmethod
    def expected_bytes(self) -> int:
        """About the size of the prepared folder."""

    def source_sizes(self) -> dict[str, int]:
        """Sizes of the files that tell whether a source has changed, by name; none for a task that is drawn or fetched.

        Raises:
            PreparedDataError: when the source is not there (any more).
        """
        return {}

    @property
    def folder(self) -> Path:
        """Where the prepared arrays lie."""
        return self.data_dir / folder_name(self.task, self.settings)

    @property
    def layout(self) -> Layout:
        """What the arrays of this task, with these settings, can hold."""
        is_image = self.image_side > 0
        return Layout(
            num_documents=self.num_documents,
            num_classes=self.num_classes,
            max_length=self.max_length,
            fixed_length=is_image,
            lowest_token=0 if is_image or self.first_id else 1,  # 0 is padding then
            highest_token=self.vocab_size - 1 - self.first_id,
        )

    @property
    def data_hash(self) -> str:
        """16 hexadecimal digits that name what the prepared folder holds, the same wherever it lies.

        Raises:
            PreparedDataError: when it is not prepared.
        """
        return data_hash(self.folder)

    def prepare_data(self) -> None:
        """Prepare the folder unless it is there, and compare its checksums.

        Raises:
            PreparedDataError: when it cannot be made, or when what is there has changed since.
        """
        try:
            source = self.source_sizes()
        except (PreparedDataError, OSError):  # nothing is there; if the folder isn't either, reading says so
            source = {}
        prepare(self.data_dir, self.task, self.settings, self.raw_splits, self.expected_bytes, source)
        verify(self.folder)

    def setup(self, stage: str) -> None:
        for split in ("train", "dev", "test"):
            if split not in self.splits:
                self.splits[split] = self._load(split)

    def _load(self, split: str) -> SplitBatches:
        arrays = load(self.folder, self.settings, self.dev_split if split == "dev" else split, self.layout)
        if self.image_side and self.protocol.zero_is_padding:
            return DroppedZeroBatches(arrays)
        return SplitBatches(
            arrays, pad_to=self.max_length if self.protocol.pad_to_max_length else None, first_id=self.first_id
        )

    @property
    def prepared_splits(self) -> tuple[str, ...]:
        """Those that the prepared folder holds; the dev set may be the test set."""
        return ("train", "dev", "test") if self.dev_split == "dev" else ("train", "test")

    @property
    def dev_split(self) -> str:
        """Which of the prepared splits is the dev set."""
        return "dev"

    def example_names(self, split: str) -> list[str]:
        """What each example of a split is called, after its place in the source."""
        return self.splits[split].split.names()

    def train_dataloader(self) -> DataLoader[Batch]:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        lengths = self.splits["train"].lengths
        return self._loader("train", TrainBatches(lengths, self.batch_size, seed, *self._rank(), self._place))

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data: the next batch, as (epoch, batch of the epoch)."""
        assert self.trainer is not None
        epoch, batch = divmod(self._taken, int(self.trainer.num_training_batches))
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume_at = state_dict["epoch"], state_dict["batch"]

    @property
    def _taken(self) -> int:
        """Batches that training has taken, over all epochs."""
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _place(self, batches: int) -> tuple[int, int]:
        """The epoch and the batch of it that come next, where so many can be made.

        From the number of batches that training has taken: Lightning's count of epochs is one behind after a resume
        from the end of an epoch to the end of the next.

        Raises:
            PreparedDataError: for a checkpoint whose own counts differ.
        """
        # Lightning's own number of batches an epoch is not known yet when it begins the first.
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        batches = max(1, min(limit, batches) if isinstance(limit, int) else int(limit * batches))
        place = divmod(self._taken, batches)
        expected, self.resume_at = self.resume_at, None
        if expected not in (None, place):
            raise PreparedDataError(
                f"the checkpoint is at batch {expected[1]} of epoch {expected[0]} and has taken {self._taken} batches "
                f"of {batches} an epoch; it was not written by this run. Name another one with --ckpt_path."
            )
        return place

    def val_dataloader(self) -> DataLoader[Batch]:
        size = self.published_dev_size if self.protocol.published_dev_size else None
        return self._eval_loader("dev", size)

    def test_dataloader(self) -> DataLoader[Batch]:
        size = len(self.splits["test"]) // self.eval_batch_size * self.eval_batch_size
        return self._eval_loader("test", size if self.protocol.drop_last_test else None)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def _eval_loader(self, split: str, num_examples: int | None = None) -> DataLoader[Batch]:
        lengths = self.splits[split].lengths
        return self._loader(split, EvalBatches(lengths, self.eval_batch_size, *self._rank(), num_examples))

    def _loader(self, split: str, batches: TrainBatches | EvalBatches) -> DataLoader[Batch]:
        # A generator of its own: each new iterator draws a seed, which must not disturb the training's numbers.
        return DataLoader(
            self.splits[split],
            batch_sampler=batches,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
        )

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C, and what a scheduler sends, reach a loader's processes too, without which the step could not end."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
