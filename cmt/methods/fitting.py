"""Training a method's weights: one loop, on steps or on a clock, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmt.errors import InputError
from cmt.training import learning_rate_factor
from cmt.training.log import TrainingLog
from cmt.training.state import has_training_state, load_training_state, save_training_state


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """A training run.

    Attributes:
        steps, minutes: It stops at whichever comes first; one may be None.
        learning_rate: Peak; warmed up over `warmup_steps`, then a cosine to 2% of it.
        documents: Documents a step, for the log.
        save_seconds: The state is saved this often, and at the end.
        log_every: Steps between lines of metrics.jsonl.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    documents: int = 1
    seed: int = 0
    save_seconds: float = 120.0
    log_every: int = 20

    def __post_init__(self) -> None:
        """Refuse a run that would never stop, or not begin."""
        if self.steps is None and self.minutes is None:
            raise InputError("expected steps or minutes to train for, got neither")
        for name in ("steps", "minutes", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"expected {name} above 0, got {value}")


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Mapping[str, Tensor]],
    config: FitConfig,
    folder: Path,
    device: torch.device,
) -> int:
    """Train what of `module` takes gradients; go on from the state in `folder`, if there is one.

    A finished run that is called again trains nothing, writes nothing and puts its weights back.

    Args:
        module: The weights; its state dictionary is what is saved.
        loss_of: Scalars of a step by its number, "loss" the one to minimise.
        config: The run.
        folder: For the state and ``metrics.jsonl``.
        device: Where the module lies; on CUDA in bfloat16 autocast.

    Returns:
        Steps done, those of earlier calls included.

    Raises:
        CheckpointError: The folder holds the state of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    state = folder / "state"
    step, before = 0, 0.0
    if has_training_state(state):
        step, before = load_training_state(state, module, optimizer)
    done_before = step
    began = saved = time.monotonic()
    module.train()
    with TrainingLog(folder / "metrics.jsonl", step=step, every=config.log_every) as log:
        while (done := _done(config, step, before + time.monotonic() - began)) < 1:
            rate = config.learning_rate * learning_rate_factor(step, done, config.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed((config.seed << 32) + step)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                report = loss_of(step)
            report["loss"].backward()
            nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.add(report)
            step += 1
            if log.is_due(step):
                log.write(step, before + time.monotonic() - began, rate, config.documents)
            if time.monotonic() - saved > config.save_seconds:
                save_training_state(state, module, optimizer, step, _since(began, before))
                saved = time.monotonic()
    # a finished one is left alone: others may read it just now
    if step > done_before or not has_training_state(state):
        save_training_state(state, module, optimizer, step, _since(began, before))
    module.eval()
    return step


def _since(began: float, before: float) -> float:
    return before + time.monotonic() - began


def _done(config: FitConfig, step: int, seconds: float) -> float:
    """Share of the run that is over, by steps or by the clock, whichever is further."""
    by_steps = 0.0 if config.steps is None else step / config.steps
    by_clock = 0.0 if config.minutes is None else seconds / (60 * config.minutes)
    return max(by_steps, by_clock)
