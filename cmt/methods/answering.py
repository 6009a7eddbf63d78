"""Batches of prompts to answers, the same way for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cmt.aggregation import Prefix
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.generation import Sampling, generate


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerConfig:
    """How answers are generated, greedily.

    Attributes:
        max_new_tokens: Longest answer.
        batch_size: Questions answered at a time, at most.
        batch_tokens: Tokens of their prompts, each as long as the longest, at most; a longer one
            is read by itself.
        alpha: α of decoding, where memories are read (`Sampling.alpha`).
        replayed: Whether a GPU may replay passes of fixed shape (`generate`).
    """

    max_new_tokens: int = 24
    batch_size: int = 32
    batch_tokens: int = 262_144
    alpha: float = 0.0
    replayed: bool | None = None

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        for name in ("max_new_tokens", "batch_size", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")


def generated(
    reader: BaseModel,
    prompts: Sequence[Sequence[int]],
    config: AnswerConfig,
    *,
    prefix_of: Callable[[list[int]], Prefix] | None = None,
    start: int = 0,
    stop_tokens: Sequence[int] = (),
) -> list[str]:
    """The answer after each prompt.

    Texts that have ended leave the batch, whatever is read.

    Args:
        reader: The model that answers.
        prompts: Token ids.
        config: How.
        prefix_of: The memories to read before the prompts of these numbers; None: none.
        start: Position of a prompt's first token.
        stop_tokens: End an answer, like the model's own end token.
    """
    answers = [""] * len(prompts)
    for rows in _batches(prompts, config):
        outputs = generate(
            reader,
            [prompts[i] for i in rows],
            None if prefix_of is None else prefix_of(rows),
            start=start,
            sampling=Sampling(max_new_tokens=config.max_new_tokens, alpha=config.alpha),
            stop_tokens=stop_tokens,
            replayed=config.replayed,
            shrinking=True,
        )
        for i, tokens in zip(rows, outputs, strict=True):
            answers[i] = str(reader.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    return answers


def _batches(prompts: Sequence[Sequence[int]], config: AnswerConfig) -> Iterator[list[int]]:
    """Numbers of the prompts answered together; like lengths together, for less padding."""
    rows: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        padded = (len(rows) + 1) * len(prompts[i])
        if rows and (len(rows) == config.batch_size or padded > config.batch_tokens):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows
