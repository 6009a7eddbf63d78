"""Re-ranking: the question's likelihood given a memory, against plain transformers."""

from __future__ import annotations

import pytest
import torch

from cmt import reranking
from cmt.attention import PackedPass, pack
from cmt.reading import QUESTION_PREFIX, question_tokens
from cmt.reranking import by_layer, combined_scores, question_log_likelihoods, rerank_depth
from tests import tiny

DOCUMENTS = ("The lighthouse of Arbon was built in 1823.", "Rivers carry sand to the sea.")
QUESTIONS = ("Who built it?", "What do rivers carry to the sea?")


def own_cache(base, tokens):
    """A document's own keys and values as a memory, (L, 2, G, K, E)."""
    row = torch.tensor([base.tokenizer.bos_token_id, *tokens])
    run = PackedPass(packing=pack([[len(row)]]), capture=torch.arange(1, len(row)))
    base.run_packed(base.embed(row), torch.arange(len(row)), run)
    layers = [torch.stack(pair).transpose(1, 2) for pair in run.captured]
    return torch.stack(layers)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_likelihoods_are_those_of_the_plain_model_after_the_text(family):
    base = tiny.base_model(family)
    encode = base.tokenizer
    length = 12
    texts = [encode(text, add_special_tokens=False)["input_ids"][:length] for text in DOCUMENTS]
    memories = torch.stack([own_cache(base, text) for text in texts])
    questions = question_tokens(base.tokenizer, QUESTIONS)
    candidates = torch.tensor([[0, 1], [1, 0]])
    found = question_log_likelihoods(base, questions, memories, candidates, start=length + 1)
    opening = len(encode(QUESTION_PREFIX, add_special_tokens=False)["input_ids"])
    for row, question in enumerate(questions):
        for column, text in enumerate(candidates[row].tolist()):
            whole = [encode.bos_token_id, *texts[text], *question]
            logits = base.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            places = range(len(whole) - len(question) + opening, len(whole))
            expected = sum(logits[place - 1, whole[place]] for place in places)
            torch.testing.assert_close(found[row, column], expected, rtol=1e-4, atol=1e-3)


def test_memories_by_layer_are_as_packed_attention_takes_them():
    memories = torch.arange(2 * 3 * 2 * 2 * 5 * 4).view(2, 3, 2, 2, 5, 4)
    layers = by_layer(memories)
    assert len(layers) == 3
    keys, values = layers[1]
    assert keys.shape == values.shape == (2, 5, 2, 4)
    assert torch.equal(keys[1, 3, 1], memories[1, 1, 0, 1, 3])
    assert torch.equal(values[0, 4, 0], memories[0, 1, 1, 0, 4])


@pytest.mark.parametrize(
    ("top_k", "rerank", "depth"),
    [(1, 0, 0), (1, 1, 0), (5, 1, 0), (1, 2, 2), (1, 4, 4), (4, 4, 4), (5, 4, 5), (3, 2, 3)],
)
def test_all_that_are_read_are_re_ranked_or_none(top_k, rerank, depth):
    assert rerank_depth(top_k, rerank) == depth


def test_scores_are_combined():
    logits, likelihoods = torch.tensor([[10.0, 18.0]]), torch.tensor([[-10.0, -30.0]])
    assert combined_scores(logits, likelihoods, 0.5).tolist() == [[5.0, 3.0]]


@torch.no_grad()
def test_memories_of_several_sizes_are_read_as_by_themselves():
    base = tiny.base_model()
    encode = base.tokenizer
    texts = [encode(text, add_special_tokens=False)["input_ids"] for text in DOCUMENTS]
    lengths = (12, 5, 12)
    memories = [own_cache(base, text[:length]) for text, length in zip(
        [*texts, texts[1][2:]], lengths, strict=True)]  # fmt: skip
    questions = question_tokens(base.tokenizer, QUESTIONS)
    candidates = torch.tensor([[0, 1, 2], [1, 1, 0]])
    found = question_log_likelihoods(base, questions, memories, candidates, start=13)
    assert found.shape == (2, 3)
    for row, question in enumerate(questions):
        for column, place in enumerate(candidates[row].tolist()):
            alone = question_log_likelihoods(
                base, [question], memories[place][None], torch.tensor([[0]]), start=13
            )
            torch.testing.assert_close(found[row, column], alone[0, 0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("listed", [False, True])
@torch.no_grad()
def test_many_readings_are_several_passes(listed, monkeypatch):
    base = tiny.base_model()
    encode = base.tokenizer
    texts = [encode(text, add_special_tokens=False)["input_ids"][:9] for text in DOCUMENTS]
    bank = [own_cache(base, text) for text in (*texts, texts[0][::-1])]
    memories = bank if listed else torch.stack(bank)
    questions = question_tokens(base.tokenizer, [*QUESTIONS, "Where?"])
    candidates = torch.tensor([[0, 1], [2, 0], [1, 1]])
    whole = question_log_likelihoods(base, questions, memories, candidates, start=5)
    sizes = []
    real = reranking._pairs
    longest = max(map(len, questions))
    monkeypatch.setattr(reranking, "MOST_TOKENS", 5 * longest - 1)

    def counted(base, asked, *rest):
        sizes.append(len(asked))
        return real(base, asked, *rest)

    monkeypatch.setattr(reranking, "_pairs", counted)
    parts = question_log_likelihoods(base, questions, memories, candidates, start=5)
    assert sizes == [4, 2]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-3)
