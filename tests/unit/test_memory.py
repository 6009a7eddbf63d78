import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cmt import Document, Failure, finding, memory
from cmt.bank import Bank, Counts, preparing
from cmt.checkpoint import save_pretrained
from cmt.compressor import Compressor, CompressorConfig
from cmt.errors import (
    BankError,
    CheckpointError,
    EmptyBankError,
    FingerprintMismatchError,
    InputError,
    UnknownIdError,
)
from cmt.generation import Sampling, generate
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.reading import question_tokens
from cmt.records import EncodedPiece
from tests import tiny

SMALL = CompressorConfig(
    memory_tokens=4, key_size=16, lora_rank=2, lora_alpha=4, max_piece_tokens=48, overlap_tokens=8
)
FACTS = [
    Document(
        text="The lighthouse of Arbon was built in 1823 by Clara Weiss.",
        id="arbon",
        title="Arbon",
        date="2024-05-31",
        source="https://example.org/arbon",
        metadata={"page": 3},
    ),
    Document(text="Rivers carry sand, silt and clay to the sea.", id="rivers"),
    Document(text="The delta of Mirna grows 12 metres a year.", id="mirna"),
]
QUESTIONS = ["Who built it?", "How much does the delta of Mirna grow a year?", "What?"]
SHORT = Sampling(max_new_tokens=12)


def make_compressor(family="llama", seed=0):
    base = tiny.base_model(family)
    torch.manual_seed(seed)
    compressor = Compressor(base, SMALL)
    with torch.no_grad():  # fresh LoRA does nothing
        for parameter in compressor.lora.parameters():
            parameter.normal_(std=0.3)
    return compressor


@pytest.fixture(scope="module")
def compressor():
    return make_compressor()


@pytest.fixture
def empty(tmp_path, compressor):
    with Memory(Bank.open(tmp_path / "m.sqlite", fingerprint(compressor)), compressor) as made:
        yield made


@pytest.fixture
def learned(empty):
    empty.add(FACTS)
    return empty


@pytest.fixture
def compressed(monkeypatch):
    """Token ids of every piece that is compressed."""
    seen = []
    encode = memory.encode_documents

    def counting(compressor, pieces, *sizes):
        seen.extend(pieces)
        return encode(compressor, pieces, *sizes)

    monkeypatch.setattr(memory, "encode_documents", counting)
    return seen


# Opening.


def test_open_takes_a_model_folder_and_a_checkpoint(tmp_path, compressor):
    model = tiny.save(tmp_path / "model")
    save_pretrained(compressor, tmp_path / "checkpoint")
    parts = {"model": str(model), "checkpoint": tmp_path / "checkpoint", "device": "cpu"}
    with Memory.open(tmp_path / "m.sqlite", **parts) as opened:
        opened.add(FACTS)
        answer = opened.ask("Who built it?", sampling=SHORT)
    with Memory.open(tmp_path / "m.sqlite", **parts, read_only=True) as again:
        assert again.ask("Who built it?", sampling=SHORT).text == answer.text
        with pytest.raises(BankError, match="read-only"):
            again.add("Something new.")


def test_a_bank_that_must_exist_is_missed_before_anything_is_loaded(tmp_path):
    with pytest.raises(BankError, match="there is no bank at"):
        Memory.open(tmp_path / "none.sqlite", model="no/such", read_only=True)


def test_without_a_shipped_checkpoint_nothing_is_loaded_or_created(tmp_path):
    with pytest.raises(CheckpointError, match="shipped compressor"):
        Memory.open(tmp_path / "m.sqlite", model="./no-such-model")
    assert not (tmp_path / "m.sqlite").exists()


def test_a_bank_of_other_weights_is_refused(tmp_path, compressor):
    other = make_compressor(seed=1)
    with Bank.open(tmp_path / "m.sqlite", fingerprint(other)) as bank:
        with pytest.raises(FingerprintMismatchError, match=r"expected a bank made by base model"):
            Memory(bank, compressor)
    save_pretrained(compressor, tmp_path / "checkpoint")
    model = tiny.save(tmp_path / "model")
    with pytest.raises(FingerprintMismatchError):
        Memory.open(tmp_path / "m.sqlite", model=str(model), checkpoint=tmp_path / "checkpoint")


