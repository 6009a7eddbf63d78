"""The prototype's step in our loop, for `training_throughput.py` beside it on one card.

96 documents of 3 questions, a third of the documents retold, keys alone matched, one memory a
question, 32 memory tokens; see docs/LOG.md for the command of the prototype.
"""

from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, ObjectiveConfig, TrainingConfig


def recipe() -> TrainingConfig:
    """What both run."""
    return TrainingConfig(
        base_model="smollm2-135m",
        compressor=CompressorConfig(memory_tokens=32, key_size=256, max_piece_tokens=288),
        batch=BatchConfig(
            documents=96,
            questions_per_document=3,
            group=6,
            retold_share=0.33,
            several_share=0.0,
        ),
        objectives=ObjectiveConfig(matching=0.5, reconstruction=0.3),
        minutes=6.5,
        learning_rate=4e-4,
        compile=True,
        workers=8,
    )
