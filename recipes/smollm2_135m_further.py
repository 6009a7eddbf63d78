"""The second of four runs behind the shipped compressor: on changed and made data.

The first run (`smollm2_135m.py`) saw SQuAD's training paragraphs 21 times and knew its answers by
heart. This one begins with its weights and goes on over the same paragraphs cropped and joined,
with made questions beside SQuAD's own; over versions of them with other answers; and over
Wikipedia texts with made questions. A quarter of the steps compress into 16 tokens::

    python benchmarks/make_substituted.py SQUAD/train-v1.1.json SUBSTITUTED.jsonl.gz \
        --copies 1 --share 1.0
    HELD="--held-out SQUAD/dev-v1.1.json --held-out new_wiki_v1.0.json"
    python benchmarks/make_cloze.py SQUAD/train-v1.1.json SQUAD_MORE.jsonl.gz --spacy $HELD \
        --training SQUAD/train-v1.1.json
    python benchmarks/make_cloze.py wikipedia_summaries.json.gz train.raw.gz WIKI_MORE.jsonl.gz \
        --spacy $HELD --training SQUAD/train-v1.1.json
    cmt train recipes/smollm2_135m_further.py --data SQUAD --start-from FIRST_CHECKPOINT \
        --extra SQUAD_MORE.jsonl.gz --extra SUBSTITUTED.jsonl.gz --extra WIKI_MORE.jsonl.gz \
        --out runs/further

`new_wiki_v1.0.json` is SQuADShifts' new Wikipedia set, `wikipedia_summaries.json.gz` is told in the
first recipe, `train.raw.gz` is WikiText-2's training part.
"""

from cmt.compressor import CompressorConfig
from cmt.training import BatchConfig, ObjectiveConfig, TrainingConfig


def recipe() -> TrainingConfig:
    """The second run; docs/LOG.md says what came out."""
    return TrainingConfig(
        base_model="smollm2-135m",
        held_out_articles=20,
        compressor=CompressorConfig(
            memory_tokens=32,
            memory_sizes=(16,),
            key_size=256,
            vector_size=128,
            lora_rank=32,
            lora_alpha=64,
        ),
        batch=BatchConfig(
            documents=104,
            extra=88,
            questions_per_document=4,
            more_questions=2,
            group=16,
            cropped_share=0.2,
            joined_share=0.15,
            most_memories=3,
            several_share=0.3,
            retold_share=0.33,
            asked=True,
            size_shares=(0.25, 0.75),
        ),
        objectives=ObjectiveConfig(matching=0.7, reconstruction=0.3, asking=0.15),
        minutes=9.5,
        learning_rate=6e-4,
        compile=True,
        workers=12,
        save_every=0,
        log_every=25,
    )