def test_after_close_the_bank_is_closed(tmp_path, compressor):
    with Memory(Bank.open(tmp_path / "m.sqlite", fingerprint(compressor)), compressor) as closed:
        pass
    with pytest.raises(BankError, match="is closed"):
        closed.count()


# Adding.


def test_added_documents_come_back_as_they_were(learned):
    stored = learned.get("arbon")
    for field in ("text", "title", "date", "source", "metadata"):
        assert getattr(stored, field) == getattr(FACTS[0], field)
    assert [document.id for document in learned.documents()] == ["arbon", "rivers", "mirna"]
    assert [document.id for document in learned.documents(limit=1, offset=1)] == ["rivers"]


def test_the_report_tells_what_became_of_each(learned, compressor):
    report = learned.add(
        [FACTS[0], Document(text="It moved to the north.", id="rivers"), "A new fact."]
    )
    assert report.unchanged == ("arbon",)
    assert report.updated == ("rivers",)
    assert len(report.added) == 1
    assert report.failed == ()
    assert report.memories == 2
    base = compressor.base.dimensions
    one = base.layers * 2 * base.kv_heads * SMALL.memory_tokens * base.head_size * 2
    assert report.memory_bytes == 2 * one
    count = [
        len(compressor.base.tokenizer(text)["input_ids"])
        for text in ("It moved to the north.", "A new fact.")
    ]
    assert report.tokens == sum(count)
    assert report.seconds > 0


@pytest.mark.parametrize(
    "documents", [FACTS[0].text, FACTS[0], [FACTS[0]], (FACTS[0],), iter([FACTS[0]])]
)
def test_one_document_or_any_iterable(empty, documents):
    assert len(empty.add(documents).added) == 1


def test_adding_twice_compresses_once(learned, compressed):
    report = learned.add(FACTS)
    assert report.unchanged == ("arbon", "rivers", "mirna")
    assert (report.memories, report.memory_bytes, report.tokens) == (0, 0, 0)
    assert compressed == []
    assert learned.count().memories == 3


def test_adding_an_unchanged_text_takes_over_its_new_title(learned, compressed):
    learned.add(Document(text=FACTS[1].text, id="rivers", title="Rivers"))
    assert learned.get("rivers").title == "Rivers"
    assert compressed == []


