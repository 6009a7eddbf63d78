"""Passes of fixed shape: on a GPU each is captured once, as a CUDA graph, and replayed after that.

A question has few tokens. A pass over them keeps a GPU busy for about a millisecond and the host
for thirty, while it launches one kernel after another. A graph launches them all at once, but
wants the same shapes and addresses each time. So rows, tokens and places are rounded up, padding
is masked, and keys and values lie in buffers that stay. On another device the same passes run as
they are: so the tests compare them with passes of any shape.

Shape legend: B rows, n of them asked for, T tokens of a row, P places before them, S places in
all, W hidden size, L layers, G key/value heads, E head size.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, StaticLayer

from cmt.attention import any_shape
from cmt.base_model import BaseModel
from cmt.padding import additive_mask, left_padded, padded_positions

MOST_ROWS = 64
"""More rows keep the device busy without graphs."""
MOST_TOKENS = 64
"""Longer passes, of text, run as they are: no two have the same length."""
_TOKENS, _PLACES = 16, 64  # rounded up to a multiple of
_SHARE = 16  # of the device's memory that buffers take which nobody reads with


def serves(base: BaseModel, rows: int, longest: int = 0) -> bool:
    """Whether so many rows, the longest of so many tokens, are to be read in fixed shapes."""
    return (
        base.device.type == "cuda"
        and rows <= MOST_ROWS
        and longest <= MOST_TOKENS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
    )


class FixedReading:
    """Prompts after their prefixes, read in passes of fixed shape, a token at a time after that.

    Attributes:
        tokens_BT: The prompts, padded on the left.
    """

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[Sequence[int]],
        *,
        start: int,
        prefix: Tensor | None = None,
        log_weights_nP: Tensor | None = None,
        further: int = 0,
    ) -> None:
        """Lay the prompts out, put their prefixes before them.

        Args:
            base: The frozen model.
            prompts: Token ids, n of them.
            start: Position of a prompt's first token.
            prefix: Keys and values before each, (n, L, 2, G, P, E).
            log_weights_nP: Added to the attention scores of those; None: nothing.
            further: Tokens that are read after each prompt, at most.
        """
        self._base, self._prompts = base, len(prompts)
        rows = 1 << (len(prompts) - 1).bit_length()
        more = rows - len(prompts)  # the first prompt again: whatever it gives is left out
        filler = base.tokenizer.eos_token_id or 0
        width = _up(max(map(len, prompts)), _TOKENS)
        self.tokens_BT, valid_BT = left_padded(
            [*prompts, *[prompts[0]] * more], filler, base.device, width
        )
        self._positions_BT = padded_positions(valid_BT, start)
        P = 0 if prefix is None else prefix.shape[4]
        if log_weights_nP is None:
            log_weights_nP = torch.zeros(len(prompts), P, device=base.device)
        self._next = P + width
        places = _up(self._next + further, _PLACES)
        before_BP = torch.cat([log_weights_nP, log_weights_nP[:1].expand(more, -1)])
        mask = additive_mask(before_BP, valid_BT, base.dtype)
        lowest = torch.finfo(base.dtype).min
        self._mask = functional.pad(mask, (0, places - mask.shape[-1]), value=lowest)
        self._buffers = _pool(base).take(base, rows, places)  # the last that may fail
        if prefix is not None:
            states = self._buffers.states
            states[:, :, : len(prompts), :, :P] = prefix.permute(1, 2, 0, 3, 4, 5)
            states[:, :, len(prompts) :, :, :P] = prefix[:1].permute(1, 2, 0, 3, 4, 5)

    def hidden(self, embeddings_BTW: Tensor | None = None) -> Tensor:
        """Final hidden states (n, T, W) of the prompts, or of `embeddings_BTW` in their place.

        They are valid until the next reading of this shape.
        """
        if embeddings_BTW is None:
            embeddings_BTW = self._base.embed(self.tokens_BT)
        T = embeddings_BTW.shape[1]
        given = (embeddings_BTW, self._positions_BT, self._mask)
        hidden_BTW = self._buffers.read(self._base, given, self._next - T)
        self._positions_BT = self._positions_BT[:, -1:] + 1
        self._mask = self._mask[:, :, -1:].clone()
        return hidden_BTW[: self._prompts]

    def next_hidden(self, tokens_n: Tensor) -> Tensor:
        """Final hidden states (n, W) of one more token of each prompt, after `hidden`."""
        rows = len(self.tokens_BT)
        more = tokens_n[:1].expand(rows - self._prompts)
        self._mask[..., self._next] = 0  # it sees what the last one saw, and itself
        self._next += 1
        embeddings_B1W = self._base.embed(torch.cat([tokens_n, more])[:, None])
        given = (embeddings_B1W, self._positions_BT, self._mask)
        hidden_B1W = self._buffers.read(self._base, given, self._next - 1)
        self._positions_BT = self._positions_BT + 1
        return hidden_B1W[: self._prompts, 0]

    def close(self) -> None:
        """Leave the buffers to others."""
        _pool(self._base).give_back(self._buffers)


@contextmanager
def fixed_reading(
    base: BaseModel, prompts: Sequence[Sequence[int]], **options: Any
) -> Iterator[FixedReading]:
    """A `FixedReading` that is closed at the end."""
    reading = FixedReading(base, prompts, **options)
    try:
        yield reading
    finally:
        reading.close()


_Given = tuple[Tensor, Tensor, Tensor]
"""Embeddings (B, T, W), positions (B, T) and mask (B, 1, T, S) of a pass."""


class _Graphs:
    """What all graphs of a base model share.

    Attributes:
        captures: Whether passes are captured.
        memory: Where graphs keep what lies between input and output: one runs at a time.
        stream: That they are captured on, of the model's own device.
    """

    def __init__(self, device: torch.device) -> None:
        self.captures = device.type == "cuda"
        self.memory: Any = None
        self.stream: Any = None
        if self.captures:
            self.memory = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream(device)


class _Places:
    """Where a pass writes; what its layers know of it."""

    def __init__(self) -> None:
        self.of_T = torch.zeros(0, dtype=torch.long)


class _Layer(StaticLayer):
    """A layer's keys and values, (B, G, S, E) each, written where its places say.

    It knows nothing of its buffers: referring to each other, both would stay until Python's
    garbage collector looks at old objects.
    """

    def __init__(self, places: _Places, states: Tensor) -> None:
        super().__init__(max_cache_len=states.shape[3])
        self._places = places
        self.keys, self.values = self._own = states.unbind(0)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._own
        keys.index_copy_(2, self._places.of_T, key_states.to(keys.dtype))
        values.index_copy_(2, self._places.of_T, value_states.to(values.dtype))
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0  # positions and masks are given: nobody needs to count


class _Buffers:
    """Keys and values of B rows and S places in every layer, and the passes over them."""

    def __init__(self, base: BaseModel, rows: int, places: int, graphs: _Graphs) -> None:
        sizes = base.dimensions
        shape = (sizes.layers, 2, rows, sizes.kv_heads, places, sizes.head_size)
        self.states = torch.zeros(shape, dtype=base.dtype, device=base.device)
        self.rows, self.places = rows, places
        self.graphs = graphs
        self._written = _Places()
        self._cache = Cache(layers=[_Layer(self._written, own) for own in self.states])
        self._passes: dict[tuple[int, bool], _Captured] = {}

    def read(self, base: BaseModel, given: _Given, first: int) -> Tensor:
        """Hidden states (B, T, W) of tokens that take the places from `first` on."""
        T = given[0].shape[1]
        captured = self._captured(base, given, first) if T <= MOST_TOKENS else None
        if captured is not None:
            return captured.replay(given, first)
        return self.run(base, given, torch.arange(first, first + T, device=base.device))

    def _captured(self, base: BaseModel, given: _Given, first: int) -> _Captured | None:
        """The graph of such a pass; None where there are none, or it can't be captured."""
        if not self.graphs.captures:
            return None
        key = (given[0].shape[1], base.adapters is None)
        own = self._passes.get(key)
        if own is None or not own.is_of(base.adapters):
            self._passes.pop(key, None)
            try:
                own = self._passes[key] = _Captured(self, base, given, first)
            except torch.OutOfMemoryError:  # this time it runs without
                return None
            except RuntimeError as error:  # a model that asks the device something in its pass
                self.graphs.captures = False
                warnings.warn(
                    f"{base.name} can't be captured as a CUDA graph, runs without: "
                    f"{error.__context__ or error}",
                    stacklevel=2,
                )
                return None
        return own

    def run(self, base: BaseModel, given: _Given, places_T: Tensor) -> Tensor:
        """The pass itself."""
        embeddings_BTW, positions_BT, mask_B1TS = given
        self._written.of_T = places_T
        with any_shape():
            output = base.decoder(
                inputs_embeds=embeddings_BTW,
                position_ids=positions_BT,
                attention_mask=mask_B1TS,
                past_key_values=self._cache,
                use_cache=True,
            )
        hidden_BTW: Tensor = output.last_hidden_state
        return hidden_BTW


