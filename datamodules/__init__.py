"""Long Range Arena's tasks and MQAR: raw source → prepared arrays → batches."""

from datamodules import numba_cache  # noqa: F401  before the modules with compiled functions
from datamodules.base import SequenceDataModule
from datamodules.image import Image
from datamodules.listops import ListOps
from datamodules.mqar import MQAR
from datamodules.pathfinder.task import Pathfinder, PathX
from datamodules.protocol import Protocol
from datamodules.retrieval import Retrieval
from datamodules.review_pairs import ReviewPairs
from datamodules.text import Text

__all__ = [
    "MQAR",
    "Image",
    "ListOps",
    "PathX",
    "Pathfinder",
    "Protocol",
    "Retrieval",
    "ReviewPairs",
    "SequenceDataModule",
    "Text",
]
