"""Saving and loading the trained part: strict, and only onto the base model it was made for.

A checkpoint is a folder, laid out as PEFT and transformers users know it::

    config.json                        the compressor's configuration, the base model's fingerprint,
                                       what answers were trained to end with
    model.safetensors                  the weights; above 16 MB in numbered shards with
    model-00001-of-00002.safetensors   model.safetensors.index.json
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    """Write a compressor to a folder, weights rounded to bfloat16.

    A compressor that is there already is replaced.

    Raises:
        CheckpointError: Something else lies in the folder under a checkpoint's file names, or
            it can't be written to.
    """
    folder = Path(folder)
    tensors = {
        name: tensor.detach().bfloat16().cpu().contiguous()
        for name, tensor in compressor.state_dict().items()
    }
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_BYTES)
    config = {
        "format": FORMAT,
        "base_model": compressor.base.name,
        "base_model_fingerprint": compressor.base.fingerprint,
        "compressor": compressor.config.described(),
    }
    if compressor.end_token is not None:
        config["end_token"] = compressor.end_token
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_previous(folder)
        _write(folder / CONFIG, config)  # first: what an interrupted save left can be replaced
        for file, names in plan.filename_to_tensors.items():
            save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            _write(folder / INDEX, index)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"expected to write to folder {folder}, got: {error}") from error


def from_pretrained(base: BaseModel, folder: str | Path) -> Compressor:
    """Load a compressor and lay it over `base`.

    Raises:
        CheckpointError: Nothing there, of another format or base model, damaged, or with
            tensors missing, left over or of another shape. `base` is left as it was.
        InputError: `base` is under a compressor already.
    """
    folder = Path(folder)
    settings, end_token = _settings(base, folder)
    weights = _read(folder)
    compressor = Compressor(base, settings)
    compressor.end_token = end_token
    try:
        _put(compressor, weights, folder)
    except CheckpointError:
        compressor.detach()
        raise
    return compressor.eval().requires_grad_(False)


def start_from(compressor: Compressor, folder: str | Path) -> None:
    """Give a compressor the weights of a checkpoint of the same form, to train it further.

    The form is the configuration but for `memory_sizes`, which change no weight.

    Raises:
        CheckpointError: As for `from_pretrained`, or the checkpoint has another form. The
            compressor keeps its own weights.
    """
    folder = Path(folder)
    settings, _ = _settings(compressor.base, folder)
    own = compressor.config
    if replace(settings, memory_sizes=own.memory_sizes) != own:
        raise CheckpointError(
            f"expected a checkpoint of the form {own.described()} to start from, got "
            f"{settings.described()} in {folder}"
        )
    _put(compressor, _read(folder), folder)


def _settings(base: BaseModel, folder: Path) -> tuple[CompressorConfig, int | None]:
    """Configuration and end token in a checkpoint that was made for this base model."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"expected a compressor checkpoint in {folder}: no {CONFIG} there")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found_format = config["format"]
        trained_on = str(config["base_model_fingerprint"])
        settings = CompressorConfig(**config["compressor"])
        end_token = config.get("end_token")
        if end_token is not None and type(end_token) is not int:
            raise TypeError(f"expected a token id as end_token, got {end_token!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    return settings, end_token


def _put(compressor: Compressor, weights: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        compressor.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"expected the weights that {folder / CONFIG} describes, got others: {error}"
        ) from error


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _remove_previous(folder: Path) -> None:
    """Remove the weights of the compressor that was saved here before, and nothing else's."""
    weights = sorted(folder.glob("model*.safetensors*"))
    config: Any = None
    if (folder / CONFIG).exists():
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except ValueError:
            config = "not JSON"
    ours = isinstance(config, dict) and "base_model_fingerprint" in config
    if not ours and (config is not None or weights):
        raise CheckpointError(
            f"expected a folder that is empty or holds a compressor checkpoint, got {folder}, "
            f"which holds something else called {CONFIG} or model*.safetensors"
        )
    for file in weights:
        file.unlink()


def _read(folder: Path) -> dict[str, torch.Tensor]:
    try:
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = sorted({Path(file).name for file in index["weight_map"].values()})
        else:
            files = ["model.safetensors"]
        weights: dict[str, torch.Tensor] = {}
        for file in files:
            weights |= load_file(folder / file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"expected readable weights in {folder}, got: {error}") from error
    return weights
