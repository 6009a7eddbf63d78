"""The compressor: shapes, positions, batches, keys, gradients, configuration."""

from __future__ import annotations

import pytest
import torch

from cmt.attention import PackedPass, pack
from cmt.compressor import Compressor, CompressorConfig, prepare
from cmt.encoding import batches, encode_documents, encode_questions
from cmt.errors import InputError
from cmt.tensors import move
from cmt.training.data import BatchConfig, TrainingData
from cmt.training.step import ObjectiveConfig, TrainingStep
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@families
def test_shapes(family: str) -> None:
    compressor = small.compressor(family)
    kv_heads = {"llama": 2, "qwen": 2, "gpt2": 4}[family]
    encoded = compressor(prepare(small.tokens(11, 5, 8), small.tokens(6, 3), 4))
    assert len(encoded.memories) == 3
    for keys, values in encoded.memories:
        assert keys.shape == values.shape == (3, 4, kv_heads, 8)
    assert encoded.document_keys_DC.shape == (3, 16)
    assert encoded.question_keys_QC.shape == (2, 16)
    assert encoded.document_keys_DC.dtype == torch.float32
    stacked = encoded.stacked()
    assert stacked.shape == (3, 3, 2, kv_heads, 4, 8)
    for layer, (keys, values) in enumerate(encoded.memories):
        assert torch.equal(stacked[:, layer, 0], keys.transpose(1, 2))
        assert torch.equal(stacked[:, layer, 1], values.transpose(1, 2))


def test_keys_are_unit_vectors() -> None:
    compressor = small.compressor()
    encoded = compressor(prepare(small.tokens(11, 5, 8), small.tokens(6, 3), 4))
    keys = torch.cat([encoded.document_keys_DC, encoded.question_keys_QC])
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


def test_positions_as_documented() -> None:
    batch = prepare([[5] * 10, [6] * 2], [[7] * 3], 4)
    assert batch.tokens_N.tolist() == [5] * 10 + [0] * 5 + [6] * 2 + [0] * 5 + [7] * 3 + [0]
    first, second, question = batch.positions_N.split([15, 7, 4])
    # text at 1 … n, memory tokens at the middles of four equal parts of it, the key at n + 1
    assert first.tolist() == [*range(1, 11), 2, 4, 7, 9, 11]
    assert second.tolist() == [1, 2, 1, 1, 2, 2, 3]
    assert question.tolist() == [1, 2, 3, 4]
    # all memory tokens, then the documents' keys, then the questions'
    assert batch.special_S.tolist() == [10, 11, 12, 13, 17, 18, 19, 20, 14, 21, 25]
    assert batch.document_tokens.tolist() == [*range(10), 15, 16]
    assert batch.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 6]
    assert [group.index_BT.shape for group in batch.packing.groups] == [(2, 15), (1, 4)]


def test_memory_tokens_begin_as_learned_vector_plus_mean_of_their_text() -> None:
    compressor = small.compressor()
    [document] = small.tokens(8)
    seen: list[torch.Tensor] = []
    hook = compressor.base.layers[0].register_forward_pre_hook(
        lambda layer, args: seen.append(args[0][0])
    )
    compressor(prepare([document], [], 4))
    hook.remove()
    embedded = compressor.base.embed(torch.tensor(document))
    for k in range(4):
        expected = embedded[2 * k : 2 * k + 2].mean(0) + compressor.memory_embeddings[k]
        torch.testing.assert_close(seen[0][8 + k], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[0][12], compressor.document_key_embedding)


@families
def test_a_document_alone_is_the_document_in_a_batch(family: str) -> None:
    compressor = small.compressor(family)
    documents, questions = small.tokens(30, 7, 1, 16), small.tokens(6, 3, seed=1)
    with torch.no_grad():
        together = compressor(prepare(documents, questions, 4))
        stacked = together.stacked()
        for number, document in enumerate(documents):
            alone = compressor(prepare([document], [], 4))
            torch.testing.assert_close(alone.stacked()[0], stacked[number], **CLOSE)
            torch.testing.assert_close(
                alone.document_keys_DC[0], together.document_keys_DC[number], **CLOSE
            )
        for number, question in enumerate(questions):
            alone = compressor(prepare([], [question], 4))
            torch.testing.assert_close(
                alone.question_keys_QC[0], together.question_keys_QC[number], **CLOSE
            )


def test_a_memory_depends_on_every_token_of_its_document() -> None:
    compressor = small.compressor()
    [document] = small.tokens(12)
    with torch.no_grad():
        whole = compressor(prepare([document], [], 4)).stacked()
        for place in range(12):
            other = [*document[:place], document[place] ^ 1, *document[place + 1 :]]
            assert not torch.equal(compressor(prepare([other], [], 4)).stacked(), whole)


