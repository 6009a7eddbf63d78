"""The compressor Θ: document tokens in, a memory and a key out, in one forward pass.

M = Θ(d) = (m₁ … m_K), K ≪ |d|. The compressor is the base model with LoRA on, reading
``[d; m₁ … m_K; κ]``. The memory is what the memory tokens leave in every layer's keys and
values: the frozen model later attends to them as if it had read those tokens. The hidden
state of the key token κ, projected and normalised, is the memory's key; a question
``[q; κ']`` gets its key in the same pass, by the same weights. The memory tokens' and the
question's own hidden states, projected too, are compared token by token
(`late_interaction.py`).

One compressor may serve several ratios |d| : K. With k < K memory tokens it reads
``[d; m … m; κ]`` with k of its K learned vectors, spread evenly, so that each stands for the
part of the text that it stands for among all K. (Matryoshka representations, arXiv 2205.13147,
nest by prefix; here a prefix of the K memory tokens would stand for the text's beginning.)

Shape legend: N packed tokens, D documents, Q questions, T tokens of all questions, K memory
tokens, L layers, G key/value heads, E head size, W hidden size, C key size, V vector size.

(Past 300 lines: Θ in one place, its settings, input, pass and output, documented.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.attention import Asked, LayerKV, PackedPass, Packing, pack
from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.late_interaction import QuestionVectors
from cmt.lora import Lora
from cmt.padding import counted

_FIRST_WEIGHT = 2.0  # softplus of it is what every question token counts before training


@dataclass(kw_only=True, slots=True)
class CompressorConfig:
    """What a compressor is made of; saved beside its weights.

    Attributes:
        memory_tokens: K, positions a memory takes in the reader's cache.
        memory_sizes: Smaller numbers of memory tokens that it is trained for too; a document
            is compressed into any of `sizes`.
        key_size: C.
        vector_size: V; 0: no late interaction.
        lora_rank, lora_alpha: As in PEFT; on every linear layer but the head.
        max_piece_tokens: Longest text compressed into one memory; longer ones are split.
        overlap_tokens: Tokens two neighbouring pieces share.
    """

    memory_tokens: int = 32
    memory_sizes: tuple[int, ...] = ()
    key_size: int = 256
    vector_size: int = 0
    lora_rank: int = 32
    lora_alpha: int = 64
    max_piece_tokens: int = 320
    overlap_tokens: int = 32

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        numbers = asdict(self)
        sizes = numbers.pop("memory_sizes")
        for name, value in numbers.items():
            least = 0 if name in ("overlap_tokens", "vector_size") else 1
            if not isinstance(value, int) or value < least:
                raise InputError(f"expected {name} of at least {least}, got {value!r}")
        if self.overlap_tokens >= self.max_piece_tokens:
            raise InputError(
                f"expected overlap_tokens below max_piece_tokens ({self.max_piece_tokens}), "
                f"got {self.overlap_tokens}"
            )
        if not isinstance(sizes, list | tuple) or not all(
            type(size) is int and 1 <= size <= self.memory_tokens for size in sizes
        ):
            raise InputError(
                f"expected memory_sizes from 1 to memory_tokens ({self.memory_tokens}), "
                f"got {sizes!r}"
            )
        self.memory_sizes = tuple(sorted({*sizes} - {self.memory_tokens}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every number of memory tokens a document can be compressed into, ascending."""
        return (*self.memory_sizes, self.memory_tokens)

    def size(self, memory_tokens: int | None) -> int:
        """The number of memory tokens asked for; None asks for all.

        Raises:
            InputError: The compressor isn't trained for it.
        """
        if memory_tokens is None:
            return self.memory_tokens
        if type(memory_tokens) is not int or memory_tokens not in self.sizes:
            raise InputError(
                f"expected memory_tokens out of {', '.join(map(str, self.sizes))}, which this "
                f"compressor is trained for, got {memory_tokens!r}"
            )
        return memory_tokens

    def described(self) -> dict[str, Any]:
        """What is saved and fingerprinted: one size alone is left unsaid, as it was at first."""
        fields = asdict(self)
        if not self.memory_sizes:
            del fields["memory_sizes"]
        return fields


@dataclass(kw_only=True, slots=True)
class CompressorInput:
    """Documents and questions laid out for one pass, made on the CPU ahead of it.

    The places of memory and key tokens hold token 0 until their embeddings are put there:
    `special_S` lists those places, all memory tokens first, then the documents' key tokens,
    then the questions'. `segments` says which memory token stands for each of the
    `document_tokens`, `segment_sizes` for how many each stands, `owners_T` which question each
    of the `question_tokens` belongs to, `question_lengths` how many each has. `asked` are all
    whose final hidden states are used, None where there are questions alone: every token is.
    """

    tokens_N: Tensor
    positions_N: Tensor
    packing: Packing
    special_S: Tensor
    document_tokens: Tensor
    segments: Tensor
    segment_sizes: Tensor
    question_tokens: Tensor
    owners_T: Tensor
    question_lengths: tuple[int, ...]
    documents: int
    questions: int
    memory_tokens: int
    asked: Asked | None


