"""Questions without labels: a dataset made from nothing but texts.

From each text an asker makes questions (`asking_parsed.py`, `asking_rules.py`); of those a few
are drawn, natural ones before sentences with a blank, no two with the same answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence

from cmt.datasets.asking import Asked, Asker
from cmt.datasets.asking_rules import RuleAsker
from cmt.datasets.qa import QADataset, Question
from cmt.errors import InputError
from cmt.records import Document


def cloze_questions(
    documents: Iterable[Document | str],
    *,
    asker: Asker | None = None,
    most: int = 8,
    cloze_share: float = 0.25,
    name: str = "cloze",
    seed: int = 0,
) -> QADataset:
    """Documents with questions made from their own sentences; those without one are left out.

    Documents of one title share an article. Every answer is in its document, word for word.

    Args:
        documents: The texts, each once; a string is a document without a title.
        asker: Makes the questions; None: `RuleAsker`.
        most: At most so many questions a document.
        cloze_share: At most this share of `most` are sentences with a blank.
        name: Begins the documents' ids.
        seed: Draws the questions.

    Raises:
        InputError: `most` below 1, a share outside 0 to 1, or no text that a question can be
            made from.
    """
    if most < 1:
        raise InputError(f"expected at least 1 question a document, got most={most}")
    if not 0 <= cloze_share <= 1:
        raise InputError(f"expected cloze_share from 0 to 1, got {cloze_share}")
    given = [Document(text=d) if isinstance(d, str) else d for d in documents]
    ask = RuleAsker(seed=seed) if asker is None else asker
    kept: list[Document] = []
    questions: list[Question] = []
    articles: dict[str, int] = {}
    of_documents: list[int] = []
    for number, (document, asked) in enumerate(
        zip(given, ask(document.text for document in given), strict=True)
    ):
        drawn = _drawn(asked, document.text, most, int(most * cloze_share), seed)
        if not drawn:
            continue
        id_ = document.id or f"{name}-{number:05d}"
        for place, one in enumerate(drawn):
            question = Question(
                id=f"{id_}-{place}", text=one.question, answers=(one.answer,), document=len(kept)
            )
            questions.append(question)
        kept.append(Document(text=document.text, id=id_, title=document.title))
        of_documents.append(articles.setdefault(document.title or id_, len(articles)))
    if not kept:
        raise InputError(f"{name}: expected a text to ask about, got none in {len(given)}")
    return QADataset(
        name=name, documents=tuple(kept), articles=tuple(of_documents), questions=tuple(questions)
    )


def _drawn(
    asked: Sequence[Asked], text: str, most: int, most_blanks: int, seed: int
) -> list[Asked]:
    """At most `most` of the questions, `most_blanks` of them with a blank, each answer once.

    Natural questions come in turns of their forms, so that the rare ones aren't crowded out.
    """
    rng = random.Random(zlib.crc32(text.encode()) ^ seed)  # noqa: S311
    shuffled = rng.sample(asked, len(asked))
    turns: dict[str, list[Asked]] = {}
    for one in shuffled:
        turns.setdefault(one.form, []).append(one)
    blanks = turns.pop("cloze", [])
    longest = max(map(len, turns.values()), default=0)
    natural = [forms[turn] for turn in range(longest) for forms in turns.values()
               if turn < len(forms)]  # fmt: skip
    chosen: dict[str, Asked] = {}
    for limit, source in ((most - min(most_blanks, len(blanks)), natural), (most, blanks)):
        left = most_blanks if source is blanks else most
        for one in source:
            if left and len(chosen) < limit and one.answer.lower() not in chosen:
                chosen[one.answer.lower()] = one
                left -= 1
    return list(chosen.values())
