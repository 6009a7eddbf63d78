"""A bank as plain files that others can read, and back: JSON Lines and safetensors.

    manifest.json         what made the memories, the bank's tier, every file's size and SHA-256
    documents.jsonl       a version of a document a line, history too, with its pieces in order
    memories-00001.safetensors, …
                          of piece n: "key.n" (C,) float32, "memory.n" (L, 2, G, K, E) bfloat16

A memory in fewer bits is exported as the bytes that the bank holds, "memory.n" uint8, and its
place in documents.jsonl has their dtype and the memory's shape. They are

    int8    steps float32 (L, 2, G), then the memory's numbers of steps, int8
    int4    steps bfloat16 of the keys' channels (L, G, E) and the values' tokens (L, G, K), then
            the memory's numbers of steps plus 8, two in a byte, the first in the lower half

Any number of documents is exported and imported in bounded memory, each held as a whole: a file of
tensors ends after `SHARD_BYTES`. An import takes up an interrupted one: what the bank has already
is passed over. (Past 300 lines: both directions of one format, with its description.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cmt.bank import Bank, Problem
from cmt.bank.tensor_bytes import TIERS, Tier, memory_from_bytes, tensor_to_bytes
from cmt.errors import CorruptRecordError, FingerprintMismatchError, InputError
from cmt.records import EncodedPiece, Fingerprint, StoredDocument

FORMAT = "cmt-export"
VERSION = 2  # 1 had no tier: memories in fewer bits were written out in float32
SHARD_BYTES = 256 << 20
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
_DOCUMENTS_AT_ONCE = 64
_OWN_NAME = re.compile(r"manifest\.json|documents\.jsonl|memories-\d{5,}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What was exported or imported.

    Attributes:
        documents, memories: Versions and their memories that were written.
        unchanged: Versions that the bank had already.
        damaged: What could not be exported, as it is not as it was written.
    """

    documents: int
    memories: int
    unchanged: int = 0
    damaged: tuple[Problem, ...] = ()


def export_bank(
    bank: Bank, folder: Path, *, on_document: Callable[[], object] = lambda: None
) -> TransferReport:
    """Write a bank into a new folder, which appears when it is complete.

    Damaged documents are left out and named in the report.

    Raises:
        InputError: The folder exists, or can't be written, or what lies in its place as
            NAME.partial is no interrupted export.
    """
    if folder.exists():
        raise InputError(f"expected a folder to be made for the export, got one there: {folder}")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        _make_empty(partial)
        report = _export(bank, partial, on_document)
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"expected a folder that can be written, got: {error}") from error
    return report


def _make_empty(folder: Path) -> None:
    """A new folder in place of one that an interrupted export left; no other is deleted."""
    if folder.exists():
        others = [file.name for file in folder.iterdir() if not _OWN_NAME.fullmatch(file.name)]
        if others:
            raise InputError(
                f"expected {folder} to hold nothing but an interrupted export, got {others[0]!r} "
                "in it: move it away"
            )
        shutil.rmtree(folder)
    folder.mkdir()


