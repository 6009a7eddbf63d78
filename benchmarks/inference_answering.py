"""Questions answered from memory, from retrieved text and from nothing, for `inference.py`.

The methods are the benchmark's own, a batch of questions a call. `free` answers end where they
end; `fixed` ones have the same number of tokens for every method.

Shape legend: B questions of a batch, D memories in the bank.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from inference_timing import paired_ratio, profiled, rounds, seconds, spread

from cmt import Memory, replaying
from cmt.aggregation import Prefix, aggregate_resident, matching_weights
from cmt.bank import Bank
from cmt.base_model import BaseModel
from cmt.compressor import Compressor
from cmt.datasets import QADataset
from cmt.encoding import EncodedQuestions, encode_questions
from cmt.generation import Sampling, stream
from cmt.late_interaction import SHORTLIST, shortlist_scores
from cmt.memory import DEFAULT_RERANK
from cmt.methods.answering import AnswerConfig
from cmt.methods.few_shot import solved_examples
from cmt.methods.kv_memory import KvMemory, KvMemoryConfig
from cmt.methods.method import Reply
from cmt.methods.retrievers import Bm25
from cmt.methods.text_in_prompt import TextInPrompt, TextInPromptConfig
from cmt.opening import fingerprint
from cmt.reading import question_tokens, reading_start
from cmt.resident import ResidentBank, learn, rerank_scores

Answers = Callable[[Sequence[str]], Sequence[Any]]

SHOTS = 3
MEMORY, NO_RERANK, ON_DISK = "memory", "memory, no re-ranking", "memory, bank on disk"
RAG_1, RAG_3, CLOSED = "text, BM25 top 1", "text, BM25 top 3", "closed book"
LAUNCHED, RAG_3_REPLAYED = "memory, passes launched", "text, BM25 top 3, tokens replayed"


class _NoToken(frozenset[int]):
    """No token, whatever is added."""

    def union(self, *_: Iterable[Any]) -> frozenset[Any]:
        return self


class Endless:
    """A base model that no token stops: it generates as many as it may."""

    end_tokens = _NoToken()

    def __init__(self, base: BaseModel) -> None:
        self._base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def endless(base: BaseModel) -> BaseModel:
    """The same model, all of whose answers have the same length."""
    return cast(BaseModel, Endless(base))


class Learned(KvMemory):
    """Key/value memory over a bank that was learned before."""

    def take(self, bank: ResidentBank, documents: int) -> None:
        """As `learn` leaves it."""
        self._bank, self._documents = bank, documents


def methods(
    compressor: Compressor,
    plain: BaseModel,
    bank: ResidentBank,
    dataset: QADataset,
    examples: str,
    tokens: int | None,
) -> dict[str, Answers]:
    """Every method with the documents learned; `tokens` fixes the length of answers.

    Text and closed book are read by a model that no compressor lies over, as without cmt.
    """
    # a call is a batch, whatever its size
    answers = AnswerConfig(max_new_tokens=tokens or AnswerConfig().max_new_tokens, batch_size=4096)
    made: dict[str, Answers] = {}
    for name, rerank in ((MEMORY, DEFAULT_RERANK), (NO_RERANK, 0)):
        memory = Learned(compressor, KvMemoryConfig(rerank=rerank), answers)
        if tokens is not None:
            memory.reader = endless(memory.reader)
        memory.take(bank, len(dataset.documents))
        made[name] = memory.answer
    if plain.device.type == "cuda":
        made[LAUNCHED] = launched(made[MEMORY])
    reader = plain if tokens is None else endless(plain)
    variants = [(RAG_1, 1, None), (RAG_3, 3, None), (CLOSED, 0, None)]
    if plain.device.type == "cuda":
        variants.append((RAG_3_REPLAYED, 3, True))
    for name, top_k, replayed in variants:
        config = TextInPromptConfig(
            retriever="bm25" if top_k else "none",
            top_k=max(1, top_k),
            found=max(1, top_k),
            shots=SHOTS if top_k else 0,
        )
        text = TextInPrompt(
            reader,
            Bm25() if top_k else None,
            examples if top_k else "",
            config,
            replace(answers, replayed=replayed),
        )
        text.learn(dataset.documents)
        made[name] = text.answer
    return made


def launched(answer: Answers) -> Answers:
    """The same with every kernel launched by the host, no pass replayed."""

    def run(questions: Sequence[str]) -> Sequence[Any]:
        with patch.object(replaying, "serves", lambda *_: False):
            return answer(questions)

    return run


class Staged:
    """The road from questions to answers from memory in steps, each timed by itself."""

    def __init__(self, compressor: Compressor, bank: ResidentBank, tokens: int) -> None:
        self._compressor, self._bank, self._tokens = compressor, bank, tokens
        self._start = reading_start(compressor.config.max_piece_tokens)
        self._made: dict[str, Any] = {}

    @torch.no_grad()
    def run(self, questions: Sequence[str], rerank: int = DEFAULT_RERANK) -> dict[str, float]:
        """Seconds of each step; the memories chosen are left in `chosen`."""
        steps: dict[str, Callable[[], None]] = {
            "question encoding": lambda: self._encode(questions),
            "key search": self._search,
            "late interaction": self._compare,
            f"re-ranking of {rerank}": lambda: self._rerank(rerank),
            "prefix assembly": self._assemble,
            "prefill and first token": self._first,
            f"{self._tokens - 1} further tokens": self._rest,
        }
        device = self._compressor.base.device
        return {name: seconds(device, step) for name, step in steps.items()}

    @property
    def chosen(self) -> list[int]:
        """The memory read for each question of the last run."""
        rows: list[int] = self._made["chosen"][:, 0].tolist()
        return rows

    def _encode(self, questions: Sequence[str]) -> None:
        base = self._compressor.base
        self._made["prompts"] = question_tokens(base.tokenizer, questions)
        self._made["encoded"] = encode_questions(self._compressor, self._made["prompts"])

    def _search(self) -> None:
        encoded: EncodedQuestions = self._made["encoded"]
        scores_BD = encoded.keys_QC @ self._bank.keys.T * self._compressor.scale()
        self._made["scores"] = scores_BD
        self._made["found"] = scores_BD.topk(min(SHORTLIST, scores_BD.shape[1]), dim=1)

    def _compare(self) -> None:
        vectors, own = self._made["encoded"].vectors, self._bank.vectors_DKV
        if vectors is None or own is None:
            return
        scores_BD, found = self._made["scores"], self._made["found"]
        rows = vectors.rows(range(len(scores_BD)))
        compared = found.values + shortlist_scores(rows, own, found.indices)
        lowest = compared.amin(1, keepdim=True)
        below_BD = scores_BD - scores_BD.amax(1, keepdim=True) + lowest - 1
        self._made["scores"] = below_BD.scatter(1, found.indices, compared)

    def _rerank(self, rerank: int) -> None:
        prompts, scores_BD = self._made["prompts"], self._made["scores"]
        if rerank > 1:
            self._made["scores"] = rerank_scores(
                self._compressor, self._bank, prompts, scores_BD, rerank, len(prompts)
            )

    def _assemble(self) -> None:
        best = self._made["scores"].topk(1, dim=1)
        weights = matching_weights(best.values, 1.0)
        self._made["chosen"] = best.indices
        self._made["prefix"] = aggregate_resident(self._bank.memories, best.indices, weights)

    def _first(self) -> None:
        prefix: Prefix = self._made["prefix"]
        steps: Iterator[Any] = stream(
            endless(self._compressor.base),
            self._made["prompts"],
            prefix,
            start=self._start,
            sampling=Sampling(max_new_tokens=self._tokens),
        )
        next(steps)
        self._made["steps"] = steps

    def _rest(self) -> None:
        for _ in self._made["steps"]:
            pass


def staged(
    compressor: Compressor, bank: ResidentBank, batch: Callable[[int], list[str]], *sizes: int
) -> dict[str, Any]:
    """Seconds of each step, after one run that isn't counted; `sizes`: tokens and repeats."""
    tokens, repeats = sizes
    road = Staged(compressor, bank, tokens)
    road.run(batch(0))
    runs = [road.run(batch(number)) for number in range(repeats)]
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def measure(  # noqa: PLR0913
    compressor: Compressor,
    plain: BaseModel,
    dataset: QADataset,
    training: QADataset,
    *,
    batch_sizes: Sequence[int],
    how_many: int,
    each: int,
    tokens: int,
    with_profile: bool,
) -> dict[str, Any]:
    """Every method at every batch size: seconds, questions a second, ratios to memory."""
    device = plain.device
    examples = solved_examples(training, SHOTS)
    texts = [question.text for question in dataset.questions]
    bank = learn(compressor, dataset)
    free = methods(compressor, plain, bank, dataset, examples, None)
    fixed = methods(compressor, plain, bank, dataset, examples, tokens)
    result: dict[str, Any] = {
        "answer_tokens_at_most": AnswerConfig().max_new_tokens,
        "answer_tokens_fixed": tokens,
        "rerank": DEFAULT_RERANK,
        "shots": SHOTS,
        "batches": {},
        "left_out": [size for size in batch_sizes if size > len(texts)],
    }
    with tempfile.TemporaryDirectory() as folder:
        stored = Bank.open(Path(folder) / "bank", fingerprint(compressor))
        with Memory(stored, compressor) as memory:
            memory.add(dataset.documents)
            sampling = Sampling(max_new_tokens=AnswerConfig().max_new_tokens)
            free[ON_DISK] = lambda asked: memory.ask(
                asked, sampling=sampling, batch_size=len(asked)
            )
            for size in batch_sizes:
                if size > len(texts):
                    continue

                def batch(number: int, size: int = size) -> list[str]:
                    start = number * size % (len(texts) - size + 1)
                    return texts[start : start + size]

                result["batches"][str(size)] = {
                    "free": compared(device, free, batch, how_many, each, size),
                    "fixed": compared(device, fixed, batch, how_many, each, size),
                    "memory_stages": staged(compressor, bank, batch, tokens, how_many * each),
                }
    if with_profile:
        asked = texts[: min(8, len(texts))]
        result["profile"] = {
            "questions": len(asked),
            MEMORY: profiled(device, lambda: fixed[MEMORY](asked)),
            RAG_3: profiled(device, lambda: fixed[RAG_3](asked)),
        }
    return result


def compared(
    device: torch.device,
    variants: dict[str, Answers],
    batch: Callable[[int], list[str]],
    how_many: int,
    each: int,
    size: int,
) -> dict[str, Any]:
    """All methods in turn over the same batches."""
    replies: dict[str, list[Any]] = {name: [] for name in variants}

    def call(name: str) -> Callable[[int], None]:
        return lambda number: replies[name].extend(variants[name](batch(number)))

    warm = device.type != "cpu"  # a CPU needs none, and has no time to lose
    times = rounds(device, {name: call(name) for name in variants}, how_many, each, warm)
    return {
        name: {
            "seconds": (took := spread(own)),
            "seconds_per_question": took["median"] / size,
            "questions_per_second": size / took["median"],
            "ratio_to_memory": paired_ratio(own, times[MEMORY]),
            "tokens_per_question": tokens_of(replies[name]),
        }
        for name, own in times.items()
    }


def tokens_of(replies: Sequence[Any]) -> dict[str, float]:
    """Tokens read for a question, as text and as memory, re-ranking included."""
    told = [reply for reply in replies if isinstance(reply, Reply)]
    return {
        kind: sum(getattr(reply, f"{kind}_tokens") for reply in told) / len(told)
        for kind in ("text", "memory")
        if told
    }
