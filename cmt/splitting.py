"""Cuts a document into pieces short enough to be compressed into one memory each.

A piece ends at the last paragraph's end in the second half of what fits, else at a sentence's or
line's, else at a word's, else between two characters. The next one starts a little before
that end, so that what stands across a cut is whole in one of the two.

Time is linear in the text's length: each piece tokenizes a window of bounded size. The whole
text is tokenized at once only where it may fit into a single piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmt.errors import DocumentError, InputError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

LEAST_MAX_TOKENS = 8
WINDOW = 6  # characters a token that the first window has; English has about 4.5
WIDEST_WINDOW = 64  # characters a token at which a window is cut even if its tokens still fit

# Where a piece may end, best first. A match's end is the piece's end.
PARAGRAPH_END = re.compile(r"\S(?=[^\S\n]*\n\s*?\n)")
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s)|[。！？]|\S(?=[^\S\n]*\n)")
WORD_END = re.compile(r"\S(?=\s)")
LOOK_AHEAD = 64  # characters of white space after an end that are looked at
NON_SPACE = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class Piece:
    """The span `text[start:end]` of a document and that span's own token ids."""

    start: int
    end: int
    token_ids: tuple[int, ...]


def split(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 256,
    overlap_tokens: int = 32,
) -> list[Piece]:
    """Split `text` into overlapping pieces of at most `max_tokens` tokens.

    A piece neither starts nor ends with white space. Every other character is in a piece, unless
    the tokenizer makes no token of it. Special tokens are neither added nor recognised: a
    document that holds `<|im_end|>` holds ten plain characters.

    Args:
        text: The document's text; offsets of the pieces are characters of it.
        tokenizer: A fast tokenizer (one that knows its tokens' offsets).
        max_tokens: Longest piece, in tokens.
        overlap_tokens: About how much of a piece's end the next one repeats, in tokens.

    Raises:
        DocumentError: The text is empty, is not valid Unicode, or holds a character that alone
            takes more than `max_tokens` tokens.
        InputError: The tokenizer is not fast, or a limit is out of range.
    """
    _check_arguments(tokenizer, max_tokens, overlap_tokens)
    _check_text(text)
    cutter = _Cutter(text, tokenizer, max_tokens, overlap_tokens)
    pieces = [tokens.as_piece() for tokens in cutter.pieces() if tokens.ids]
    if not pieces:
        raise DocumentError(
            "Expected text with at least one token, got only characters the tokenizer drops."
        )
    return pieces


def split_all(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 256,
    overlap_tokens: int = 32,
) -> list[list[Piece]]:
    """`split` of every text; those that fit into one piece are tokenized together, which is faster.

    Raises:
        DocumentError, InputError: As `split` does.
    """
    _check_arguments(tokenizer, max_tokens, overlap_tokens)
    for text in texts:
        _check_text(text)
    pieces: dict[int, list[Piece]] = {}
    may_fit = [i for i, t in enumerate(texts) if len(t.strip()) <= WIDEST_WINDOW * max_tokens]
    if may_fit:
        encoded = tokenizer(
            [texts[i].strip() for i in may_fit],
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        )
        for i, ids in zip(may_fit, encoded["input_ids"], strict=True):
            if 0 < len(ids) <= max_tokens:
                text = texts[i]
                start = len(text) - len(text.lstrip())
                pieces[i] = [Piece(start, len(text.rstrip()), tuple(ids))]
    return [
        pieces[i]
        if i in pieces
        else split(text, tokenizer, max_tokens=max_tokens, overlap_tokens=overlap_tokens)
        for i, text in enumerate(texts)
    ]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of `text[start:end]`; `starts` are their first characters' offsets in `text`."""

    start: int
    end: int
    ids: list[int]
    starts: list[int]

    def as_piece(self) -> Piece:
        return Piece(self.start, self.end, tuple(self.ids))


