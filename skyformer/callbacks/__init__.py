"""What every run does beside training: checkpoints, seeds, records, curves, pictures."""

from skyformer.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from skyformer.callbacks.health import LandmarkHealth
from skyformer.callbacks.images import ImageSheet
from skyformer.callbacks.progress import StepProgressBar
from skyformer.callbacks.records import FinalMetrics, PredictionWriter
from skyformer.callbacks.seeds import StepSeed
from skyformer.callbacks.throughput import Throughput

__all__ = ["BestCheckpoint", "FinalMetrics", "ImageSheet", "LandmarkHealth", "LastCheckpoint", "PredictionWriter"]
__all__ += ["StepProgressBar", "StepSeed", "Throughput"]
