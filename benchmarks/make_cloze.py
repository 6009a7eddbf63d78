"""Make questions without labels from texts, for `cmt train --extra`.

    python benchmarks/make_cloze.py TEXTS.jsonl OUT.jsonl --spacy --held-out dev-v1.1.json.gz

TEXTS is told by its name and content: .jsonl ({"text", "title"} a line), .json of SQuAD's format
or of summaries ({title: {"extract": …}}), .raw as WikiText has it; each may be gzipped. Long texts
are cut at sentence bounds. What shares a title or a sentence with held-out data is left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cmt.datasets import QADataset, hold_out, load_squad
from cmt.datasets.asking_parsed import SpacyAsker
from cmt.datasets.asking_rules import RuleAsker
from cmt.datasets.cloze import cloze_questions
from cmt.datasets.held_out import HeldOut
from cmt.datasets.jsonl_writing import write_jsonl
from cmt.datasets.rows import json_lines, read_text
from cmt.datasets.sentences import sentence_spans
from cmt.datasets.squad import get_field
from cmt.records import Document

FEWEST_WORDS, MOST_WORDS = 25, 180  # of a document; 180 words are about 250 tokens

HEADING = re.compile(r"^ = ([^=].*?) = ?$")
# WikiText's tokenisation, undone.
ARTEFACTS = (
    (re.compile(r" @(.)@ "), r"\1"),
    (re.compile(r'" ([^"]*?) "'), r'"\1"'),
    (re.compile(r" ([,.;:!?%)\]}]|'s\b|n't\b|'t\b|'(?:re|ve|ll|d|m)\b)"), r"\1"),
    (re.compile(r"([(\[{$£€]) "), r"\1"),
    (re.compile(r"(?<=s) '(?= )"), "'"),
    (re.compile(r" ([–/]) (?=\d)"), r"\1"),
    (re.compile(r"\( ?[;,]? ?\) ?| {2,}"), " "),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+", help="files of texts")
    parser.add_argument("out", type=Path, help=".jsonl or .jsonl.gz to write")
    parser.add_argument("--spacy", action="store_true", help="parse: better questions, slower")
    parser.add_argument("--processes", type=int, default=1, help="that parse (%(default)s)")
    parser.add_argument("--most", type=int, default=8, help="questions a document (%(default)s)")
    parser.add_argument("--cloze-share", type=float, default=0.25, help="at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], help="SQuAD-format file; repeat"
    )
    parser.add_argument("--training", type=Path, help="SQuAD's training file, for the next option")
    parser.add_argument(
        "--articles", type=int, default=20, help="articles of it held out (%(default)s)"
    )
    arguments = parser.parse_args()
    held_out = [load_squad(file, strict=False) for file in arguments.held_out]
    if arguments.training:
        training = load_squad(arguments.training, strict=False)
        held_out.append(hold_out(training, articles=arguments.articles)[1])
    documents = usable(arguments.texts, held_out)
    asker = (
        SpacyAsker(seed=arguments.seed, processes=arguments.processes)
        if arguments.spacy
        else RuleAsker(seed=arguments.seed)
    )
    dataset = cloze_questions(
        documents, asker=asker, most=arguments.most, cloze_share=arguments.cloze_share,
        name=arguments.out.name.split(".")[0], seed=arguments.seed,
    )  # fmt: skip
    write_jsonl(dataset, arguments.out)
    print(f"{arguments.out}: {len(dataset.documents):,} documents, "
          f"{len(dataset.questions):,} questions")  # fmt: skip


def usable(files: Iterable[Path], held_out: Sequence[QADataset]) -> list[Document]:
    """The documents of the files, each text once, without what is held out."""
    documents = [document for file in files for document in read(file)]
    held = HeldOut(held_out)
    kept = list({d.text: d for d in documents if not held.holds(d)}.values())
    print(f"{len(documents):,} documents, {len(kept):,} of them once and not held out")
    return kept


def read(file: Path) -> Iterator[Document]:
    """The documents of a file; those that are not SQuAD's are cut and the shortest left out."""
    name = file.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        records = json_lines(file)
        yield from cut(
            (str(r.get("title") or ""), get_field(r, "text", str, w)) for w, r in records
        )
    elif name.endswith(".json"):
        content = json.loads(read_text(file))
        if "data" in content:
            yield from load_squad(file, strict=False).documents
        else:
            yield from cut(
                (title, get_field(page, "extract", str, f"{file}: {title}"))
                for title, page in content.items()
            )
    else:
        yield from cut(wikitext(read_text(file)))


def cut(texts: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Runs of whole sentences of 25 to 180 words, with their titles."""
    for title, text in texts:
        piece = ""
        for start, end in [*sentence_spans(text), (len(text), len(text))]:
            sentence = text[start:end]
            if len(piece.split()) + len(sentence.split()) > MOST_WORDS or not sentence:
                if FEWEST_WORDS <= len(piece.split()) <= MOST_WORDS:
                    yield Document(text=piece, title=title)
                piece = ""
            piece = f"{piece} {sentence}".strip()


def wikitext(content: str) -> Iterator[tuple[str, str]]:
    """Title and text of WikiText's paragraphs, without sentences that hold <unk>."""
    title = ""
    for line in content.split("\n"):
        heading = HEADING.match(line)
        if heading:
            title = heading[1]
        elif line.strip() and not line.startswith(" ="):
            text = line.strip()
            for pattern, replacement in ARTEFACTS:
                text = pattern.sub(replacement, text)
            sentences = (text[start:end] for start, end in sentence_spans(text))
            yield title, " ".join(s for s in sentences if "<unk>" not in s)


if __name__ == "__main__":
    main()