class _Cutter:
    """One text on its way into pieces; positions are character offsets in it."""

    def __init__(
        self, text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int, overlap_tokens: int
    ) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.overlap_tokens = overlap_tokens
        self.end = len(text.rstrip())
        self.width = WINDOW * max_tokens  # characters of the next window

    def pieces(self) -> Iterator[_Tokens]:
        start = self._next_non_space(0)
        if self.end - start <= WIDEST_WINDOW * self.max_tokens:
            whole = self._tokenize(start, self.end)
            if len(whole.ids) <= self.max_tokens:
                yield whole
                return
        covered = start  # every character before it is in a piece, or white space
        while covered < self.end:
            piece = self._piece_at(start, covered)
            if piece.end > covered:
                yield piece
                covered = piece.end
                start = self._overlap_start(piece)
            else:  # repeated text and a wide gap after it filled the piece: repeat nothing
                start = self._next_non_space(covered)

    def _piece_at(self, start: int, covered: int) -> _Tokens:
        """The piece from `start` on, ending after `covered` where that fits."""
        half, limit = self._reach(start)
        while limit > start:
            end = self._best_end(start, max(half, covered), limit)
            tokens = self._tokenize(start, end)
            if len(tokens.ids) <= self.max_tokens:
                return tokens
            # On its own the span has more tokens than as a part of the window.
            limit = min(tokens.starts[self.max_tokens], end - 1)
        raise DocumentError(
            f"Expected characters of at most {self.max_tokens} tokens, "
            f"got {self.text[start]!r} at offset {start}, which takes more."
        )

    def _reach(self, start: int) -> tuple[int, int]:
        """Where about half of a piece from `start` ends, and where what fits into it ends."""
        while True:
            end = min(start + self.width, self.end)
            tokens = self._tokenize(start, end)
            if len(tokens.ids) > self.max_tokens:
                limit = tokens.starts[self.max_tokens]
                self.width = 1 + (limit - start) * 5 // 4  # the next piece will be much like it
                return tokens.starts[self.max_tokens // 2], limit
            if end == self.end or self.width >= WIDEST_WINDOW * self.max_tokens:
                return (start + end) // 2, end
            self.width *= 2

    def _best_end(self, start: int, low: int, high: int) -> int:
        """The best place to end a piece after `low` and not after `high`."""
        if high == self.end:
            return high
        for pattern in (PARAGRAPH_END, SENTENCE_END, WORD_END):
            ends = list(self._ends(pattern, low, high))
            if ends:
                return ends[-1]
        return start + len(self.text[start:high].rstrip())

    def _overlap_start(self, piece: _Tokens) -> int:
        """Where the piece after `piece` starts: at most `overlap_tokens` before its end."""
        count = len(piece.ids)
        if not 0 < self.overlap_tokens < count:
            return self._next_non_space(piece.end)
        first = max(piece.starts[count - self.overlap_tokens], piece.start + 1)
        latest = piece.starts[count - (self.overlap_tokens + 1) // 2]
        for pattern in (PARAGRAPH_END, SENTENCE_END):
            for end in self._ends(pattern, first, latest):
                return self._next_non_space(end)
        first = self._next_non_space(first)
        if not self.text[first - 1].isspace():  # inside a word: take the next, if there is one
            for end in self._ends(WORD_END, first, piece.end - 1):
                return self._next_non_space(end)
        return first

    def _ends(self, pattern: re.Pattern[str], low: int, high: int) -> Iterator[int]:
        """Ends of the pattern's matches in (low, high], looking at little more of the text."""
        for match in pattern.finditer(self.text, low, min(high + LOOK_AHEAD, self.end)):
            if match.end() > high:
                return
            yield match.end()

    def _next_non_space(self, position: int) -> int:
        match = NON_SPACE.search(self.text, position)
        return match.start() if match else len(self.text)

    def _tokenize(self, start: int, end: int) -> _Tokens:
        encoding = self.tokenizer(
            self.text[start:end],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,  # windows may be longer than the model's context
        )
        starts = [start + first for first, _ in encoding["offset_mapping"]]
        return _Tokens(start, end, encoding["input_ids"], starts)


def _check_arguments(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int, overlap_tokens: int
) -> None:
    if not tokenizer.is_fast:
        raise InputError(
            f"Expected a fast tokenizer, one that knows its tokens' offsets, "
            f"got {type(tokenizer).__name__}."
        )
    if max_tokens < LEAST_MAX_TOKENS:
        raise InputError(f"Expected max_tokens of at least {LEAST_MAX_TOKENS}, got {max_tokens}.")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise InputError(
            f"Expected overlap_tokens from 0 to half of max_tokens ({max_tokens // 2}), "
            f"got {overlap_tokens}."
        )


def _check_text(text: str) -> None:
    if not text or text.isspace():
        raise DocumentError(
            f"Expected text with at least one character that is not white space, "
            f"got {len(text)} characters of white space."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"Expected valid Unicode text, got a lone surrogate at offset {error.start}."
        ) from error
