"""MAC (Tack et al. 2024): amortized memories, aggregated over the whole bank.

The amortizer is the base model with LoRA where the original has T5, whose weights can't be
had; one LoRA serves documents and questions. Everything else is the original's: 4 blocks of
cross-attention over all memories, a prefix for every layer, the answer's cross-entropy alone.
Hierarchical aggregation (`group`) goes over the bank, every memory included; the original's
code loops over the question's length instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmt.methods.cmt_paper import CmtPaper
from cmt.methods.soft_method import SoftConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MacConfig(SoftConfig):
    """No selection, no self-matching, no memory-aware objective."""

    top_k: int = 0
    alpha: float = 0.0
    matching: float = 0.0


class Mac(CmtPaper):
    """The paper's form without the paper's three techniques."""
