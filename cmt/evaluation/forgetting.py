"""What the reader knew before: its loss on plain text, its reading of unrelated passages.

Asked of the reader alone, with nothing learned in its prompt or prefix: whoever writes weights
can lose here, whoever keeps the model frozen can't.

Shape legend: W windows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmt.base_model import BaseModel
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.evaluation.qa import Scores, score
from cmt.methods.answering import AnswerConfig
from cmt.methods.retrievers import Right
from cmt.methods.text_in_prompt import TextInPrompt, TextInPromptConfig
from cmt.methods.tuned_copy import first_token, sequence_losses

WINDOW = 512  # tokens read at a time
BATCH = 8  # windows


@dataclass(kw_only=True, slots=True)
class Knowledge:
    """What a reader can do at some moment.

    Attributes:
        text_loss: Mean −log p of a token of plain text, in nats, in windows of 512 tokens.
        text_tokens: How many tokens that is over.
        unrelated: Scores on unrelated questions, the right passage in the prompt.
    """

    text_loss: float
    text_tokens: int
    unrelated: Scores


def knowledge(
    reader: BaseModel,
    text: str,
    unrelated: QADataset,
    examples: str,
    answers: AnswerConfig,
    *,
    most_tokens: int = 65_536,
) -> Knowledge:
    """Measure a reader as it is now; the same arguments give the same figures.

    Args:
        reader: The model, its adapters off.
        text: Plain text, such as WikiText-2's test part; its first `most_tokens` are read.
        unrelated: Questions with their passages, from nothing that is learned.
        examples: Solved ones that stand before each question (`few_shot.solved_examples`).
        answers: How answers are generated.
        most_tokens: Bounds the text.

    Raises:
        InputError: A text of fewer than two tokens, or no question.
    """
    loss, tokens = text_loss(reader, text, most_tokens)
    method = TextInPrompt(
        reader,
        Right(unrelated),
        examples,
        TextInPromptConfig(retriever="right"),
        answers,
    )
    method.learn(unrelated.documents)
    replies = method.answer([question.text for question in unrelated.questions])
    scores = score([reply.text for reply in replies], unrelated)
    return Knowledge(text_loss=loss, text_tokens=tokens, unrelated=scores)


@torch.no_grad()
def text_loss(reader: BaseModel, text: str, most_tokens: int) -> tuple[float, int]:
    """Mean −log p of a token, and over how many; each window begins with the first token.

    Raises:
        InputError: A text of fewer than two tokens.
    """
    tokens = reader.tokenizer(text, add_special_tokens=False)["input_ids"][:most_tokens]
    windows = _windows(tokens)
    if not windows:
        raise InputError(f"expected a text of at least 2 tokens, got {len(tokens)}")
    before = first_token(reader)
    total, count = 0.0, 0
    for place in range(0, len(windows), BATCH):
        batch = windows[place : place + BATCH]
        losses_T, _ = sequence_losses(reader, [[before]] * len(batch), batch)
        total += losses_T.double().sum().item()
        count += len(losses_T)
    return total / count, count


def _windows(tokens: Sequence[int]) -> list[Sequence[int]]:
    cut = [tokens[place : place + WINDOW] for place in range(0, len(tokens), WINDOW)]
    return [window for window in cut if len(window) > 1]
