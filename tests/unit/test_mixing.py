"""Memories read separately: the mixture by hand, its limits, and generation from it."""

from __future__ import annotations

import math

import pytest
import torch

from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
from cmt.aggregation import Prefix, aggregate, aggregate_resident, matching_weights
from cmt.compressor import Compressor
from cmt.encoding import encode_documents
from cmt.errors import InputError
from cmt.generation import Sampling, generate, stream
from cmt.mixing import MixedPrefix, Mixer, separate, separate_resident
from tests import small, tiny

CPU = torch.device("cpu")
PROMPTS = small.tokens(9, 17, 4, 11)
CHOICES = ([0, 2, 1], [3], [1, 1], [2, 0])
WEIGHTS = ([0.5, 0.3, 0.2], [1.0], [0.4, 0.6], [0.9, 0.1])
START = 97
SHORT = Sampling(max_new_tokens=12)
both = pytest.mark.parametrize("posterior", [False, True])


@pytest.fixture(params=tiny.FAMILIES)
def compressor(request: pytest.FixtureRequest) -> Compressor:
    return small.compressor(request.param)


def memories(compressor: Compressor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for length in (20, 33, 8, 50):  # of other lengths too: 4, 3, 4 and 2 tokens
        [(_, encoded)] = encode_documents(compressor, small.tokens(length, seed=length))
        found.append(encoded.stacked()[0])
    return [found[0], found[1][..., :3, :], found[2], found[3][..., :2, :]]


def mixture(compressor: Compressor, *rows: int, posterior: bool = False) -> MixedPrefix:
    bank = memories(compressor)
    chosen = [[bank[i] for i in CHOICES[row]] for row in rows]
    return separate(chosen, [WEIGHTS[row] for row in rows], posterior=posterior)


def logits_of(compressor: Compressor, prompts: list[list[int]], prefix: Prefix) -> torch.Tensor:
    """The first token's logits as `stream` has them before the mixture."""
    seen: list[torch.Tensor] = []
    head = compressor.base.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: seen.append(call[-1]))
    generate(compressor.base, prompts, prefix, start=START, sampling=Sampling(max_new_tokens=1))
    hook.remove()
    return seen[0]


def blank(weights: list[list[float]], *, posterior: bool = False) -> MixedPrefix:
    """A prefix whose memories don't matter."""
    memory = torch.zeros(1, 2, 1, 1, 2)
    return separate([[memory] * len(own) for own in weights], weights, posterior=posterior)


# The mixture by itself.


def test_a_mixture_by_hand() -> None:
    mixer = Mixer(blank([[0.25, 0.75], [1.0]]), CPU)
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    logits = shares.log() + torch.tensor([[5.0], [-3.0], [1.0]])  # any constant a row
    mixed = mixer.mixed(logits).softmax(-1)
    by_hand = [[0.125 + 0.075, 0.075 + 0.6, 0.05 + 0.075], [0.6, 0.2, 0.2]]
    torch.testing.assert_close(mixed, torch.tensor(by_hand))
    assert mixed.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert mixer.told(torch.tensor([1, 2])).tolist() == [1, 1, 2]
    torch.testing.assert_close(mixer.mixed(logits).softmax(-1), torch.tensor(by_hand))


