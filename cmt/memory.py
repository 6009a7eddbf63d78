"""Memory: documents in, answers out; the method of arXiv 2412.07393 in its own order.

    compress    M = Θ(d): each piece of a document becomes a memory and a key, in one pass
    store       the memory bank {Mⁱ} takes them, durably
    self-match  the question's key Θ(q) against the bank's keys, the best re-ranked by how
                likely the frozen model finds the question after each: the k best memories
    aggregate   ψ: those k, weighted by how well they match, become one prefix M*, or
                are read one by one and mixed (aggregating.py)
    generate    y = LLM(q; π(M*)): the frozen model answers after that prefix

What surrounds these steps is elsewhere: `learning.py` gathers documents into batches,
`prompts.py` turns questions into tokens, `streaming.py` tokens into pieces of text, and
`opening.py` finds and loads the weights. (Past 300 lines: the method in one place, documented.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, Unpack, overload

import torch

from cmt import prompts, weights
from cmt.aggregating import DEFAULT_AGGREGATION, Aggregation
from cmt.aggregation import Prefix
from cmt.answering import AloneOptions, AskOptions, Found, Reading, batches, without_memory
from cmt.bank import Bank
from cmt.bank.connection import check_path
from cmt.bank.tensor_bytes import Tier
from cmt.compressor import Compressor
from cmt.encoding import encode_documents
from cmt.errors import FingerprintMismatchError, InputError
from cmt.finding import Finder, Search
from cmt.generation import GREEDY, Sampling, stream
from cmt.holdings import Holdings
from cmt.learning import (
    AddOptions,
    DocumentChanges,
    Draft,
    Tally,
    as_encoded,
    as_items,
    changed_document,
    drafts,
    shared_out,
    split_for,
    told,
    windows,
    with_options,
)
from cmt.memory_records import MemoryStats, Progress
from cmt.opening import fingerprint, load_compressor
from cmt.reading import reading_start
from cmt.records import (
    DEFAULT_NAMESPACE,
    AddReport,
    Answer,
    Document,
    EncodedPiece,
    Failure,
    Match,
)
from cmt.selection import Filters, Selection, select
from cmt.splitting import Piece
from cmt.streaming import AnswerStream

T = TypeVar("T")
Turn = Callable[[], AbstractContextManager[object]]
Compress = Callable[[Sequence[Piece], Callable[[int], object]], Iterator[EncodedPiece]]

DEFAULT_TOP_K = 1
DEFAULT_RERANK = 4  # 3 do what 10 do, and cost a third (docs/LOG.md); one more for top_k = 3
DEFAULT_MIN_SCORE: float | None = None  # answers in any case
BATCH_SIZE = 16  # questions answered together
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}  # compressed in one pass, memory tokens included


class Memory(Holdings):
    """A frozen language model with a bank of what it has learned.

    Threads may share one: they take turns at the model.

    Attributes:
        bank: The durable store.
        compressor: Θ, with the frozen model underneath as `compressor.base`.
    """

    def __init__(self, bank: Bank, compressor: Compressor) -> None:
        """Put the parts together; `close` will close the bank.

        Raises:
            FingerprintMismatchError: The bank was made by another base model or compressor.
        """
        own = fingerprint(compressor)
        if bank.fingerprint != own:
            raise FingerprintMismatchError(
                f"expected a bank made by {own}, got {bank.path}, made by {bank.fingerprint}"
            )
        self.bank = bank
        self.compressor = compressor
        self._base = compressor.base
        self._start = reading_start(compressor.config.max_piece_tokens)
        self._model = threading.Lock()  # LoRA is on while compressing, off while reading
        self._finder = Finder(bank, compressor, self._start, self._model)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str = weights.DEFAULT_MODEL,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        offline: bool | None = None,
        read_only: bool = False,
        tier: Tier | None = None,
    ) -> Memory:
        """Open a bank with the model that reads it; a bank that isn't there yet is created.

        Args:
            path: The bank's file; its folder must exist.
            model: Base model: a registered name, hub id, folder or GGUF file.
            checkpoint: Folder of the trained compressor; None takes the one shipped for `model`.
            device: Default: CUDA when there is one, else CPU.
            dtype: Default: bfloat16 on CUDA and on a CPU with bfloat16 instructions, else float32.
            offline: True never touches the network; None asks $CMT_OFFLINE and $HF_HUB_OFFLINE.
            read_only: Only ask; the bank must exist.
            tier: How a bank that is made stores memories, "bf16" unless given, "int8" or "int4".

        Raises:
            InputError: This machine doesn't have the device.
            ModelError: The base model can't be had.
            CheckpointError: No compressor for this base model.
            FingerprintMismatchError: The bank was made by another base model or compressor.
            BankError: The bank can't be opened.
        """
        check_path(Path(path), must_exist=read_only, read_only=read_only)  # before a slow load
        compressor = load_compressor(model, checkpoint, device=device, dtype=dtype, offline=offline)
        bank = Bank.open(path, fingerprint(compressor), read_only=read_only, tier=tier)
        return cls(bank, compressor)

    def close(self) -> None:
        """Close the bank; what was added is on disk already."""
        self.bank.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Learning: compress, store.

    def add(
        self,
        documents: Document | str | Iterable[Document | str | Failure],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        batch_tokens: int | None = None,
        memory_tokens: int | None = None,
        turn: Turn = nullcontext,
        known_only: bool = False,
        **changes: Unpack[AddOptions],
    ) -> AddReport:
        """Learn documents; what the bank holds already is not compressed again.

        Documents are taken from the iterable a batch at a time, and a batch is on disk before
        `on_progress` hears of it. A document that is longer than a batch is stored as a whole,
        when its last piece is compressed; its memories wait in a file beside the bank, which has
        no name and goes with the process. One that can't be learned is reported and the rest goes
        on; a `Failure` among them, from `read_path` say, is passed on to the report.

        A document whose id is held with another text replaces that in the same transaction, or,
        with `supersede`, is matched from its date on (from now on, without one), and the old
        version until then, or as of a day until then; one dated before the version held comes
        before it. Where the text is the same, the other fields are taken over and nothing is
        compressed.

        Args:
            documents: One, or any number; a text alone is a document without id.
            on_progress: Called after each batch, and after each pass within a longer document.
            batch_tokens: Most tokens compressed in one pass, a longer piece aside.
            memory_tokens: K of the memories made now, one of the compressor's `config.sizes`;
                None: the largest. One bank may hold memories of several sizes.
            turn: Entered around each pass, so that a server can let questions go first.
            known_only: Change documents that the bank holds, report others as failures: what is
                forgotten while it is being compressed does not come back.
            changes: `AddOptions`: namespace, tags, expires_at, ttl and supersede for all.

        Raises:
            InputError: `documents` are none, batch_tokens < 1, a size that the compressor isn't
                trained for, or changes that can't be.
            BankError: Full disk, locked, read-only. Batches before this one are kept.
        """
        began = time.perf_counter()
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(self._base.device.type, BATCH_TOKENS["cpu"])
        if batch_tokens < 1:
            raise InputError(f"expected batch_tokens of at least 1, got {batch_tokens}")
        K = self.compressor.config.size(memory_tokens)
        tally = Tally()
        given = with_options(as_items(documents), changes)
        items = drafts(given, self.bank, self.compressor)
        tell = on_progress or (lambda _: None)
        compress = partial(self._compress, batch_tokens, K, turn)
        for window, failed in windows(items, K + 1, batch_tokens):
            tally.failed += failed
            try:
                self._store(window, tally, compress, tell, known_only)
            except InputError as error:  # the bank refused one of them: which?
                if len(window) == 1 and window[0].pieces:
                    tally.failed.append(Failure(document=window[0].name, reason=str(error)))
                else:
                    self._store_singly(window, tally, compress, tell, known_only)
            tell(tally.progress())
        return tally.report(time.perf_counter() - began)

    def update(
        self,
        document_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        supersede: bool = False,
        memory_tokens: int | None = None,
        turn: Turn = nullcontext,
        **changes: Unpack[DocumentChanges],
    ) -> AddReport:
        """Change fields of a document; only a new text is compressed.

        Args:
            document_id: Which one.
            namespace: Where it is.
            supersede: Keep the version before a new text as history; a new text without a date
                of its own then holds from now on, not from the old one's date.
            memory_tokens: As for `add`, of a new text.
            turn: As for `add`.
            changes: `DocumentChanges`, those given: text, title, date, source, metadata, tags,
                expires_at.

        Raises:
            UnknownIdError: There is none with this id.
            InputError: A change or a size that can't be; the document stays as it was.
            BankError: As `add`.
        """
        stored = self.get(document_id, namespace=namespace)
        report = self.add(
            changed_document(stored, changes, supersede=supersede),
            memory_tokens=memory_tokens,
            turn=turn,
            known_only=True,
        )
        if report.failed:
            self.get(document_id, namespace=namespace)  # forgotten meanwhile?
            raise InputError(report.failed[0].reason)
        return report

    def _compress(
        self,
        batch_tokens: int,
        memory_tokens: int,
        turn: Turn,
        pieces: Sequence[Piece],
        tell: Callable[[int], object],
    ) -> Iterator[EncodedPiece]:
        """Compress, M = Θ(d): a memory and a key for each piece, in bfloat16 on the CPU."""
        tokens = [piece.token_ids for piece in pieces]
        passes = encode_documents(self.compressor, tokens, batch_tokens, memory_tokens)
        return as_encoded(told(self._alone(passes, turn), pieces, tell), pieces)

    def _store(
        self,
        window: Sequence[Draft],
        tally: Tally,
        compress: Compress,
        tell: Callable[[Progress], object],
        known_only: bool,
    ) -> None:
        """Store in {Mⁱ}: the window's documents, in one transaction."""
        pieces = [piece for draft in window for piece in draft.pieces]
        encoded = compress(pieces, lambda in_hand: tell(tally.progress(in_hand)))
        shares = shared_out(encoded, [len(draft.pieces) for draft in window])
        entries = [(draft.document, own) for draft, own in zip(window, shares, strict=True)]
        outcomes = self.bank.add(entries, known_only=known_only)
        for outcome, draft in zip(outcomes, window, strict=True):
            tally.stored(outcome, draft.pieces)

    def _store_singly(
        self,
        window: Sequence[Draft],
        tally: Tally,
        compress: Compress,
        tell: Callable[[Progress], object],
        known_only: bool,
    ) -> None:
        """Each document by itself, compressed even if it was known: it may be gone meanwhile."""
        for draft in window:
            try:
                pieces = split_for(self.compressor, draft.document.text)
                own = [replace(draft, pieces=pieces)]
                self._store(own, tally, compress, tell, known_only)
            except InputError as error:
                tally.failed.append(Failure(document=draft.name, reason=str(error)))

    # Asking: self-match, aggregate, generate.

    @overload
    def ask(  # type: ignore[overload-overlap] # a str is a Sequence[str] too
        self, question: str, **options: Unpack[AskOptions]
    ) -> Answer: ...
    @overload
    def ask(self, question: Sequence[str], **options: Unpack[AskOptions]) -> list[Answer]: ...
    def ask(  # noqa: PLR0913
        self,
        question: str | Sequence[str],
        *,
        top_k: int = DEFAULT_TOP_K,
        rerank: int = DEFAULT_RERANK,
        aggregation: Aggregation = DEFAULT_AGGREGATION,
        sampling: Sampling = GREEDY,
        batch_size: int = BATCH_SIZE,
        min_score: float | None = DEFAULT_MIN_SCORE,
        prefer_later: bool = True,
        lexical: float = 0.0,
        **filters: Unpack[Filters],
    ) -> Answer | list[Answer]:
        """Answer from what was learned; greedy answers don't depend on the batch, but for rounding.

        Where the filters select nothing, or the first match's score is below `min_score`, the
        answer is "I don't know." and says that it is abstained.

        Args:
            question: One, or several.
            top_k: How many memories are read for a question.
            rerank: How many of those found are re-ranked first, top_k at least; 0 or 1: none.
            aggregation: How several memories are read together.
            sampling: How tokens are chosen.
            batch_size: Questions answered together.
            min_score: Least cosine of question and first match, the best after re-ranking; None
                answers in any case. With the shipped compressor 0.408 abstains from one answerable
                question in ten and 93% of the unanswerable (benchmarks/abstention.py).
            prefer_later: Of candidates on one subject that match about as well, read the one
                with the later date; the others are the answer's `older`. (freshness.py)
            lexical: Weight of BM25 on the stored texts beside the logit of matching, for rare
                names (lexical.py; needs bm25s); 0: self-matching alone.
            filters: `Filters`: namespace, tags, since, until, as_of.

        Raises:
            EmptyBankError: Nothing was learned yet.
            InputError: An empty question, one too long for the model, a number below 1, or a
                filter that is no date, tag or namespace.
        """
        search = _search(top_k, rerank, prefer_later, aggregation, lexical)
        read = partial(self._read, search, aggregation, sampling, min_score, select(**filters))
        return self._ask(question, batch_size, sampling, read)

    def stream(
        self,
        question: str,
        *,
        top_k: int = DEFAULT_TOP_K,
        rerank: int = DEFAULT_RERANK,
        aggregation: Aggregation = DEFAULT_AGGREGATION,
        sampling: Sampling = GREEDY,
        min_score: float | None = DEFAULT_MIN_SCORE,
        prefer_later: bool = True,
        lexical: float = 0.0,
        **filters: Unpack[Filters],
    ) -> AnswerStream:
        """Like `ask` of one question, in pieces of text as they are generated.

        The memories are found before this returns, so it raises what `ask` does.
        """
        asked = prompts.checked([question])
        search = _search(top_k, rerank, prefer_later, aggregation, lexical)
        selection = select(**filters)
        reading = self._read(search, aggregation, sampling, min_score, selection, asked)
        tokens = (step[0] for step in self._generate(reading, sampling))
        return AnswerStream(
            (token for token in tokens if token is not None),
            decode=reading.decode,
            finish=lambda generated: reading.answers([generated])[0],
            matches=reading.matches[0],
        )

    def steps(  # noqa: PLR0913
        self,
        questions: Sequence[str],
        *,
        memory: bool = True,
        chat: bool = False,
        top_k: int = DEFAULT_TOP_K,
        rerank: int = DEFAULT_RERANK,
        aggregation: Aggregation = DEFAULT_AGGREGATION,
        sampling: Sampling = GREEDY,
        min_score: float | None = DEFAULT_MIN_SCORE,
        prefer_later: bool = True,
        lexical: float = 0.0,
        **filters: Unpack[Filters],
    ) -> tuple[Reading, Iterator[list[int | None]]]:
        """Like `ask` of one batch, a token of each answer at a time, for several who wait at once.

        The memories are found before this returns, so it raises what `ask` does.

        Args:
            questions: One batch.
            memory: False answers as `ask_without_memory`.
            chat: As for that; nothing where memory is read.
            top_k: As for `ask`.
            rerank: As for `ask`.
            aggregation: As for `ask`.
            sampling: As for `ask`.
            prefer_later: As for `ask`.
            lexical: As for `ask`.
            min_score: As for `ask`; an abstained answer has no token, see `Reading.answers`.
            filters: As for `ask`.

        Returns:
            What is read, which decodes tokens too, and the steps: the next token of each answer,
            None where it has ended. Whoever leaves them unfinished ends the generation.
        """
        asked = prompts.checked(questions)
        if memory:
            search = _search(top_k, rerank, prefer_later, aggregation, lexical)
            selection = select(**filters)
            reading = self._read(search, aggregation, sampling, min_score, selection, asked)
        else:
            reading = without_memory(self._base, sampling.max_new_tokens, asked, chat=chat)
        return reading, self._generate(reading, sampling)

    def search(
        self,
        question: str,
        *,
        top_k: int = DEFAULT_TOP_K,
        rerank: int = DEFAULT_RERANK,
        prefer_later: bool = True,
        lexical: float = 0.0,
        **filters: Unpack[Filters],
    ) -> tuple[Match, ...]:
        """The memories that `ask` would read for a question, best first; raises what it does.

        None where the filters select nothing.
        """
        search = _search(top_k, rerank, prefer_later, DEFAULT_AGGREGATION, lexical)
        selection, asked = select(**filters), prompts.checked([question])
        tokens = prompts.plain(self._base, asked, self._start, 1)
        (found,) = self._finder.find(asked, tokens, search, selection, with_tensors=False)
        return found.matches

    def _read(
        self,
        search: Search,
        aggregation: Aggregation,
        sampling: Sampling,
        min_score: float | None,
        selection: Selection,
        questions: Sequence[str],
    ) -> Reading:
        """Self-match and aggregate: everything the frozen model is to read."""
        began = time.perf_counter()
        tokens = prompts.plain(self._base, questions, self._start, sampling.max_new_tokens)
        found = self._finder.find(questions, tokens, search, selection)
        fitting = [place for place, own in enumerate(found) if own.fits(min_score)]
        return Reading(
            base=self._base,
            began=began,
            questions=questions,
            tokens=tokens,
            matches=[own.matches for own in found],
            older=[own.older for own in found],
            start=self._start,
            prefix=_aggregated([found[place] for place in fitting], aggregation)
            if fitting
            else None,
            stop_tokens=self.compressor.stop_tokens,
            answered=fitting,
        )

    def _generate(self, reading: Reading, sampling: Sampling) -> Iterator[list[int | None]]:
        """Generate, y = LLM(q; π(M*)): the frozen model's next token of each answer, by steps."""
        if not reading.answered:
            return iter(())
        steps = stream(
            self._base,
            [reading.tokens[place] for place in reading.answered],
            reading.prefix,
            start=reading.start,
            sampling=sampling,
            stop_tokens=reading.stop_tokens,
        )
        return map(reading.spread, self._alone(steps))

    @overload
    def ask_without_memory(  # type: ignore[overload-overlap] # a str is a Sequence[str] too
        self, question: str, **options: Unpack[AloneOptions]
    ) -> Answer: ...
    @overload
    def ask_without_memory(
        self, question: Sequence[str], **options: Unpack[AloneOptions]
    ) -> list[Answer]: ...
    def ask_without_memory(
        self,
        question: str | Sequence[str],
        *,
        chat: bool = False,
        sampling: Sampling = GREEDY,
        batch_size: int = BATCH_SIZE,
    ) -> Answer | list[Answer]:
        """What the frozen model answers from its own weights, to compare: a line of text.

        Args:
            question: One, or several.
            chat: Ask by the model's chat template; else by the very prompt that `ask` uses.
            sampling: How tokens are chosen.
            batch_size: Questions answered together.

        Raises:
            InputError: As `ask`, or the model has no chat template.
        """
        read = partial(without_memory, self._base, sampling.max_new_tokens, chat=chat)
        return self._ask(question, batch_size, sampling, read)

    def _ask(
        self,
        question: str | Sequence[str],
        batch_size: int,
        sampling: Sampling,
        read: Callable[[Sequence[str]], Reading],
    ) -> Answer | list[Answer]:
        answers: list[Answer] = []
        for batch in batches(prompts.checked(question), batch_size):
            reading = read(batch)
            answers += reading.collect(self._generate(reading, sampling))
        return answers[0] if isinstance(question, str) else answers

    def _alone(self, steps: Iterator[T], turn: Turn = nullcontext) -> Iterator[T]:
        """The same steps, each with the model to itself."""
        while True:
            with turn(), self._model:
                step = next(steps, None)
            if step is None:
                return
            yield step

    def stats(self) -> MemoryStats:
        """What is held, what that costs, and what made it; reads every text."""
        bank = self.bank.stats()
        return MemoryStats(
            bank=bank,
            bytes_per_document=bank.memory_bytes / max(1, bank.documents),
            memory_tokens=bank.memory_tokens,
            base_model=self._base.name,
            fingerprint=self.bank.fingerprint,
        )


def _search(
    top_k: int, rerank: int, prefer_later: bool, aggregation: Aggregation, lexical: float
) -> Search:
    """How memories are found, from keywords of `Memory.ask`."""
    return Search(
        top_k=top_k,
        rerank=rerank,
        prefer_later=prefer_later,
        temperature=aggregation.temperature,
        lexical=lexical,
    )


def _aggregated(questions: Sequence[Found], aggregation: Aggregation) -> Prefix:
    """Aggregate (ψ): each question's memories, weighted by how they match."""
    return aggregation.prefix(
        [own.memories for own in questions],
        [[match.weight for match in own.matches] for own in questions],
    )
