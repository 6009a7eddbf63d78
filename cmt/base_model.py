"""The frozen base model: load it, know its dimensions, prove that it has not changed.

Any Hugging Face decoder-only causal LM with a plain key/value cache. Its weights never take
a gradient; `digest()` before and after shows that not one bit was written.

Shape legend: N packed tokens, D hidden size, G key/value heads, E head size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cmt import weights
from cmt.attention import IMPLEMENTATION, LayerKV, PackedPass, pack
from cmt.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """What a memory's shape follows from; `kv_heads` is right for grouped-query attention."""

    layers: int
    hidden_size: int
    kv_heads: int
    head_size: int
    vocabulary: int


class BaseModel:
    """A frozen causal language model with its tokenizer."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = ""
    ) -> None:
        """Freeze `model`, which must have been loaded with ``attn_implementation="cmt"``.

        Raises:
            ModelError: It is not a decoder-only model with one plain key/value head layout.
        """
        self.name = name or type(model).__name__
        self.tokenizer = tokenizer
        self.dimensions = _dimensions(model)
        if model.config._attn_implementation != IMPLEMENTATION:  # noqa: SLF001
            raise ModelError(
                f"expected a model loaded with attn_implementation={IMPLEMENTATION!r}, "
                f"got {model.config._attn_implementation!r}"  # noqa: SLF001
            )
        self.model = model.eval().requires_grad_(False)
        self.layers = _decoder_layers(model, self.dimensions.layers)
        for place, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(_hand_over(place), with_kwargs=True)

    @classmethod
    def load(
        cls,
        name_or_path: str = weights.DEFAULT_MODEL,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        offline: bool | None = None,
    ) -> BaseModel:
        """Load by registered name, hub id, local folder or GGUF file.

        Args:
            name_or_path: ``"smollm2-135m"``, ``"org/model"``, a folder or a ``.gguf`` file.
            device: Default: CUDA when there is one, else CPU.
            dtype: Default: bfloat16 on CUDA, float32 on CPU.
            offline: True never touches the network.

        Raises:
            ModelError: Not found, not reachable, damaged, or not a decoder-only causal LM.
        """
        folder = weights.resolve(name_or_path, offline=offline)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=IMPLEMENTATION, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"expected a decoder-only causal language model in {folder}, "
                f"got a folder that transformers can't load: {error}"
            ) from error
        return cls(model.to(device), tokenizer, name=str(name_or_path))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' element type."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def decoder(self) -> nn.Module:
        """The model without its output head."""
        return self.model.get_decoder()

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of token ids, any shape to (*shape, D)."""
        return self.model.get_input_embeddings()(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final hidden states, (*shape, D) to (*shape, vocabulary)."""
        return self.model.get_output_embeddings()(hidden)

    @cached_property
    def sink(self) -> list[LayerKV]:
        """Attention sink: the first token's keys and values at place 0, each (1, G, E), a layer.

        Causal models learn to rest their attention on the first token; it stays in front of
        every memory, as it stood in front of every text the model was trained on.
        """
        token = self.tokenizer.bos_token_id
        if token is None:
            token = self.tokenizer.eos_token_id or 0
        tokens = torch.tensor([token], device=self.device)
        place = torch.zeros(1, dtype=torch.long, device=self.device)
        run = PackedPass(packing=pack([[1]], self.device), capture=place)
        with torch.no_grad():
            self.run_packed(self.embed(tokens), place, run)
        return run.captured

    def run_packed(self, embeddings_ND: Tensor, positions_N: Tensor, run: PackedPass) -> Tensor:
        """One packed pass; `run` says what is read before the tokens and what is captured.

        Returns:
            Final hidden states of shape (N, D).
        """
        run.start(len(self.layers), embeddings_ND.dtype)
        # a 4-D mask is handed through as it is: packed attention makes its own
        unused = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=embeddings_ND.device)
        output = self.decoder(
            inputs_embeds=embeddings_ND[None],
            position_ids=positions_N[None],
            attention_mask=unused,
            use_cache=False,
            packed=run,
        )
        return output.last_hidden_state[0]

    def own_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The base model's own tensors by their plain name, without any adapter laid over them."""
        seen: set[int] = set()
        for name, tensor in sorted(self.model.state_dict(keep_vars=True).items()):
            if "lora_" in name or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            yield name.replace(".base_layer", ""), tensor.detach()

    def digest(self) -> str:
        """SHA-256 over every weight, bit for bit: equal before and after means frozen."""
        return _digest(self.own_parameters())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights rounded to bfloat16: the same on CPU and GPU."""
        return _digest((name, tensor.bfloat16()) for name, tensor in self.own_parameters())


def _digest(tensors: Iterator[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _dimensions(model: PreTrainedModel) -> Dimensions:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a decoder-only causal LM, got {type(model).__name__}")
    heads, hidden = config.num_attention_heads, config.hidden_size
    return Dimensions(
        layers=config.num_hidden_layers,
        hidden_size=hidden,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or hidden // heads,
        vocabulary=config.vocab_size,
    )


def _decoder_layers(model: PreTrainedModel, count: int) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"expected {count} decoder layers in {type(model).__name__}, found none")


def _hand_over(place: int) -> Any:  # noqa: ANN401 - a hook, typed by torch
    """Give a layer its own part of a packed pass."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = kwargs.get("packed")
        if run is None:
            return None
        return args, {**kwargs, "packed": run.layers[place]}

    return hook
