"""What a training run needs to go on: weights, buffers, optimizer moments, step, clock.

Safetensors and JSON, no pickle. Written to a sibling folder first and renamed, so that an
interrupted save leaves the previous state whole, here or in the sibling ``.old``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cmt.errors import CheckpointError


def save_training_state(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    process: int = 0,
) -> None:
    """Save the state of a run after `step` steps and `seconds` of training.

    In a distributed run only process 0 writes.
    """
    if process != 0:
        return
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    fresh, old = folder.with_name(folder.name + ".new"), _before(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()},
              fresh / "state.safetensors")  # fmt: skip
    (fresh / "state.json").write_text(json.dumps({"step": step, "seconds": seconds}) + "\n")
    if folder.exists():  # else the sibling may be the only one that is whole
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def has_training_state(folder: Path) -> bool:
    """Whether there is a state that `load_training_state` would look into, whole or damaged."""
    return folder.exists() or _before(folder).exists()


def load_training_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, process: int = 0
) -> tuple[int, float]:
    """Put a saved state back.

    Returns:
        Steps done and seconds trained.

    Raises:
        CheckpointError: There is no state in `folder`, or it is damaged or of another run.
    """
    if not has_training_state(folder):
        raise CheckpointError(f"expected a training state in {folder} to resume, found none")
    if not folder.exists():  # interrupted between the two renames
        folder = _before(folder)
    try:
        tensors = load_file(folder / "state.safetensors")
        saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, seconds = int(saved["step"]), float(saved["seconds"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"expected a training state in {folder} that can be read, got: {error}"
        ) from error
    weights = {n.removeprefix("module/"): t for n, t in tensors.items() if n.startswith("module/")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"expected the state of a run with this configuration in {folder}, got another: {error}"
        ) from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, part = name.split("/")
            state.setdefault(int(number), {})[part] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step, seconds


def _before(folder: Path) -> Path:
    """Where the state before is while a new one takes its place."""
    return folder.with_name(folder.name + ".old")
