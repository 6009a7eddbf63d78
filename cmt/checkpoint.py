"""Saving and loading the trained part: strict, and only onto the base model it was made for.

A checkpoint is a folder, laid out as PEFT and transformers users know it::

    config.json                        the compressor's configuration and the base model's fingerprint
    model.safetensors                  the weights; above 16 MB in numbered shards with
    model-00001-of-00002.safetensors   model.safetensors.index.json
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmt.base_model import BaseModel
from cmt.compressor import Compressor, CompressorConfig
from cmt.errors import CheckpointError

FORMAT = 1
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 16_000_000


def save_pretrained(compressor: Compressor, folder: str | Path) -> None:
    """Write a compressor to a folder, weights rounded to bfloat16."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    tensors = {
        name: tensor.detach().bfloat16().cpu().contiguous()
        for name, tensor in compressor.state_dict().items()
    }
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_BYTES)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    config = {
        "format": FORMAT,
        "base_model": compressor.base.name,
        "base_model_fingerprint": compressor.base.fingerprint,
        "compressor": asdict(compressor.config),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def from_pretrained(base: BaseModel, folder: str | Path) -> Compressor:
    """Load a compressor and lay it over `base`.

    Raises:
        CheckpointError: Nothing there, of another format or base model, damaged, or with
            tensors missing, left over or of another shape.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"expected a compressor checkpoint in {folder}: no {CONFIG} there")
    try:
        config = json.loads((folder / CONFIG).read_text())
        settings = CompressorConfig(**config["compressor"])
        trained_on = config["base_model_fingerprint"]
        found_format = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"expected a compressor's configuration in {folder / CONFIG}, got one that can't be "
            f"read: {error}"
        ) from error
    if found_format != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint of format {FORMAT} in {folder}, got {found_format}"
        )
    if trained_on != base.fingerprint:
        raise CheckpointError(
            f"the checkpoint in {folder} was trained on base model {trained_on[:16]} "
            f"({config.get('base_model', 'unnamed')}), got base model {base.fingerprint[:16]} "
            f"({base.name})"
        )
    weights = _read(folder)
    compressor = Compressor(base, settings)
    try:
        compressor.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"expected the weights that {folder / CONFIG} describes, got others: {error}"
        ) from error
    return compressor.eval().requires_grad_(False)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    try:
        if (folder / INDEX).is_file():
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        weights: dict[str, torch.Tensor] = {}
        for file in files:
            weights |= load_file(folder / file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"expected readable weights in {folder}, got: {error}") from error
    return weights
