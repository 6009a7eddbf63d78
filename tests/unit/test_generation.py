"""Generating in batches, in steps, by sampling; where it stops and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from cmt.aggregation import Prefix, aggregate
from cmt.compressor import Compressor
from cmt.decoding import Rows, rows
from cmt.encoding import encode_documents
from cmt.errors import InputError
from cmt.generation import Sampling, generate, stream
from cmt.mixing import Mixer, separate
from cmt.objectives import memory_aware_logits
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
PROMPTS = small.tokens(9, 17, 4, 11)
CHOICES = ([0, 2, 1], [3], [1, 1], [2, 0])
WEIGHTS = ([0.5, 0.3, 0.2], [1.0], [0.4, 0.6], [1.0, 0.0])
START = 97


@pytest.fixture(params=tiny.FAMILIES)
def compressor(request: pytest.FixtureRequest) -> Compressor:
    return small.compressor(request.param)


def memories(compressor: Compressor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for length in (20, 33, 8, 50):  # of other lengths too: 4, 3, 4 and 2 tokens
        [(_, encoded)] = encode_documents(compressor, small.tokens(length, seed=length))
        found.append(encoded.stacked()[0])
    return [found[0], found[1][..., :3, :], found[2], found[3][..., :2, :]]


def prefix(compressor: Compressor, *rows: int) -> Prefix:
    bank = memories(compressor)
    return aggregate([[bank[i] for i in CHOICES[row]] for row in rows], [WEIGHTS[r] for r in rows])


def test_a_batch_is_its_questions_alone(compressor: Compressor) -> None:
    sampling = Sampling(max_new_tokens=12)
    together = generate(
        compressor.base, PROMPTS, prefix(compressor, 0, 1, 2, 3), start=START, sampling=sampling
    )
    for row, prompt in enumerate(PROMPTS):
        [alone] = generate(
            compressor.base, [prompt], prefix(compressor, row), start=START, sampling=sampling
        )
        assert alone == together[row]
    plain = generate(compressor.base, PROMPTS, start=START, sampling=sampling)
    assert plain != together, "the memories don't matter: nothing is shown"
    for row, prompt in enumerate(PROMPTS):
        assert generate(compressor.base, [prompt], start=START, sampling=sampling) == [plain[row]]


def test_logits_of_a_batch_are_those_alone(compressor: Compressor) -> None:
    """Tokens could agree by luck: a random model often repeats one."""
    seen: list[torch.Tensor] = []
    head = compressor.base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: seen.append(call[-1]))
    one = Sampling(max_new_tokens=1)
    generate(compressor.base, PROMPTS, prefix(compressor, 0, 1, 2, 3), start=START, sampling=one)
    for row, prompt in enumerate(PROMPTS):
        generate(compressor.base, [prompt], prefix(compressor, row), start=START, sampling=one)
    hook.remove()
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]), atol=1e-5, rtol=1e-4)


def test_streaming_is_generating(compressor: Compressor) -> None:
    sampling = Sampling(max_new_tokens=12)
    given = prefix(compressor, 0, 1, 2, 3)
    texts = generate(compressor.base, PROMPTS, given, start=START, sampling=sampling)
    steps = list(stream(compressor.base, PROMPTS, given, start=START, sampling=sampling))
    columns = list(zip(*steps, strict=True))
    assert [[t for t in column if t is not None] for column in columns] == texts
    for column in columns:  # once ended, a text stays so
        ended = column.index(None) if None in column else len(column)
        assert all(token is None for token in column[ended:])


def test_a_weight_of_0_is_as_no_memory() -> None:
    compressor = small.compressor()
    bank = memories(compressor)
    sampling = Sampling(max_new_tokens=12)

    def ask(chosen: list[int], weights: list[float]) -> list[list[int]]:
        given = aggregate([[bank[i] for i in chosen]], [weights])
        return generate(compressor.base, PROMPTS[:1], given, start=START, sampling=sampling)

    assert ask([2, 0], [1.0, 0.0]) == ask([2], [1.0])
    assert ask([2, 2], [0.5, 0.5]) == ask([2], [1.0])


@pytest.mark.parametrize("alpha", [0.5, 30.0])
@pytest.mark.parametrize("separately", [False, True])
def test_memory_aware_decoding_takes_away_what_the_model_says_anyway(
    alpha: float, separately: bool
) -> None:
    compressor = small.compressor()
    base = compressor.base
    bank = memories(compressor)
    chosen = [[bank[i] for i in own] for own in CHOICES[:2]]
    given = (separate if separately else aggregate)(chosen, WEIGHTS[:2])
    asked = PROMPTS[:2]
    sampling = Sampling(max_new_tokens=8, alpha=alpha)
    texts = generate(base, asked, given, start=START, sampling=sampling)
    for row, text in enumerate(texts):
        own = (separate if separately else aggregate)([chosen[row]], [WEIGHTS[row]])
        for place, token in enumerate(text):
            read = [list(asked[row]) + text[:place]]
            if separately:  # the weights follow the text: all of it is read
                apart = rows(base, own.repeated(asked[row : row + 1]), own, START, 8)
                with_memory = Mixer(own, base.device).mixed(_after(apart, text[:place]))
            else:
                with_memory = _after(rows(base, read, own, START, 8), [])
            without = _after(rows(base, read, None, START, 8), [])
            expected = memory_aware_logits(with_memory, without, alpha)[0]
            assert expected[token] >= expected.max() - 1e-3
    assert texts != generate(base, asked, given, start=START, sampling=Sampling(max_new_tokens=8))


@torch.no_grad()
def _after(read: Rows, tokens: list[int]) -> torch.Tensor:
    """Logits of the token after these."""
    logits = read.logits()
    for token in tokens:
        read.read(torch.full((len(logits),), token))
        logits = read.logits()
    return logits


def test_alpha_says_nothing_where_no_memory_is_read(base) -> None:  # type: ignore[no-untyped-def]
    adjusted = Sampling(max_new_tokens=12, alpha=0.5)
    assert generate(base, PROMPTS[:1], sampling=adjusted) == [greedy(base)]


@pytest.fixture
def base():  # type: ignore[no-untyped-def]
    return tiny.base_model()


def greedy(base, tokens: int = 12) -> list[int]:  # type: ignore[no-untyped-def]
    [text] = generate(base, PROMPTS[:1], sampling=Sampling(max_new_tokens=tokens))
    return text


def test_stop_tokens_end_a_text_and_are_left_out(base) -> None:  # type: ignore[no-untyped-def]
    text = greedy(base)
    stop = text[5]
    [cut] = generate(
        base, PROMPTS[:1], sampling=Sampling(max_new_tokens=12), stop_tokens=[stop, 319]
    )
    assert cut == text[: text.index(stop)]


def test_the_end_token_and_the_generation_configurations_end_a_text(base) -> None:  # type: ignore[no-untyped-def]
    text = greedy(base)
    base.model.generation_config.eos_token_id = [1, text[3]]
    assert greedy(base) == text[: text.index(text[3])]
    base.model.generation_config.eos_token_id = 1
    base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(text[4])
    assert greedy(base) == text[: text.index(text[4])]


def test_a_text_that_ends_at_once_is_empty(base) -> None:  # type: ignore[no-untyped-def]
    first, *_ = greedy(base)
    texts = generate(base, PROMPTS, sampling=Sampling(max_new_tokens=6), stop_tokens=[first])
    assert texts[0] == []
    assert list(stream(base, PROMPTS[:1], stop_tokens=[first])) == []
    alone = [generate(base, [p], sampling=Sampling(max_new_tokens=6), stop_tokens=[first])[0]
             for p in PROMPTS]  # fmt: skip
    assert texts == alone, "those that go on are not disturbed"


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("how", ["together", "separately", "posterior"])
def test_texts_that_have_ended_leave_the_batch(how: str, alpha: float) -> None:
    compressor = small.compressor()
    base, bank = compressor.base, memories(compressor)
    chosen = [[bank[i] for i in own] for own in CHOICES]
    if how == "together":
        given: Prefix = aggregate(chosen, WEIGHTS)
    else:
        given = separate(chosen, WEIGHTS, posterior=how == "posterior")
    asked = [*PROMPTS]
    sampling = Sampling(max_new_tokens=12, alpha=alpha)
    whole = generate(base, asked, given, sampling=sampling, shrinking=False)
    stops = [whole[0][2], whole[2][5]]  # so they end one after another
    rows_read: list[int] = []
    hook = base.model.get_output_embeddings().register_forward_hook(
        lambda *call: rows_read.append(len(call[-1]))
    )
    options = {"sampling": sampling, "stop_tokens": stops}
    ended = generate(base, asked, given, shrinking=False, **options)  # type: ignore[arg-type]
    assert len({len(text) for text in ended}) > 1
    assert len(set(rows_read)) == 1 or alpha
    all_rows = rows_read[0]
    rows_read.clear()
    assert generate(base, asked, given, **options) == ended  # type: ignore[arg-type]
    assert rows_read[0] == all_rows > rows_read[-1]
    hook.remove()


def test_the_plain_model_keeps_its_batch_unless_told(base) -> None:  # type: ignore[no-untyped-def]
    sampling = Sampling(max_new_tokens=12)
    stop = generate(base, PROMPTS, sampling=sampling)[0][1]
    sizes: list[int] = []
    hook = base.model.register_forward_hook(lambda *call: sizes.append(len(call[-1].logits)))
    plain = generate(base, PROMPTS, sampling=sampling, stop_tokens=[stop])
    assert set(sizes) == {4}
    sizes.clear()
    assert generate(base, PROMPTS, sampling=sampling, stop_tokens=[stop], shrinking=True) == plain
    assert sizes[-1] < 4
    hook.remove()


def test_max_new_tokens(base) -> None:  # type: ignore[no-untyped-def]
    assert greedy(base, 1) == greedy(base, 12)[:1]
    assert len(greedy(base, 12)) == 12


def sample(base, **settings: float) -> list[list[int]]:  # type: ignore[no-untyped-def]
    return generate(base, PROMPTS, sampling=Sampling(max_new_tokens=10, **settings))


def test_sampling_with_a_seed_repeats_itself(base) -> None:  # type: ignore[no-untyped-def]
    first = sample(base, temperature=1.0, seed=4)
    torch.manual_seed(123)  # the global generator has no say
    assert sample(base, temperature=1.0, seed=4) == first
    assert sample(base, temperature=1.0, seed=5) != first
    assert sample(base, temperature=1.0) != sample(base, temperature=1.0)
    assert sample(base, temperature=1, seed=4) == first, "a whole number will do"


def test_a_low_temperature_and_a_small_top_p_are_greedy(base) -> None:  # type: ignore[no-untyped-def]
    best = sample(base)
    assert sample(base, temperature=1e-5, seed=1) == best
    assert sample(base, temperature=5.0, top_p=1e-6, seed=1) == best
    assert sample(base, temperature=5.0, seed=1) != best


def test_top_p_keeps_to_the_smallest_set(base) -> None:  # type: ignore[no-untyped-def]
    logits: list[torch.Tensor] = []
    hook = base.model.register_forward_hook(lambda *call: logits.append(call[-1].logits[0, -1]))
    for seed in range(30):
        logits.clear()
        sampling = Sampling(max_new_tokens=3, temperature=2.0, top_p=0.1, seed=seed)
        [text] = generate(base, PROMPTS[:1], sampling=sampling)
        for token, row in zip(text, logits, strict=False):
            p = (row / 2.0).softmax(-1)
            assert p[p > p[token]].sum() < 0.1 + 1e-5
    hook.remove()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens of at least 1, got 0"),
        ({"temperature": -0.1}, "temperature of at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature of at least 0, got nan"),
        ({"temperature": math.inf}, "temperature of at least 0, got inf"),
        ({"top_p": 0.0}, "top_p above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p above 0 and at most 1, got 1.5"),
        ({"alpha": -0.5}, "alpha of at least 0, got -0.5"),
    ],
)
def test_sampling_without_meaning(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_prompts_that_are_none(base) -> None:  # type: ignore[no-untyped-def]
    for prompts in ([], [[3], []]):
        with pytest.raises(InputError, match="at least one prompt and one token in each"):
            generate(base, prompts)


def test_one_prefix_each() -> None:
    compressor = small.compressor()
    with pytest.raises(InputError, match="expected 3 prefixes, got 2"):
        generate(compressor.base, PROMPTS[:3], prefix(compressor, 0, 1))


@families
def test_a_text_longer_than_the_models_positions_is_refused(family: str) -> None:
    base = tiny.base_model(family)
    [prompt] = small.tokens(1000)
    assert generate(base, [prompt], sampling=Sampling(max_new_tokens=24))[0]
    with pytest.raises(
        InputError, match=f"within the 1024 positions of tiny-{family}, got one that needs 1025"
    ):
        generate(base, [prompt[:5], prompt], start=1, sampling=Sampling(max_new_tokens=24))
