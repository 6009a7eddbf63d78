"""The shipped compressor: SmolLM2-135M-Instruct, 32 memory tokens, SQuAD v1.1's training part.

Run on one H200 with::

    cmt train recipes/smollm2_135m.py --data SQUAD_FOLDER --texts TEXT_FILE --out runs/k32
"""

from cmt.compressor import CompressorConfig
from cmt.training import TrainingConfig
from cmt.training_data import BatchConfig
from cmt.training_step import ObjectiveConfig


def recipe() -> TrainingConfig:
    """The run whose result is in `cmt/checkpoints/smollm2-135m`."""
    return TrainingConfig(
        base_model="smollm2-135m",
        compressor=CompressorConfig(memory_tokens=32, key_size=256, lora_rank=32, lora_alpha=64),
        batch=BatchConfig(documents=128, texts=24, questions_per_document=4, most_memories=3),
        objectives=ObjectiveConfig(matching=0.5, reconstruction=0.3),
        minutes=16,
        learning_rate=8e-4,
        compile=True,
        workers=6,
        save_every=1000,
    )
