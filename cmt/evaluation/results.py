"""Results as files: one JSON each, named by what was measured, with which settings, on what code.

A result is found again by the digest of its settings and the commit, so that a run that was cut
short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cmt.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Where, when and by what code a result was made."""

    commit: str
    date: str
    command: str
    hardware: str
    torch: str
    python: str


def stamp(device: torch.device, commit: str | None = None) -> Stamp:
    """The stamp of results made now.

    Args:
        device: Where the model runs.
        commit: Of the code, where there is no repository to ask.
    """
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{os.cpu_count()} {platform.machine()} CPU cores"
    return Stamp(
        commit=commit or code_commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *map(shown, sys.argv)]),
        hardware=hardware,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def shown(argument: object) -> str:
    """An argument as results tell it: of a path from the root only the last name, `NAME=` kept."""
    text = str(argument)
    name, equals, value = ("", "", text) if Path(text).is_absolute() else text.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)


def code_commit() -> str:
    """The last commit that changed code, "+" behind it if there are changes since; or unknown.

    A Python file that git doesn't track is a change.
    """
    here = Path(__file__).parent
    code = [":/cmt", ":/benchmarks/*.py", ":/recipes"]
    commit = _git(["log", "-1", "--format=%h", "--", *code], here)
    if not commit:
        return "unknown"
    status = _git(["status", "--porcelain", "--untracked-files=all", "--", *code], here)
    changed = any(
        not line.startswith("??") or line.rstrip('"').endswith(".py") for line in status.split("\n")
    )
    return f"{commit}+" if status and changed else commit


def is_known(commit: str) -> bool:
    """Whether a commit, as `code_commit` tells it, is exactly the code that ran."""
    return commit != "unknown" and not commit.endswith("+")


def _git(arguments: list[str], folder: Path) -> str:
    try:
        ran = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


@dataclass(frozen=True, slots=True)
class ResultStore:
    """A folder of results of one commit; results of changed or unknown code are never reused."""

    folder: Path
    commit: str

    def is_known(self) -> bool:
        """Whether the code is exactly that of a commit."""
        return is_known(self.commit)

    def file(self, row: str, part: str, settings: Any) -> Path:
        """Where the result of a row's part with these settings is."""
        digest = hashlib.sha256(_json(settings).encode()).hexdigest()[:12]
        return self.folder / f"{row}-{part}-{digest}-{self.commit.replace('+', '-changed')}.json"

    def load(self, row: str, part: str, settings: Any) -> Any:
        """The result measured before, or None.

        Raises:
            InputError: The file isn't a result.
        """
        file = self.file(row, part, settings)
        if not self.is_known() or not file.exists():
            return None
        return read_result(file)["result"]

    def save(self, row: str, part: str, settings: Any, result: Any, made: Stamp) -> Path:
        """Write a result; complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.file(row, part, settings)
        record = {
            "row": row, "part": part, **asdict(made),
            "settings": settings, "result": result,
        }  # fmt: skip
        fresh = file.with_suffix(".new")
        fresh.write_text(_json(record, indent=1) + "\n", encoding="utf-8")
        fresh.replace(file)
        return file


def read_result(file: Path) -> dict[str, Any]:
    """A result's record.

    Raises:
        InputError: The file isn't a result.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected a result in {file}, got: {error}") from error
    if not isinstance(record, dict) or not {"row", "part", "result"} <= record.keys():
        raise InputError(f"expected a result in {file}, got JSON without row, part and result")
    return record


def without_predictions(value: Any) -> Any:
    """Plain data of a result (dataclasses to dicts), the thousands of answers left out."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {
            str(key): without_predictions(own) for key, own in value.items() if key != "predictions"
        }
    if isinstance(value, list | tuple):
        return [without_predictions(own) for own in value]
    return value


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=indent is None, default=str)
