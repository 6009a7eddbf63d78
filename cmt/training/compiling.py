"""Compiled decoder layers while training, plain ones afterwards."""

from __future__ import annotations

import torch
import torch._inductor.config
from transformers import AttentionInterface

from cmt.attention import IMPLEMENTATION, packed_attention
from cmt.base_model import BaseModel
from cmt.compressor import Compressor


def compile_layers(base: BaseModel, compressor: Compressor) -> None:
    """Compile what lies around the attention of each layer: a few graphs, for any batch.

    Packed attention itself is left out: its groups differ from step to step, and it is
    matrix products and copies that no compiler improves.
    """
    # does nothing for dynamic shapes but fail on them (torch 2.11)
    torch._inductor.config.triton.coalesce_tiling_analysis = False
    torch._dynamo.config.cache_size_limit = 64
    # two graphs a layer, not four: what is left out is deep in it, and the host is the bottleneck
    torch._dynamo.config.nested_graph_breaks = True
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(packed_attention))
    compressor.lora.compiled = True
    for layer in base.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def put_back(compressor: Compressor) -> None:
    """Plain layers again: compiled ones would compile anew for each cache they generate with."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    compressor.lora.compiled = False
    for layer in compressor.base.layers:
        layer.__dict__.pop("forward", None)
