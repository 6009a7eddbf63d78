"""MBC (arXiv 2601.00756): MAC with a vector-quantised bank, and LoRA on the reader's K and V.

A stored memory is the numbers of its tokens' nearest codes. Codes follow the memories by moving
averages (van den Oord et al. 2017), unused ones restart at memories of the batch.

Shape legend: D documents, K soft tokens, W hidden size, C codes, T = D·K memory tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.lora import Lora
from cmt.methods.answering import AnswerConfig
from cmt.methods.fitting import fit
from cmt.methods.mac import MacConfig
from cmt.methods.materials import Materials
from cmt.methods.method import Stored
from cmt.methods.soft_memory import SoftMemory
from cmt.methods.soft_method import SoftMethod, frozen
from cmt.methods.soft_training import SoftTraining
from cmt.methods.tuned_copy import copy_of
from cmt.records import Document

_DECAY = 0.99
_UNUSED = 0.01  # a code's moving count below this restarts it


@dataclass(frozen=True, kw_only=True, slots=True)
class MbcConfig(MacConfig):
    """As MAC's.

    Attributes:
        codes: C.
        commitment: Weight of drawing memories to their codes.
        reader_rank, reader_alpha: Of the LoRA on the reader's key and value projections.
    """

    codes: int = 512
    commitment: float = 0.25
    reader_rank: int = 8
    reader_alpha: int = 16

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        super(MbcConfig, self).__post_init__()
        if not 1 <= self.codes <= 2**15:
            raise InputError(f"expected codes from 1 to {2**15}, got {self.codes}")


class Codebook(nn.Module):
    """C code vectors; memory tokens are brought to one scale before they are compared."""

    codes_CW: Tensor
    counts_C: Tensor
    sums_CW: Tensor

    def __init__(self, codes: int, width: int, commitment: float) -> None:
        super().__init__()
        first = torch.randn(codes, width)
        self.register_buffer("codes_CW", first)
        self.register_buffer("counts_C", torch.zeros(codes))
        self.register_buffer("sums_CW", torch.zeros(codes, width))
        self._commitment = commitment

    def nearest(self, memories: Tensor) -> Tensor:
        """Numbers of the nearest codes, (..., W) to (...)."""
        scaled = functional.layer_norm(memories.float(), memories.shape[-1:])
        return torch.cdist(scaled.flatten(0, -2), self.codes_CW).argmin(-1).view(scaled.shape[:-1])

    def forward(self, memories_DKW: Tensor) -> tuple[Tensor, Tensor]:
        """Codes in the memories' place, gradients passed straight through, and the loss.

        In training the codes move towards the memories.
        """
        scaled_TW = functional.layer_norm(
            memories_DKW.float(), memories_DKW.shape[-1:]
        ).flatten(0, 1)  # fmt: skip
        with torch.no_grad():
            if self.training:
                self._follow(scaled_TW)
            chosen_TW = self.codes_CW[torch.cdist(scaled_TW, self.codes_CW).argmin(-1)]
        loss = self._commitment * functional.mse_loss(scaled_TW, chosen_TW)
        straight_TW = scaled_TW + (chosen_TW - scaled_TW).detach()
        return straight_TW.view_as(memories_DKW), loss

    def _follow(self, scaled_TW: Tensor) -> None:
        if not self.counts_C.any():  # the first batch: codes begin at its memories
            self._restart(torch.ones_like(self.counts_C, dtype=torch.bool), scaled_TW)
        number_T = torch.cdist(scaled_TW, self.codes_CW).argmin(-1)
        counts_C = torch.zeros_like(self.counts_C).index_add_(
            0, number_T, torch.ones_like(number_T, dtype=self.counts_C.dtype)
        )
        sums_CW = torch.zeros_like(self.sums_CW).index_add_(0, number_T, scaled_TW)
        self.counts_C.lerp_(counts_C, 1 - _DECAY)
        self.sums_CW.lerp_(sums_CW, 1 - _DECAY)
        self._restart(self.counts_C < _UNUSED, scaled_TW)
        self.codes_CW.copy_(self.sums_CW / self.counts_C[:, None])

    def _restart(self, which_C: Tensor, scaled_TW: Tensor) -> None:
        """Put codes at random memories of the batch, as if each had been chosen once."""
        rows = torch.randint(len(scaled_TW), (len(which_C),), device=scaled_TW.device)
        self.codes_CW[which_C] = scaled_TW[rows][which_C]
        self.counts_C[which_C] = 1.0
        self.sums_CW[which_C] = scaled_TW[rows][which_C]


class _Trained(nn.Module):
    """Everything of MBC that is trained, saved together."""

    def __init__(self, memory: SoftMemory, codebook: Codebook, reader: Lora) -> None:
        super().__init__()
        self.memory, self.codebook, self.reader = memory, codebook, reader


class Mbc(SoftMethod):
    """MAC whose bank holds code numbers, read by a model with LoRA on its keys and values."""

    def __init__(
        self, trained: _Trained, reader: BaseModel, config: MbcConfig, answers: AnswerConfig
    ) -> None:
        """Answer with what was trained; use `build`."""
        self._trained = trained
        super().__init__(trained.memory, config, answers)
        self.reader = reader

    @classmethod
    def build(cls, materials: Materials, config: MbcConfig) -> Mbc:
        """Train everything on the training part, or load it from the state folder."""
        base = materials.base
        reader = copy_of(base)  # the reader's LoRA needs layers of its own
        reader.model.requires_grad_(False)
        lora = Lora(reader.model, config.reader_rank, config.reader_alpha,
                    ["k_proj", "v_proj"]).float()  # fmt: skip
        codebook = Codebook(config.codes, base.dimensions.hidden_size, config.commitment)
        trained = _Trained(config.module(base), codebook.to(base.device), lora)
        training = SoftTraining(
            trained.memory, materials.training, config,
            seed=materials.seed, reader=reader, remember=codebook,
        )  # fmt: skip
        run = materials.fit_config(
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            documents=config.documents,
        )

        def loss_of(step: int) -> dict[str, Tensor]:
            with lora.on():
                return training.loss_of(step)

        folder = materials.state_folder("mbc", replace(config, decoding_alpha=0.0))
        fit(trained, loss_of, run, folder, base.device)
        frozen(trained)
        return cls(trained, reader, config, materials.answers)

    def reset(self) -> None:
        """Empty the bank."""
        shape = (0, self._config.memory_tokens)
        self._numbers_DK = torch.zeros(shape, dtype=torch.int16, device=self.module.base.device)

    @torch.no_grad()
    def learn(self, documents: Sequence[Document]) -> None:
        """Compress, and keep the numbers of the nearest codes."""
        numbers = [self._trained.codebook.nearest(own) for own in self.compressed(documents)]
        self._numbers_DK = torch.cat([self._numbers_DK, *(own.short() for own in numbers)])

    def stored(self) -> Stored:
        """Two bytes a memory token; Θ, ψ, π, the codes, the reader's LoRA."""
        size = self._numbers_DK.nbytes
        parts = [*self._trained.parameters(), self._trained.codebook.codes_CW]
        return Stored(documents=size, fixed=sum(p.nbytes for p in parts))

    def remembered(self) -> Tensor:
        """Each number's code."""
        codes: Tensor = self._trained.codebook.codes_CW[self._numbers_DK.long()]
        return codes

    def reading(self) -> AbstractContextManager[None]:
        """With the reader's LoRA on."""
        return self._trained.reader.on()