def _export(bank: Bank, folder: Path, on_document: Callable[[], object]) -> TransferReport:
    documents, memories, shards = 0, 0, 0
    damaged: list[Problem] = []
    tensors: dict[str, torch.Tensor] = {}
    waiting = 0  # bytes
    with (folder / DOCUMENTS).open("w", encoding="utf-8") as lines:
        for entry in bank.entries():
            on_document()
            if isinstance(entry, Problem):
                damaged.append(entry)
                continue
            document, pieces = entry
            exported = [_exported(piece) for piece in pieces]
            size = sum(tensor.nbytes for own in exported for tensor in own.values())
            if tensors and waiting + size > SHARD_BYTES:
                shards, tensors, waiting = _save(folder, shards, tensors), {}, 0
            waiting += size
            places = []
            for piece, own in zip(pieces, exported, strict=True):
                tensors |= {f"{name}.{memories}": tensor for name, tensor in own.items()}
                places.append(_place(piece, memories, shards + 1))
                memories += 1
            fields = {**asdict(document), "metadata": dict(document.metadata)}
            del fields["memories"], fields["memory_bytes"]
            lines.write(json.dumps({**fields, "pieces": places}, ensure_ascii=False) + "\n")
            documents += 1
    if tensors:
        _save(folder, shards, tensors)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(bank.fingerprint),
        "tier": bank.tier,
        "documents": documents,
        "memories": memories,
        "files": {file.name: _described(file) for file in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return TransferReport(documents=documents, memories=memories, damaged=tuple(damaged))


def _exported(piece: EncodedPiece) -> dict[str, torch.Tensor]:
    """A piece's tensors by name; a memory in fewer bits as the bank's bytes."""
    tensors = {"key": piece.key, "memory": piece.memory}
    if piece.stored is not None:
        tensors["memory"] = torch.frombuffer(bytearray(piece.stored[1]), dtype=torch.uint8)
    return tensors if piece.vectors is None else {**tensors, "vectors": piece.vectors}


def _place(piece: EncodedPiece, number: int, shard: int) -> dict[str, Any]:
    place = {
        "start": piece.start,
        "end": piece.end,
        "tokens": piece.tokens,
        "number": number,
        "file": _shard_name(shard),
    }
    if piece.stored is not None:
        place |= {"dtype": piece.stored[0], "shape": list(piece.memory.shape)}
    return place


def _shard_name(number: int) -> str:
    return f"memories-{number:05}.safetensors"


def _save(folder: Path, shards: int, tensors: dict[str, torch.Tensor]) -> int:
    save_file(tensors, folder / _shard_name(shards + 1))
    return shards + 1


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an export says of itself.

    Raises:
        InputError: It is no export, or one of a newer version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected an export with a {MANIFEST} in {folder}: {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"expected an export of format {FORMAT!r} in {folder}, got {found!r}")
    if manifest.get("version") not in range(1, VERSION + 1):
        raise InputError(
            f"expected an export of version 1 to {VERSION}, got {manifest.get('version')!r}: "
            "upgrade cmt"
        )
    return dict(manifest)


def export_fingerprint(folder: Path) -> Fingerprint:
    """Which weights made the memories of an export; raises as `read_manifest`."""
    manifest = read_manifest(folder)
    try:
        return Fingerprint(
            base_model=str(manifest["base_model"]), compressor=str(manifest["compressor"])
        )
    except KeyError as error:
        raise InputError(f"expected {error} in {folder / MANIFEST}, got none") from error


def export_tier(folder: Path) -> Tier | None:
    """The tier of the bank that was exported; None where an old export doesn't say.

    Raises:
        InputError: As `read_manifest`, or there is no such tier.
    """
    found = read_manifest(folder).get("tier")
    if found is not None and found not in TIERS:
        raise InputError(
            f"expected a tier out of {', '.join(TIERS)} in {folder / MANIFEST}, got {found!r}"
        )
    return found


def import_bank(
    bank: Bank, folder: Path, *, on_document: Callable[[], object] = lambda: None
) -> TransferReport:
    """Take the documents and memories of an export into a bank, every checksum verified first.

    Where the bank is of the export's tier the memories come back byte for byte; else they are
    stored in the bank's own.

    Raises:
        InputError: It is no export, or the bank holds another version under an id of it, at the
            same time; what was imported before stays.
        CorruptRecordError: A file is not as it was exported; nothing was imported.
        FingerprintMismatchError: Its memories were made by other weights than the bank's.
    """
    found = export_fingerprint(folder)
    if found != bank.fingerprint:
        raise FingerprintMismatchError(
            f"expected an export of memories made by {bank.fingerprint}, as the bank's, got {found}"
        )
    _check_files(folder)
    documents, memories, unchanged = 0, 0, 0
    for batch in _batches(folder):
        for outcome, (_, pieces) in zip(bank.restore(batch), batch, strict=True):
            on_document()
            if outcome.status == "unchanged":
                unchanged += 1
            else:
                documents, memories = documents + 1, memories + len(pieces)
    return TransferReport(documents=documents, memories=memories, unchanged=unchanged)


def _check_files(folder: Path) -> None:
    files = read_manifest(folder).get("files")
    if not isinstance(files, dict) or DOCUMENTS not in files:
        raise InputError(f"expected the files of the export in {folder / MANIFEST}, got {files!r}")
    for name, described in files.items():
        if name != Path(name).name:
            raise InputError(f"expected the name of a file in the export, got {name!r}")
        file = folder / name
        if not file.is_file() or _described(file) != described:
            raise CorruptRecordError(
                f"expected {file} as it was exported, got other bytes: its SHA-256 doesn't match"
            )


def _batches(folder: Path) -> Iterator[list[tuple[StoredDocument, list[EncodedPiece]]]]:
    batch: list[tuple[StoredDocument, list[EncodedPiece]]] = []
    with (folder / DOCUMENTS).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                batch.append(_entry(folder, json.loads(line)))
            except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
                raise InputError(
                    f"expected a document with its pieces in line {number} of "
                    f"{folder / DOCUMENTS}, got one that can't be read: {error!r}"
                ) from error
            if len(batch) == _DOCUMENTS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch


def _entry(folder: Path, fields: dict[str, Any]) -> tuple[StoredDocument, list[EncodedPiece]]:
    places = fields.pop("pieces")
    document = StoredDocument(
        **{**fields, "tags": tuple(fields["tags"])}, memories=0, memory_bytes=0
    )
    return document, [_piece(folder, place) for place in places]


def _piece(folder: Path, place: dict[str, Any]) -> EncodedPiece:
    with safe_open(folder / Path(place["file"]).name, framework="pt") as tensors:
        key = tensors.get_tensor(f"key.{place['number']}")
        memory = tensors.get_tensor(f"memory.{place['number']}")
        name = f"vectors.{place['number']}"
        vectors = tensors.get_tensor(name) if name in tensors.keys() else None
    stored = None
    if "dtype" in place:
        stored = (place["dtype"], tensor_to_bytes(memory))
        memory = memory_from_bytes(stored[1], place["shape"], place["dtype"]).bfloat16()
    return EncodedPiece(
        start=place["start"],
        end=place["end"],
        tokens=place["tokens"],
        key=key,
        memory=memory,
        vectors=vectors,
        stored=stored,
    )
