"""Passes of fixed shape give what passes of any shape give; on a CPU they run as they are.

The graphs themselves need a GPU: the last tests, left out without one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmt import decoding, replaying
from cmt.aggregation import aggregate
from cmt.base_model import BaseModel
from cmt.compressor import Compressor
from cmt.encoding import EncodedQuestions, encode_documents, encode_questions
from cmt.generation import Sampling, generate, stream
from cmt.mixing import separate
from cmt.reading import question_tokens
from cmt.reranking import question_log_likelihoods
from tests import small, tiny

START = 97
PROMPTS = small.tokens(9, 17, 4, 11, 20)
CHOICES = ([0, 2, 1], [3], [1, 1], [2, 0], [0])
WEIGHTS = ([0.5, 0.3, 0.2], [1.0], [0.4, 0.6], [1.0, 0.0], [1.0])


@pytest.fixture(params=tiny.FAMILIES)
def compressor(request: pytest.FixtureRequest) -> Compressor:
    return small.compressor(request.param)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether passes have a fixed shape from now on."""

    def choose(is_fixed: bool) -> None:
        monkeypatch.setattr(replaying, "serves", lambda *_: is_fixed)

    return choose


def memories(compressor: Compressor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for length in (20, 33, 8, 50):
        [(_, encoded)] = encode_documents(compressor, small.tokens(length, seed=length))
        found.append(encoded.stacked()[0])
    return [found[0], found[1][..., :3, :], found[2], found[3][..., :2, :]]  # 4, 3, 4 and 2 tokens


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("way", [aggregate, separate])
def test_answers_are_those_of_a_growing_cache(
    compressor: Compressor, fixed: Callable[[bool], None], number: int, way: Callable[..., Any]
) -> None:
    bank = memories(compressor)
    prefix = way([[bank[i] for i in own] for own in CHOICES[:number]], WEIGHTS[:number])
    for sampling in (Sampling(max_new_tokens=9), Sampling(max_new_tokens=9, alpha=0.5)):
        texts = []
        for is_fixed in (False, True):
            fixed(is_fixed)
            texts.append(
                generate(compressor.base, PROMPTS[:number], prefix, start=START, sampling=sampling)
            )
        assert texts[0] == texts[1]
        assert any(texts[0])


@torch.no_grad()
def test_logits_are_those_of_a_growing_cache(
    compressor: Compressor, fixed: Callable[[bool], None]
) -> None:
    bank = memories(compressor)
    prefix = aggregate([[bank[i] for i in own] for own in CHOICES], WEIGHTS)
    seen: list[list[torch.Tensor]] = []
    for is_fixed in (False, True):
        fixed(is_fixed)
        read = decoding.rows(compressor.base, PROMPTS, prefix, START, 6)
        assert isinstance(read, decoding.FixedRows) == is_fixed
        seen.append([])
        for step in range(6):
            seen[-1].append(read.logits())
            read.read(torch.arange(len(PROMPTS)) + 7 * step)
        read.close()
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=1e-4)


def test_questions_are_encoded_alike(compressor: Compressor, fixed: Callable[[bool], None]) -> None:
    both: list[EncodedQuestions] = []
    for is_fixed in (False, True):
        fixed(is_fixed)
        both.append(encode_questions(compressor, PROMPTS))
    torch.testing.assert_close(both[1].keys_QC, both[0].keys_QC, atol=1e-5, rtol=1e-4)
    found, expected = both[1].vectors, both[0].vectors
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.vectors_TV, expected.vectors_TV, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.weights_T, expected.weights_T, atol=1e-5, rtol=1e-4)
    assert found.lengths == expected.lengths
    assert found.owners_T.tolist() == expected.owners_T.tolist()


def test_questions_are_as_likely(compressor: Compressor, fixed: Callable[[bool], None]) -> None:
    bank = memories(compressor)
    candidates = torch.tensor([[0, 2], [3, 1], [1, 0]])
    asked = question_tokens(
        compressor.base.tokenizer,
        ["Who built it?", "When was the tower of Arbon 3 built?", "Who was Clara Weiss?"],
    )
    both = []
    for is_fixed in (False, True):
        fixed(is_fixed)
        both.append(question_log_likelihoods(compressor.base, asked, bank, candidates, START))
    torch.testing.assert_close(both[1], both[0], atol=1e-4, rtol=1e-4)


def test_two_streams_at_once_keep_apart(fixed: Callable[[bool], None]) -> None:
    compressor = small.compressor()
    bank = memories(compressor)
    prefixes = [aggregate([[bank[i]]], [[1.0]]) for i in (0, 2)]
    sampling = Sampling(max_new_tokens=9)
    fixed(True)

    def steps(number: int) -> Iterator[list[int | None]]:
        prompt, prefix = PROMPTS[number : number + 1], prefixes[number]
        return stream(compressor.base, prompt, prefix, start=START, sampling=sampling)

    alone = [list(steps(number)) for number in (0, 1)]
    assert alone[0] != alone[1]
    together = list(zip(steps(0), steps(1), strict=False))
    assert together == list(zip(*alone, strict=False))


