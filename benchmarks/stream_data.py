"""The data of a benchmark run, from a folder, and the sizes of a run."""

from __future__ import annotations

import gzip
import hashlib
import json
import textwrap
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cmt.datasets import (
    QADataset,
    load_archivalqa,
    load_jsonl,
    load_realtimeqa,
    load_squad,
    load_streamingqa,
    peers_protocol,
    stream,
)
from cmt.errors import InputError
from cmt.evaluation.results import shown
from cmt.evaluation.stream import sampled
from cmt.methods.kv_memory import KvMemoryConfig
from cmt.opening import shipped_checkpoints
from cmt.records import Document

DATASETS = ("squad", "streamingqa", "archivalqa", "realtimeqa", "jsonl", "squad-file")
SHORTEST, LONGEST = 100, 750  # characters of an unrelated document


@dataclass(kw_only=True, slots=True)
class Data:
    """What a run reads.

    Attributes:
        training, qa_training: What methods are trained on.
        validation: Where settings are chosen.
        stream: What is learned and asked.
    """

    training: QADataset
    qa_training: QADataset
    validation: QADataset
    stream: QADataset


def load(
    folder: Path, kind: str, path: Path | None, documents: int, questions: int, validation: int
) -> Data:
    """The parts of a dataset.

    SQuAD: the peers' protocol, the first `documents` of dev as the stream. StreamingQA and
    ArchivalQA: train, val and test of the csv folder `path`. Everything else is only a stream:
    methods are trained on SQuAD's protocol.
    """
    if kind in ("streamingqa", "archivalqa"):
        if path is None:
            raise InputError(f"expected --path FOLDER with the csv files of {kind}, got none")
        read = load_streamingqa if kind == "streamingqa" else load_archivalqa
        training, held_out, test = (
            read(path, split=split, strict=False) for split in ("train", "val", "test")
        )
        parts = Data(training=training, qa_training=training, validation=held_out, stream=test)
    else:
        squad = folder / "squad" if (folder / "squad").is_dir() else folder
        protocol = peers_protocol(load_squad(squad, split="train", strict=True))
        parts = Data(
            training=protocol.training,
            qa_training=protocol.qa_training,
            validation=protocol.validation,
            stream=_stream(folder, squad, kind, path),
        )
    learned = stream(parts.stream, min(documents, len(parts.stream.documents)))
    held_out = stream(parts.validation, min(validation, len(parts.validation.documents)))
    return replace(parts, stream=sampled(learned, questions), validation=held_out)


def _stream(folder: Path, squad: Path, kind: str, path: Path | None) -> QADataset:
    if kind == "squad":
        return load_squad(squad, split="dev", strict=False)
    if kind == "realtimeqa":
        return load_realtimeqa(path or folder / "realtimeqa" / "evidence_qa.jsonl.gz")
    if path is None:
        raise InputError(f"expected --path FILE for {kind}, got none")
    return load_jsonl(path, strict=False) if kind == "jsonl" else load_squad(path, strict=False)


def unrelated_documents(folder: Path, how_many: int, learned: QADataset) -> list[Document]:
    """Wikipedia summaries, then WikiText-2, in pieces about as long as SQuAD's paragraphs.

    Summaries of the articles that are learned are left out.
    """
    titles = {document.title.casefold() for document in learned.documents}
    summaries = json.loads(_text(folder / "text" / "wikipedia_summaries.json.gz"))
    texts = [page["extract"] for name, page in summaries.items() if name.casefold() not in titles]
    for part in ("train", "valid", "test"):
        texts += _text(folder / "text" / f"{part}.raw.gz").split("\n")
    pieces = (piece for text in texts for piece in textwrap.wrap(text, LONGEST))
    kept = dict.fromkeys(piece for piece in pieces if len(piece) >= SHORTEST)
    return [
        Document(text=text, id=f"unrelated-{i:05d}") for i, text in enumerate(list(kept)[:how_many])
    ]


def checkpoint_name(given: Path | None, model: str, config: Any) -> str:
    """Which compressor key/value memory answers with: its name and a digest of its files."""
    name = shown(given or "shipped")
    folder = given or shipped_checkpoints().get(model)
    if folder is None or not isinstance(config, KvMemoryConfig):
        return name
    return f"{name} {_digest(folder)[:12]}"


def recipe_name(file: Path, config: Any) -> str:
    """How key/value memory is trained: the recipe's name and a digest of its text."""
    if not isinstance(config, KvMemoryConfig):
        return file.name
    return f"{file.name} {_file_digest(file, 'a recipe')}"


def told(config: Any) -> dict[str, Any]:
    """A configuration as results tell it: of folders the name, of a file of spans a digest too."""
    own = asdict(config)
    if own.get("dense_model"):
        own["dense_model"] = shown(own["dense_model"])
    if own.get("spans"):
        file = Path(own["spans"])
        own["spans"] = f"{file.name} {_file_digest(file, 'salient spans')}"
    return own


@cache
def _file_digest(file: Path, what: str) -> str:
    """Of a file's content; once a run."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"expected {what} in {file}, got: {error}") from error


@cache
def _digest(folder: Path) -> str:
    """Of a checkpoint's weights; once a run."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def plain_text(folder: Path) -> str:
    """WikiText-2's test part."""
    return _text(folder / "text" / "test.raw.gz")


def unrelated_questions(folder: Path, how_many: int) -> QADataset:
    """Random questions on new Wikipedia passages, with their passages alone."""
    files = sorted((folder / "new_wiki").glob("*.json*"))
    if not files:
        raise InputError(f"expected a SQuAD-format file in {folder / 'new_wiki'}, got none")
    chosen = sampled(load_squad(files[0], strict=False), how_many)
    return chosen.select_questions(range(len(chosen.questions)))


def _text(file: Path) -> str:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            return opened.read()
    except OSError as error:
        raise InputError(f"expected a gzipped text at {file}, got: {error}") from error