@dataclass(kw_only=True, slots=True)
class Encoded:
    """What a pass of the compressor gives.

    Attributes:
        memories: Keys and values of every layer, each (D, K, G, E).
        document_keys_DC, question_keys_QC: Unit vectors, float32.
        document_vectors_DKV: A unit vector of each memory token, float32; None without late
            interaction.
        question_vectors: Of each question token; None without late interaction.
    """

    memories: list[LayerKV]
    document_keys_DC: Tensor
    question_keys_QC: Tensor
    document_vectors_DKV: Tensor | None = None
    question_vectors: QuestionVectors | None = None

    def stacked(self) -> Tensor:
        """The memories as stored, shape (D, L, 2, G, K, E)."""
        layers = [torch.stack(pair, dim=1) for pair in self.memories]
        return torch.stack(layers, dim=1).transpose(3, 4)


def prepare(
    documents: Sequence[Sequence[int]],
    questions: Sequence[Sequence[int]],
    memory_tokens: int,
) -> CompressorInput:
    """Lay out token ids of documents and questions for one pass of the compressor.

    Positions: place 0 is the attention sink's; a document's tokens take 1 … n, its memory
    tokens are spread evenly over that span, its key token takes n + 1. A question's tokens
    take 1 … n too, its key token n + 1.

    Raises:
        InputError: A document without a token, or no document and no question.
    """
    if not documents and not questions:
        raise InputError("expected at least one document or question, got neither")
    for number, document in enumerate(documents):
        if not len(document):
            raise InputError(f"expected at least one token a document, got none in no. {number}")
    K, D = memory_tokens, len(documents)
    lengths_D = torch.tensor([len(document) for document in documents], dtype=torch.long)
    lengths = tuple(len(question) for question in questions)
    lengths_Q = torch.tensor(lengths, dtype=torch.long)
    whole = torch.cat([lengths_D + K + 1, lengths_Q + 1])
    starts_D, starts_Q = (whole.cumsum(0) - whole).split([D, len(questions)])
    spread_DK = ((torch.arange(K) + 0.5) * lengths_D[:, None] / K).long() + 1
    owners_t, places_t = counted(lengths_D)  # t: tokens of all documents
    owners_T, places_T = counted(lengths_Q)
    document_tokens, question_tokens = starts_D[owners_t] + places_t, starts_Q[owners_T] + places_T
    memory_places = ((starts_D + lengths_D)[:, None] + torch.arange(K)).flatten()
    key_places = torch.cat([starts_D + lengths_D + K, starts_Q + lengths_Q])
    tokens_N = torch.zeros(int(whole.sum()), dtype=torch.long)
    positions_N = torch.zeros_like(tokens_N)
    for texts, at, places in (
        (documents, document_tokens, places_t),
        (questions, question_tokens, places_T),
    ):
        tokens_N[at] = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        positions_N[at] = places + 1
    positions_N[memory_places] = spread_DK.flatten()
    positions_N[key_places] = torch.cat([lengths_D, lengths_Q]) + 1
    segments = owners_t * K + places_t * K // lengths_D[owners_t]
    asked = None
    if D:
        rows_A = torch.cat([memory_places, key_places, question_tokens]).sort().values
        whole_Q = [length + 1 for length in lengths]
        asked = Asked(rows_A=rows_A, packing=pack([[K + 1] * D, whole_Q]))
    return CompressorInput(
        tokens_N=tokens_N,
        positions_N=positions_N,
        packing=pack([[len(d) + K + 1 for d in documents], [len(q) + 1 for q in questions]]),
        special_S=torch.cat([memory_places, key_places]),
        document_tokens=document_tokens,
        segments=segments,
        segment_sizes=torch.bincount(segments, minlength=D * K),
        question_tokens=question_tokens,
        owners_T=owners_T,
        question_lengths=lengths,
        documents=D,
        questions=len(questions),
        memory_tokens=K,
        asked=asked,
    )


