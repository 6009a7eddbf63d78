import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmt.errors import InputError
from cmt.records import Answer
from cmt.streaming import AnswerStream


def decode(tokens):
    return bytes(tokens).decode("utf-8", "replace").strip()


def answer_of(tokens):
    return Answer(
        question="?",
        text=decode(tokens),
        matches=(),
        prompt_tokens=1,
        memory_tokens=0,
        generated_tokens=len(tokens),
        seconds=0.0,
    )


def stream_of(data):
    return AnswerStream(iter(data), decode, answer_of)


@given(st.text().map(str.encode) | st.binary())
@example(" a 　b　".encode())
@example("wide 　".encode()[:-1])
def test_pieces_joined_are_the_answer(data):
    stream = stream_of(data)
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == decode(data)
    assert all(pieces)


def test_a_character_is_given_when_it_is_whole():
    assert list(stream_of("aé b".encode())) == ["a", "é", " b"]


def test_iteration_stays_over():
    stream = stream_of(b"a")
    assert list(stream) == ["a"]
    assert list(stream) == []


def test_the_answer_is_refused_before_the_end():
    stream = stream_of(b"ab")
    next(stream)
    with pytest.raises(InputError, match="read to its end before its answer"):
        _ = stream.answer