class _Captured:
    """One pass as a CUDA graph, with inputs and output at addresses of their own."""

    def __init__(self, buffers: _Buffers, base: BaseModel, given: _Given, first: int) -> None:
        adapters = base.adapters
        self._adapters = None if adapters is None else weakref.ref(adapters)
        self._given: _Given = (given[0].clone(), given[1].clone(), given[2].clone())
        device, T = given[0].device, given[0].shape[1]
        self._first = torch.full((1,), first, device=device)  # the pass that isn't kept writes too
        self._counted_T = torch.arange(T, device=device)  # kept: the graph reads it each time
        self._graph = torch.cuda.CUDAGraph()
        graphs, outside = buffers.graphs, torch.cuda.current_stream(device)
        try:
            graphs.stream.wait_stream(outside)
            with torch.cuda.stream(graphs.stream):  # libraries set themselves up in this one
                buffers.run(base, given, self._first + self._counted_T)
            outside.wait_stream(graphs.stream)
            with torch.cuda.graph(
                self._graph,
                pool=graphs.memory,
                stream=graphs.stream,
                capture_error_mode="thread_local",
            ):
                places_T = self._first + self._counted_T
                self._hidden = buffers.run(base, self._given, places_T)
        finally:
            torch.cuda.set_stream(outside)  # a capture that failed leaves its own

    def is_of(self, adapters: object) -> bool:
        """Whether it was captured with these adapters, None: with none; others moved since."""
        return adapters is (None if self._adapters is None else self._adapters() or self)

    def replay(self, given: _Given, first: int) -> Tensor:
        """Hidden states, valid until the next replay of a graph."""
        for own, part in zip(self._given, given, strict=True):
            own.copy_(part)
        self._first.fill_(first)
        self._graph.replay()
        return self._hidden


class _Pool:
    """Buffers of one base model: lent to one reading at a time, kept for the next one."""

    def __init__(self, device: torch.device) -> None:
        self.graphs = _Graphs(device)
        self._free: list[_Buffers] = []  # last used last
        self._most_bytes = 0
        if device.type == "cuda":
            self._most_bytes = torch.cuda.get_device_properties(device).total_memory // _SHARE

    def take(self, base: BaseModel, rows: int, places: int) -> _Buffers:
        """Buffers of zeros that nobody else reads with."""
        for number in reversed(range(len(self._free))):
            own = self._free[number]
            if (own.rows, own.places) == (rows, places):
                self._free.pop(number)
                own.states.zero_()  # masked places still count 0 times what lies there
                return own
        return _Buffers(base, rows, places, self.graphs)

    def give_back(self, buffers: _Buffers) -> None:
        """For the next reading; those used longest ago make room."""
        self._free.append(buffers)
        while sum(own.states.nbytes for own in self._free) > self._most_bytes:
            self._free.pop(0)


def _pool(base: BaseModel) -> _Pool:
    if base.pool is None:
        base.pool = _Pool(base.device)
    pool: _Pool = base.pool
    return pool


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
