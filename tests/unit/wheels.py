"""A tiny GGUF file and wheels that hold it, made on the spot."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from gguf import GGUFWriter, TokenType
from torch import Tensor

from cmt.download import WheelFile
from tests import tiny

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<eos>{% endfor %}"
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, pre: str = "smollm") -> Path:
    """`tests.tiny`'s Llama (tied embeddings) and tokenizer as llama.cpp would write them."""
    config = tiny.config("llama")
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, pre)
    for name, weight in tiny.model("llama").state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_gguf_name(name), _as_llama_cpp_lays_it(name, weight).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    model = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in ("<bos>", "<eos>") else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{LAYER_NAMES[part.removesuffix('.weight')]}.weight"


def _as_llama_cpp_lays_it(name: str, weight: Tensor) -> Tensor:
    """llama.cpp turns neighbouring channels, transformers the two halves of a head."""
    config = tiny.config("llama")
    if "q_proj" in name:
        heads = config.num_attention_heads
    elif "k_proj" in name:
        heads = config.num_key_value_heads
    else:
        return weight
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def write_wheel(folder: Path, content: bytes, *, project: str = "cmt-test-model") -> WheelFile:
    """Write a wheel that pip takes, with `content` as its model file, and describe that file."""
    file = WheelFile(
        project=project,
        version="1.0",
        member="held/model.gguf",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    info = f"{project.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / file.wheel_name, "w") as wheel:
        wheel.writestr(file.member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return file
