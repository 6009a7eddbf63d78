"""Questions to token ids: checked, in the form the compressor was trained with or in chat's."""

from __future__ import annotations

from collections.abc import Sequence

from cmt.base_model import BaseModel
from cmt.errors import InputError
from cmt.reading import question_tokens


def checked(question: str | Sequence[str]) -> list[str]:
    """One question or several as a list.

    Raises:
        InputError: One of them is no text, empty, or not valid Unicode.
    """
    questions = [question] if isinstance(question, str) else list(question)
    for number, text in enumerate(questions, start=1):
        if not isinstance(text, str):
            raise InputError(f"question {number}: expected a str, got {type(text).__name__}")
        if not text.strip():
            raise InputError(f"question {number}: expected a question, got {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"question {number}: expected valid Unicode, got a lone surrogate at offset "
                f"{error.start}"
            ) from error
    return questions


def plain(
    base: BaseModel, questions: Sequence[str], start: int, max_new_tokens: int
) -> list[list[int]]:
    """Each question in the form of training, read from position `start` on.

    Raises:
        InputError: Question and answer would go beyond the model's last position.
    """
    return _fitting(base, question_tokens(base.tokenizer, questions), start, max_new_tokens)


def chat(base: BaseModel, questions: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """Each question as a user's message in the model's own chat template.

    Raises:
        InputError: The model has no chat template, or a question is too long for it.
    """
    if not getattr(base.tokenizer, "chat_template", None):
        raise InputError(f"expected a base model with a chat template, got {base.name}")
    texts = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": question.strip()}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    tokens = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return _fitting(base, tokens, 0, max_new_tokens)


def line_end(base: BaseModel) -> list[int]:
    """The token that ends a line, if the tokenizer has one."""
    tokens: list[int] = base.tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tokens if len(tokens) == 1 else []


def _fitting(
    base: BaseModel, tokens: list[list[int]], start: int, max_new_tokens: int
) -> list[list[int]]:
    positions = base.max_positions
    if positions is None:
        return tokens
    room = positions - start - max_new_tokens
    for number, question in enumerate(tokens, start=1):
        if len(question) > room:
            raise InputError(
                f"question {number}: expected at most {room} tokens ({base.name} has {positions} "
                f"positions, {start} of them for memories, {max_new_tokens} for the answer), "
                f"got {len(question)}"
            )
    return tokens
