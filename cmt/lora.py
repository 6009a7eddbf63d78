"""LoRA on the base model, merged for each pass: W + s·B·A in every linear layer, or plain W.

The adapters are PEFT's (their initialisation, names and weights), the forward pass is not:
a pass through the compressor adds s·B·A to the weight once and then costs what the base
model costs, instead of three thin products a layer. With the adapters off a layer is the
base layer itself, to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cmt.errors import InputError

_ADAPTER = "default"


class Merged(list[Tensor]):
    """Merged weights of all layers: a list that can be referred to weakly."""


class Lora(nn.Module):
    """The adapters of one model; off except inside `on()`.

    Set `compiled` when the model's layers are compiled with dynamic shapes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rank: int,
        alpha: int,
        targets: str | list[str] = "all-linear",
    ) -> None:
        """Lay fresh adapters over every linear layer of `model` but its output head.

        `targets` names layers, by the end of their names, that alone get adapters.

        Raises:
            InputError: The model has adapters already, or no layer of those names.
        """
        super().__init__()
        if any(isinstance(module, LoraLayer) for module in model.modules()):
            raise InputError(
                "expected a base model without adapters, got one under a compressor already: "
                "detach() that compressor first, or load the base model again"
            )
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=targets,
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        try:
            inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        except ValueError as error:
            raise InputError(
                f"expected linear layers called {targets}, got none: {error}"
            ) from error
        self._model = (model,)  # in a tuple: no part of this module
        self._layers: list[Any] = []  # LoraLayers; PEFT leaves their parts untyped
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                module.__class__ = _merging(type(module))
                self._layers.append(module)
                self._layers[-1].merged_weight = None
                for part in ("lora_A", "lora_B"):
                    weight = getattr(module, part)[_ADAPTER].weight
                    self.register_parameter(f"{name}.{part}".replace(".", "/"), weight)
        self._cache: tuple[object, Merged] | None = None
        self.compiled = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the model as the compressor.

        Raises:
            InputError: The adapters were removed.
        """
        if not self._layers:
            raise InputError("expected a compressor over its base model, got a detached one")
        model: Any = self._model[0]
        merged = self._merged()
        model.merged_weights = merged
        for layer, weight in zip(self._layers, merged, strict=True):
            if self.compiled:  # its shape is a constant of the graph
                torch._dynamo.mark_static(weight)
            layer.merged_weight = weight
        try:
            yield
        finally:
            model.merged_weights = None
            for layer in self._layers:
                layer.merged_weight = None

    def remove(self) -> None:
        """Take the adapters off: the model's layers are its own again."""
        model = self._model[0]
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                model.set_submodule(name, module.get_base_layer())
        del model.peft_config  # PEFT's note that there are adapters
        self._layers, self._cache = [], None

    def _merged(self) -> Merged:
        """W + s·B·A of every layer; without gradients computed once and kept."""
        if torch.is_grad_enabled():
            self._cache = None
            return self._merge()
        version = [(weight.data_ptr(), weight._version) for weight in self.parameters()]
        if self._cache is None or self._cache[0] != version:
            self._cache = version, self._merge()
        return self._cache[1]

    def _merge(self) -> Merged:
        groups: dict[tuple[torch.Size, torch.Size, bool], list[int]] = defaultdict(list)
        for number, layer in enumerate(self._layers):
            A, B = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            groups[A.shape, B.shape, bool(layer.fan_in_fan_out)].append(number)
        merged: dict[int, Tensor] = {}
        for (_, _, transposed), numbers in groups.items():  # like shapes in one product
            layers = [self._layers[number] for number in numbers]
            A = torch.stack([layer.lora_A[_ADAPTER].weight for layer in layers])
            B = torch.stack([layer.lora_B[_ADAPTER].weight for layer in layers])
            deltas = torch.bmm(B, A) * layers[0].scaling[_ADAPTER]
            deltas = deltas.transpose(1, 2) if transposed else deltas
            weights = torch.stack([layer.get_base_layer().weight for layer in layers])
            sums = weights + deltas.to(weights.dtype)
            merged |= zip(numbers, sums.unbind(), strict=True)
        return Merged(merged[number] for number in range(len(self._layers)))


@cache
def _merging(kind: type[Any]) -> type[Any]:
    """PEFT's layer class with a forward pass of our own."""

    def forward(layer: Any, states: Tensor) -> Tensor:
        base = layer.get_base_layer()
        weight = layer.merged_weight
        if weight is None:
            plain: Tensor = base(states)
            return plain
        # GPT-2 keeps its weights the other way round
        return functional.linear(states, weight.T if layer.fan_in_fan_out else weight, base.bias)

    return type(f"Merging{kind.__name__}", (kind,), {"forward": forward})
