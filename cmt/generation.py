"""Generation: the frozen model answers, with or without a prefix of memories.

A token at a time: logits of the rows that are read (decoding.py); where memories are read
separately, a prompt has a row for each and their logits are mixed (mixing.py); a choice. Rows whose
text has ended leave the batch.

Shape legend: B prompts, b of them that go on, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from cmt.aggregation import Prefix
from cmt.base_model import BaseModel
from cmt.decoding import GrowingRows, Rows, rows
from cmt.errors import InputError
from cmt.mixing import MixedPrefix, Mixer
from cmt.objectives import memory_aware_logits


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: At most so many, the end token not counted.
        temperature: 0 is greedy.
        top_p: Sample from the smallest set of tokens with this probability.
        seed: Fixes sampling; None draws a fresh one.
        alpha: α of memory-aware decoding: tokens are chosen by (1+α)·l(y | M*, q) − α·l(y | q), as
            the paper's objective adjusts them (and context-aware decoding, arXiv 2305.14739).
            Above 0 each prompt is also read without memory; where none is read it says nothing.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    alpha: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.max_new_tokens < 1:
            raise InputError(f"expected max_new_tokens of at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"expected a temperature of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"expected top_p above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"expected alpha of at least 0, got {self.alpha}")


GREEDY = Sampling()
SHRINK = 0.75  # of the rows still going on: the batch is cut to them


def generate(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
    *,
    start: int = 0,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
    replayed: bool | None = None,
    shrinking: bool | None = None,
) -> list[list[int]]:
    """Token ids generated after each prompt, without the token that ended them.

    Args:
        base: The frozen model.
        prompts: Token ids, at least one each.
        prefix: Memories read before each prompt; None: the plain model.
        start: Position of a prompt's first token.
        sampling: How tokens are chosen.
        stop_tokens: End a text like the model's own end token.
        replayed: Whether a GPU may replay passes of fixed shape (replaying.py), which round
            otherwise than the plain model; None: where memories are read.
        shrinking: Whether texts that have ended leave the batch, which then rounds otherwise than
            the plain model on all of it; None: where memories are read.

    Raises:
        InputError: No prompt, an empty one, one too long for the model, or not one prefix each.
    """
    steps = stream(
        base,
        prompts,
        prefix,
        start=start,
        sampling=sampling,
        stop_tokens=stop_tokens,
        replayed=replayed,
        shrinking=shrinking,
    )
    return collect(steps, len(prompts))


def collect(steps: Iterable[Sequence[int | None]], how_many: int) -> list[list[int]]:
    """Token ids of each of `how_many` texts, from the steps that `stream` gives."""
    texts: list[list[int]] = [[] for _ in range(how_many)]
    for step in steps:
        for text, token in zip(texts, step, strict=True):
            if token is not None:
                text.append(token)
    return texts


@torch.no_grad()
def stream(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
    *,
    start: int = 0,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
    replayed: bool | None = None,
    shrinking: bool | None = None,
) -> Iterator[list[int | None]]:
    """Like `generate`, a step at a time: the next token of each text, None once it has ended."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("expected at least one prompt and one token in each, got none")
    _check_room(base, start + max(map(len, prompts)) + sampling.max_new_tokens)
    texts = len(prompts)
    if prefix is not None and len(prefix.tokens) != texts:
        raise InputError(f"expected {texts} prefixes, got {len(prefix.tokens)}")
    ends = base.end_tokens.union(stop_tokens)
    generator = torch.Generator(device=base.device)
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    else:
        generator.seed()
    begun = partial(rows, base, start=start, further=sampling.max_new_tokens, replayed=replayed)
    going = list(range(texts))  # the text of each row
    ended: set[int] = set()
    with closing(_Reading(base, prompts, prefix, sampling.alpha, begun)) as read:
        may_shrink = read.may_shrink and (prefix is not None if shrinking is None else shrinking)
        for _ in range(sampling.max_new_tokens):
            next_b = _choose(read.logits(), sampling, generator)
            step: list[int | None] = [None] * texts
            for text, token in zip(going, next_b.tolist(), strict=True):
                if token in ends:
                    ended.add(text)
                elif text not in ended:
                    step[text] = token
            if len(ended) == texts:
                return
            yield step
            read.on(next_b)
            if may_shrink and texts - len(ended) <= SHRINK * len(going):
                kept = [row for row, text in enumerate(going) if text not in ended]
                read.keep(torch.tensor(kept, device=base.device))
                going = [going[row] for row in kept]


class _Reading:
    """What is read of all prompts: after their memories, and without where that is taken away."""

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        alpha: float,
        begun: Callable[..., Rows],
    ) -> None:
        self._alpha = alpha
        self._mixer: Mixer | None = None
        self._without: Rows | None = None
        if prefix is not None and alpha > 0:
            self._without = begun(prompts, None)
        if isinstance(prefix, MixedPrefix):
            self._mixer, prompts = Mixer(prefix, base.device), prefix.repeated(prompts)
        try:
            self._rows = begun(prompts, prefix)
        except BaseException:
            if self._without is not None:
                self._without.close()
            raise

    def logits(self) -> Tensor:
        """Logits (B, V) of each prompt's next token."""
        logits_BV = self._rows.logits()
        if self._mixer is not None:
            logits_BV = self._mixer.mixed(logits_BV)
        if self._without is not None:
            logits_BV = memory_aware_logits(logits_BV, self._without.logits(), self._alpha)
        return logits_BV

    def on(self, next_B: Tensor) -> None:
        """Read these tokens next, one of each prompt."""
        self._rows.read(next_B if self._mixer is None else self._mixer.told(next_B))
        if self._without is not None:
            self._without.read(next_B)

    @property
    def may_shrink(self) -> bool:
        """Whether `keep` may be asked for: rows of a fixed shape can't be fewer."""
        own = (self._rows, self._without)
        return all(one is None or isinstance(one, GrowingRows) for one in own)

    def keep(self, kept_b: Tensor) -> None:
        """Read on of these prompts alone."""
        rows_b = kept_b if self._mixer is None else self._mixer.kept(kept_b)
        for own, kept in ((self._rows, rows_b), (self._without, kept_b)):
            if isinstance(own, GrowingRows):
                own.keep(kept)

    def close(self) -> None:
        """Nothing more is read."""
        for own in (self._rows, self._without):
            if own is not None:
                own.close()


def _check_room(base: BaseModel, positions: int) -> None:
    """Past its last position a model fails or writes nonsense."""
    if base.max_positions is not None and positions > base.max_positions:
        raise InputError(
            f"expected a prompt that ends, with its answer, within the {base.max_positions} "
            f"positions of {base.name}, got one that needs {positions}"
        )


def _choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    none = torch.zeros(len(logits_BV), 0, dtype=torch.long)
    logits_BV = TemperatureLogitsWarper(float(sampling.temperature))(none, logits_BV.float())
    if sampling.top_p < 1:
        logits_BV = TopPLogitsWarper(sampling.top_p)(none, logits_BV)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