def test_what_is_stored_does_not_depend_on_the_batch(tmp_path, compressor):
    memories = []
    for batch_tokens in (1, 100, 10_000):
        bank = Bank.open(tmp_path / f"{batch_tokens}.sqlite", fingerprint(compressor))
        with Memory(bank, compressor) as made:
            made.add(FACTS, batch_tokens=batch_tokens)
            memories.append([stored.memory for stored in bank.memories([1, 2, 3])])
    for one, other in zip(memories[0] * 2, memories[1] + memories[2], strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_a_long_document_is_split_and_its_excerpts_are_its_own(empty):
    text = " ".join(fact.text for fact in FACTS)
    report = empty.add(Document(text=text, id="long"))
    assert report.memories == empty.get("long").memories > 1
    matches = empty.search("Who built it?", top_k=10)
    assert len(matches) == report.memories
    for match in matches:
        assert match.excerpt == text[match.start : match.end]


def test_bad_documents_are_named_and_the_rest_is_kept(empty):
    report = empty.add(
        [
            FACTS[0],
            "",
            Document(text=" \n", id="blank"),
            42,
            Document(text="lone \ud800 surrogate", source="odd.txt"),
            Document(text="Fine but for its metadata.", metadata={"set": {1}}),
            Failure(document="scan.pdf", reason="no text in it"),
            FACTS[1],
        ]
    )
    assert report.added == ("arbon", "rivers")
    assert [failure.document for failure in report.failed] == [
        "document 2",
        "blank",
        "document 4",
        "odd.txt",
        "document 6",
        "scan.pdf",
    ]
    reasons = [failure.reason for failure in report.failed]
    assert "more than spaces" in reasons[0]
    assert reasons[2] == "expected a Document or a str, got int"
    assert "metadata can't be written as JSON" in reasons[4]
    assert reasons[5] == "no text in it"
    assert empty.count().documents == 2


@pytest.mark.parametrize("documents", [None, 3, {"text": "x"}, b"bytes"])
def test_what_is_no_document_at_all_is_refused(empty, documents):
    with pytest.raises(InputError, match="expected a Document, a str or an iterable of them"):
        empty.add(documents)


def test_batch_tokens_below_one_are_refused(empty):
    with pytest.raises(InputError, match="batch_tokens of at least 1, got 0"):
        empty.add(FACTS, batch_tokens=0)


def test_progress_is_told_after_each_batch_and_documents_are_taken_as_needed(empty):
    taken, seen = [], []

    def documents():
        for number in range(40):
            taken.append(number)
            yield f"Fact number {number} of forty."

    def progress(now):
        seen.append(now)
        assert empty.count().documents == now.documents  # on disk already
        assert len(taken) <= now.documents + 1

    report = empty.add(documents(), on_progress=progress, batch_tokens=60)
    assert len(seen) > 5
    assert [now.documents for now in seen] == sorted(now.documents for now in seen)
    assert (seen[-1].documents, seen[-1].tokens) == (40, report.tokens)
    assert seen[-1].memory_bytes == report.memory_bytes


def test_a_long_document_is_told_of_pass_by_pass_and_stored_as_a_whole(empty, monkeypatch):
    monkeypatch.setattr(preparing, "IN_MEMORY", 1)
    seen, counts = [], []

    def held():
        return sum(type(one) is EncodedPiece for one in gc.get_objects())

    def progress(now):
        seen.append(now)
        assert empty.count().documents == now.documents
        counts.append(held())

    gc.collect()
    others = held()
    long = "A text about the sea, its rivers and what they carry. " * 40
    report = empty.add(["Short.", long, "The last."], on_progress=progress, batch_tokens=120)
    assert report.memories == empty.count().memories > 20
    assert len(seen) > 10
    assert [now.tokens for now in seen] == sorted({now.tokens for now in seen})
    assert [now.documents for now in seen][:3] == [1, 1, 1]
    assert (seen[-1].documents, seen[-1].tokens) == (3, report.tokens)
    assert max(counts) <= others + 4
    assert empty.bank.verify() == []


def test_an_interrupted_long_document_leaves_nothing(empty):
    def interrupt(now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        empty.add("A text about the sea. " * 60, on_progress=interrupt, batch_tokens=120)
    assert empty.count() == Counts(0, 0)
    assert empty.add("A text about the sea. " * 60, batch_tokens=120).memories > 5


@pytest.mark.parametrize("tier", ["bf16", "int8", "int4"])
def test_the_report_counts_the_bytes_that_are_stored(tmp_path, compressor, tier):
    bank = Bank.open(tmp_path / "m.sqlite", fingerprint(compressor), tier=tier)
    with Memory(bank, compressor) as made:
        seen = []
        report = made.add([*FACTS, FACTS[0].text * 4], on_progress=seen.append)
        stats = bank.stats()
        assert (report.memories, report.memory_bytes) == (stats.memories, stats.memory_bytes)
        assert seen[-1].memory_bytes == stats.memory_bytes


def test_many_known_documents_are_passed_in_windows(empty, monkeypatch):
    monkeypatch.setattr("cmt.learning.MOST_DOCUMENTS", 2)
    seen = []
    empty.add([*FACTS, 1, 2], on_progress=seen.append)
    assert [now.documents for now in seen] == [2, 4, 5]


def test_what_was_stored_before_a_full_disk_is_kept(empty, monkeypatch):
    add = empty.bank.add
    calls = []

    def full_at_second(entries, **options):
        calls.append(entries)
        if len(calls) == 2:
            raise BankError("the disk is full")
        return add(entries, **options)

    monkeypatch.setattr(empty.bank, "add", full_at_second)
    with pytest.raises(BankError, match="full"):
        empty.add(FACTS, batch_tokens=1)
    assert [document.id for document in empty.documents()] == ["arbon"]


def test_a_document_that_went_missing_meanwhile_is_compressed_after_all(empty, monkeypatch):
    monkeypatch.setattr(empty.bank, "status_of", lambda document: "unchanged")
    assert empty.add(FACTS).added == ("arbon", "rivers", "mirna")
    assert empty.ask("Who built it?", sampling=SHORT).matches


def test_a_document_whose_memory_the_bank_refuses_fails_alone(empty, monkeypatch):
    encode = memory.encode_documents
    bad = tuple(empty.compressor.base.tokenizer(FACTS[1].text)["input_ids"])

    passes = []

    def broken(compressor, pieces, *sizes):
        passes.append(len(pieces))
        for batch, encoded in encode(compressor, pieces, *sizes):
            for row, index in enumerate(batch):
                if tuple(pieces[index]) == bad:
                    encoded.document_keys_DC[row] = torch.nan
            yield batch, encoded

    monkeypatch.setattr(memory, "encode_documents", broken)
    report = empty.add(FACTS)
    assert report.added == ("arbon", "mirna")
    assert [failure.document for failure in report.failed] == ["rivers"]
    assert "expected finite numbers" in report.failed[0].reason
    passes.clear()
    assert empty.add(FACTS[1]).failed == report.failed
    assert passes == [1], "one that was refused by itself is not compressed again"


# Asking.


def test_an_answer_carries_its_sources(learned):
    answer = learned.ask("Who built it?", top_k=3, rerank=0, sampling=SHORT)
    assert answer.question == "Who built it?"
    assert answer.text == answer.text.strip()
    assert {match.document_id for match in answer.matches} == {"arbon", "rivers", "mirna"}
    scores = [match.score for match in answer.matches]
    assert scores == sorted(scores, reverse=True)
    weights = torch.tensor([match.weight for match in answer.matches])
    scale = learned.compressor.scale().item()
    torch.testing.assert_close(weights, (torch.tensor(scores) * scale).softmax(0))
    arbon = next(match for match in answer.matches if match.document_id == "arbon")
    assert (arbon.title, arbon.date, arbon.source) == ("Arbon", "2024-05-31", FACTS[0].source)
    assert arbon.excerpt == FACTS[0].text
    assert answer.memory_tokens == 3 * SMALL.memory_tokens
    assert answer.prompt_tokens == len(
        question_tokens(learned.compressor.base.tokenizer, ["Who built it?"])[0]
    )
    assert 0 <= answer.generated_tokens <= 12
    assert answer.seconds > 0


def test_one_memory_of_four_candidates_is_read_by_default(learned):
    (match,) = learned.ask("Who built it?", sampling=SHORT).matches
    assert (memory.DEFAULT_TOP_K, memory.DEFAULT_RERANK) == (1, 4)
    assert match.weight == 1.0
    assert match.log_likelihood is not None


def test_candidates_are_re_ranked_by_how_likely_they_make_the_question(learned, monkeypatch):
    by_key = learned.search("Who built it?", top_k=3, rerank=0)
    assert all(match.log_likelihood is None for match in by_key)
    worst_first = torch.tensor([[-900.0, -600.0, -300.0]])
    monkeypatch.setattr(finding, "question_log_likelihoods", lambda *_, **__: worst_first)
    again = learned.search("Who built it?", top_k=2, rerank=3)
    assert [match.memory_id for match in again] == [by_key[2].memory_id, by_key[1].memory_id]
    assert [match.log_likelihood for match in again] == [-300.0, -600.0]
    assert [match.score for match in again] == [by_key[2].score, by_key[1].score]


@pytest.mark.parametrize(("top_k", "rerank"), [(2, 2), (3, 2), (3, 3)])
def test_all_that_are_read_are_re_ranked(learned, monkeypatch, top_k, rerank):
    by_key = learned.search("Who built it?", top_k=top_k, rerank=0)
    worst_first = torch.tensor([[-900.0, -600.0, -300.0][:top_k]])
    monkeypatch.setattr(finding, "question_log_likelihoods", lambda *_, **__: worst_first)
    again = learned.search("Who built it?", top_k=top_k, rerank=rerank)
    assert [match.memory_id for match in again] == [match.memory_id for match in by_key][::-1]
    assert [match.log_likelihood for match in again] == worst_first[0].tolist()[::-1]
    assert again[0].weight == pytest.approx(1.0)  # 300 · 0.4 logits above the next


@pytest.mark.parametrize("rerank", [0, 1])
def test_a_rerank_of_one_at_most_reads_nothing_more(learned, monkeypatch, rerank):
    monkeypatch.setattr(finding, "question_log_likelihoods", None)
    for top_k in (1, 2):
        assert len(learned.search("Who built it?", top_k=top_k, rerank=rerank)) == top_k


def test_the_memory_makes_a_difference(learned):
    with_memory = learned.ask(QUESTIONS, sampling=SHORT)
    alone = learned.ask_without_memory(QUESTIONS, sampling=SHORT)
    assert [a.text for a in with_memory] != [a.text for a in alone]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_batch_answers_as_each_alone_and_as_a_stream(tmp_path, family, top_k):
    compressor = make_compressor(family)
    bank = Bank.open(tmp_path / "m.sqlite", fingerprint(compressor))
    with Memory(bank, compressor) as made:
        made.add(FACTS)
        together = made.ask(QUESTIONS, top_k=top_k, sampling=SHORT)
        assert [answer.question for answer in together] == QUESTIONS
        for question, answer in zip(QUESTIONS, together, strict=True):
            alone = made.ask(question, top_k=top_k, sampling=SHORT)
            stream = made.stream(question, top_k=top_k, sampling=SHORT)
            assert [m.memory_id for m in stream.matches] == [m.memory_id for m in answer.matches]
            assert "".join(stream) == stream.answer.text
            for other in (alone, stream.answer):
                assert other.text == answer.text
                assert other.generated_tokens == answer.generated_tokens
                assert other.memory_tokens == answer.memory_tokens
                assert other.prompt_tokens == answer.prompt_tokens
        in_pairs = made.ask(QUESTIONS, top_k=top_k, sampling=SHORT, batch_size=2)
        assert [a.text for a in in_pairs] == [a.text for a in together]


def test_no_question_gives_no_answer(learned):
    assert learned.ask([]) == []


def test_an_empty_bank_has_no_answer(empty):
    with pytest.raises(EmptyBankError, match="add documents first"):
        empty.ask("Who?")
    with pytest.raises(EmptyBankError):
        empty.stream("Who?")
    with pytest.raises(EmptyBankError):
        empty.search("Who?")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "question 1: expected a question, got ''"),
        (["Who?", " \n"], "question 2: expected a question"),
        ([None], "question 1: expected a str, got NoneType"),
        ("odd \ud800", "question 1: expected valid Unicode, got a lone surrogate at offset 4"),
    ],
)
def test_what_is_no_question_is_refused(learned, question, message):
    for ask in (learned.ask, learned.ask_without_memory):
        with pytest.raises(InputError, match=message):
            ask(question)


