"""Callbacks of a run: checkpoints, seeds, records, curves, pictures."""

from skyformer.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, TopCheckpoints
from skyformer.training.callbacks.images import ImageSheet
from skyformer.training.callbacks.landmark_diagnostics import LandmarkDiagnostics
from skyformer.training.callbacks.non_finite import NonFiniteLoss
from skyformer.training.callbacks.plateau import CurriculumCurve, PlateauNotice
from skyformer.training.callbacks.predictions import PredictionWriter
from skyformer.training.callbacks.progress import StepProgressBar
from skyformer.training.callbacks.records import EvaluationResult, RunConfig
from skyformer.training.callbacks.seeds import StepSeed
from skyformer.training.callbacks.sigterm import StopEvaluationOnSigterm
from skyformer.training.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "CurriculumCurve",
    "EvaluationResult",
    "ImageSheet",
    "LandmarkDiagnostics",
    "LastCheckpoint",
    "NonFiniteLoss",
    "PlateauNotice",
    "PredictionWriter",
    "RunConfig",
    "StepProgressBar",
    "StepSeed",
    "StopEvaluationOnSigterm",
    "Throughput",
    "TopCheckpoints",
]
