"""Training the compressor: `loop.py` is the run, the rest serves it."""

from cmt.training.batch_config import BatchConfig
from cmt.training.data import TrainingData
from cmt.training.loop import TrainingConfig, learning_rate_factor, train
from cmt.training.step import ObjectiveConfig, TrainingStep

__all__ = [
    "BatchConfig",
    "ObjectiveConfig",
    "TrainingConfig",
    "TrainingData",
    "TrainingStep",
    "learning_rate_factor",
    "train",
]
