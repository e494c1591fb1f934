"""What every run does beside training: checkpoints, seeds, records, curves, pictures."""

from skyformer.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, TopCheckpoints
from skyformer.callbacks.health import LandmarkHealth
from skyformer.callbacks.images import ImageSheet
from skyformer.callbacks.leaving import LeaveEvaluation
from skyformer.callbacks.non_finite import NonFiniteLoss
from skyformer.callbacks.plateau import CurriculumCurve, PlateauNotice
from skyformer.callbacks.predictions import PredictionWriter
from skyformer.callbacks.progress import StepProgressBar
from skyformer.callbacks.records import EvaluationResult, RunConfig
from skyformer.callbacks.seeds import StepSeed
from skyformer.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "CurriculumCurve",
    "EvaluationResult",
    "ImageSheet",
    "LandmarkHealth",
    "LastCheckpoint",
    "LeaveEvaluation",
    "NonFiniteLoss",
    "PlateauNotice",
    "PredictionWriter",
    "RunConfig",
    "StepProgressBar",
    "StepSeed",
    "Throughput",
    "TopCheckpoints",
]
