"""SQuAD v1.1 and everything in its format (SQuADShifts, XQuAD, ...), read from a file.

{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
    {"id": ..., "question": ..., "answers": [{"text": ...}]}]}]}]}
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from cmt.datasets.qa import QADataset, Question, hold_out, stream
from cmt.errors import DocumentError, InputError
from cmt.records import Document, Failure

__all__ = [
    "PeersProtocol",
    "QADataset",
    "Question",
    "hold_out",
    "load_squad",
    "peers_protocol",
    "stream",
]

T = TypeVar("T")

SPLITS = ("train", "dev")
TRAINING_QUESTIONS = 87_599

# What the peers (CaMeLS, MAC) use each part of the training questions for.
PEERS_RANGES = {
    "qa_training": range(40_006),
    "qa_validation": range(40_006, 42_118),
    "training": range(42_118, 82_011),
    "validation": range(82_011, TRAINING_QUESTIONS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersProtocol:
    """SQuAD's training questions as CaMeLS and MAC divide them; no part shares an article.

    Attributes:
        qa_training: Fine-tuning of the baselines on question answering.
        qa_validation: Its validation.
        training: Training of the method itself.
        validation: Its validation.
    """

    qa_training: QADataset
    qa_validation: QADataset
    training: QADataset
    validation: QADataset


def load_squad(
    path: str | Path, *, split: str | None = None, name: str | None = None, strict: bool = True
) -> QADataset:
    """Read a SQuAD v1.1-format file, flattened in file order.

    Questions and answers lose the white space around them and an answer given twice is kept
    once; titles lose their URL encoding and underscores; nothing else changes. A document's id
    is `name` and its place in the file: squad-dev-00012.

    Args:
        path: A .json or .json.gz file, or a folder that holds train-v1.1.json and
            dev-v1.1.json (either may be gzipped).
        split: "train" or "dev", for a folder; must be None for a file.
        name: Begins the ids. By default squad-train or squad-dev after the file's beginning,
            else the file's own name.
        strict: Raise at the first passage, question or answer that can't be used. False leaves
            it out (a question goes when no answer is left) and tells in `QADataset.skipped`.

    Raises:
        InputError: The file is missing, unreadable, not JSON, empty or not in this format; the
            message holds the path to the field.
        DocumentError: With strict, an empty passage or question, a question without answers,
            or an answer that is nowhere in its passage.
    """
    file = _find(Path(path), split)
    return flatten(_paragraphs_of_file(_read(file), str(file)), name or _name(file), strict=strict)


def peers_protocol(dataset: QADataset) -> PeersProtocol:
    """Divide SQuAD v1.1's complete training file as the peers do (see `PEERS_RANGES`).

    Raises:
        InputError: It isn't the complete training file, to whose question numbers they refer.
    """
    if len(dataset.questions) != TRAINING_QUESTIONS:
        raise InputError(
            f"the peers' protocol is defined on SQuAD v1.1's {TRAINING_QUESTIONS} training "
            f"questions, got {dataset.name} with {len(dataset.questions)}"
        )
    return PeersProtocol(
        **{
            part: dataset.select_questions(questions, name=f"{dataset.name}-peers-{part}")
            for part, questions in PEERS_RANGES.items()
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RawQuestion:
    """A question as its source has it; `where` is the path to it, for messages."""

    where: str
    id: str
    text: str
    answers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A passage as its source has it, with its article's index and title."""

    where: str
    article: int
    title: str
    text: str
    questions: list[RawQuestion]


@dataclass(slots=True)
class _Problems:
    """What can't be used: raised at once, or collected."""

    strict: bool
    found: list[Failure] = field(default_factory=list)

    def report(self, where: str, reason: str) -> None:
        if self.strict:
            raise DocumentError(f"{where}: {reason}")
        self.found.append(Failure(document=where, reason=reason))


