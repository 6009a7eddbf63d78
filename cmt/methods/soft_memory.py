"""The paper's form of memory, M* = ψ(Θ(q), {Mⁱ}) and KV* = π(M*); MAC and MBC share it.

Θ is the base model with LoRA reading ``[text; K soft tokens]``: the soft tokens' last hidden
states are the memory, K×W. ψ is cross-attention: the compressed question attends to the
memories. π maps the result to keys and values that stand before the frozen model's own tokens
in every layer. (MAC's and MBC's Θ is T5; its weights can't be had here, so theirs is this one
too.)

Shape legend: D documents, Q questions, X texts, K soft tokens, W hidden size, S stacked memory
tokens (K each), G groups of the bank, H heads, L layers, N key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.attention import LayerKV, PackedPass, pack
from cmt.base_model import BaseModel
from cmt.compressor import Compressor, CompressorConfig, prepare
from cmt.errors import InputError
from cmt.reading import question_tokens
from cmt.tensors import move

READING_START = 64
"""Position of a question's first token: just past the sample that prefixes are scaled to."""

SAMPLE = (
    "The lighthouse stands on a rock by the sea. It was built in 1823, and it is 31 metres high. "
    "In 1904 the keeper, a sailor from the north, sold it to the city for 12,000 crowns."
)


class SoftCompressor(Compressor):
    """Θ: texts to K×W, the last hidden states of the memory tokens.

    The compressor of `compressor.py` with another result: its key token and key head are idle.
    """

    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of documents or questions to (X, K, W), in float32."""
        batch = move(prepare(texts, [], self.config.memory_tokens), self.base.device)
        X, K = batch.documents, batch.memory_tokens
        embeddings_NW = self.base.embed(batch.tokens_N)
        idle_XW = self.document_key_embedding.expand(X, -1)
        special = torch.cat([self._memory_tokens(embeddings_NW, batch), idle_XW])
        embeddings_NW = embeddings_NW.index_copy(
            0, batch.special_S, special.to(embeddings_NW.dtype)
        )
        with self.lora.on():
            hidden_NW = self.base.run_packed(
                embeddings_NW, batch.positions_N, PackedPass(packing=batch.packing)
            )
        memories: Tensor = hidden_NW[batch.special_S[: X * K]].unflatten(0, (X, K)).float()
        return memories


class CrossAttention(nn.Module):
    """One block of ψ: the question's tokens attend to memory, then a small network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        last = nn.Linear(2 * width, width)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), last)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.normal_(last.weight, std=0.02)

    def forward(self, states: Tensor, memory: Tensor) -> Tensor:
        """States (..., K, W) attend to memory (..., S, W); leading dimensions broadcast."""
        seen = self.norms[1](memory)
        lead = torch.broadcast_shapes(states.shape[:-2], memory.shape[:-2])
        parts = (self.query(self.norms[0](states)), self.key(seen), self.value(seen))
        heads = [
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3).expand(*lead, -1, -1, -1)
            for part in parts
        ]
        flat = [part.flatten(0, len(lead) - 1) for part in heads]
        read = functional.scaled_dot_product_attention(flat[0], flat[1], flat[2])
        states = states + self.out(read.transpose(-2, -3).flatten(-2).unflatten(0, lead))
        mixed: Tensor = states + self.network(self.norms[2](states))
        return mixed


