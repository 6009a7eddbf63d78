"""Cross-entropy through the frozen output head, never holding all logits at once.

Logits of 20,000 targets over 49,152 tokens are gigabytes, several times over where autograd
keeps them for backward. The head is frozen, so hidden states alone take a gradient: each chunk
of targets gives its loss and its gradient, (softmax − onehot)·W, in the forward pass, and
backward only scales what was kept.

Shape legend: T target tokens, V vocabulary, W hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.base_model import BaseModel
from cmt.objectives import memory_aware_logits

CHUNK = 4096  # targets; their logits are 0.8 GB in float32 over 49,152 tokens
CHUNK_CPU = 128  # of so many they stay in a CPU's cache, about


def head_token_losses(
    base: BaseModel,
    hidden_TW: Tensor,
    labels_T: Tensor,
    without_TW: Tensor | None = None,
    alpha: float = 0.0,
    *,
    chunk: int = CHUNK,
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy of each token by the head's logits.

    Its mean is `objectives.answer_cross_entropy`, or `memory_aware_cross_entropy`, of them.
    A head that is trained, or is more than a linear layer, is gone through the ordinary way.

    Args:
        base: The model whose head it is.
        hidden_TW: Final hidden states that predict each token, any float type.
        labels_T: Those tokens' ids.
        without_TW: Final hidden states of the reading without memory, which take no gradient:
            the loss is that of the memory-aware logits.
        alpha: Their α; it says nothing where `without_TW` is None.
        chunk: Targets whose logits are held at a time.
        compiled: Compile the part between the two matrix products (CUDA).

    Returns:
        Shape (T,), float32.
    """
    head = base.model.get_output_embeddings()
    if type(head) is not nn.Linear or any(p.requires_grad for p in head.parameters()):
        with torch.no_grad():
            without_TV = None if without_TW is None else base.logits(without_TW)
        return _token_losses(base.logits(hidden_TW), without_TV, labels_T, alpha)
    device = hidden_TW.device.type
    dtype = head.weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    fixed = _Fixed(
        weight_VW=head.weight.to(dtype),
        bias_V=None if head.bias is None else head.bias.to(dtype),
        labels_T=labels_T,
        without_TW=None if without_TW is None else without_TW.detach().to(dtype),
        alpha=0.0 if without_TW is None else alpha,
    )
    if torch.is_grad_enabled() and hidden_TW.requires_grad:
        losses_T: Tensor = _HeadLoss.apply(hidden_TW, fixed, chunk, compiled)  # type: ignore[no-untyped-call]
        return losses_T
    with torch.no_grad():
        return torch.cat([
            _token_losses(own_TV, other_TV, labels, alpha)
            for own_TV, other_TV, labels in fixed.logits(hidden_TW, chunk)
        ])  # fmt: skip


@dataclass(kw_only=True, slots=True)
class _Fixed:
    """All of a loss that takes no gradient, in the type that logits are computed in."""

    weight_VW: Tensor
    bias_V: Tensor | None
    labels_T: Tensor
    without_TW: Tensor | None
    alpha: float

    def logits(
        self, hidden_TW: Tensor, chunk: int
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Logits with memory, logits without and labels, at most `chunk` targets at a time."""
        count = max(1, len(self.labels_T))
        size = math.ceil(count / math.ceil(count / chunk))  # alike: no small chunk is left over
        for start in range(0, count, size):
            place = slice(start, start + size)
            states = hidden_TW[place].to(self.weight_VW.dtype)
            other_TV = None
            if self.without_TW is not None:
                other_TV = functional.linear(self.without_TW[place], self.weight_VW, self.bias_V)
            own_TV = functional.linear(states, self.weight_VW, self.bias_V)
            yield own_TV, other_TV, self.labels_T[place]


class _HeadLoss(torch.autograd.Function):
    """Each token's loss; its gradient with respect to hidden states is ready before backward."""

    @staticmethod
    def forward(ctx: Any, hidden_TW: Tensor, fixed: _Fixed, chunk: int, compiled: bool) -> Tensor:
        elementwise = _compiled() if compiled else _loss_and_gradient
        losses, gradients = [], []
        for own_TV, other_TV, labels in fixed.logits(hidden_TW, chunk):
            if compiled:  # T varies, V does not
                torch._dynamo.mark_static(own_TV, 1)
                if other_TV is not None:
                    torch._dynamo.mark_static(other_TV, 1)
            own, gradient_TV = elementwise(own_TV, other_TV, labels, fixed.alpha)
            losses.append(own)
            gradients.append((gradient_TV @ fixed.weight_VW).to(hidden_TW.dtype))
        ctx.fixed = fixed
        ctx.save_for_backward(hidden_TW, torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, incoming_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TW, gradient_TW = ctx.saved_tensors
        fixed: _Fixed = ctx.fixed
        if torch.is_grad_enabled():  # create_graph: to be differentiated again, all at once
            [[own_TV, other_TV, labels]] = fixed.logits(hidden_TW, max(1, len(hidden_TW)))
            losses_T = _token_losses(own_TV, other_TV, labels, fixed.alpha)
            [again_TW] = torch.autograd.grad(losses_T, hidden_TW, incoming_T, create_graph=True)
            return again_TW, None, None, None
        # scaled in float32: in bfloat16 the scale itself would be rounded, for all alike
        scale_T1 = incoming_T.float()[:, None] * (1 + fixed.alpha)
        return (gradient_TW.float() * scale_T1).to(gradient_TW.dtype), None, None, None


def _token_losses(
    own_TV: Tensor, other_TV: Tensor | None, labels_T: Tensor, alpha: float
) -> Tensor:
    adjusted_TV = _adjusted(own_TV, other_TV, alpha)
    return functional.cross_entropy(adjusted_TV, labels_T, reduction="none")


def _adjusted(own_TV: Tensor, other_TV: Tensor | None, alpha: float) -> Tensor:
    return own_TV.float() if other_TV is None else memory_aware_logits(own_TV, other_TV, alpha)


def _loss_and_gradient(
    own_TV: Tensor, other_TV: Tensor | None, labels_T: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Each token's loss in float32, and softmax − onehot in the logits' type."""
    log_TV = _adjusted(own_TV, other_TV, alpha).log_softmax(1)
    labels_T1 = labels_T[:, None]
    own_T1 = log_TV.gather(1, labels_T1)
    # p − 1 before it is rounded: in bfloat16 a p near 1 is 1; in place, for the memory's sake
    gradient_TV = log_TV.exp_().to(own_TV.dtype)
    return -own_T1[:, 0], gradient_TV.scatter_(1, labels_T1, own_T1.expm1().to(own_TV.dtype))


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_gradient, dynamic=True)
