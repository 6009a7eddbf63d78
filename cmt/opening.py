"""From a model's name to a compressor ready for use: find its checkpoint, load both quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from cmt import checkpoint as checkpoints
from cmt.base_model import BaseModel
from cmt.compressor import Compressor
from cmt.errors import CheckpointError, InputError
from cmt.records import Fingerprint


def shipped_checkpoints() -> dict[str, Path]:
    """The compressors that come with the package, by the name of their base model."""
    folder = Path(str(resources.files("cmt"))) / "checkpoints"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def find_checkpoint(model: str, checkpoint: str | Path | None) -> Path:
    """The folder given, or else the shipped compressor of this base model.

    Raises:
        CheckpointError: None is given and none is shipped.
    """
    if checkpoint is not None:
        return Path(checkpoint).expanduser()
    shipped = shipped_checkpoints()
    if model not in shipped:
        raise CheckpointError(
            f"expected a base model with a shipped compressor ({', '.join(shipped) or 'none is'}), "
            f"got {model!r}: train one with `cmt train RECIPE --data FOLDER --out DIR`, then give "
            "DIR/checkpoint as the checkpoint"
        )
    return shipped[model]


def load_compressor(
    model: str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    offline: bool | None = None,
) -> Compressor:
    """A trained compressor laid over its freshly loaded base model; arguments as `Memory.open`.

    With `dtype` left to us the model is in bfloat16 on a GPU and on a CPU that multiplies it.

    Raises:
        InputError: This machine doesn't have the device.
        ModelError: The base model can't be had.
        CheckpointError: The compressor can't, or is another base model's.
    """
    folder = find_checkpoint(model, checkpoint)
    if not (folder / checkpoints.CONFIG).is_file():  # before a slow load
        raise CheckpointError(
            f"expected a compressor checkpoint in {folder}: no {checkpoints.CONFIG} there"
        )
    device = None if device is None else checked_device(device)
    if dtype is None and _multiplies_bfloat16(device):
        dtype = torch.bfloat16
    with _without_loading_bar():
        base = BaseModel.load(model, device=device, dtype=dtype, offline=offline)
    return checkpoints.from_pretrained(base, folder)


def _multiplies_bfloat16(device: torch.device | None) -> bool:
    """Whether the model will be on a CPU with bfloat16 instructions; others are slower with it."""
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return on_cpu and supported is not None and bool(supported())


def fingerprint(compressor: Compressor) -> Fingerprint:
    """Which weights a compressor's memories are made by."""
    return Fingerprint(base_model=compressor.base.fingerprint, compressor=compressor.fingerprint())


def checked_device(device: str | torch.device) -> torch.device:
    """A device that tensors can be put on.

    Raises:
        InputError: This machine doesn't have it, or there is no such thing.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(
            f"expected a device of this machine, such as cpu or cuda, got {device!r}: {reason}"
        ) from error
    return found


@contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Loading takes a second or two: transformers' bar is noise. Its setting is put back."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