def test_the_posterior_by_hand() -> None:
    mixer = Mixer(blank([[0.25, 0.75]], posterior=True), CPU)
    first = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    second = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    third = torch.tensor([[0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    chosen = torch.tensor([0])
    mixer.mixed(first.log())
    mixer.told(chosen)
    posterior = torch.tensor([0.25 * 0.5, 0.75 * 0.1])
    by_hand = posterior @ second / posterior.sum()
    torch.testing.assert_close(mixer.mixed(second.log() + 4).softmax(-1)[0], by_hand)
    mixer.told(chosen + 2)
    posterior *= torch.tensor([0.1, 0.6])
    by_hand = posterior @ third / posterior.sum()
    torch.testing.assert_close(mixer.mixed(third.log()).softmax(-1)[0], by_hand)


def test_the_posterior_is_the_mixture_of_whole_answers() -> None:
    """Σᵢ wᵢ Πₜ p(yₜ | Mⁱ), however the chain rule is walked."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(5, 3, 7, generator=generator).log_softmax(-1)
    weights = torch.tensor([0.2, 0.5, 0.3])
    answer = [3, 0, 6, 6, 2]
    mixer = Mixer(blank([weights.tolist()], posterior=True), CPU)
    log_likelihood = 0.0
    for logits, token in zip(steps, answer, strict=True):
        log_likelihood += float(mixer.mixed(logits).log_softmax(-1)[0, token])
        mixer.told(torch.tensor([token]))
    whole = sum(
        weight * math.prod(float(steps[t, i, token].exp()) for t, token in enumerate(answer))
        for i, weight in enumerate(weights.tolist())
    )
    assert log_likelihood == pytest.approx(math.log(whole), abs=1e-4)


@both
def test_a_weight_of_1_gives_its_logits_exactly(posterior: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 50, generator=generator)
    mixer = Mixer(blank([[0.0, 1.0], [1.0], [1.0, 0.0]], posterior=posterior), CPU)
    for _ in range(3):
        assert torch.equal(mixer.mixed(logits), logits[[1, 2, 3]])
        mixer.told(torch.tensor([4, 5, 6]))


def test_half_precision_is_mixed_in_float32() -> None:
    logits = torch.randn(2, 50).bfloat16()
    mixed = Mixer(blank([[0.5, 0.5]]), CPU).mixed(logits)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.softmax(-1)[0], logits.float().softmax(-1).mean(0))


# What is read.


def test_rows_tokens_and_weights_of_ragged_questions() -> None:
    a, b, c = (torch.randn(2, 2, 3, tokens, 5) for tokens in (4, 2, 7))
    prefix = separate([[a, b], [c], [b, a, c]], [[0.25, 0.75], [1.0], [0.5, 0.3, 0.2]])
    assert prefix.memories.shape == (6, 2, 2, 3, 7, 5)
    assert prefix.tokens == (6, 7, 13)
    assert prefix.owners == (0, 0, 1, 2, 2, 2)
    assert prefix.rows_QM.tolist() == [[0, 1, 0], [2, 2, 2], [3, 4, 5]]
    assert prefix.log_weights_QM[1].tolist() == [0.0, -math.inf, -math.inf]
    assert torch.equal(prefix.memories[1, ..., :2, :], b)
    assert prefix.log_weights_BP[1].tolist() == [0.0] * 2 + [-math.inf] * 5
    assert prefix.repeated(["x", "y", "z"]) == ["x", "x", "y", "z", "z", "z"]


def test_resident_equals_separate() -> None:
    bank = torch.randn(6, 2, 2, 3, 4, 5)
    chosen = torch.tensor([[5, 0, 2], [1, 1, 3]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
    resident = separate_resident(bank, chosen, weights, posterior=True)
    ragged = separate(
        [[bank[i] for i in row] for row in chosen.tolist()], list(weights), posterior=True
    )
    for name in ("memories", "log_weights_BP", "rows_QM", "log_weights_QM"):
        assert torch.equal(getattr(resident, name), getattr(ragged, name)), name
    assert resident.tokens == ragged.tokens == (12, 12)
    assert resident.owners == ragged.owners
    assert resident.posterior and ragged.posterior


# Generating.


@both
def test_one_memory_is_read_as_it_always_was(compressor: Compressor, posterior: bool) -> None:
    chosen = [[memory] for memory in memories(compressor)]
    ones = [[1.0]] * 4
    apart = separate(chosen, ones, posterior=posterior)
    for sampling in (SHORT, Sampling(max_new_tokens=12, temperature=1.0, top_p=0.8, seed=3)):
        plain = generate(
            compressor.base, PROMPTS, aggregate(chosen, ones), start=START, sampling=sampling
        )
        mixed = generate(compressor.base, PROMPTS, apart, start=START, sampling=sampling)
        assert mixed == plain
    assert torch.equal(
        logits_of(compressor, PROMPTS, apart),
        logits_of(compressor, PROMPTS, aggregate(chosen, ones)),
    )


@both
def test_weights_of_1_and_0_and_a_memory_twice_are_the_memory(
    compressor: Compressor, posterior: bool
) -> None:
    bank = memories(compressor)

    def ask(chosen: list[int], weights: list[float]) -> list[list[int]]:
        given = separate([[bank[i] for i in chosen]], [weights], posterior=posterior)
        return generate(compressor.base, PROMPTS[:1], given, start=START, sampling=SHORT)

    assert ask([2, 0], [1.0, 0.0]) == ask([2], [1.0])
    assert ask([0, 2], [0.0, 1.0]) == ask([2], [1.0])
    assert ask([2, 2], [0.5, 0.5]) == ask([2], [1.0])
    assert ask([2], [1.0]) != ask([0], [1.0]), "the memories don't matter: nothing is shown"


@both
def test_a_batch_is_its_questions_alone(compressor: Compressor, posterior: bool) -> None:
    given = mixture(compressor, 0, 1, 2, 3, posterior=posterior)
    together = generate(compressor.base, PROMPTS, given, start=START, sampling=SHORT)
    for row, prompt in enumerate(PROMPTS):
        own = mixture(compressor, row, posterior=posterior)
        assert generate(compressor.base, [prompt], own, start=START, sampling=SHORT) == [
            together[row]
        ]
    steps = list(stream(compressor.base, PROMPTS, given, start=START, sampling=SHORT))
    columns = zip(*steps, strict=True)
    assert [[t for t in column if t is not None] for column in columns] == together


@both
def test_tokens_are_the_mixtures_of_each_memory_read_alone(
    compressor: Compressor, posterior: bool
) -> None:
    """The answer, from one reading a memory and token, without a batch or a cache."""
    base, bank = compressor.base, memories(compressor)
    [told] = generate(
        base, PROMPTS[:1], mixture(compressor, 0, posterior=posterior), start=START, sampling=SHORT
    )
    weights = torch.tensor(WEIGHTS[0])
    answer: list[int] = []
    for _ in range(12):
        rows = [
            logits_of(compressor, [PROMPTS[0] + answer], aggregate([[bank[i]]], [[1.0]]))[0]
            for i in CHOICES[0]
        ]
        shares_MV = torch.stack(rows).softmax(-1)
        answer.append(int((weights @ shares_MV).argmax()))
        if posterior:
            weights = weights * shares_MV[:, answer[-1]]
            weights = weights / weights.sum()
    ends = [place for place, token in enumerate(answer) if token in base.end_tokens]
    assert told == answer[: ends[0] if ends else None]
    concatenated = aggregate([[bank[i] for i in CHOICES[0]]], [WEIGHTS[0]])
    assert [told] != generate(base, PROMPTS[:1], concatenated, start=START, sampling=SHORT)


def test_stop_tokens_and_sampling() -> None:
    compressor = small.compressor()
    given = mixture(compressor, 0, 1, 2, 3)

    def ask(stop: tuple[int, ...] = (), **settings: float) -> list[list[int]]:
        sampling = Sampling(max_new_tokens=12, **settings)  # type: ignore[arg-type]
        return generate(
            compressor.base, PROMPTS, given, start=START, sampling=sampling, stop_tokens=stop
        )

    greedy = ask()
    stop = greedy[0][3]
    assert [text[: text.index(stop)] if stop in text else text for text in greedy] == ask((stop,))
    first = ask(temperature=1.0, seed=4)
    assert ask(temperature=1.0, seed=4) == first != ask(temperature=1.0, seed=5)
    assert ask(temperature=5.0, top_p=1e-6, seed=1) == greedy


def test_not_one_prefix_each() -> None:
    compressor = small.compressor()
    with pytest.raises(InputError, match="expected 3 prefixes, got 2"):
        generate(compressor.base, PROMPTS[:3], mixture(compressor, 0, 1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"at least one question and memory, .* got \[\] memories and \[\] weights"),
        ([[]], r"got \[0\] memories and \[0\] weights"),
        ([[-0.5, 1.5]], r"weights of at least 0, one above it, got \[-0.5, 1.5\]"),
        ([[0.0, 0.0]], r"one above it, got \[0.0, 0.0\]"),
        ([[math.nan]], r"one above it, got \[nan\]"),
    ],
)
def test_mistakes(weights: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        blank(weights)


def test_not_a_weight_for_each_memory() -> None:
    memory = torch.zeros(1, 2, 1, 1, 2)
    with pytest.raises(InputError, match=r"got \[2\] memories and \[1\] weights"):
        separate([[memory, memory]], [[1.0]])


# The choice.


def test_the_choice_of_an_aggregation() -> None:
    bank = torch.randn(3, 2, 2, 3, 4, 5)
    chosen, scores = torch.tensor([[2, 0]]), torch.tensor([[3.0, 1.0]])
    for how in ("concatenate", "mix", "posterior"):
        way = Aggregation(how=how, temperature=2.0)
        weights = way.weights(scores)
        torch.testing.assert_close(weights, (scores / 2).softmax(-1))
        found = way.resident_prefix(bank, chosen, scores)
        ragged = way.prefix([[bank[2], bank[0]]], weights)
        assert torch.equal(found.memories, ragged.memories)
        assert way.is_separate is isinstance(found, MixedPrefix) is (how != "concatenate")
        assert getattr(found, "posterior", False) is (how == "posterior")
    usual = Aggregation(how="concatenate").resident_prefix(bank, chosen, scores)
    expected = aggregate_resident(bank, chosen, matching_weights(scores, 1.0))
    assert type(usual) is Prefix
    assert torch.equal(usual.log_weights_BP, expected.log_weights_BP)
    assert DEFAULT_AGGREGATION == Aggregation(how="posterior")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"how": "sum"}, "an aggregation among concatenate, mix, posterior, got 'sum'"),
        ({"temperature": 0.0}, "a temperature of matching above 0, got 0.0"),
        ({"temperature": math.inf}, "a temperature of matching above 0, got inf"),
        ({"temperature": math.nan}, "a temperature of matching above 0, got nan"),
    ],
)
def test_aggregations_without_meaning(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Aggregation(**settings)  # type: ignore[arg-type]
