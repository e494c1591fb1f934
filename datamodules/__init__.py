"""Long Range Arena's tasks: raw source → prepared arrays → batches."""

from datamodules.base import SequenceDataModule
from datamodules.listops import ListOps
from datamodules.pathfinder import Pathfinder
from datamodules.protocol import Protocol

__all__ = ["ListOps", "Pathfinder", "Protocol", "SequenceDataModule"]
