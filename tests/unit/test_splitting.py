"""Splitting: where pieces end, how they overlap, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from cmt.errors import DocumentError, InputError
from cmt.splitting import WIDEST_WINDOW, Piece, split, split_all
from tests import tiny

PARAGRAPH = "The delta of Mirna grows. Rivers carry sand and clay.\nIt stands on a rock."
LONG = "\n\n".join(f"{number}. {PARAGRAPH}" for number in range(30))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_short_text_is_one_piece_without_surrounding_white_space(tokenizer):
    text = " \n\t Clara Weiss built it.\u3000\n"
    (piece,) = split(text, tokenizer)
    assert text[piece.start : piece.end] == "Clara Weiss built it."
    assert piece.token_ids == token_ids(tokenizer, "Clara Weiss built it.")


def test_text_of_exactly_max_tokens_is_one_piece_and_one_more_makes_two(tokenizer):
    text = "7" * 64
    assert len(token_ids(tokenizer, text)) == 64
    assert split(text, tokenizer, max_tokens=64) == [Piece(0, 64, token_ids(tokenizer, text))]
    assert len(split(text + "7", tokenizer, max_tokens=64)) == 2


def test_pieces_end_at_paragraphs_where_one_ends_in_the_second_half(tokenizer):
    size = len(token_ids(tokenizer, PARAGRAPH))
    pieces = split(LONG, tokenizer, max_tokens=size + size // 3, overlap_tokens=0)
    assert len(pieces) == 30
    assert all(LONG[piece.end : piece.end + 2] in ("\n\n", "") for piece in pieces)


def test_pieces_end_at_sentences_where_no_paragraph_ends(tokenizer):
    text = "Rivers carry sand. It stands on granite! Who built it? " * 20
    pieces = split(text, tokenizer, max_tokens=64, overlap_tokens=0)
    assert len(pieces) > 5
    assert all(text[piece.end - 1] in ".!?" for piece in pieces)


def test_pieces_end_at_words_where_no_sentence_ends(tokenizer):
    text = "sand silt clay " * 100
    pieces = split(text, tokenizer, max_tokens=32, overlap_tokens=8)
    assert all(text[piece.end].isspace() for piece in pieces[:-1])
    assert all(piece.start == 0 or text[piece.start - 1].isspace() for piece in pieces)


def test_chinese_sentences_need_no_white_space_after_them(tokenizer):
    text = "灯塔建于一八二三年。" * 20
    pieces = split(text, tokenizer, max_tokens=80, overlap_tokens=0)
    assert all(text[piece.end - 1] == "。" for piece in pieces)


def test_a_word_longer_than_a_piece_is_cut_between_characters(tokenizer):
    text = "🙂" * 100  # four tokens each, so that 30 tokens end inside one
    pieces = split(text, tokenizer, max_tokens=30, overlap_tokens=8)
    assert all(len(piece.token_ids) <= 30 for piece in pieces)
    assert [piece.token_ids for piece in pieces] == [
        token_ids(tokenizer, text[piece.start : piece.end]) for piece in pieces
    ]
    assert pieces[-1].end == 100


def test_consecutive_pieces_overlap_by_about_what_was_asked(tokenizer):
    text = "sand silt clay " * 200
    pieces = split(text, tokenizer, max_tokens=128, overlap_tokens=32)
    for before, after in pairwise(pieces):
        shared = len(token_ids(tokenizer, text[after.start : before.end]))
        assert 16 <= shared <= 33


def test_the_overlap_starts_at_a_sentence_where_one_starts_there(tokenizer):
    pieces = split(LONG, tokenizer, max_tokens=100, overlap_tokens=50)
    before_starts = [LONG[: piece.start].rstrip()[-1:] for piece in pieces[1:]]
    assert before_starts.count(".") == len(before_starts)


def test_no_overlap_where_none_is_asked(tokenizer):
    pieces = split(LONG, tokenizer, max_tokens=100, overlap_tokens=0)
    assert all(a.end <= b.start for a, b in pairwise(pieces))


def test_a_piece_never_starts_where_the_one_before_starts(tokenizer):
    """The last 15 tokens of the first piece begin in its first character."""
    text = "000000\x80𐀀 𐀀00𐀀𐀀𐀀\nsand sand sand sand sand sand "
    starts = [piece.start for piece in split(text, tokenizer, max_tokens=30, overlap_tokens=15)]
    assert starts == sorted(set(starts))


def test_a_wide_gap_is_in_no_piece(tokenizer):
    text = "sand" + " " * 100_000 + "clay"
    pieces = split(text, tokenizer)
    assert [text[piece.start : piece.end] for piece in pieces] == ["sand", "clay"]


def test_special_tokens_in_a_document_are_plain_text(tokenizer):
    (piece,) = split("a <eos> b", tokenizer)
    assert tokenizer.eos_token_id not in piece.token_ids
    assert piece.token_ids == token_ids(tokenizer, "a <eos> b")


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    is_fast = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.characters = 0

    def __call__(self, text: str, **options: object) -> object:
        self.characters += len(text)
        return self.tokenizer(text, **options)


@pytest.mark.parametrize("unit", [LONG, "a", "7", "🙂", "a    ", ".'''", "灯塔。", "w" + " " * 90])
def test_the_work_is_linear_in_the_length(tokenizer, unit):
    """Twice the text gives the tokenizer about twice the characters."""
    counts = []
    for length in (60_000, 120_000):
        counting = CountingTokenizer(tokenizer)
        split((unit * length)[:length], counting)
        counts.append(counting.characters)
    assert counts[1] < 2.2 * counts[0]
    assert counts[1] < 5 * 120_000


@pytest.mark.parametrize("text", ["", " \n\t\u2003 "])
def test_text_without_a_visible_character_is_refused(tokenizer, text):
    with pytest.raises(DocumentError, match=f"not white space, got {len(text)} characters"):
        split(text, tokenizer)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(DocumentError, match="valid Unicode text, got a lone surrogate at offset 3"):
        split("abc\ud800", tokenizer)


def test_a_character_of_more_tokens_than_fit_is_refused(tokenizer):
    class Verbose:
        """Takes sixteen tokens for each character."""

        is_fast = True

        def __call__(self, text: str, **options: object) -> dict[str, list[object]]:
            offsets = [(place, place + 1) for place in range(len(text)) for _ in range(16)]
            return {"input_ids": [0] * len(offsets), "offset_mapping": offsets}

    with pytest.raises(DocumentError, match="at most 8 tokens, got 'x' at offset 1"):
        split(" x", Verbose(), max_tokens=8, overlap_tokens=2)


def test_text_the_tokenizer_drops_is_refused():
    class Deaf:
        is_fast = True

        def __call__(self, text: str, **options: object) -> dict[str, list[object]]:
            return {"input_ids": [], "offset_mapping": []}

    for text in ("\x01", "\x01" * (WIDEST_WINDOW * 256 + 1)):
        with pytest.raises(DocumentError, match="only characters the tokenizer drops"):
            split(text, Deaf())


def test_limits_out_of_range_are_refused(tokenizer):
    with pytest.raises(InputError, match="max_tokens of at least 8, got 7"):
        split("a", tokenizer, max_tokens=7)
    for overlap in (-1, 9):
        with pytest.raises(InputError, match=rf"from 0 to half of max_tokens \(8\), got {overlap}"):
            split("a", tokenizer, max_tokens=16, overlap_tokens=overlap)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"Expected a fast tokenizer.*got Slow"):
        split("a", Slow())


def test_many_texts_are_refused_as_each_alone(tokenizer):
    assert split_all([], tokenizer) == []
    with pytest.raises(DocumentError, match="not white space, got 2 characters"):
        split_all(["Clara Weiss built it.", " \n"], tokenizer)
    with pytest.raises(InputError, match="max_tokens of at least 8, got 7"):
        split_all([PARAGRAPH], tokenizer, max_tokens=7)