def test_a_question_beyond_the_models_positions_is_refused(learned):
    places = learned.compressor.base.model.config.max_position_embeddings
    room = places - (SMALL.max_piece_tokens + 1) - 12
    long = "why " * places
    message = rf"question 2: expected at most {room} tokens \(tiny-llama has {places} positions"
    with pytest.raises(InputError, match=message):
        learned.ask(["Who?", long], sampling=SHORT)
    with pytest.raises(InputError, match=f"expected at most {places - 12} tokens"):
        learned.ask_without_memory(long, sampling=SHORT)


@pytest.mark.parametrize("number", [0, -1])
def test_numbers_below_one_are_refused(learned, number):
    with pytest.raises(InputError, match="top_k >= 1"):
        learned.ask("Who?", top_k=number)
    with pytest.raises(InputError, match=f"batch_size of at least 1, got {number}"):
        learned.ask("Who?", batch_size=number)


def test_a_document_deleted_after_the_search_is_searched_past(learned, monkeypatch):
    first = learned.search("Who built it?")[0].document_id
    sources = learned.bank.sources

    def deleting(ids):
        learned.bank.delete(first)
        return sources(ids)

    monkeypatch.setattr(learned.bank, "sources", deleting)
    answer = learned.ask("Who built it?", sampling=SHORT)
    assert answer.matches[0].document_id != first