def test_buffers_are_used_again_and_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base_model()
    made: list[Any] = []

    class Counted(replaying._Buffers):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(replaying, "_Buffers", Counted)
    pool = replaying._pool(base)
    pool._most_bytes = 3 * replaying._Buffers(base, 1, 64, pool.graphs).states.nbytes
    made.clear()
    for prompts in (PROMPTS[:1], PROMPTS[2:3], PROMPTS[:1]):
        with replaying.fixed_reading(base, prompts, start=0) as reading, torch.no_grad():
            reading.hidden()
    assert len(made) == 1
    with (
        replaying.fixed_reading(base, PROMPTS[:1], start=0),
        replaying.fixed_reading(base, PROMPTS[:1], start=0),
    ):
        assert len(made) == 2  # never two readings with the same
    with replaying.fixed_reading(base, PROMPTS[:2], start=0):
        pass
    assert [own.rows for own in pool._free] == [1, 2]  # of the three the oldest is gone
    with replaying.fixed_reading(base, PROMPTS[:4], start=0):
        pass
    assert pool._free == []  # too large to be kept beside anything, or at all


def test_what_a_buffer_held_before_spoils_nothing(fixed: Callable[[bool], None]) -> None:
    compressor = small.compressor()
    fixed(True)
    replaying._pool(compressor.base)._most_bytes = 1 << 30
    good, bad = memories(compressor)[0], torch.full_like(memories(compressor)[0], torch.nan)
    sampling = Sampling(max_new_tokens=9)
    prefixes = [aggregate([[own]], [[1.0]]) for own in (good, bad, good)]
    texts = [
        generate(compressor.base, PROMPTS[:1], own, start=START, sampling=sampling)
        for own in prefixes
    ]
    assert texts[0] == texts[2] != texts[1]


def test_buffers_and_models_go_when_nobody_refers_to_them() -> None:
    base = tiny.base_model()
    pool = replaying._pool(base)
    with replaying.fixed_reading(base, PROMPTS[:1], start=0) as reading, torch.no_grad():
        buffers = weakref.ref(reading._buffers)
        reading.hidden()
    del reading
    gc.collect()
    gc.disable()
    try:
        assert pool._free == []
        assert buffers() is None  # a CPU keeps none
        model = weakref.ref(base)
        del base
        assert model() is None
    finally:
        gc.enable()


