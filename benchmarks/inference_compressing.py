"""Compression beside the plain model's forward pass over the same tokens, for `inference.py`.

Shape legend: N packed tokens, B documents of a batch, T longest document.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from inference_timing import paired_ratio, profiled, rounds, seconds, spread
from torch import nn

from cmt.attention import PackedPass, pack
from cmt.base_model import BaseModel
from cmt.compressor import Compressor, prepare
from cmt.datasets import QADataset
from cmt.encoding import batches, encode_documents
from cmt.resident import learn
from cmt.splitting import split
from cmt.tensors import move

Pieces = Sequence[Sequence[int]]


def tokenised(compressor: Compressor, dataset: QADataset) -> list[tuple[int, ...]]:
    """Token ids of every piece of the documents, like lengths together, as they are learned."""
    config = compressor.config
    pieces = [
        part.token_ids
        for document in dataset.documents
        for part in split(
            document.text,
            compressor.base.tokenizer,
            max_tokens=config.max_piece_tokens,
            overlap_tokens=config.overlap_tokens,
        )
    ]
    return sorted(pieces, key=len)


def batched(pieces: Pieces, memory_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Numbers of the pieces of each pass, as `encode_documents` takes them."""
    return list(batches([len(piece) + memory_tokens + 1 for piece in pieces], batch_tokens))


def compress(compressor: Compressor, pieces: Pieces, batch_tokens: int) -> None:
    """Token ids to memories as the bank stores them, left on the device."""
    for _, encoded in encode_documents(compressor, pieces, batch_tokens):
        encoded.stacked().bfloat16()


@torch.no_grad()
def plain_packed(plain: BaseModel, pieces: Pieces) -> None:
    """Last hidden states of the documents in one row, with our attention."""
    tokens_N = torch.cat([torch.tensor(piece) for piece in pieces]).to(plain.device)
    positions_N = torch.cat([torch.arange(len(piece)) for piece in pieces]).to(plain.device)
    run = PackedPass(packing=move(pack([[len(piece) for piece in pieces]]), plain.device))
    plain.run_packed(plain.embed(tokens_N), positions_N, run)


@torch.no_grad()
def plain_padded(plain: BaseModel, pieces: Pieces) -> None:
    """Last hidden states of the documents in a padded rectangle, by plain transformers."""
    tokens_BT = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in pieces], batch_first=True)
    lengths_B = torch.tensor([len(piece) for piece in pieces])
    valid_BT = (torch.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]).long()
    plain.decoder(
        input_ids=tokens_BT.to(plain.device),
        attention_mask=valid_BT.to(plain.device),
        use_cache=False,
    )


def matrix_weights(base: BaseModel) -> int:
    """Weights that every token of a pass is multiplied by: the decoder's matrices.

    The embedding is a look-up, adapters are merged into the weights once: neither counts.
    """
    inner = {id(p) for p in base.model.get_input_embeddings().parameters()}
    return sum(
        p.numel()
        for name, p in base.decoder.named_parameters()
        if p.dim() == 2 and id(p) not in inner and "lora_" not in name
    )


def operations_a_pair(base: BaseModel) -> int:
    """Floating-point operations of a query with a key in every layer: its score and its value."""
    config = base.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(4 * base.dimensions.layers * config.num_attention_heads * head)


def operations(base: BaseModel, lengths: Sequence[int]) -> int:
    """Floating-point operations of a pass without logits: 2 · weights · tokens, and attention."""
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    return 2 * matrix_weights(base) * sum(lengths) + operations_a_pair(base) * pairs


def stages(compressor: Compressor, pieces: Pieces, how_many: int) -> dict[str, float]:
    """Median seconds of the parts of one pass."""
    K, device = compressor.config.memory_tokens, compressor.base.device
    times: dict[str, list[float]] = {"laying out": [], "pass": [], "stacking": []}
    made: list[Any] = [None, None]

    def lay_out() -> None:
        made[0] = move(prepare(pieces, [], K), device)

    def run() -> None:
        with torch.no_grad():
            made[1] = compressor(made[0])

    for _ in range(how_many):
        times["laying out"].append(seconds(device, lay_out))
        times["pass"].append(seconds(device, run))
        times["stacking"].append(seconds(device, lambda: made[1].stacked().bfloat16()))
    return {name: statistics.median(own) for name, own in times.items()}


def measure(
    compressor: Compressor,
    plain: BaseModel,
    dataset: QADataset,
    *,
    batch_tokens: int,
    how_many: int,
    with_profile: bool,
) -> dict[str, Any]:
    """Compression and plain passes in turn: seconds, rates, operations, ratios."""
    device, K = plain.device, compressor.config.memory_tokens
    pieces = tokenised(compressor, dataset)
    passes = batched(pieces, K, batch_tokens)

    def each(run: Callable[[BaseModel, Pieces], None]) -> Callable[[int], None]:
        def every_pass(_: int) -> None:
            for rows in passes:
                run(plain, [pieces[i] for i in rows])

        return every_pass

    variants: dict[str, Callable[[int], object]] = {
        "compress": lambda _: compress(compressor, pieces, batch_tokens),
        "learn, from text": lambda _: learn(compressor, dataset, batch_tokens=batch_tokens),
        "plain, packed": each(plain_packed),
        "plain, padded": each(plain_padded),
    }
    times = rounds(device, variants, how_many, 1)
    lengths = [len(piece) for piece in pieces]
    tokens, documents = sum(lengths), len(dataset.documents)
    long = [length + K + 1 for length in lengths]
    rows: dict[str, Any] = {}
    for name, own in times.items():
        took = spread(own)
        needed = operations(plain, lengths if name.startswith("plain") else long)
        rows[name] = {
            "seconds": took,
            "documents_per_second": documents / took["median"],
            "tokens_per_second": tokens / took["median"],
            "floating_point_operations": needed,
        }
    middle = [pieces[i] for i in passes[len(passes) // 2]]
    result = {
        "documents": documents,
        "pieces": len(pieces),
        "tokens": tokens,
        "tokens_with_memory_and_key": sum(long),
        "token_ratio": tokens / sum(long),  # the speed ratio where only tokens cost
        "passes": len(passes),
        "batch_tokens": batch_tokens,
        "rows": rows,
        "ratios": {
            f"{name} / {against}": paired_ratio(times[against], times[name])
            for name in ("compress", "learn, from text")
            for against in ("plain, packed", "plain, padded")
        },
        "one_pass_stages": stages(compressor, middle, how_many),
    }
    if with_profile:
        result["profile"] = profiled(device, lambda: compress(compressor, middle, batch_tokens))
    return result
