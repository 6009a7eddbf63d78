"""The shipped compressor: SmolLM2-135M-Instruct, 32 memory tokens, SQuAD v1.1's training part.

Run on one H200 with::

    cmt train recipes/smollm2_135m.py --data SQUAD_FOLDER --out runs/k32
"""

from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, ObjectiveConfig, TrainingConfig


def recipe() -> TrainingConfig:
    """The run whose result is in `cmt/checkpoints/smollm2-135m`; docs/LOG.md says what came out."""
    return TrainingConfig(
        base_model="smollm2-135m",
        held_out_articles=20,
        compressor=CompressorConfig(memory_tokens=32, key_size=256, lora_rank=32, lora_alpha=64),
        batch=BatchConfig(documents=192, texts=0, questions_per_document=4, most_memories=3),
        objectives=ObjectiveConfig(matching=0.5, reconstruction=0.3, stale_keys=True),
        minutes=10.5,
        learning_rate=1e-3,
        workers=6,
        save_every=1000,
        log_every=25,
    )