def flatten(paragraphs: Iterable[Paragraph], name: str, *, strict: bool) -> QADataset:
    """Check and clean the paragraphs and their questions, as `load_squad` describes."""
    problems = _Problems(strict)
    documents: list[Document] = []
    articles: list[int] = []
    questions: list[Question] = []
    for place, paragraph in enumerate(paragraphs):
        if not paragraph.text.strip():
            problems.report(paragraph.where, "expected a passage of text, got an empty one")
            continue
        for raw in paragraph.questions:
            answers = _usable_answers(raw, paragraph.text, problems)
            if answers:
                question = Question(
                    id=raw.id, text=raw.text.strip(), answers=answers, document=len(documents)
                )
                questions.append(question)
        title = unquote(paragraph.title).replace("_", " ")
        documents.append(Document(text=paragraph.text, id=f"{name}-{place:05d}", title=title))
        articles.append(paragraph.article)
    if not documents:
        raise InputError(f"{name}: expected at least one usable passage, found none")
    return QADataset(
        name=name,
        documents=tuple(documents),
        articles=tuple(articles),
        questions=tuple(questions),
        skipped=tuple(problems.found),
    )


def _usable_answers(raw: RawQuestion, passage: str, problems: _Problems) -> tuple[str, ...]:
    if not raw.text.strip():
        problems.report(raw.where, "expected a question, got an empty one")
        return ()
    if not raw.answers:
        problems.report(raw.where, "expected at least one answer, got none")
        return ()
    usable = []
    for number, answer in enumerate(text.strip() for text in raw.answers):
        where = f"{raw.where}.answers[{number}]"
        if not answer:
            problems.report(where, "expected an answer, got an empty text")
        elif answer not in passage:
            problems.report(where, f"the answer {answer!r} is nowhere in its passage")
        else:
            usable.append(answer)
    return tuple(dict.fromkeys(usable))


def _paragraphs_of_file(root: object, file: str) -> Iterator[Paragraph]:
    for a, article in enumerate(get_field(root, "data", list, f"{file}: ")):
        in_article = f"{file}: data[{a}]"
        title = get_field(article, "title", str, in_article)
        for p, paragraph in enumerate(get_field(article, "paragraphs", list, in_article)):
            where = f"{in_article}.paragraphs[{p}]"
            yield Paragraph(
                where=where,
                article=a,
                title=title,
                text=get_field(paragraph, "context", str, where),
                questions=[
                    _question(question, f"{where}.qas[{q}]")
                    for q, question in enumerate(get_field(paragraph, "qas", list, where))
                ],
            )


def _question(record: object, where: str) -> RawQuestion:
    return RawQuestion(
        where=where,
        id=get_field(record, "id", str, where),
        text=get_field(record, "question", str, where),
        answers=[
            get_field(answer, "text", str, f"{where}.answers[{a}]")
            for a, answer in enumerate(get_field(record, "answers", list, where))
        ],
    )


def get_field(record: object, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, or an InputError that names the path to it."""
    if not isinstance(record, dict):
        raise InputError(f"{where.removesuffix(': ')}: expected an object, got {_kind(record)}")
    path = where + key if where.endswith(": ") else f"{where}.{key}"
    return expect(record.get(key), kind, path)


def expect(value: object, kind: type[T], path: str) -> T:
    """The value itself, or an InputError that says what stands there instead."""
    if not isinstance(value, kind):
        raise InputError(f"{path}: expected {_kind(kind())}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {str: "text", list: "a list", dict: "an object", type(None): "nothing"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")


def _find(path: Path, split: str | None) -> Path:
    if path.is_file():
        if split is not None:
            raise InputError(f"{path} is a file: leave split out, got split {split!r}")
        return path
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file or folder; expected a SQuAD-format .json or .json.gz file, "
            "or a folder that holds train-v1.1.json and dev-v1.1.json"
        )
    if split not in SPLITS:
        raise InputError(f"{path} is a folder: expected split 'train' or 'dev', got {split!r}")
    candidates = [path / f"{split}-v1.1.json", path / f"{split}-v1.1.json.gz"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{path}: expected {candidates[0].name} or {candidates[1].name}, found neither"
    )


def _name(file: Path) -> str:
    for split in SPLITS:
        if file.name.startswith(f"{split}-"):
            return f"squad-{split}"
    return file.name.removesuffix(".gz").removesuffix(".json")


def _read(file: Path) -> object:
    try:
        content = file.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return json.loads(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: can't be read: {error}") from error
    except ValueError as error:
        raise InputError(f"{file}: expected JSON in UTF-8, got something else: {error}") from error
