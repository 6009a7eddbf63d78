"""The frozen base model: load it, know its dimensions, prove that it has not changed.

Any Hugging Face decoder-only causal LM with a plain key/value cache. Its weights never take
a gradient; `digest()` before and after shows that not one bit was written.

Shape legend: N packed tokens, D hidden size, G key/value heads, E head size.

(Past 300 lines: the model, how it is run packed and what is checked of it, documented.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cmt import weights
from cmt.attention import IMPLEMENTATION, Asked, LayerKV, LayerPass, PackedPass, any_shape, pack
from cmt.attention.asked import cut_down, put_back
from cmt.errors import ModelError
from cmt.lora import Merged
from cmt.model_structure import decoder_layers, dimensions, sliding_window


class BaseModel:
    """A frozen causal language model with its tokenizer."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = ""
    ) -> None:
        """Freeze `model`, which must have been loaded with ``attn_implementation="cmt"``.

        Raises:
            ModelError: It is not a decoder-only model with one plain key/value head layout, or
                packed attention can't reproduce what it computes.
        """
        self.name = name or type(model).__name__
        self.tokenizer = tokenizer
        self.dimensions = dimensions(model)
        if model.config._attn_implementation != IMPLEMENTATION:
            raise ModelError(
                f"expected a model loaded with attn_implementation={IMPLEMENTATION!r}, "
                f"got {model.config._attn_implementation!r}"
            )
        self.model = model.eval().requires_grad_(False)
        self.layers = decoder_layers(model, self.dimensions.layers)
        for place, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(_hand_over(place), with_kwargs=True)
        self.layers[-1].register_forward_hook(_hand_back, with_kwargs=True)
        self._window = sliding_window(model)
        self.pool: Any = None  # buffers of passes of fixed shape (replaying.py)
        self._check()

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
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"expected a decoder-only causal language model in {folder}, "
                f"got a folder that transformers can't load: {error}"
            ) from error
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers would make them up
            raise ModelError(
                f"expected every weight of the model in {folder}, got none for "
                f"{', '.join(missing[:3])} ({len(missing)} missing)"
            )
        return cls(model.to(device), tokenizer, name=str(name_or_path))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' element type."""
        return self._embedding_weight.dtype

    @property
    def _embedding_weight(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def adapters(self) -> Merged | None:
        """The weights in its layers' place just now; None: it is as it was loaded."""
        return getattr(self.model, "merged_weights", None)

    @property
    def decoder(self) -> nn.Module:
        """The model without its output head."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    @property
    def max_positions(self) -> int | None:
        """Positions the model was made for; None: it sets no bound."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's, and those of the generation configuration."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        listed = own if isinstance(own, list) else [own]
        ends = [self.tokenizer.eos_token_id, *listed]
        return frozenset(token for token in ends if token is not None)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings of token ids, any shape to (*shape, D)."""
        embeddings: Tensor = self.model.get_input_embeddings()(tokens)
        return embeddings

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final hidden states, (*shape, D) to (*shape, vocabulary)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

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

    @cached_property
    def sink_memory(self) -> Tensor:
        """The sink as a memory of one token is laid out: (L, 2, G, 1, E), in the model's dtype."""
        layers = [torch.stack(pair) for pair in self.sink]
        return torch.stack(layers).transpose(2, 3).to(self.dtype)

    def after_sink(self, memories: Tensor) -> Tensor:
        """Memories (B, L, 2, G, K, E) behind the sink: (B, L, 2, G, 1 + K, E), as they are read."""
        sink = self.sink_memory.expand(len(memories), -1, -1, -1, -1, -1)
        return torch.cat([sink, memories.to(device=self.device, dtype=self.dtype)], dim=4)

    def run_packed(self, embeddings_ND: Tensor, positions_N: Tensor, run: PackedPass) -> Tensor:
        """One packed pass; `run` says what is read before the tokens and what is captured.

        Returns:
            Final hidden states of shape (N, D); rows that `run` doesn't ask for are zeros.

        Raises:
            ModelError: A segment is longer than the model's sliding window, if it has one.
        """
        longest = max(group.index_BT.shape[1] for group in run.packing.groups)
        if self._window is not None and longest > self._window:
            raise ModelError(
                f"expected segments of at most {self._window} tokens, the sliding window of "
                f"{self.name}, got one of {longest}"
            )
        run.start(len(self.layers))
        # a 4-D mask is handed through as it is: packed attention makes its own
        unused = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=embeddings_ND.device)
        with any_shape():
            output = self.decoder(
                inputs_embeds=embeddings_ND[None],
                position_ids=positions_N[None],
                attention_mask=unused,
                use_cache=False,
                packed=run,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _check(self) -> None:
        """Refuse a model of which a packed pass does not give its own logits."""
        places = torch.arange(3, device=self.device)
        run = PackedPass(packing=pack([[3]], self.device), capture=places)
        try:
            with torch.no_grad():
                packed = self.logits(self.run_packed(self.embed(places), places, run)).float()
                plain = self.model(places[None]).logits[0].float()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"expected a decoder-only model that runs packed attention, got {self.name}, "
                f"which fails: {error}"
            ) from error
        expected = (3, self.dimensions.kv_heads, self.dimensions.head_size)
        for pair in run.handed_back:
            found = [tuple(part.shape) for part in pair or ()]
            if found != [expected] * 2:
                raise ModelError(
                    f"expected keys and values of {expected[1]} heads of size {expected[2]} in "
                    f"every layer of {self.name}, got {found or 'a layer that hands over none'}"
                )
        # rounding in bfloat16 is about 0.01 of the norm, another computation about 1
        difference = float((packed - plain).norm() / plain.norm())
        if not difference < 0.1:
            raise ModelError(
                f"expected {self.name}'s own logits from a packed pass, got others (relative "
                f"difference {difference:.2f}): it scales its logits or attends in its own way"
            )

    def narrows(self) -> bool:
        """Whether a pass may ask for some rows: without gradients or compiled layers."""
        plain = "forward" not in vars(self.layers[-1])
        return plain and not torch.is_grad_enabled() and self._narrows

    @cached_property
    def _narrows(self) -> bool:
        """Whether the last layer gives the rows that are asked for as it gives all of them."""
        places = torch.arange(3, device=self.device)
        packing = pack([[3]], self.device)
        asked = Asked(rows_A=places[1:], packing=pack([[2]], self.device))
        try:
            whole, some = (
                self.run_packed(self.embed(places), places, run)[1:].float()
                for run in (PackedPass(packing=packing), PackedPass(packing=packing, asked=asked))
            )
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        return float((whole - some).norm() / whole.norm()) < 0.1

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
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hand_over(place: int) -> Any:
    """Give a layer its own part of a packed pass."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = kwargs.get("packed")
        if not isinstance(run, PackedPass):
            return None
        packed = LayerPass(run=run, place=place)
        if run.asked is not None and place == len(run.handed_back) - 1:
            return cut_down(module, args, kwargs, packed, run.asked)
        return args, {**kwargs, "packed": packed}

    return hook


def _hand_back(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """The rows that the last layer was asked for, in their places."""
    packed = kwargs.get("packed")
    if not isinstance(packed, LayerPass) or packed.run.asked is None:
        return None
    return put_back(output, len(packed.run.packing.inverse_N), packed.run.asked)
