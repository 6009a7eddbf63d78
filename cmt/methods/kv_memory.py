"""Our CMT: a memory is keys and values, the k best are read by the frozen model.

The same compressing, matching and re-ranking as `Memory`, with the bank on the model's device.

Shape legend: D memories (pieces of documents), Q questions, M memories read by a question,
K tokens of a memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cmt.aggregating import Aggregation
from cmt.aggregation import Prefix
from cmt.checkpoint import CONFIG, from_pretrained, save_pretrained
from cmt.compressor import Compressor
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.late_interaction import SHORTLIST
from cmt.methods.answering import AnswerConfig, generated
from cmt.methods.materials import Materials
from cmt.methods.method import Reply, Stored
from cmt.opening import find_checkpoint
from cmt.reading import question_tokens, reading_start
from cmt.records import Document
from cmt.reranking import rerank_depth
from cmt.resident import ResidentBank, learn, match_scores, reading_scores
from cmt.training import train
from cmt.training.state import has_training_state

FOUND = 5  # documents told for R@5
MOST_PLACES = 65_536  # memory tokens that a batch of questions reads together, on a CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class KvMemoryConfig:
    """How memories are found and read, and how a compressor is trained for the benchmark.

    Attributes:
        top_k: Memories read for a question; 0: the whole bank, weighted by how they match.
        rerank: Memories found and re-ranked by the frozen model, top_k at least; 0 or 1: none.
        shortlist: Memories compared by late interaction, where the compressor has it; 0: none.
        aggregate, temperature: How several memories are read together, `Aggregation`'s.
        alpha, matching: Of the training objective; None leaves what the recipe says.
        decoding_alpha: α of decoding (`Sampling.alpha`); 0: as the memory says.
    """

    top_k: int = 1
    rerank: int = 0
    shortlist: int = SHORTLIST
    aggregate: str = "concatenate"
    temperature: float = 1.0
    alpha: float | None = None
    matching: float | None = None
    decoding_alpha: float = 0.0
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        """Refuse numbers below their least, and what is no aggregation."""
        _ = self.aggregation
        for name, least in (("top_k", 0), ("rerank", 0), ("shortlist", 0), ("batch_tokens", 1),
                            ("decoding_alpha", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of at least {least}, got {getattr(self, name)}")

    @property
    def aggregation(self) -> Aggregation:
        """How several memories are read together."""
        return Aggregation(how=self.aggregate, temperature=self.temperature)


class KvMemory:
    """Documents become key/value memories, found by self-matching.

    Attributes:
        reader: The frozen model; its adapters are off while it reads.
    """

    def __init__(
        self, compressor: Compressor, config: KvMemoryConfig, answers: AnswerConfig
    ) -> None:
        """Answer with a trained compressor."""
        self.reader = compressor.base
        self._compressor, self._config, self._answers = compressor, config, answers
        self.reset()

    @classmethod
    def build(cls, materials: Materials, config: KvMemoryConfig) -> KvMemory:
        """With the compressor of `materials.checkpoint`, or the shipped one.

        Raises:
            CheckpointError: There is none for the base model.
        """
        folder = find_checkpoint(materials.base.name, materials.checkpoint)
        return cls(from_pretrained(materials.base, folder), config, materials.answers)

    def reset(self) -> None:
        """Empty the bank."""
        self._bank: ResidentBank | None = None
        self._documents = 0

    def learn(self, documents: Sequence[Document]) -> None:
        """Compress each document, a long one in pieces, in one pass each."""
        if not documents:
            return
        window = QADataset(
            name="stream", documents=tuple(documents), articles=(0,) * len(documents), questions=()
        )
        fresh = learn(self._compressor, window, batch_tokens=self._config.batch_tokens)
        fresh.owners_D += self._documents
        self._documents += len(documents)
        self._bank = fresh if self._bank is None else _joined(self._bank, fresh)

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Self-match, re-rank, aggregate, generate.

        Raises:
            InputError: Nothing was learned yet.
        """
        return self._answered(questions, self._config, None)

    def answer_from(self, questions: Sequence[str], documents: Sequence[int]) -> list[Reply]:
        """Answer each question from the best memory of one document, by its place in the stream.

        Raises:
            InputError: Nothing was learned yet.
        """
        return self._answered(questions, replace(self._config, top_k=1, rerank=0), documents)

    @torch.no_grad()
    def _answered(
        self, questions: Sequence[str], config: KvMemoryConfig, documents: Sequence[int] | None
    ) -> list[Reply]:
        bank, base = self._bank, self.reader
        if bank is None:
            raise InputError("expected at least one document learned before a question, got none")
        prompts = question_tokens(base.tokenizer, questions)
        size = self._answers.batch_size
        scores_QD = match_scores(self._compressor, bank, prompts, config.shortlist, size)
        M = min(config.top_k or len(bank.keys), len(bank.keys))
        scores_QD = reading_scores(
            self._compressor, bank, prompts, scores_QD, [M], config.rerank, size
        )[M]
        if documents is not None:
            given_Q1 = torch.tensor(documents, device=base.device)[:, None]
            scores_QD = scores_QD.masked_fill(bank.owners_D != given_Q1, -torch.inf)
        best = scores_QD.topk(max(M, min(2 * FOUND, len(bank.keys))), dim=1)
        K = self._compressor.config.memory_tokens

        def prefix_of(rows: list[int]) -> Prefix:
            chosen_BM, scores_BM = best.indices[rows, :M], best.values[rows, :M]
            return config.aggregation.resident_prefix(bank.memories, chosen_BM, scores_BM)

        together = max(1, min(size, most_places(bank) // (M * K)))
        texts = generated(
            base,
            prompts,
            replace(self._answers, batch_size=together, alpha=config.decoding_alpha),
            prefix_of=prefix_of,
            start=reading_start(self._compressor.config.max_piece_tokens),
            stop_tokens=self._compressor.stop_tokens,
        )
        owners = bank.owners_D[best.indices[:, : 2 * FOUND]].tolist()
        looks = min(rerank_depth(M, config.rerank), len(bank.keys))  # by re-ranking
        reads = M if config.aggregation.is_separate else 1  # of a question, to answer it
        return [
            Reply(
                text=text,
                text_tokens=len(prompt) * (reads + looks),
                memory_tokens=(M + looks) * K,
                documents=tuple(dict.fromkeys(own))[:FOUND],
            )
            for text, prompt, own in zip(texts, prompts, owners, strict=True)
        ]

    def stored(self) -> Stored:
        """Memories, keys and vectors; the compressor's own weights."""
        bank = self._bank
        parts = [] if bank is None else [bank.memories, bank.keys, bank.vectors_DKV]
        grown = sum(p.nbytes for p in parts if p is not None)
        trained = self._compressor.parameters()
        return Stored(documents=grown, fixed=sum(p.nbytes for p in trained))


class TrainedKvMemory(KvMemory):
    """The same, with a compressor trained on the benchmark's training part alone."""

    @classmethod
    def build(cls, materials: Materials, config: KvMemoryConfig) -> TrainedKvMemory:
        """Train as `materials.recipe` says, for as long as the benchmark allows, or load.

        What was trained is saved as a checkpoint and loaded again, over the materials' own base
        model: it answers as a shipped one does, rounded to bfloat16, and not through layers that
        training compiled, which would compile anew for each layer's cache.

        Raises:
            ModelError: The base model can't be loaded by its name a second time.
        """
        recipe = materials.recipe
        changes = {
            name: value
            for name in ("alpha", "matching")
            if (value := getattr(config, name)) is not None
        }
        run = replace(
            recipe,
            base_model=materials.base.name,
            start_from=None,  # what it saw would not be the protocol's part alone
            steps=materials.steps,
            minutes=materials.minutes,
            seed=materials.seed,
            objectives=replace(recipe.objectives, **changes),
        )
        folder = materials.state_folder("kv_memory", run)
        checkpoint = folder / "checkpoint"
        if not (checkpoint / CONFIG).exists():
            resume = has_training_state(folder / "state")
            made = train(run, materials.training, folder, resume=resume)
            fresh = folder / "checkpoint.new"  # renamed when whole: an interrupted one is no end
            save_pretrained(made, fresh)
            fresh.rename(checkpoint)
            del made
        return cls(from_pretrained(materials.base, checkpoint), config, materials.answers)


def most_places(bank: ResidentBank) -> int:
    """Memory tokens that a batch of questions reads together: on a GPU an eighth of its memory.

    A batch's memories are gathered, laid side by side and put into a cache: copied three times.
    """
    device = bank.memories.device
    if device.type != "cuda":
        return MOST_PLACES
    bytes_of_one = bank.memories[0].nbytes // bank.memories.shape[4]
    return int(torch.cuda.get_device_properties(device).total_memory // (8 * bytes_of_one))


def _joined(bank: ResidentBank, fresh: ResidentBank) -> ResidentBank:
    vectors = None
    if bank.vectors_DKV is not None and fresh.vectors_DKV is not None:
        vectors = torch.cat([bank.vectors_DKV, fresh.vectors_DKV])
    return ResidentBank(
        memories=torch.cat([bank.memories, fresh.memories]),
        keys=torch.cat([bank.keys, fresh.keys]),
        owners_D=torch.cat([bank.owners_D, fresh.owners_D]),
        seconds=bank.seconds + fresh.seconds,
        vectors_DKV=vectors,
    )