def test_a_bank_that_never_holds_still_ends_in_an_error(learned, monkeypatch):
    def gone(ids):
        raise UnknownIdError("gone")

    monkeypatch.setattr(learned.bank, "memories", gone)
    with pytest.raises(BankError, match="deleted meanwhile, 8 times in a row: ask again"):
        learned.ask("Who?")


def test_search_gives_the_matches_of_ask(learned, monkeypatch):
    monkeypatch.setattr(learned.bank, "memories", None)  # a search reads no tensor
    found = learned.search("Who built it?", top_k=2, rerank=0)
    monkeypatch.undo()
    asked = learned.ask("Who built it?", top_k=2, rerank=0, sampling=SHORT).matches
    assert found == asked
    found = learned.search("Who built it?", top_k=2, rerank=3)
    assert found == learned.ask("Who built it?", top_k=2, rerank=3, sampling=SHORT).matches


def test_a_stream_may_be_left_half_read(learned):
    next(iter(learned.stream("Who built it?", sampling=SHORT)), None)
    assert learned.ask("Who built it?", sampling=SHORT).matches


def test_threads_take_turns_at_the_model(learned):
    options = {"top_k": 1, "rerank": 0, "sampling": SHORT}
    alone = [answer.text for answer in learned.ask(QUESTIONS, **options)]
    stop = threading.Event()

    def keep_adding():
        number = 0
        while not stop.is_set():
            learned.bank.delete("extra")
            learned.add(Document(text=f"zzz {number} qqq", id="extra"))
            number += 1

    with ThreadPoolExecutor(3) as pool:
        adding = pool.submit(keep_adding)
        asked = [pool.submit(learned.ask, question, **options) for question in QUESTIONS * 4]
        answers = [future.result() for future in asked]
        stop.set()
        adding.result()
    for question, answer in zip(QUESTIONS * 4, answers, strict=True):
        if answer.matches[0].document_id != "extra":
            assert answer.text == alone[QUESTIONS.index(question)]


