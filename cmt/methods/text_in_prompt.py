"""The frozen model with text in its prompt: nothing, the right passage, or what is retrieved.

Closed book, gold text, BM25 RAG and dense RAG are this one method with another retriever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.methods.answering import AnswerConfig, generated
from cmt.methods.few_shot import after_passages, solved_examples, unsolved
from cmt.methods.materials import Materials
from cmt.methods.method import Reply, Stored
from cmt.methods.retrievers import RETRIEVERS, Bm25, Dense, Retriever, Right
from cmt.records import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInPromptConfig:
    """What stands in the prompt.

    Attributes:
        retriever: One of `RETRIEVERS`, or "none" for a closed book.
        top_k: Passages in the prompt.
        found: Passages looked for, so that R@5 can be told whatever is read.
        shots: Solved examples before the question.
        max_passage_tokens: Passages are cut there, as in MAC's evaluation.
        dense_model: Folder of the embedding model; empty: the carried one.
    """

    retriever: str = "none"
    top_k: int = 1
    found: int = 5
    shots: int = 3
    max_passage_tokens: int = 512
    dense_model: str = ""

    def __post_init__(self) -> None:
        """Refuse what can't be read."""
        if self.retriever not in ("none", *RETRIEVERS):
            raise InputError(
                f"expected retriever none, {', '.join(RETRIEVERS)}, got {self.retriever!r}"
            )
        for name, least in (("top_k", 1), ("found", 1), ("shots", 0), ("max_passage_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of at least {least}, got {getattr(self, name)}")


class TextInPrompt:
    """A frozen model that reads retrieved text after solved examples.

    Attributes:
        reader: The frozen base model.
    """

    def __init__(
        self,
        reader: BaseModel,
        retriever: Retriever | None,
        examples: str,
        config: TextInPromptConfig,
        answers: AnswerConfig,
    ) -> None:
        """Put the parts together; `examples` are what `few_shot.solved_examples` gives."""
        self.reader, self._retriever, self._config, self._answers = (
            reader, retriever, config, answers,
        )  # fmt: skip
        self._examples = self._tokens(examples)
        self._stops = [self._tokens(text)[-1] for text in ("\n", "\n\n")]
        self.reset()

    @classmethod
    def build(cls, materials: Materials, config: TextInPromptConfig) -> TextInPrompt:
        """The method over the frozen base model, its examples from the training part.

        Raises:
            InputError: The retriever isn't installed, or there are too few short examples.
        """
        retriever: Retriever | None = None
        if config.retriever == "bm25":
            retriever = Bm25()
        elif config.retriever == "dense":
            retriever = Dense(config.dense_model or None, device=materials.base.device.type)
        elif config.retriever == "right":
            retriever = Right(materials.asked)
        examples = solved_examples(
            materials.training, config.shots, with_passage=retriever is not None
        )
        return cls(materials.base, retriever, examples, config, materials.answers)

    def reset(self) -> None:
        """Forget every document."""
        self._passages: list[list[int]] = []
        self._bytes = 0
        if self._retriever is not None:
            self._retriever.reset()

    def learn(self, documents: Sequence[Document]) -> None:
        """Keep the texts and index them; a closed book keeps nothing."""
        if self._retriever is None:
            return
        limit = self._config.max_passage_tokens
        self._passages += [self._tokens(document.text)[:limit] for document in documents]
        self._bytes += sum(len(document.text.encode()) for document in documents)
        self._retriever.add([document.text for document in documents])

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Find passages, put the best into the prompt, generate one line."""
        found: list[tuple[int, ...]] = [()] * len(questions)
        if self._retriever is not None:
            wanted = max(self._config.top_k, self._config.found)
            found = self._retriever.find(questions, wanted)
        prompts = [
            self._prompt(question, own[: self._config.top_k])
            for question, own in zip(questions, found, strict=True)
        ]
        texts = generated(self.reader, prompts, self._answers, stop_tokens=self._stops)
        return [
            Reply(text=text, text_tokens=len(prompt), documents=own)
            for text, prompt, own in zip(texts, prompts, found, strict=True)
        ]

    def stored(self) -> Stored:
        """Text and index."""
        index = 0 if self._retriever is None else self._retriever.stored_bytes()
        return Stored(documents=self._bytes + index, fixed=0)

    def _prompt(self, question: str, chosen: Sequence[int]) -> list[int]:
        """Examples, passages, question; passages are cut alike where the model has no room."""
        line, after = self._tokens("\n"), self._tokens(unsolved([], question))
        passages = [self._passages[number] for number in chosen]
        positions = self.reader.max_positions
        if positions is not None and passages:
            taken = len(self._examples) + len(after) + self._answers.max_new_tokens
            room = (positions - taken) // len(passages) - len(line)
            if room < 1:
                raise InputError(
                    f"expected examples and question that leave room for {len(passages)} "
                    f"passages within {positions} positions, got {taken} tokens of them"
                )
            passages = [passage[:room] for passage in passages]
        return after_passages(passages, line, after, self._examples)

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens
