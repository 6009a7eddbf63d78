"""Splitting, over arbitrary Unicode: nothing is lost, nothing is too long, offsets are true."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cmt.splitting import Piece, split, split_all
from tests import tiny

ANY_CHARACTER = st.characters(exclude_categories=["Cs"])
# Hypothesis alone seldom writes what splitting looks at: words, sentences, gaps, long runs.
PROSE = st.sampled_from(
    [
        "sand ",
        "clay",
        ". ",
        '." ',
        "。",
        "\n",
        "\r\n",
        "\n \n",
        "   ",
        "🙂",
        "é",
        "e\u0301",
        "7",
        "<eos>",
    ]
)
RUN = st.builds(lambda text, times: text * times, PROSE, st.integers(1, 200))
TEXT = st.lists(st.one_of(PROSE, RUN, st.text(ANY_CHARACTER)), max_size=30).map("".join)
LIMITS = st.integers(8, 40).flatmap(
    lambda most: st.tuples(st.just(most), st.integers(0, most // 2))
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def token_ids(text: str) -> tuple[int, ...]:
    return tuple(
        tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )


def cut(text: str, limits: tuple[int, int]) -> list[Piece]:
    return split(text, tokenizer(), max_tokens=limits[0], overlap_tokens=limits[1])


@settings(max_examples=150, deadline=None)
@given(TEXT.filter(lambda text: text.strip()), LIMITS)
def test_pieces_hold_every_character_in_true_and_bounded_tokens(text, limits):
    pieces = cut(text, limits)
    covered = set()
    for piece in pieces:
        span = text[piece.start : piece.end]
        assert span == span.strip() != ""
        assert piece.token_ids == token_ids(span)
        assert 0 < len(piece.token_ids) <= limits[0]
        covered.update(range(piece.start, piece.end))
    missed = [place for place, char in enumerate(text) if place not in covered]
    assert all(text[place].isspace() for place in missed)


@settings(max_examples=100, deadline=None)
@given(TEXT.filter(lambda text: text.strip()), LIMITS)
def test_pieces_go_forward_and_overlap_by_no_more_than_asked(text, limits):
    pieces = cut(text, limits)
    for before, after in pairwise(pieces):
        assert before.start < after.start
        assert before.end < after.end
        if after.start < before.end:
            # On its own the overlap may take other tokens than at its piece's end: a few more.
            overlap = len(token_ids(text[after.start : before.end]))
            assert overlap <= limits[1] + 8


@settings(max_examples=100, deadline=None)
@given(TEXT.filter(lambda text: text.strip()), LIMITS)
def test_text_that_fits_is_one_piece(text, limits):
    stripped = text.strip()
    pieces = cut(text, limits)
    if len(token_ids(stripped)) <= limits[0]:
        assert len(pieces) == 1
        assert text[pieces[0].start : pieces[0].end] == stripped
    else:
        assert len(pieces) > 1


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT.filter(lambda text: text.strip()), max_size=4), LIMITS)
def test_many_texts_are_split_as_each_alone(texts, limits):
    together = split_all(texts, tokenizer(), max_tokens=limits[0], overlap_tokens=limits[1])
    assert together == [cut(text, limits) for text in texts]
