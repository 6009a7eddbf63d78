"""What a reader whose weights may change makes of text, and what it knows without any.

Not a competitor under the frozen rule but two bounds. A copy tuned to answer from the passage in
its prompt is the ceiling of text at this model size; the copy tuned on questions alone, which the
gradient methods start from, says how much of their score they had before the first document.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.methods.few_shot import after_passages, unsolved
from cmt.methods.materials import Materials
from cmt.methods.method import Stored
from cmt.methods.retrievers import Bm25, Retriever, Right
from cmt.methods.text_in_prompt import TextInPrompt, TextInPromptConfig
from cmt.methods.tuned_copy import QaTuningConfig, answer_tokens, copy_of, qa_tuned, tune

READS = ("none", "bm25", "right")
TEXTS_A_STEP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedTextConfig:
    """What the tuned copy reads, and how it is tuned on text.

    Attributes:
        retriever: "bm25" or "right" passage in the prompt, or "none": tuned on questions alone.
        learning_rate: Of tuning on text; chosen on the validation split by the harness.
        max_passage_tokens: Passages are cut there.
    """

    retriever: str = "bm25"
    learning_rate: float = 3e-5
    max_passage_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse what can't be read."""
        if self.retriever not in READS:
            raise InputError(f"expected retriever {', '.join(READS)}, got {self.retriever!r}")


class TunedText(TextInPrompt):
    """`TextInPrompt` with a tuned copy for a reader and no solved examples."""

    @classmethod
    def build(cls, materials: Materials, config: TunedTextConfig) -> TunedText:  # type: ignore[override]
        """The copy, tuned on the protocol's training part with text, or on its questions alone.

        Raises:
            InputError: bm25s isn't installed, or neither steps nor minutes bound the training.
        """
        retriever: Retriever | None = None
        if config.retriever != "none":
            retriever = Bm25() if config.retriever == "bm25" else Right(materials.asked)
        reader = qa_tuned(materials) if retriever is None else text_tuned(materials, config)
        prompts = TextInPromptConfig(
            retriever=config.retriever, shots=0, max_passage_tokens=config.max_passage_tokens
        )
        return cls(reader, retriever, "", prompts, materials.answers)

    def stored(self) -> Stored:
        """Text and index; a whole copy of the weights."""
        weights = self.reader.model.parameters()
        copy = sum(weight.nbytes for weight in weights)
        return Stored(documents=super().stored().documents, fixed=copy)


def text_tuned(materials: Materials, config: TunedTextConfig) -> BaseModel:
    """The copy tuned to answer after the right passage; trained once a folder, then loaded.

    Raises:
        InputError: Neither steps nor minutes bound the training.
    """
    reader, data = copy_of(materials.base), materials.training
    tuning = QaTuningConfig(learning_rate=config.learning_rate, questions=TEXTS_A_STEP)

    def tokens(text: str) -> list[int]:
        return list(reader.tokenizer(text, add_special_tokens=False)["input_ids"])

    passages = [tokens(document.text)[: config.max_passage_tokens] for document in data.documents]
    line = tokens("\n")
    prompts = [
        after_passages([passages[question.document]], line, tokens(unsolved([], question.text)))
        for question in data.questions
    ]
    answers = answer_tokens(reader, [q.answers for q in data.questions], tuning.max_answer_tokens)
    folder = materials.state_folder("text_tuned", tuning)
    tune(reader, prompts, answers, materials, tuning, folder)
    reader.name = f"{materials.base.name}-text-tuned"
    return reader
