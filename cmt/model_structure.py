"""What is read off a transformers model before it is used: its dimensions and its layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from cmt.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """What a memory's shape follows from; `kv_heads` is right for grouped-query attention."""

    layers: int
    hidden_size: int
    kv_heads: int
    head_size: int
    vocabulary: int


def dimensions(model: PreTrainedModel) -> Dimensions:
    """The dimensions of `model`.

    Raises:
        ModelError: It is no decoder with plain attention.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a decoder-only causal LM, got {type(model).__name__}")
    if getattr(config, "attn_logit_softcapping", None) is not None or any(
        name.endswith(".sinks") for name, _ in model.named_parameters()
    ):
        raise ModelError(
            f"expected plain softmax attention, got {type(model).__name__}, whose attention "
            f"caps its scores or has learned sinks"
        )
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise ModelError(
            f"expected logits as the output head gives them, got {type(model).__name__}, which "
            f"caps them"
        )
    try:
        heads, hidden = config.num_attention_heads, config.hidden_size
        return Dimensions(
            layers=config.num_hidden_layers,
            hidden_size=hidden,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or hidden // heads,
            vocabulary=config.vocab_size,
        )
    except AttributeError as error:
        raise ModelError(
            f"expected a transformer with attention heads, got {type(model).__name__}: {error}"
        ) from error


def sliding_window(model: PreTrainedModel) -> int | None:
    """Longest segment in which every token still sees all before it; None: any."""
    config = model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window is not None), default=None)


def decoder_layers(model: PreTrainedModel, count: int) -> nn.ModuleList:
    """The `count` layers of the decoder, in order.

    Raises:
        ModelError: They are not there.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"expected {count} decoder layers in {type(model).__name__}, found none")
