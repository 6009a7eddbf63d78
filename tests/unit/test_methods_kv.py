"""Key/value memory as a method: what `cmt eval` measures, learned in any number of calls."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from cmt.aggregating import Aggregation
from cmt.errors import CheckpointError, InputError
from cmt.evaluation.qa import evaluate
from cmt.evaluation.stream import run_stream
from cmt.methods import kv_memory
from cmt.methods.answering import AnswerConfig
from cmt.methods.kv_memory import KvMemory, KvMemoryConfig, TrainedKvMemory
from tests import small
from tests.unit import method_pieces

DATA = small.dataset(20)
ASKED = [question.text for question in DATA.questions]
ANSWERS = AnswerConfig(max_new_tokens=4, batch_size=8)


@pytest.mark.parametrize("vector_size", [0, 8])
@pytest.mark.parametrize(("top_k", "rerank"), [(1, 0), (3, 0), (1, 6), (3, 6), (7, 6)])
def test_it_answers_as_evaluation_does(top_k: int, rerank: int, vector_size: int) -> None:
    compressor = small.compressor(vector_size=vector_size).eval().requires_grad_(False)
    expected = evaluate(
        compressor, DATA, top_k=(top_k,), rerank=rerank, given=False, batch_size=8,
        max_new_tokens=4, aggregation=Aggregation(how="concatenate"),
    )  # fmt: skip
    method = KvMemory(compressor, KvMemoryConfig(top_k=top_k, rerank=rerank), ANSWERS)
    result = run_stream(method, DATA, window=64)
    assert result.scores.predictions == expected.found[top_k].predictions
    if top_k <= rerank or not rerank:  # else the method's order is that of all seven it reads
        assert result.recall == {k: expected.recall[k] for k in (1, 5)}
    assert result.costs.bytes_stored >= expected.bytes_per_memory


def test_answers_end_with_the_compressors_own_end_token() -> None:
    compressor = small.compressor().eval().requires_grad_(False)
    whole = evaluate(compressor, DATA, given=False, batch_size=8, max_new_tokens=4)
    ends = set()
    for token in range(compressor.base.model.config.vocab_size):  # one that is said
        if token in ends or compressor.base.tokenizer.decode([token]) not in "".join(
            whole.found[1].predictions
        ):
            continue
        compressor.end_token = token
        cut = evaluate(compressor, DATA, given=False, batch_size=8, max_new_tokens=4)
        if cut.found[1].predictions != whole.found[1].predictions:
            break
    assert cut.found[1].predictions != whole.found[1].predictions
    method = KvMemory(compressor, KvMemoryConfig(), ANSWERS)
    assert run_stream(method, DATA).scores.predictions == cut.found[1].predictions


def test_the_whole_bank_is_read_where_nothing_is_selected() -> None:
    compressor = small.compressor().eval().requires_grad_(False)
    method = KvMemory(compressor, KvMemoryConfig(top_k=0), ANSWERS)
    method.learn(DATA.documents)
    replies = method.answer(ASKED[:3])
    assert {reply.memory_tokens for reply in replies} == {20 * 4}
    many = KvMemory(compressor, KvMemoryConfig(top_k=99), ANSWERS)
    many.learn(DATA.documents)
    assert [r.text for r in many.answer(ASKED[:3])] == [r.text for r in replies]


def test_a_gpu_reads_as_many_places_as_it_has_room_for() -> None:
    on_cpu = torch.zeros(5, 3, 2, 2, 4, 8, dtype=torch.bfloat16)  # D, L, 2, G, K, E
    bank = mock.Mock(memories=on_cpu)
    assert kv_memory.most_places(bank) == kv_memory.MOST_PLACES
    row = mock.Mock(nbytes=on_cpu[0].nbytes)  # 192 bytes a place
    memories = mock.MagicMock(device=torch.device("cuda"), shape=on_cpu.shape)
    memories.__getitem__.return_value = row
    card = mock.Mock(total_memory=8 * 192 * 1000)
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=card):
        assert kv_memory.most_places(mock.Mock(memories=memories)) == 1000


def test_what_reranking_reads_is_told() -> None:
    compressor = small.compressor().eval().requires_grad_(False)
    read = []
    for rerank in (0, 1, 6):
        method = KvMemory(compressor, KvMemoryConfig(rerank=rerank), ANSWERS)
        method.learn(DATA.documents)
        (reply,) = method.answer(ASKED[:1])
        read.append((reply.text_tokens, reply.memory_tokens))
    assert read[0] == read[1] == (read[0][0], 4)
    assert read[2] == (7 * read[0][0], 7 * 4)  # once after each of six memories, once to answer
    several = KvMemory(compressor, KvMemoryConfig(top_k=3, rerank=2), ANSWERS)
    several.learn(DATA.documents)
    (reply,) = several.answer(ASKED[:1])  # all three that are read
    assert (reply.text_tokens, reply.memory_tokens) == (4 * read[0][0], 6 * 4)


def test_a_long_document_is_found_by_any_piece() -> None:
    compressor = small.compressor(max_piece_tokens=16).eval().requires_grad_(False)
    method = KvMemory(compressor, KvMemoryConfig(), ANSWERS)
    method.learn(DATA.documents[:4])
    method.learn(DATA.documents[4:])
    for reply in method.answer(ASKED):
        assert len(set(reply.documents)) == len(reply.documents)
        assert all(0 <= place < 20 for place in reply.documents)


def test_a_trained_one_answers_from_its_checkpoint(tmp_path, monkeypatch) -> None:
    materials = method_pieces.materials(tmp_path)
    first = TrainedKvMemory.build(materials, KvMemoryConfig())
    assert first.reader is materials.base  # not the one whose layers training may have compiled
    (checkpoint,) = (tmp_path / "states").glob("kv_memory-*/checkpoint")
    first.learn(DATA.documents)
    replies = [reply.text for reply in first.answer(ASKED)]
    # cut short between training and saving: it goes on from the state, which has no step to do
    checkpoint.rename(checkpoint.with_name("gone"))
    state = checkpoint.with_name("state")
    state.rename(state.with_name("state.old"))  # and while the state was saved once more
    steps = (checkpoint.parent / "metrics.jsonl").read_text()
    again = TrainedKvMemory.build(method_pieces.materials(tmp_path), KvMemoryConfig())
    assert (checkpoint.parent / "metrics.jsonl").read_text() == steps
    again.learn(DATA.documents)
    assert [reply.text for reply in again.answer(ASKED)] == replies
    # and with the checkpoint alone, the state left behind on another machine, nothing is trained
    monkeypatch.setattr(kv_memory, "train", lambda *_, **__: pytest.fail("trained again"))
    TrainedKvMemory.build(method_pieces.materials(tmp_path), KvMemoryConfig(top_k=3))


def test_questions_before_documents_and_models_without_a_compressor(tmp_path) -> None:
    method = KvMemory(small.compressor(), KvMemoryConfig(), ANSWERS)
    with pytest.raises(InputError, match="at least one document learned before a question"):
        method.answer(["Who?"])
    method.learn([])
    assert method.stored().documents == 0
    materials = method_pieces.materials(tmp_path, checkpoint=None)
    with pytest.raises(CheckpointError, match="expected a base model with a shipped compressor"):
        KvMemory.build(materials, KvMemoryConfig())
    with pytest.raises(InputError, match="expected decoding_alpha of at least 0, got -1"):
        KvMemoryConfig(decoding_alpha=-1)
    with pytest.raises(InputError, match="expected rerank of at least 0, got -1"):
        KvMemoryConfig(rerank=-1)