# Without memory.


def test_without_memory_is_the_plain_model_with_the_same_prompt(learned):
    base = learned.compressor.base
    answers = learned.ask_without_memory(QUESTIONS, sampling=SHORT, batch_size=2)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        tokens = question_tokens(base.tokenizer, [question])
        line_end = base.tokenizer("\n")["input_ids"]
        plain = generate(base, tokens, sampling=SHORT, stop_tokens=line_end)[0]
        assert answer.text == base.tokenizer.decode(plain, skip_special_tokens=True).strip()
        assert (answer.matches, answer.memory_tokens) == ((), 0)
        assert "\n" not in answer.text
        assert learned.ask_without_memory(question, sampling=SHORT).text == answer.text


def test_without_memory_needs_none(empty):
    assert empty.ask_without_memory("Who?", sampling=SHORT).matches == ()


def test_chat_needs_a_template_and_uses_it(learned, monkeypatch):
    with pytest.raises(InputError, match="expected a base model with a chat template, got tiny"):
        learned.ask_without_memory("Who?", chat=True)
    template = "{% for m in messages %}user: {{ m['content'] }}\nyou:{% endfor %}"
    monkeypatch.setattr(learned.compressor.base.tokenizer, "chat_template", template)
    answer = learned.ask_without_memory("Who?", chat=True, sampling=SHORT)
    tokenizer = learned.compressor.base.tokenizer
    assert answer.prompt_tokens == len(tokenizer("user: Who?\nyou:")["input_ids"])


# The rest.


def test_forget_removes_a_document_and_its_memories(learned):
    assert learned.forget("arbon")
    assert not learned.forget("arbon")
    assert learned.count().documents == learned.count().memories == 2
    found = {match.document_id for match in learned.search("Who built it?", top_k=5)}
    assert found == {"rivers", "mirna"}
    with pytest.raises(UnknownIdError):
        learned.get("arbon")


def test_stats_tell_size_and_origin(learned, compressor):
    stats = learned.stats()
    assert stats.bank.documents == 3
    assert stats.bytes_per_document * 3 == stats.bank.memory_bytes
    assert stats.memory_tokens == stats.bank.memory_tokens == {SMALL.memory_tokens: 3}
    assert stats.base_model == "tiny-llama"
    assert stats.fingerprint == fingerprint(compressor)


def test_stats_of_an_empty_bank(empty):
    assert empty.stats().bytes_per_document == 0


def test_the_frozen_model_stays_as_it_was(empty):
    before = empty.compressor.base.digest()
    empty.add(FACTS)
    empty.ask(QUESTIONS, top_k=2, sampling=SHORT)
    assert empty.compressor.base.digest() == before


def test_an_answer_ends_with_what_the_compressor_was_trained_to_end_with(learned):
    tokens = [step[0] for step in learned.steps(QUESTIONS[:1], sampling=SHORT)[1]]
    alone = learned.ask_without_memory(QUESTIONS[0], sampling=SHORT)
    learned.compressor.end_token = tokens[3]
    try:
        cut = learned.ask(QUESTIONS[0], sampling=SHORT)
        streamed = "".join(learned.stream(QUESTIONS[0], sampling=SHORT))
        still_alone = learned.ask_without_memory(QUESTIONS[0], sampling=SHORT)
    finally:
        learned.compressor.end_token = None
    assert cut.generated_tokens == tokens.index(tokens[3])
    assert streamed.strip() == cut.text
    assert still_alone.text == alone.text  # the frozen model alone ends as it does
