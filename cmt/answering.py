"""Between the steps of asking: what a batch of questions reads, and its tokens made answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import torch

from cmt import prompts
from cmt.aggregating import Aggregation
from cmt.aggregation import Prefix, matching_weights
from cmt.bank import MemorySource
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.generation import Sampling, collect
from cmt.matching import Hit
from cmt.records import ABSTENTION, Answer, Match
from cmt.reranking import combined_scores
from cmt.selection import Filters


class AskOptions(Filters, total=False):
    """Keywords of `Memory.ask`."""

    top_k: int
    rerank: int
    aggregation: Aggregation
    sampling: Sampling
    batch_size: int
    min_score: float | None
    prefer_later: bool
    lexical: float


class AloneOptions(TypedDict, total=False):
    """Keywords of `Memory.ask_without_memory`."""

    chat: bool
    sampling: Sampling
    batch_size: int


@dataclass(frozen=True, slots=True)
class Found:
    """What self-matching found for one question, best first.

    Attributes:
        memories: (L, 2, G, K, E) each, on the model's device; none where only sources were asked
            for.
        older: Matches that were passed over for one of `matches`, a later one on the subject.
    """

    matches: tuple[Match, ...]
    memories: list[torch.Tensor]
    older: tuple[Match, ...] = ()

    def fits(self, min_score: float | None) -> bool:
        """Whether there is a memory to answer from, the first with a cosine of `min_score` on.

        The first is the best by all that makes up a logit, re-ranking included; another may have
        a larger cosine. It tells no worse than the largest does (docs/LOG.md).
        """
        if min_score is None or not self.matches:
            return bool(self.matches)
        return self.matches[0].score >= min_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A batch of questions as the frozen model reads them; `began` starts the answers' clock.

    Attributes:
        answered: Places of the questions that are read, the others are abstained from; `prefix`
            is theirs.
    """

    base: BaseModel
    began: float
    questions: Sequence[str]
    tokens: Sequence[Sequence[int]]
    matches: Sequence[tuple[Match, ...]]
    older: Sequence[tuple[Match, ...]]
    start: int = 0
    prefix: Prefix | None = None
    stop_tokens: Sequence[int] = ()
    answered: Sequence[int]

    def spread(self, step: Sequence[int | None]) -> list[int | None]:
        """A step of the questions that are read as one of all of them."""
        tokens = dict(zip(self.answered, step, strict=True))
        return [tokens.get(place) for place in range(len(self.questions))]

    def answers(self, generated: Sequence[Sequence[int]]) -> list[Answer]:
        """The answers that these token ids are, one sequence a question."""
        seconds = time.perf_counter() - self.began
        read = self.prefix.tokens if self.prefix is not None else [0] * len(self.answered)
        memory_tokens = dict(zip(self.answered, read, strict=True))
        return [
            Answer(
                question=question,
                text=self.decode(own) if place in memory_tokens else ABSTENTION,
                matches=self.matches[place],
                prompt_tokens=len(self.tokens[place]),
                memory_tokens=memory_tokens.get(place, 0),
                generated_tokens=len(own),
                seconds=seconds,
                abstained=place not in memory_tokens,
                older=self.older[place],
            )
            for place, (question, own) in enumerate(zip(self.questions, generated, strict=True))
        ]

    def collect(self, steps: Iterable[Sequence[int | None]]) -> list[Answer]:
        """The answers, from what generation gives step by step."""
        return self.answers(collect(steps, len(self.questions)))

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids as an answer's text, without white space around it."""
        text = self.base.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()


def candidates(
    hits: Sequence[Hit], sources: Mapping[int, MemorySource], tensors: Mapping[int, torch.Tensor]
) -> Found:
    """One question's hits, weights still to come; sources and, if any, memories by memory id."""
    matches = [
        Match(
            **asdict(sources[hit.memory_id]),
            score=hit.score,
            late_score=hit.late,
            lexical_score=hit.lexical,
            weight=0.0,
        )
        for hit in hits
    ]
    return Found(tuple(matches), [tensors[hit.memory_id] for hit in hits] if tensors else [])


def best(
    found: Found,
    top_k: int,
    scale: float,
    likelihoods_C: torch.Tensor | None = None,
    later: Callable[[Sequence[float]], tuple[list[int], dict[int, int]]] | None = None,
    temperature: float = 1.0,
) -> Found:
    """The top_k best of C candidates with their weights, a softmax of their scores.

    `likelihoods_C` is log P(q | M) of each, or None where they were not read (reranking.py);
    `later` puts logits in order with `prefer_later` (freshness.py), None by themselves.
    """
    matches = found.matches
    logits_C = torch.tensor([
        scale * match.score + match.late_score + match.lexical_score for match in matches
    ])  # fmt: skip
    if likelihoods_C is not None:
        logits_C = combined_scores(logits_C, likelihoods_C.cpu())
        pairs = zip(matches, likelihoods_C.tolist(), strict=True)
        matches = tuple(replace(match, log_likelihood=value) for match, value in pairs)
    replaced: dict[int, int] = {}
    if later is None:
        order = logits_C.argsort(descending=True, stable=True).tolist()
    else:
        order, replaced = later(logits_C.tolist())
    order = order[:top_k]
    shares = zip(order, matching_weights(logits_C[order], 1 / temperature).tolist(), strict=True)
    return Found(
        tuple(replace(matches[place], weight=share) for place, share in shares),
        [found.memories[place] for place in order if found.memories],
        older=tuple(matches[place] for place, last in replaced.items() if last in order),
    )


def without_memory(
    base: BaseModel, max_new_tokens: int, questions: Sequence[str], *, chat: bool
) -> Reading:
    """Questions for the frozen model alone, to be answered in one line."""
    began = time.perf_counter()
    if chat:
        tokens = prompts.chat(base, questions, max_new_tokens)
    else:
        tokens = prompts.plain(base, questions, 0, max_new_tokens)
    return Reading(
        base=base,
        began=began,
        questions=questions,
        tokens=tokens,
        matches=[()] * len(questions),
        older=[()] * len(questions),
        stop_tokens=prompts.line_end(base),
        answered=range(len(questions)),
    )


def batches(questions: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The questions, at most `size` at a time."""
    if size < 1:
        raise InputError(f"expected batch_size of at least 1, got {size}")
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