def test_lora_shapes_the_memory_and_not_the_reading() -> None:
    compressor = small.compressor()
    [document] = small.tokens(12)
    with torch.no_grad():
        before = compressor(prepare([document], [], 4)).stacked()
        for parameter in compressor.lora.parameters():
            parameter.mul_(2)
        assert not torch.equal(compressor(prepare([document], [], 4)).stacked(), before)
        row = compressor.base.embed(torch.tensor(document))
        read = compressor.base.run_packed(row, torch.arange(12), PackedPass(packing=pack([[12]])))
        plain = tiny.base_model().run_packed(
            row, torch.arange(12), PackedPass(packing=pack([[12]]))
        )
    assert torch.equal(read, plain)


def test_scale_is_the_exponential_of_its_parameter_up_to_100() -> None:
    compressor = Compressor(tiny.base_model(), small.config())
    assert compressor.scale().item() == pytest.approx(20.0)
    with torch.no_grad():
        compressor.log_scale.fill_(9.0)
    assert compressor.scale().item() == 100.0


def test_fingerprint_changes_with_weights_and_configuration() -> None:
    compressor = small.compressor()
    first = compressor.fingerprint()
    assert small.compressor().fingerprint() == first
    assert small.compressor(seed=1).fingerprint() != first
    for name, parameter in compressor.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1.0
        assert compressor.fingerprint() != first, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert compressor.fingerprint() == first
    compressor.config.overlap_tokens += 1
    assert compressor.fingerprint() != first
    other = small.compressor(max_piece_tokens=97)
    assert other.fingerprint() != first


@families
def test_gradients_reach_every_parameter(family: str) -> None:
    compressor = small.compressor(family)
    base = compressor.base
    data = TrainingData(
        small.dataset(),
        base.tokenizer,
        BatchConfig(documents=4, retold_share=0.5, most_memories=3),
        memory_tokens=4,
        max_piece_tokens=96,
    )
    step = TrainingStep(base, compressor, ObjectiveConfig(alpha=0.5), len(data.documents))
    step(data[0])["loss"].backward()
    for name, parameter in compressor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert all(parameter.grad is None for _, parameter in base.own_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_tokens": 0}, "expected memory_tokens of at least 1, got 0"),
        ({"key_size": 0}, "expected key_size of at least 1, got 0"),
        ({"lora_rank": 0}, "expected lora_rank of at least 1, got 0"),
        ({"lora_alpha": 0}, "expected lora_alpha of at least 1, got 0"),
        ({"max_piece_tokens": -3}, "expected max_piece_tokens of at least 1, got -3"),
        ({"overlap_tokens": -1}, "expected overlap_tokens of at least 0, got -1"),
        ({"memory_tokens": 2.5}, "expected memory_tokens of at least 1, got 2.5"),
        ({"key_size": "16"}, "expected key_size of at least 1, got '16'"),
        ({"memory_sizes": (40,)}, r"memory_sizes from 1 to memory_tokens \(32\), got \(40,\)"),
        ({"memory_sizes": (0, 2)}, r"memory_sizes from 1 to memory_tokens \(32\), got \(0, 2\)"),
        ({"memory_sizes": (2.0,)}, r"memory_sizes from 1 to memory_tokens \(32\), got \(2.0,\)"),
        ({"memory_sizes": 2}, r"memory_sizes from 1 to memory_tokens \(32\), got 2"),
        (
            {"max_piece_tokens": 32, "overlap_tokens": 32},
            r"expected overlap_tokens below max_piece_tokens \(32\), got 32",
        ),
    ],
)
def test_configurations_that_cannot_work(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompressorConfig(**changes)


def test_pieces_longer_than_the_model_reads_are_refused() -> None:
    base = tiny.base_model()
    with pytest.raises(
        InputError, match=r"max_piece_tokens of at most 1022 over tiny-llama, .* got 1023"
    ):
        Compressor(base, small.config(max_piece_tokens=1023))
    Compressor(base, small.config(max_piece_tokens=1022))  # and the refused one left no trace


def test_gpt2_compresses_the_longest_piece_it_takes() -> None:
    compressor = small.compressor("gpt2", max_piece_tokens=1022)
    encoded = compressor(prepare(small.tokens(1022), [], 4))
    assert encoded.document_keys_DC.isfinite().all()


def test_empty_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"one token a document, got none in no\. 1"):
        prepare([[1], []], [], 4)
    with pytest.raises(InputError, match="at least one document or question, got neither"):
        prepare([], [], 4)


# encoding.py


def test_batches_are_consecutive_and_bounded() -> None:
    lengths = [3, 4, 9, 1, 1, 12, 2]
    found = list(batches(lengths, 8))
    assert found == [[0, 1], [2], [3, 4], [5], [6]]
    assert list(batches([], 8)) == []


