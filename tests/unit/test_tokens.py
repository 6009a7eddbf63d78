"""Token ids in bulk."""

from __future__ import annotations

from types import SimpleNamespace

from cmt.tokens import token_ids
from tests import tiny

TEXTS = ["One sentence. Another one!", "", " Is it?\n", "Ünïcode – 12,345"]


def test_they_are_the_tokenizers_own() -> None:
    tokenizer = tiny.tokenizer()
    plain = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    tokenizer(TEXTS, truncation=True, max_length=2)  # leaves its setting behind
    assert token_ids(tokenizer, TEXTS) == plain
    assert token_ids(tokenizer, []) == []


def test_a_slow_tokenizer_is_called() -> None:
    class Slow(SimpleNamespace):
        is_fast = False

        def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, object]:
            assert not add_special_tokens
            return {"input_ids": [[len(text)] for text in texts]}

    assert token_ids(Slow(), TEXTS) == [[len(text)] for text in TEXTS]
