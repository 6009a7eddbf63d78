"""Generation: the frozen model answers, with or without a prefix of memories.

The only file that touches transformers' key/value caches. Prompts are padded on the left,
prefixes masked, so that a question answered in a batch is the question answered alone. Where
memories are read separately, a prompt has a row for each and their logits are mixed (mixing.py).

Shape legend: B prompts (their rows, where memories are mixed), T longest prompt, P prefix tokens
(sink included), S all tokens so far, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from cmt.aggregation import Prefix
from cmt.attention import any_shape
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.mixing import MixedPrefix, Mixer


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: At most so many, the end token not counted.
        temperature: 0 is greedy.
        top_p: Sample from the smallest set of tokens with this probability.
        seed: Fixes sampling; None draws a fresh one.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.max_new_tokens < 1:
            raise InputError(f"expected max_new_tokens of at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"expected a temperature of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"expected top_p above 0 and at most 1, got {self.top_p}")


GREEDY = Sampling()


def generate(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
    *,
    start: int = 0,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
) -> list[list[int]]:
    """Token ids generated after each prompt, without the token that ended them.

    Args:
        base: The frozen model.
        prompts: Token ids, at least one each.
        prefix: Memories read before each prompt; None: the plain model.
        start: Position of a prompt's first token.
        sampling: How tokens are chosen.
        stop_tokens: End a text like the model's own end token.

    Raises:
        InputError: No prompt, an empty one, one too long for the model, or not one prefix each.
    """
    steps = stream(base, prompts, prefix, start=start, sampling=sampling, stop_tokens=stop_tokens)
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
) -> Iterator[list[int | None]]:
    """Like `generate`, a step at a time: the next token of each text, None once it has ended."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("expected at least one prompt and one token in each, got none")
    _check_room(base, start + max(map(len, prompts)) + sampling.max_new_tokens)
    texts = len(prompts)
    if prefix is not None and len(prefix.tokens) != texts:
        raise InputError(f"expected {texts} prefixes, got {len(prefix.tokens)}")
    mixer = None
    if isinstance(prefix, MixedPrefix):
        mixer, prompts = Mixer(prefix, base.device), prefix.repeated(prompts)
    ends = base.end_tokens.union(stop_tokens)
    filler = base.tokenizer.eos_token_id or 0
    tokens_BT, valid_BT = _left_padded(prompts, filler, base.device)
    positions_BT = (valid_BT.cumsum(1) - 1).clamp(min=0) + start
    cache, before_BP = _prefilled(base, prefix)
    mask = None if before_BP is None else _mask(before_BP, valid_BT, base.dtype)
    open_texts = [True] * texts
    generator = torch.Generator(device=base.device)
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    else:
        generator.seed()
    for _ in range(sampling.max_new_tokens):
        with nullcontext() if prefix is None else any_shape():  # without memory: as it is
            output = base.model(
                input_ids=tokens_BT,
                position_ids=positions_BT,
                attention_mask=valid_BT.long() if mask is None else mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV = output.logits[:, -1]
        if mixer is not None:
            logits_BV = mixer.mixed(logits_BV)
        next_B = _choose(logits_BV, sampling, generator)
        chosen = next_B.tolist()
        open_texts = [o and token not in ends for o, token in zip(open_texts, chosen, strict=True)]
        if not any(open_texts):
            return
        yield [token if o else None for o, token in zip(open_texts, chosen, strict=True)]
        tokens_BT = (next_B if mixer is None else mixer.told(next_B))[:, None]
        positions_BT = positions_BT[:, -1:] + 1
        valid_BT = torch.cat([valid_BT, valid_BT.new_ones(len(prompts), 1)], dim=1)
        if mask is not None:  # the new token sees what the last one saw, and itself
            mask = torch.cat([mask[:, :, -1:], mask.new_zeros(len(prompts), 1, 1, 1)], dim=-1)


def _check_room(base: BaseModel, positions: int) -> None:
    """Past its last position a model fails or writes nonsense."""
    if base.max_positions is not None and positions > base.max_positions:
        raise InputError(
            f"expected a prompt that ends, with its answer, within the {base.max_positions} "
            f"positions of {base.name}, got one that needs {positions}"
        )


def _left_padded(
    prompts: Sequence[Sequence[int]], filler: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    tokens = [[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    valid = [[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(valid, device=device)


def _prefilled(base: BaseModel, prefix: Prefix | None) -> tuple[DynamicCache, Tensor | None]:
    """A cache that holds sink and prefix, and the log-weights (B, P) of its places."""
    cache = DynamicCache()
    if prefix is None:
        return cache, None
    rows = len(prefix.memories)
    memories = prefix.memories.to(device=base.device, dtype=base.dtype)
    sink = base.sink_memory.expand(rows, -1, -1, -1, -1, -1)
    before = torch.cat([sink, memories], dim=4)  # of all layers at once
    for layer, states in enumerate(before.unbind(1)):
        cache.update(states[:, 0], states[:, 1], layer)
    sink_B1 = torch.zeros(rows, 1, device=base.device)
    return cache, torch.cat([sink_B1, prefix.log_weights_BP.to(base.device)], dim=1)


def _mask(before_BP: Tensor, valid_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, T, P + T) of prompts after their prefixes."""
    T = valid_BT.shape[1]
    lowest = torch.finfo(dtype).min
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BT.device).tril()
    own = torch.zeros(len(valid_BT), T, T, dtype=dtype, device=valid_BT.device)
    own = own.masked_fill(~(causal_TT & valid_BT[:, None]), lowest)
    before = before_BP.to(dtype).clamp(min=lowest)[:, None].expand(-1, T, -1)
    return torch.cat([before, own], dim=-1)[:, None]


def _choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    none = torch.zeros(len(logits_BV), 0, dtype=torch.long)
    logits_BV = TemperatureLogitsWarper(float(sampling.temperature))(none, logits_BV.float())
    if sampling.top_p < 1:
        logits_BV = TopPLogitsWarper(sampling.top_p)(none, logits_BV)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