def test_encoding_in_batches_is_encoding_at_once() -> None:
    compressor = small.compressor()
    documents = small.tokens(30, 7, 1, 16, 25)
    [(all_indices, encoded)] = encode_documents(compressor, documents)
    memories, keys = encoded.stacked(), encoded.document_keys_DC
    vectors = encoded.document_vectors_DKV
    assert all_indices == [0, 1, 2, 3, 4]
    assert vectors is not None
    assert vectors.shape == (5, 4, 8)
    assert memories.shape == (5, 3, 2, 2, 4, 8)
    assert not memories.requires_grad
    indices: list[int] = []
    for batch, part in encode_documents(compressor, documents, batch_tokens=40):
        torch.testing.assert_close(part.stacked(), memories[batch], **CLOSE)
        torch.testing.assert_close(part.document_keys_DC, keys[batch], **CLOSE)
        torch.testing.assert_close(part.document_vectors_DKV, vectors[batch], **CLOSE)
        indices += batch
    assert indices == all_indices
    questions = small.tokens(6, 3, 9, seed=1)
    at_once = encode_questions(compressor, questions)
    in_batches = encode_questions(compressor, questions, 8)
    assert at_once.keys_QC.shape == (3, 16)
    torch.testing.assert_close(in_batches.keys_QC, at_once.keys_QC, **CLOSE)
    one, other = at_once.vectors, in_batches.vectors
    assert one is not None
    assert other is not None
    assert one.owners_T.tolist() == other.owners_T.tolist() == [0] * 6 + [1] * 3 + [2] * 9
    torch.testing.assert_close(other.vectors_TV, one.vectors_TV, **CLOSE)
    torch.testing.assert_close(other.weights_T, one.weights_T, **CLOSE)


def test_vectors_are_unit_vectors_and_weights_positive() -> None:
    encoded = small.compressor()(prepare(small.tokens(9, 5), small.tokens(4, 3, seed=1), 4))
    assert encoded.document_vectors_DKV is not None
    assert encoded.question_vectors is not None
    for vectors in (encoded.document_vectors_DKV, encoded.question_vectors.vectors_TV):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert bool((encoded.question_vectors.weights_T > 0).all())


def test_a_compressor_without_late_interaction_has_no_vectors() -> None:
    compressor = small.compressor(vector_size=0)
    encoded = compressor(prepare(small.tokens(9), small.tokens(4), 4))
    assert encoded.document_vectors_DKV is None
    assert encoded.question_vectors is None
    assert encode_questions(compressor, small.tokens(4)).vectors is None


def test_encoding_nothing_gives_nothing() -> None:
    compressor = small.compressor()
    assert encode_questions(compressor, []).keys_QC.shape == (0, 16)
    assert list(encode_documents(compressor, [])) == []


def test_move_keeps_a_batch_whole() -> None:
    batch = prepare(small.tokens(5), small.tokens(3), 4)
    moved = move(batch, "cpu")
    assert moved is not batch
    assert moved.packing.groups[0] is not batch.packing.groups[0]
    assert torch.equal(moved.tokens_N, batch.tokens_N)
    assert moved.documents == 1
    assert isinstance(moved.packing.groups, tuple)
    assert move(torch.zeros(1), "meta").device.type == "meta"
    assert move(batch, "meta").special_S.device.type == "meta"


def test_a_smaller_size_reads_an_even_spread_of_the_learned_vectors() -> None:
    compressor = small.compressor(memory_sizes=(2,))
    lone = small.compressor(memory_tokens=2)
    with torch.no_grad():
        own = compressor.state_dict()
        own["memory_embeddings"] = own["memory_embeddings"][[1, 3]]
        lone.load_state_dict(own)
        documents = small.tokens(9, 23, 2)
        [(_, encoded)] = encode_documents(compressor, documents, memory_tokens=2)
        [(_, expected)] = encode_documents(lone, documents)
    assert encoded.stacked().shape[4] == 2
    assert torch.equal(encoded.stacked(), expected.stacked())
    assert torch.equal(encoded.document_keys_DC, expected.document_keys_DC)
    assert encoded.document_vectors_DKV is not None
    assert expected.document_vectors_DKV is not None
    assert torch.equal(encoded.document_vectors_DKV, expected.document_vectors_DKV)


def test_other_sizes_change_nothing_at_the_full_one() -> None:
    documents = small.tokens(9, 23)
    [(_, mixed)] = encode_documents(small.compressor(memory_sizes=(1, 2)), documents)
    [(_, plain)] = encode_documents(small.compressor(), documents)
    assert torch.equal(mixed.stacked(), plain.stacked())


def test_sizes_are_ascending_and_part_of_the_fingerprint_only_where_there_are_several() -> None:
    assert small.config().sizes == (4,)
    assert small.config(memory_sizes=(2, 4, 1, 2)).sizes == (1, 2, 4)
    assert "memory_sizes" not in small.config().described()
    plain, named = small.compressor(), small.compressor(memory_sizes=(4,))
    assert plain.fingerprint() == named.fingerprint()
    assert plain.fingerprint() != small.compressor(memory_sizes=(2,)).fingerprint()


def test_a_size_it_is_not_trained_for() -> None:
    compressor = small.compressor(memory_sizes=(2,))
    for wrong in (3, 2.0):
        with pytest.raises(InputError, match=r"memory_tokens out of 2, 4, .* trained for, got"):
            list(encode_documents(compressor, small.tokens(5), memory_tokens=wrong))