class Compressor(nn.Module):
    """LoRA on the base model, K memory tokens and a key head: all that is ever trained.

    Attributes:
        config: What it is made of.
        end_token: What answers read from its memories were trained to end with; None: the base
            model's own end tokens alone.
    """

    def __init__(self, base: BaseModel, config: CompressorConfig) -> None:
        """Lay a fresh, untrained compressor over `base`; reading is not changed by it.

        Raises:
            InputError: `base` is under a compressor already, or has too few positions.
        """
        super().__init__()
        positions = base.max_positions
        if positions is not None and config.max_piece_tokens + 2 > positions:
            raise InputError(
                f"expected max_piece_tokens of at most {positions - 2} over {base.name}, which "
                f"has {positions} positions, got {config.max_piece_tokens}"
            )
        self.config = config
        self.end_token: int | None = None
        self._base = (base,)  # in a tuple: the base model's weights are no part of this module
        dimensions, device = base.dimensions, base.device
        self.lora = Lora(base.model, config.lora_rank, config.lora_alpha).float()
        width = dimensions.hidden_size
        with torch.no_grad():
            mean = base.model.get_input_embeddings().weight.float().mean(0)

        def near_mean(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, width, device=device) * 0.02 + mean)

        self.memory_embeddings = near_mean(config.memory_tokens)
        self.document_key_embedding = near_mean()
        self.question_key_embedding = near_mean()
        self.reconstruction_embedding = near_mean()
        self.key_head = nn.Linear(width, config.key_size, device=device)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0), device=device))
        self.vector_head: nn.Linear | None = None
        if config.vector_size:
            self.vector_head = nn.Linear(width, config.vector_size, bias=False, device=device)
            self.term_weight = nn.Linear(width, 1, device=device)
            nn.init.zeros_(self.term_weight.weight)
            nn.init.constant_(self.term_weight.bias, _FIRST_WEIGHT)

    @property
    def base(self) -> BaseModel:
        """The frozen model underneath."""
        return self._base[0]

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer read from its memories, beside the base model's own."""
        return () if self.end_token is None else (self.end_token,)

    def scale(self) -> Tensor:
        """What cosine scores are multiplied by before a softmax: the inverse temperature."""
        return self.log_scale.exp().clamp(max=100.0)

    def forward(self, batch: CompressorInput) -> Encoded:
        """Compress documents and encode questions, in one packed pass of the base model."""
        K, D = batch.memory_tokens, batch.documents
        embeddings_NW = self.base.embed(batch.tokens_N)
        special_SW = torch.cat(
            [
                self._memory_tokens(embeddings_NW, batch),
                self.document_key_embedding.expand(D, -1),
                self.question_key_embedding.expand(batch.questions, -1),
            ]
        ).to(embeddings_NW.dtype)
        embeddings_NW = embeddings_NW.index_copy(0, batch.special_S, special_SW)
        asked = batch.asked if self.base.narrows() else None
        run = PackedPass(packing=batch.packing, capture=batch.special_S[: D * K], asked=asked)
        with self.lora.on():
            hidden_NW = self.base.run_packed(embeddings_NW, batch.positions_N, run)
        keys_SW, hidden_TW = hidden_NW[batch.special_S[D * K :]], hidden_NW[batch.question_tokens]
        keys, question_vectors = self.matched_by(
            keys_SW, hidden_TW, batch.owners_T, batch.question_lengths
        )
        encoded = Encoded(
            memories=[(k.unflatten(0, (D, K)), v.unflatten(0, (D, K))) for k, v in run.captured],
            document_keys_DC=keys[:D],
            question_keys_QC=keys[D:],
        )
        if self.vector_head is not None:
            encoded.document_vectors_DKV = self._vectors(
                self.vector_head, hidden_NW[batch.special_S[: D * K]]
            ).unflatten(0, (D, K))
            encoded.question_vectors = question_vectors
        return encoded

    def matched_by(
        self, keys_SW: Tensor, hidden_TW: Tensor, owners_T: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, QuestionVectors | None]:
        """Keys (S, C) and vectors of questions' tokens, None without late interaction.

        Args:
            keys_SW: Final hidden states of key tokens.
            hidden_TW: Those of the questions' tokens.
            owners_T, lengths: As `QuestionVectors` has them.
        """
        keys_SC = functional.normalize(self.key_head(keys_SW.float()).float(), dim=-1)
        if self.vector_head is None:
            return keys_SC, None
        hidden_TW = hidden_TW.float()
        return keys_SC, QuestionVectors(
            vectors_TV=self._vectors(self.vector_head, hidden_TW),
            weights_T=functional.softplus(self.term_weight(hidden_TW).float())[:, 0],
            owners_T=owners_T,
            lengths=lengths,
        )

    def _vectors(self, head: nn.Linear, hidden_XW: Tensor) -> Tensor:
        return functional.normalize(head(hidden_XW.float()).float(), dim=-1)

    def _memory_tokens(self, embeddings_NW: Tensor, batch: CompressorInput) -> Tensor:
        """A learned vector plus the mean embedding of the text each memory token stands for."""
        shape = (batch.documents * batch.memory_tokens, embeddings_NW.shape[1])
        sums = torch.zeros(shape, device=embeddings_NW.device)
        sums.index_add_(0, batch.segments, embeddings_NW[batch.document_tokens].float())
        counts = batch.segment_sizes.clamp(min=1)
        learned_KW = self.memory_embeddings[self._rows(batch.memory_tokens)]
        return sums / counts[:, None] + learned_KW.repeat(batch.documents, 1)

    def _rows(self, memory_tokens: int) -> slice | Tensor:
        """Which of the learned vectors serve so many memory tokens: all, or an even spread."""
        K = len(self.memory_embeddings)
        if memory_tokens == K:
            return slice(None)
        places = torch.arange(memory_tokens, device=self.memory_embeddings.device)
        return ((places + 0.5) * K / memory_tokens).long()

    def detach(self) -> None:
        """Take the compressor off its base model, which can then carry another one."""
        self.lora.remove()

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every trained weight rounded to bfloat16."""
        digest = hashlib.sha256(repr(sorted(self.config.described().items())).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            rounded = tensor.detach().bfloat16().contiguous().cpu().flatten()
            digest.update(rounded.view(torch.uint8).numpy())
        return digest.hexdigest()
