"""The step's report, its stale keys and the memories it lets questions read."""

from __future__ import annotations

import pytest
import torch

from cmt.compressor import Compressor
from cmt.objectives import pairwise_reranking_loss
from cmt.reading import reading_start
from cmt.reranking import question_log_likelihoods
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small


def corpus(compressor: Compressor, **settings: float) -> TrainingData:
    own = {"documents": 4, "questions_per_document": 2, "retold_share": 0.5, "most_memories": 3}
    return TrainingData(
        small.dataset(),
        compressor.base.tokenizer,
        BatchConfig(**{**own, **settings}),  # type: ignore[arg-type]
        memory_tokens=4,
        max_piece_tokens=96,
    )


def step(compressor: Compressor, **settings: float) -> TrainingStep:
    return TrainingStep(compressor.base, compressor, ObjectiveConfig(**settings), 8)  # type: ignore[arg-type]


@pytest.fixture
def compressor() -> Compressor:
    return small.compressor()


def test_the_loss_is_the_weighted_sum_of_its_parts(compressor: Compressor) -> None:
    batch = corpus(compressor)[0]
    report = step(compressor, matching=0.7, reconstruction=0.2)(batch)
    matched = report["matching"] + report["late_matching"]
    total = report["answer"] + 0.7 * matched + 0.2 * report["reconstruction"]
    torch.testing.assert_close(report["loss"], total)
    assert [name for name, value in report.items() if value.requires_grad] == ["loss"]
    assert 0 <= report["found_in_batch"] <= 1


def test_nothing_to_retell(compressor: Compressor) -> None:
    batch = corpus(compressor, retold_share=0.0)[0]
    report = step(compressor, matching=0.7)(batch)
    assert "reconstruction" not in report
    matched = report["matching"] + report["late_matching"]
    torch.testing.assert_close(report["loss"], report["answer"] + 0.7 * matched)


def test_questions_are_asked_where_the_batches_have_them(compressor: Compressor) -> None:
    batch = corpus(compressor, asked=True, retold_share=0.0)[0]
    report = step(compressor, matching=0.7, asking=0.4)(batch)
    matched = report["matching"] + report["late_matching"]
    total = report["answer"] + 0.7 * matched + 0.4 * report["asking"]
    torch.testing.assert_close(report["loss"], total)


def test_compared_questions_tell_their_memory_from_another(compressor: Compressor) -> None:
    data = corpus(compressor, asked=True, retold_share=0.0, compared_share=1.0, several_share=0.25)
    batch, module = (
        data[0],
        step(compressor, matching=0.7, asking=0.4, reranking=0.6, likelihood_scale=0.5),
    )
    report = module(batch)
    matched = report["matching"] + report["late_matching"]
    total = report["answer"] + 0.7 * matched + 0.4 * report["asking"] + 0.6 * report["reranking"]
    torch.testing.assert_close(report["loss"], total)
    other = batch.reading.packing.groups[2].memories_BM[:, 0]
    own = batch.positives_Q[: batch.compared]
    assert batch.compared == batch.single == len(other) < len(batch.positives_Q)
    assert (other != own).all()
    # what re-ranking itself makes of them
    lengths = batch.compressor.question_lengths[: batch.compared]
    questions = batch.compressor.tokens_N[batch.compressor.question_tokens].split(
        batch.compressor.question_lengths
    )[: len(lengths)]
    with torch.no_grad():
        memories = compressor(batch.compressor).stacked()
    likelihoods = question_log_likelihoods(
        compressor.base,
        [question.tolist() for question in questions],
        memories,
        torch.stack([own, other], dim=1),
        reading_start(96),
    )
    expected = pairwise_reranking_loss(*likelihoods.unbind(1), 0.5)
    torch.testing.assert_close(report["reranking"], expected)


def test_without_late_interaction_only_keys_are_matched() -> None:
    compressor = small.compressor(vector_size=0)
    report = step(compressor, matching=0.7)(corpus(compressor, retold_share=0.0)[0])
    assert "late_matching" not in report
    torch.testing.assert_close(report["loss"], report["answer"] + 0.7 * report["matching"])


