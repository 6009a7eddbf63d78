"""A bank of soft memories read through ψ and π: what the paper's CMT, MAC and MBC share.

Shape legend: D documents, Q questions, K soft tokens, W hidden size, M memories aggregated for
a question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cmt.aggregation import Prefix
from cmt.base_model import BaseModel
from cmt.compressor import CompressorConfig
from cmt.encoding import batches
from cmt.errors import InputError
from cmt.methods.answering import AnswerConfig, generated
from cmt.methods.method import Reply, Stored
from cmt.methods.soft_memory import READING_START, SoftMemory, pooled
from cmt.records import Document
from cmt.tokens import token_ids

FOUND = 5  # documents told for R@5
MOST_STATES = 2_000_000  # K tokens a question and group, each W wide, while a bank is aggregated


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftConfig:
    """The form of the memory, and how it is trained.

    Attributes:
        memory_tokens: K.
        blocks, heads: Of ψ; 0 heads: one for every 64 of the width.
        top_k: Memories aggregated for a question, the most similar ones; 0: the whole bank.
        group: With the whole bank, MAC's hierarchical aggregation in groups of so many; 0: at
            once.
        alpha: α of the memory-aware objective; 0 is plain cross-entropy.
        decoding_alpha: α of decoding (`Sampling.alpha`), which changes nothing of the training.
        matching: Weight of the self-matching loss; 0: none.
        lambda_: λ inside it.
        documents, questions_per_document: A training step's.
        batch_tokens: Most tokens compressed in one pass.
    """

    memory_tokens: int = 24
    lora_rank: int = 32
    lora_alpha: int = 64
    blocks: int = 4
    heads: int = 0
    max_document_tokens: int = 512
    top_k: int = 8
    group: int = 0
    alpha: float = 0.3
    decoding_alpha: float = 0.0
    matching: float = 0.3
    lambda_: float = 1.0
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    documents: int = 64
    questions_per_document: int = 2
    max_answer_tokens: int = 24
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        for name, least in (("blocks", 1), ("heads", 0), ("top_k", 0), ("alpha", 0),
                            ("decoding_alpha", 0), ("matching", 0), ("lambda_", 0),
                            ("documents", 2), ("questions_per_document", 1),
                            ("max_answer_tokens", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of at least {least}, got {getattr(self, name)}")

    def module(self, base: BaseModel) -> SoftMemory:
        """An untrained Θ, ψ and π of this form."""
        form = CompressorConfig(
            memory_tokens=self.memory_tokens,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            max_piece_tokens=self.max_document_tokens,
            overlap_tokens=0,
            key_size=1,
        )
        heads = self.heads or max(1, base.dimensions.hidden_size // 64)
        return SoftMemory(base, form, heads, self.blocks)


class SoftMethod:
    """Documents become soft memories in a bank; questions aggregate them.

    Attributes:
        reader: The frozen model.
        module: Θ, ψ and π.
    """

    def __init__(self, module: SoftMemory, config: SoftConfig, answers: AnswerConfig) -> None:
        """Answer with what `module` has learned."""
        self.reader, self.module = module.base, module
        self._config, self._answers = config, answers
        self.reset()

    def reset(self) -> None:
        """Empty the bank."""
        shape = (0, self._config.memory_tokens, self.reader.dimensions.hidden_size)
        self._bank_DKW = torch.zeros(shape, dtype=torch.bfloat16, device=self.reader.device)

    @torch.no_grad()
    def learn(self, documents: Sequence[Document]) -> None:
        """Compress each document in one pass; a long one is cut."""
        memories = [own.bfloat16() for own in self.compressed(documents)]
        self._bank_DKW = torch.cat([self._bank_DKW, *memories])

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Compress the questions, aggregate memories for each, generate."""
        return self._answered(questions, None)

    def answer_from(self, questions: Sequence[str], documents: Sequence[int]) -> list[Reply]:
        """Answer each question from the memory of one document, by its place in the stream."""
        return self._answered(
            questions, torch.tensor(documents, device=self.reader.device)[:, None]
        )

    @torch.no_grad()
    def _answered(self, questions: Sequence[str], chosen_Q1: Tensor | None) -> list[Reply]:
        prompts = self.module.questions(questions)
        queries_QKW = torch.cat(list(self._compressed(prompts)))
        bank_DKW = self.remembered()
        found: list[tuple[int, ...]] = [()] * len(prompts)
        best_QM: Tensor | None = None
        if chosen_Q1 is not None:
            best_QM, found = chosen_Q1, [tuple(own) for own in chosen_Q1.tolist()]
        elif self._config.top_k:
            similarity_QD = pooled(queries_QKW) @ pooled(bank_DKW).T
            most = min(max(FOUND, self._config.top_k), len(bank_DKW))
            best_QM = similarity_QD.topk(most, dim=1).indices
            found = [tuple(own[:FOUND]) for own in best_QM.tolist()]

        def prefix_of(rows: list[int]) -> Prefix:
            with self._precision():
                chosen = None if best_QM is None else best_QM[rows, : self._config.top_k or None]
                return self._prefix(queries_QKW[rows], bank_DKW, chosen)

        with self.reading():
            texts = generated(
                self.reader,
                prompts,
                replace(
                    self._answers,
                    batch_size=self._at_once(len(bank_DKW)),
                    alpha=self._config.decoding_alpha,
                ),
                prefix_of=prefix_of,
                start=READING_START,
            )
        return [
            Reply(
                text=text,
                text_tokens=len(prompt),
                memory_tokens=self._config.memory_tokens,
                documents=own,
            )
            for text, prompt, own in zip(texts, prompts, found, strict=True)
        ]

    def stored(self) -> Stored:
        """The bank in bfloat16; Θ, ψ and π as trained."""
        size = self._bank_DKW.nbytes
        return Stored(documents=size, fixed=self.module.trained_bytes())

    def compressed(self, documents: Sequence[Document]) -> Iterator[Tensor]:
        """Memories of documents, (X, K, W) in float32, a batch at a time."""
        if not documents:
            return iter(())
        texts = [document.text for document in documents]
        tokens = token_ids(self.module.base.tokenizer, texts)
        return self._compressed([own[: self._config.max_document_tokens] for own in tokens])

    def remembered(self) -> Tensor:
        """The bank's memories as they are read, (D, K, W) in float32."""
        return self._bank_DKW.float()

    def reading(self) -> AbstractContextManager[None]:
        """How the reader reads: here as the frozen model it is."""
        return nullcontext()

    def _at_once(self, bank: int) -> int:
        """Questions answered together: with the hierarchy each has states in every group."""
        size, groups = self._answers.batch_size, 1
        if self._config.group and not self._config.top_k:
            groups = math.ceil(bank / self._config.group)
        return max(1, min(size, MOST_STATES // (groups * self._config.memory_tokens)))

    def _prefix(self, queries_QKW: Tensor, bank_DKW: Tensor, chosen_QM: Tensor | None) -> Prefix:
        """KV* = π(ψ(Θ(q), {Mⁱ})) as generation takes it."""
        if chosen_QM is None:
            whole = self.module.aggregator.whole_bank(queries_QKW, bank_DKW, self._config.group)
        else:
            whole = self.module.aggregator(queries_QKW, bank_DKW[chosen_QM].flatten(1, 2))
        layers = [torch.stack(pair, dim=1) for pair in self.module.aligner(whole)]
        memories = torch.stack(layers, dim=1).transpose(3, 4)  # (Q, L, 2, N, K, E)
        Q, K = len(whole), self._config.memory_tokens
        return Prefix(
            memories=memories,
            log_weights_BP=torch.zeros(Q, K, device=memories.device),
            tokens=(K,) * Q,
        )

    def _compressed(self, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        more = self._config.memory_tokens + 1
        for rows in batches([len(own) + more for own in texts], self._config.batch_tokens):
            with self._precision():
                yield self.module.compressor.compress([texts[i] for i in rows])

    def _precision(self) -> AbstractContextManager[None]:
        device = self.reader.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def frozen(module: nn.Module) -> None:
    """No more gradients: the method is trained."""
    module.eval().requires_grad_(False)
