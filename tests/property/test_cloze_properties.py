"""Made questions, over arbitrary texts: each answer is in the document that is asked about."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cmt.datasets.asking_rules import RuleAsker
from cmt.datasets.sentences import sentence_spans

WORDS = st.sampled_from(
    "The lighthouse tower of Arbon Mirna Clara Weiss was built in by on at 1823 1901 240 steps "
    "3 May U.S. It is high and wide, Dr. J. near rivers sand. Selka. 20% 3.5 million (old) In "
    "\n ? ! \"Jon\" Torvik's".split(" ")
)  # fmt: skip
TEXT = st.one_of(
    st.lists(WORDS, max_size=120).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@settings(max_examples=150, deadline=None)
@given(TEXT, st.integers(0, 3))
def test_answers_are_in_their_text_and_not_in_their_question(text, seed):
    [asked] = RuleAsker(seed=seed)([text])
    assert [asked] == list(RuleAsker(seed=seed)([text]))
    for one in asked:
        assert one.answer in text
        assert one.answer == one.answer.strip() != ""
        assert len(one.answer.split()) <= 8
        assert one.question.endswith("?") or "____" in one.question


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_sentences_hold_all_but_white_space_and_keep_their_order(text):
    spans = sentence_spans(text)
    places = [place for start, end in spans for place in range(start, end)]
    assert places == sorted(set(places))
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)
    missed = set(range(len(text))) - set(places)
    assert all(text[place].isspace() for place in missed)
