"""What every run does beside training: checkpoints, seeds, records, curves, pictures."""

from skyformer.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from skyformer.callbacks.health import LandmarkHealth
from skyformer.callbacks.images import ImageSheet
from skyformer.callbacks.predictions import PredictionWriter
from skyformer.callbacks.progress import StepProgressBar
from skyformer.callbacks.records import RunConfig, TestResult
from skyformer.callbacks.seeds import StepSeed
from skyformer.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "ImageSheet",
    "LandmarkHealth",
    "LastCheckpoint",
    "PredictionWriter",
    "RunConfig",
    "StepProgressBar",
    "StepSeed",
    "TestResult",
    "Throughput",
]