def test_buffers_are_not_lost_to_a_reading_that_fails(
    monkeypatch: pytest.MonkeyPatch, fixed: Callable[[bool], None]
) -> None:
    compressor = small.compressor()
    pool = replaying._pool(compressor.base)
    pool._most_bytes = 1 << 30
    fixed(True)
    prefix = aggregate([[memories(compressor)[0]]], [[1.0]])
    adjusted = Sampling(max_new_tokens=3, alpha=0.5)
    ask = partial(generate, compressor.base, PROMPTS[:1], prefix, start=START, replayed=True)
    ask(sampling=adjusted)
    kept = len(pool._free)
    assert kept == 2  # with memory and without
    whole, calls = decoding.FixedRows.__init__, []

    def second_fails(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("full")
        whole(*arguments)

    monkeypatch.setattr(decoding.FixedRows, "__init__", second_fails)
    with pytest.raises(RuntimeError, match="full"):
        ask(sampling=adjusted)
    assert len(pool._free) == kept


def test_rows_and_tokens_are_rounded_up() -> None:
    base = tiny.base_model()
    for number, rows in ((1, 1), (2, 2), (3, 4), (5, 8)):
        with replaying.fixed_reading(base, PROMPTS[:number], start=0, further=30) as reading:
            assert tuple(reading.tokens_BT.shape) == (rows, 16 if number == 1 else 32)
            assert tuple(reading.hidden().shape[:2]) == (number, reading.tokens_BT.shape[1])


def test_without_memory_the_plain_model_answers(fixed: Callable[[bool], None]) -> None:
    base = tiny.base_model()
    fixed(True)
    assert isinstance(decoding.rows(base, PROMPTS, None, 0, 4), decoding.GrowingRows)
    wanted = decoding.rows(base, PROMPTS, None, 0, 4, replayed=True)
    assert isinstance(wanted, decoding.FixedRows)
    assert generate(base, PROMPTS, replayed=True) == generate(base, PROMPTS)


def test_a_cpu_has_no_graphs() -> None:
    with torch.no_grad():
        assert not replaying.serves(tiny.base_model(), 1)


def test_a_model_that_cant_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base_model()
    expected = generate(base, PROMPTS, replayed=False)

    def refuse(*_: Any) -> None:
        raise RuntimeError("it synchronises")

    monkeypatch.setattr(replaying, "serves", lambda *_: True)
    monkeypatch.setattr(replaying, "_Captured", refuse)
    replaying._pool(base).graphs.captures = True
    with pytest.warns(UserWarning, match="captured as a CUDA graph, runs without: it sync"):
        assert generate(base, PROMPTS, replayed=True) == expected
    assert generate(base, PROMPTS, replayed=True) == expected  # and says so once


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        """Everything is done at once here."""


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs that run their pass again when they are replayed; those that were captured."""
    captured: list[Any] = []
    begin, replay = replaying._Captured.__init__, replaying._Captured.replay

    def remembering(own: Any, buffers: Any, base: Any, given: Any, first: int) -> None:
        begin(own, buffers, base, given, first)
        own.again = lambda: buffers.run(base, own._given, own._first + own._counted_T)
        captured.append(own)

    def running(own: Any, given: Any, first: int) -> torch.Tensor:
        hidden = replay(own, given, first)
        return hidden.copy_(own.again())

    monkeypatch.setattr(replaying._Captured, "__init__", remembering)
    monkeypatch.setattr(replaying._Captured, "replay", running)
    monkeypatch.setattr(replaying, "serves", lambda *_: True)
    for name, stand_in in (
        ("CUDAGraph", lambda: SimpleNamespace(replay=lambda: None)),
        ("graph", lambda *_, **__: nullcontext()),
        ("stream", lambda _: nullcontext()),
        ("current_stream", lambda _: _Stream()),
        ("set_stream", lambda _: None),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return captured


def replays(base: BaseModel) -> None:
    """Let a model on a CPU be captured, as the fixture simulates it."""
    pool = replaying._pool(base)
    pool._most_bytes = 1 << 30
    pool.graphs.captures, pool.graphs.stream = True, _Stream()


def test_a_shape_is_captured_once_and_anew_for_other_adapters(
    monkeypatch: pytest.MonkeyPatch, simulated: list[Any]
) -> None:
    compressor = small.compressor()
    base, bank = compressor.base, memories(compressor)
    sampling = Sampling(max_new_tokens=9)

    def answers(number: int) -> list[list[int]]:
        prefix = aggregate([[bank[i] for i in own] for own in CHOICES[:number]], WEIGHTS[:number])
        return generate(base, PROMPTS[:number], prefix, start=START, sampling=sampling)

    with monkeypatch.context() as patched:
        patched.setattr(replaying, "serves", lambda *_: False)
        expected = [answers(number) for number in (1, 5, 2)]
        keys = encode_questions(compressor, PROMPTS).keys_QC
    replays(base)
    for _ in range(2):
        assert [answers(number) for number in (1, 5, 2)] == expected
    assert len(simulated) == 6  # of three shapes the prompts' pass and a token's
    for _ in range(2):
        found = encode_questions(compressor, PROMPTS).keys_QC
        torch.testing.assert_close(found, keys, atol=1e-5, rtol=1e-4)
    assert len(simulated) == 7
    with torch.no_grad():
        for parameter in compressor.lora.parameters():
            parameter.mul_(1.5)
    changed = encode_questions(compressor, PROMPTS).keys_QC
    assert len(simulated) == 8
    with monkeypatch.context() as patched:
        patched.setattr(replaying, "serves", lambda *_: False)
        torch.testing.assert_close(
            changed, encode_questions(compressor, PROMPTS).keys_QC, atol=1e-5, rtol=1e-4
        )
    assert answers(5) == expected[1]
    assert len(simulated) == 8
    assert simulated[6]._adapters() is None  # a graph keeps no merged weights


def test_a_capture_without_memory_to_spare_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, simulated: list[Any]
) -> None:
    base = tiny.base_model()
    expected = generate(base, PROMPTS, replayed=False)
    replays(base)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patched:
        patched.setattr(replaying, "_Captured", full)
        assert generate(base, PROMPTS, replayed=True) == expected
    assert generate(base, PROMPTS, replayed=True) == expected
    assert simulated


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_replayed_passes_give_what_launched_ones_give(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel(tiny.model(family).cuda(), tiny.tokenizer())
    compressor = Compressor(base, small.config())
    for parameter in compressor.parameters():
        parameter.data.normal_(std=0.1)
    bank = memories(compressor)
    serves = replaying.serves
    for number in (5, 3, 5, 1, 2, 5):  # from the third on they are replays
        prefix = aggregate([[bank[i] for i in own] for own in CHOICES[:number]], WEIGHTS[:number])
        both = []
        for is_fixed in (False, True):
            monkeypatch.setattr(replaying, "serves", serves if is_fixed else lambda *_: False)
            asked = PROMPTS[:number]
            both.append(
                (
                    encode_questions(compressor, asked).keys_QC,
                    generate(base, asked, prefix, start=START, sampling=Sampling(max_new_tokens=9)),
                )
            )
        torch.testing.assert_close(both[1][0], both[0][0], atol=1e-3, rtol=1e-3)
        assert both[1][1] == both[0][1]
    assert replaying._pool(base).graphs.captures