class Aggregator(nn.Module):
    """ψ: several blocks of cross-attention."""

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError(
                f"expected a number of heads that divides the width {width}, got {heads}"
            )
        self.blocks = nn.ModuleList(CrossAttention(width, heads) for _ in range(blocks))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """M* of shape (..., K, W) from compressed questions (..., K, W) and memory (..., S, W)."""
        for block in self.blocks:
            queries = block(queries, memory)
        return queries

    def whole_bank(self, queries_QKW: Tensor, bank_DKW: Tensor, group: int = 0) -> Tensor:
        """Aggregate a whole bank for each question.

        Args:
            queries_QKW: Compressed questions.
            bank_DKW: Every memory.
            group: 0 attends to all memories at once. A number is MAC's hierarchical aggregation:
                each group of so many memories becomes one, the results are grouped again, until
                one is left; every memory takes part, the last group may be smaller.

        Raises:
            InputError: An empty bank, or a group of one memory, which would never end.
        """
        if not len(bank_DKW):
            raise InputError("expected at least one memory to aggregate, got none")
        if group == 1 or group < 0:
            raise InputError(f"expected a group of 0 or at least 2 memories, got {group}")
        if not group:
            return self._shared(queries_QKW, bank_DKW.flatten(0, 1)[None])[:, 0]
        # the first level is the same for every question, the next ones are each question's own
        level_QGKW = torch.cat(
            [self._shared(queries_QKW, part.flatten(1, 2)) for part in _grouped(bank_DKW, group)],
            dim=1,
        )
        while level_QGKW.shape[1] > 1:
            parts = [
                self(queries_QKW[:, None], part.permute(2, 0, 1, 3, 4).flatten(2, 3))
                for part in _grouped(level_QGKW.transpose(0, 1), group)
            ]
            level_QGKW = torch.cat(parts, dim=1)
        return level_QGKW[:, 0]

    def _shared(self, queries_QKW: Tensor, memory_GSW: Tensor) -> Tensor:
        """Every question attends to every group: (Q, G, K, W), the memory never copied."""
        Q, K, W = queries_QKW.shape
        G = len(memory_GSW)
        states = self(queries_QKW.reshape(1, Q * K, W).expand(G, -1, -1), memory_GSW)
        result: Tensor = states.unflatten(1, (Q, K)).transpose(0, 1)
        return result


def _grouped(memories: Tensor, group: int) -> list[Tensor]:
    """Memories (D, …) as (groups, group, …), and the rest as a smaller group of its own."""
    whole = len(memories) // group * group
    parts = []
    if whole:
        parts.append(memories[:whole].unflatten(0, (-1, group)))
    if whole < len(memories):
        parts.append(memories[None, whole:])
    return parts


class Aligner(nn.Module):
    """π: K×W to keys and values of every layer.

    A small network whose outputs are scaled to the mean and spread of the frozen model's own
    keys and values, measured once on a sample text, so that an untrained prefix looks like one
    the model could have made.
    """

    mean_LAND: Tensor
    spread_LAND: Tensor

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        width = base.dimensions.hidden_size
        tokens = base.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        place = torch.arange(len(tokens), device=base.device)
        run = PackedPass(packing=pack([[len(tokens)]], base.device), capture=place)
        with torch.no_grad():
            base.run_packed(base.embed(torch.tensor(tokens, device=base.device)), place, run)
        sample = torch.stack([torch.stack(pair) for pair in run.captured]).float()
        self.register_buffer("mean_LAND", sample.mean(2))  # (L, 2, N, E)
        self.register_buffer("spread_LAND", sample.std(2).clamp(min=1e-3))
        self.norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, self.mean_LAND.numel())
        )

    def forward(self, aggregated_QKW: Tensor) -> list[LayerKV]:
        """Keys and values of every layer, each (Q, K, N, E)."""
        made = self.network(self.norm(aggregated_QKW)).float()
        made = made.unflatten(-1, self.mean_LAND.shape) * self.spread_LAND + self.mean_LAND
        layers = made.unbind(2)  # L of (Q, K, 2, N, E)
        return [(layer[:, :, 0], layer[:, :, 1]) for layer in layers]


class SoftMemory(nn.Module):
    """Θ, ψ and π over a frozen model: all that is trained.

    Attributes:
        base: The frozen model.
    """

    def __init__(self, base: BaseModel, config: CompressorConfig, heads: int, blocks: int) -> None:
        super().__init__()
        self.compressor = SoftCompressor(base, config)
        device = base.device
        self.aggregator = Aggregator(base.dimensions.hidden_size, heads, blocks).to(device)
        self.aligner = Aligner(base).to(device)
        for part in (self.compressor.key_head, self.compressor.log_scale):
            part.requires_grad_(False)  # idle in this form
        self._base = (base,)

    @property
    def base(self) -> BaseModel:
        """The frozen model."""
        return self._base[0]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of questions, as they are compressed and read."""
        return question_tokens(self.base.tokenizer, texts)

    def trained_bytes(self) -> int:
        """Size of what is trained, as it lies in memory."""
        return sum(p.nbytes for p in self.parameters())


def pooled(memories_XKW: Tensor) -> Tensor:
    """One unit vector a memory, (X, W): the direction of the mean of its tokens."""
    return functional.normalize(memories_XKW.mean(1), dim=-1)