def test_stale_keys_are_kept_and_never_their_own_documents_negatives(
    compressor: Compressor,
) -> None:
    data = corpus(compressor)
    with_stale, without = step(compressor, stale_keys=True), step(compressor, stale_keys=False)
    first, second = data[0], data[1]
    with torch.no_grad():
        assert with_stale(first)["matching"] == without(first)["matching"], "none yet"
        keys = compressor(first.compressor).document_keys_DC
        kept = with_stale.stale_keys_XC
        torch.testing.assert_close(kept[first.document_ids_D], keys)
        others = [i for i in range(8) if i not in first.document_ids_D.tolist()]
        assert not kept[others].any()
        assert with_stale(first)["matching"] == without(first)["matching"], "only its own"
        assert with_stale(second)["matching"] > without(second)["matching"], "four negatives more"
        assert kept.any(dim=1).all()


def test_stale_keys_travel_with_the_state_where_they_are_used(compressor: Compressor) -> None:
    own = {f"compressor.{name}" for name in compressor.state_dict()}
    plain, with_stale = step(compressor), step(compressor, stale_keys=True)
    assert plain.stale_keys_XC is None
    assert set(plain.state_dict()) == own
    assert set(with_stale.state_dict()) == {"stale_keys_XC"} | own


def test_states_that_hold_stale_keys_not_used_still_load(compressor: Compressor) -> None:
    plain, with_stale = step(compressor), step(compressor, stale_keys=True)
    plain.load_state_dict(with_stale.state_dict())  # as all were saved once
    assert plain.stale_keys_XC is None
    with pytest.raises(RuntimeError, match="stale_keys_XC"):
        with_stale.load_state_dict(plain.state_dict())


def test_every_question_reads_its_own_memory_first_and_no_memory_twice(
    compressor: Compressor,
) -> None:
    data, module = corpus(compressor), step(compressor)
    for number in range(6):
        batch = data[number]
        with torch.no_grad():
            module(batch)
        one, several, retold = batch.reading.packing.groups
        positives = batch.positives_Q
        assert torch.equal(one.memories_BM[:, 0], positives[: batch.single])
        assert one.weights_BM is None
        assert several.memories_BM.shape == (len(positives) - batch.single, 3)
        assert torch.equal(several.memories_BM[:, 0], positives[batch.single :])
        for row in several.memories_BM.tolist():
            assert len(set(row)) == 3
        weights = several.weights_BM.exp()
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
        assert torch.equal((weights > 0).sum(1), torch.full((len(weights),), batch.memories))
        assert torch.equal(retold.memories_BM[:, 0], batch.retold_R)


def test_noise_decides_which_other_memories_are_read(compressor: Compressor) -> None:
    data = corpus(compressor)

    def chosen(noise: float, seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        batch = data[0]
        with torch.no_grad():
            step(compressor, distractor_noise=noise)(batch)
        return batch.reading.packing.groups[1].memories_BM.tolist()

    assert chosen(0.0, 1) == chosen(0.0, 2), "the hardest ones, always"
    assert chosen(50.0, 1) == chosen(50.0, 1)
    assert len({str(chosen(50.0, seed)) for seed in range(5)}) > 1


def test_memory_aware_loss_needs_the_memory_to_matter(compressor: Compressor) -> None:
    data = corpus(compressor)
    torch.manual_seed(0)
    plain = step(compressor)(data[0])
    torch.manual_seed(0)
    aware = step(compressor, alpha=0.5)(data[0])
    assert plain["answer"] != aware["answer"]
    assert plain["matching"] == aware["matching"]


def test_a_step_of_a_smaller_size_trains_the_vectors_it_reads() -> None:
    compressor = small.compressor(memory_sizes=(2,))
    data = TrainingData(
        small.dataset(),
        compressor.base.tokenizer,
        BatchConfig(documents=4, retold_share=0.5, most_memories=3, size_shares=(1.0, 0.0)),
        memory_tokens=4,
        memory_sizes=(2,),
        max_piece_tokens=96,
    )
    step(compressor)(data[0])["loss"].backward()
    gradient = compressor.memory_embeddings.grad
    assert gradient is not None
    assert gradient.any(1).tolist() == [False, True, False, True]
