"""What the tasks share: prepare once, map, batch."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from datamodules.batches import Batch, EvalBatches, SplitBatches, TrainBatches
from datamodules.prepared import Chunk, Split, folder_name, load, prepare
from datamodules.protocol import Protocol


class SequenceDataModule(LightningDataModule, ABC):
    """Base of all tasks. A task gives its class constants, its settings and its raw examples.

    Class constants: `task`, `vocab_size`, `num_classes`, `max_length` (instance attributes where a setting decides),
    `image_side` (0 for tasks without images), `citation`, `licence`.

    Args:
        data_dir: folder of all prepared data.
        batch_size: examples a batch and process.
        eval_batch_size: the same for validation, test and prediction; default `batch_size`.
        num_workers: loader processes. Batches are copied from a memory map in well under a millisecond, so none are
            needed on a CPU.
        protocol: departures that published numbers need.

    Raises:
        ValueError: for a value that makes no sense, naming its key.
    """

    task: ClassVar[str]
    vocab_size: int
    num_classes: int
    max_length: int
    image_side: int = 0
    citation: ClassVar[str]
    licence: ClassVar[str]

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int,
        protocol: Protocol | None,
    ) -> None:
        super().__init__()
        minima = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
        if eval_batch_size is not None:
            minima["eval_batch_size"] = (eval_batch_size, 1)
        for name, (value, least) in minima.items():
            if value < least:
                raise ValueError(f"data.{name}={value} must be at least {least}")
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.protocol = protocol or Protocol()
        self.splits: dict[str, Split] = {}
        self.resume_at = (0, 0)

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the prepared arrays depend on, as plain JSON values."""

    @abstractmethod
    def raw_splits(self) -> Mapping[str, Iterable[Chunk]]:
        """The examples of `train`, `dev` and `test`, lazily."""

    @abstractmethod
    def expected_bytes(self) -> int:
        """About the size of the prepared folder."""

    @property
    def folder(self) -> Path:
        """Where the prepared arrays lie."""
        return self.data_dir / folder_name(self.task, self.settings)

    def prepare_data(self) -> None:
        prepare(self.data_dir, self.task, self.settings, self.raw_splits(), self.expected_bytes())

    def setup(self, stage: str) -> None:
        for split in ("train", "dev", "test"):
            if split not in self.splits:
                self.splits[split] = load(self.folder, self.settings, split)

    def train_dataloader(self) -> DataLoader[Batch]:
        lengths = self.splits["train"].lengths
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        batches = TrainBatches(lengths, self.batch_size, seed, *self._rank())
        epoch, batch = self.resume_at
        batches.set_epoch(epoch)
        batches.start_at(batch)
        self.resume_at = (0, 0)
        return self._loader("train", batches)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data: the next batch, as (epoch, batch of the epoch)."""
        assert self.trainer is not None
        taken = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        epoch, batch = divmod(taken, int(self.trainer.num_training_batches))
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume_at = (state_dict["epoch"], state_dict["batch"])

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("dev")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test", drop_last=self.protocol.drop_last_test)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def _eval_loader(self, split: str, drop_last: bool = False) -> DataLoader[Batch]:
        lengths = self.splits[split].lengths
        return self._loader(split, EvalBatches(lengths, self.eval_batch_size, *self._rank(), drop_last=drop_last))

    def _loader(self, split: str, batches: TrainBatches | EvalBatches) -> DataLoader[Batch]:
        dataset = SplitBatches(
            self.splits[split],
            pad_to=self.max_length if self.protocol.pad_to_max_length else None,
            zero_is_padding=self.zero_is_padding,
        )
        # A generator of its own: each new iterator draws a seed, which must not disturb the training's numbers.
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            generator=torch.Generator(),
        )

    @property
    def zero_is_padding(self) -> bool:
        """Whether token 0 inside a sequence is masked; only for images, and only where the protocol says so."""
        return bool(self.image_side) and self.protocol.zero_is_padding

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _as_it_is(batch: Any) -> Any:
    """A batch comes out of the dataset whole."""
    return batch
