"""Asking a dataset that was learned, scoring: ranks, readings, figures, mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt.aggregating import Aggregation
from cmt.aggregation import aggregate, matching_weights
from cmt.bank import Bank
from cmt.compressor import Compressor
from cmt.datasets.qa import QADataset, Question
from cmt.encoding import encode_documents, encode_questions
from cmt.errors import DocumentError, InputError
from cmt.evaluation import qa
from cmt.evaluation.qa import evaluate, score
from cmt.generation import Sampling, generate
from cmt.late_interaction import late_scores
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.reading import question_tokens
from cmt.records import Document
from cmt.reranking import combined_scores, question_log_likelihoods
from cmt.resident import learn
from tests import small


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    """By key alone, so that what is found can be told from keys."""
    return small.compressor(vector_size=0)


@pytest.fixture(scope="module")
def dataset() -> QADataset:
    return small.long_dataset()


def test_ranks_count_a_document_by_its_best_piece() -> None:
    # pieces 0 | 1 2 | 3 of three documents; questions on documents 1, 2, 0
    owners = torch.tensor([0, 1, 1, 2])
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.3, 0.8, 0.9, 0.5], [0.4, 0.4, 0.4, 0.4]])
    own = owners[None] == torch.tensor([1, 2, 0])[:, None]
    # document 1 is first by its second piece; document 2 comes after document 1, which counts
    # once; of equals nobody is better
    assert qa.document_ranks(scores, own, owners, 3) == [1, 2, 1]


def test_recall_is_of_those_ranks(compressor: Compressor, dataset: QADataset) -> None:
    result = evaluate(compressor, dataset, given=False, max_new_tokens=1, resamples=10)
    tokens, owners = small.pieces(compressor, dataset)
    [(_, encoded)] = encode_documents(compressor, tokens)
    keys = encoded.document_keys_DC
    asked = question_tokens(compressor.base.tokenizer, [q.text for q in dataset.questions])
    scores = encode_questions(compressor, asked).keys_QC @ keys.T
    ranks = []
    for row, question in zip(scores.tolist(), dataset.questions, strict=True):
        best = [max(s for s, o in zip(row, owners, strict=True) if o == d) for d in range(5)]
        ranks.append(sorted(best, reverse=True).index(best[question.document]) + 1)
    assert set(result.recall) == {1, 3, 5, 10}
    for k, percent in result.recall.items():
        assert percent == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks))
    assert result.given is None


def answers_alone(compressor: Compressor, dataset: QADataset, choose: Any, number: int) -> str:
    """A question answered by itself from the pieces that `choose` picks out of its scores."""
    _, owners = small.pieces(compressor, dataset)
    bank = learn(compressor, dataset)
    memories, keys = bank.memories, bank.keys
    [prompt] = question_tokens(compressor.base.tokenizer, [dataset.questions[number].text])
    scores = (encode_questions(compressor, [prompt]).keys_QC @ keys.T)[0]
    chosen = choose(scores, owners, dataset.questions[number].document)
    weights = matching_weights(scores[chosen], compressor.scale().item())
    prefix = aggregate([[memories[i] for i in chosen]], [weights])
    [text] = generate(
        compressor.base, [prompt], prefix, start=97, sampling=Sampling(max_new_tokens=6)
    )
    return str(compressor.base.tokenizer.decode(text, skip_special_tokens=True)).strip()


def test_readings_are_the_questions_answered_alone(
    compressor: Compressor, dataset: QADataset
) -> None:
    result = evaluate(
        compressor, dataset, top_k=(1, 3), batch_size=3, max_new_tokens=6, resamples=10,
        aggregation=Aggregation(how="concatenate"),
    )  # fmt: skip

    def best(k: int) -> Any:
        return lambda scores, owners, right: scores.topk(k).indices.tolist()

    def own(scores: torch.Tensor, owners: list[int], right: int) -> list[int]:
        return [max((float(scores[i]), i) for i, o in enumerate(owners) if o == right)[1]]

    assert result.given is not None
    for number in range(len(dataset.questions)):
        for scored, choose in (
            (result.found[1], best(1)),
            (result.found[3], best(3)),
            (result.given, own),
        ):
            assert scored.predictions[number] == answers_alone(compressor, dataset, choose, number)
    assert result.found[1].predictions != result.found[3].predictions
    assert result.found[1].predictions != result.given.predictions


@pytest.mark.parametrize("depth", [3, 100])
def test_reranked_readings_are_those_questions_alone(
    compressor: Compressor, dataset: QADataset, depth: int
) -> None:
    """The best by key, all that are read among them, read one at a time by the frozen model."""
    bank = learn(compressor, dataset)
    prompts = question_tokens(compressor.base.tokenizer, [q.text for q in dataset.questions])
    scale = compressor.scale().item()
    result = evaluate(
        compressor, dataset, top_k=(1, 5), rerank=depth, bank=bank, batch_size=3, max_new_tokens=6,
        resamples=10, aggregation=Aggregation(how="concatenate"),
    )  # fmt: skip
    ranks = []
    for number, prompt in enumerate(prompts):
        cosines = (encode_questions(compressor, [prompt]).keys_QC @ bank.keys.T)[0]
        by_key = cosines.argsort(descending=True)
        likelihoods = question_log_likelihoods(
            compressor.base, [prompt], bank.memories, by_key[None], 97
        )
        logits = combined_scores(cosines[by_key] * scale, likelihoods[0])
        for k in (5, 1):
            again = logits[: max(k, depth)].argsort(descending=True)
            order = torch.cat([by_key[again], by_key[max(k, depth) :]])
            weights = matching_weights(logits[again[:k]], 1.0)
            prefix = aggregate([[bank.memories[i] for i in order[:k].tolist()]], [weights])
            [text] = generate(
                compressor.base, [prompt], prefix, start=97, sampling=Sampling(max_new_tokens=6)
            )
            expected = str(compressor.base.tokenizer.decode(text, skip_special_tokens=True))
            assert result.found[k].predictions[number] == expected.strip()
        owners = [int(bank.owners_D[i]) for i in order.tolist()]
        documents = list(dict.fromkeys(owners))
        ranks.append(documents.index(dataset.questions[number].document) + 1)
    for k, percent in result.recall.items():
        assert percent == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks))
    plain = evaluate(compressor, dataset, given=False, bank=bank, max_new_tokens=6, resamples=10)
    assert result.found[1].predictions != plain.found[1].predictions, (
        "re-ranking changes nothing: nothing is shown"
    )
    assert set(result.answer_seconds) == {"rerank", "top_1", "top_5", "given"}


@pytest.mark.parametrize("top_k", [1, 3, 4, 5])
def test_what_is_found_and_answered_is_what_a_memory_says(tmp_path: Path, top_k: int) -> None:
    compressor = small.compressor().eval().requires_grad_(False)
    dataset = small.dataset(12)  # no two memories alike
    options = {"rerank": 4, "aggregation": Aggregation(how="concatenate")}
    result = evaluate(
        compressor, dataset, top_k=(top_k,), max_new_tokens=6, resamples=10, **options
    )
    bank = Bank.open(tmp_path / "bank.sqlite", fingerprint(compressor))
    asked = [question.text for question in dataset.questions]
    with Memory(bank, compressor) as memory:
        memory.add(replace(own, id=f"{number}") for number, own in enumerate(dataset.documents))
        answers = memory.ask(asked, top_k=top_k, sampling=Sampling(max_new_tokens=6), **options)
        first = [memory.search(text)[0].document_id for text in asked]
    for answer, prediction in zip(answers, result.found[top_k].predictions, strict=True):
        assert answer.text == prediction
        assert all(match.log_likelihood is not None for match in answer.matches)
    right = [own == f"{q.document}" for own, q in zip(first, dataset.questions, strict=True)]
    assert result.recall[1] == pytest.approx(100 * sum(right) / len(right))


def test_the_result_says_what_was_measured(compressor: Compressor, dataset: QADataset) -> None:
    told: list[int] = []

    class Progress:
        update = staticmethod(told.append)

    result = evaluate(
        compressor,
        dataset,
        top_k=(2, 100),
        batch_size=4,
        max_new_tokens=2,
        resamples=10,
        progress=Progress(),
    )
    assert (result.documents, result.questions, result.memory_tokens) == (5, 10, 4)
    assert result.pieces > 7
    assert result.bytes_per_memory == 3 * 2 * 2 * 4 * 8 * 2
    assert set(result.found) == {2, 100}, "no more than all of them are read"
    assert set(result.answer_seconds) == {"top_2", "top_100", "given"}
    assert sum(told) == 3 * 10
    assert told[:3] == [4, 4, 2]
    assert all(len(scores.predictions) == 10 for scores in result.found.values())


def test_the_base_model_is_left_as_it_was(dataset: QADataset) -> None:
    compressor = small.compressor()
    before = compressor.base.digest()
    evaluate(compressor, dataset, max_new_tokens=2, resamples=10)
    assert compressor.base.digest() == before
    assert torch.is_grad_enabled()


def test_scores_by_hand() -> None:
    dataset = small.dataset(1)  # asked: who (Clara Weiss), when (in 1800 | 1800)
    scores = score(["clara weiss!", "1800 or so"], dataset, resamples=50)
    assert scores.exact_match == 50.0
    # the first is right; the second shares one word of three with "1800": 2·⅓·1/(⅓+1) = ½
    assert scores.f1 == pytest.approx((100 + 50) / 2)
    assert scores.prefix_exact_match == 100.0, "cut to the truth's length, the peers' figure"
    for low, high in (scores.exact_match_interval, scores.f1_interval):
        assert 0 <= low <= high <= 100
    assert scores.predictions == ["clara weiss!", "1800 or so"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": (1, 0)}, "top_k of at least 1, got 0"),
        ({"top_k": (-2,)}, "top_k of at least 1, got -2"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"resamples": 0}, "resamples of at least 1, got 0"),
        ({"rerank": -1}, "rerank of at least 0, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens of at least 1, got 0"),
    ],
)
def test_numbers_without_sense(
    compressor: Compressor, dataset: QADataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"expected {message}"):
        evaluate(compressor, dataset, **settings)


def test_an_empty_dataset(compressor: Compressor, dataset: QADataset) -> None:
    nothing = QADataset(name="nothing", documents=(), articles=(), questions=())
    with pytest.raises(InputError, match="at least one question in nothing, got none"):
        evaluate(compressor, nothing)
    silent = QADataset(name="silent", documents=dataset.documents, articles=dataset.articles,
                       questions=())  # fmt: skip
    with pytest.raises(InputError, match="at least one question in silent, got none"):
        evaluate(compressor, silent)


def test_an_empty_document(compressor: Compressor) -> None:
    dataset = QADataset(
        name="hollow",
        documents=(Document(text="Something."), Document(text="  \n")),
        articles=(0, 0),
        questions=(Question(id="q", text="What?", answers=("Something",), document=0),),
    )
    with pytest.raises(DocumentError):
        evaluate(compressor, dataset)


@pytest.mark.parametrize("predictions", [[], ["one"], ["one", "two", "three"]])
def test_one_prediction_a_question(predictions: list[str]) -> None:
    dataset = small.dataset(1)
    message = f"each of the 2 questions of towers, at least one, got {len(predictions)}"
    with pytest.raises(InputError, match=message):
        score(predictions, dataset)


@pytest.mark.parametrize("shortlist", [0, 3, 100])
def test_late_interaction_orders_the_shortlist(dataset: QADataset, shortlist: int) -> None:
    """The best by key compared token by token; the others stay below them."""
    compressor = small.compressor()
    bank = learn(compressor, dataset)
    assert bank.vectors_DKV is not None
    prompts = question_tokens(compressor.base.tokenizer, [q.text for q in dataset.questions])
    result = evaluate(
        compressor, dataset, given=False, shortlist=shortlist, bank=bank, max_new_tokens=1,
        resamples=10,
    )  # fmt: skip
    ranks = []
    for prompt, question in zip(prompts, dataset.questions, strict=True):
        asked = encode_questions(compressor, [prompt])
        assert asked.vectors is not None
        by_key = (asked.keys_QC @ bank.keys.T)[0] * compressor.scale()
        late = late_scores(asked.vectors, bank.vectors_DKV.float(), 1)[0]
        order = by_key.argsort(descending=True)
        best, rest = order[:shortlist], order[shortlist:]
        order = torch.cat([best[(by_key + late)[best].argsort(descending=True)], rest])
        owners = list(dict.fromkeys(bank.owners_D[order].tolist()))
        ranks.append(owners.index(question.document) + 1)
    for k, percent in result.recall.items():
        assert percent == pytest.approx(100 * sum(rank <= k for rank in ranks) / len(ranks))
