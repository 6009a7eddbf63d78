"""What the bank refuses to store: in which words, and that nothing of the batch is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmt.bank import Counts
from cmt.errors import (
    DocumentError,
    InputError,
)
from cmt.records import Document
from tests.unit.bank_pieces import add, make_entry, make_key, make_piece


def one_wrong_number(number: float, dtype: torch.dtype) -> torch.Tensor:
    memory = torch.zeros(2, 2, 1, 3, 4, dtype=dtype)
    memory[1, 0, 0, 2, 1] = number
    return memory


def nested(depth: int) -> list:
    made: list = []
    for _ in range(depth - 1):
        made = [made]
    return made


TEXT = "hello"
NAN_KEY = make_key(0) * torch.tensor([float("nan")] + [1.0] * 7)
INF_MEMORY = torch.full((2, 2, 1, 3, 4), float("inf"), dtype=torch.bfloat16)
PIECE = make_piece(TEXT)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (replace(PIECE, start=-1), r"expected 0 <= start < end <= 5 \(the text's length\)"),
        (replace(PIECE, start=5), r"piece \[5:5\]: expected 0 <= start < end"),
        (replace(PIECE, end=6), "expected 0 <= start < end"),
        (replace(PIECE, tokens=0), "expected at least 1 token, got 0"),
        (replace(PIECE, key=make_key(0)[None]), r"a float32 key of shape \(C,\), got .*\(1, 8\)"),
        (replace(PIECE, key=make_key(0).double()), "expected a float32 key .* got torch.float64"),
        (replace(PIECE, key=torch.empty(0)), r"expected a float32 key of shape \(C,\), got"),
        (replace(PIECE, key=make_key(0) * 2), "expected a key of length 1, got length 2"),
        (replace(PIECE, key=NAN_KEY), "expected finite numbers, got NaN or infinity in its key"),
        (replace(PIECE, memory=INF_MEMORY), "got NaN or infinity in its memory"),
        (replace(PIECE, memory=PIECE.memory[0]), r"of shape \(L, 2, G, K, E\), got \(2, 1, 3, 4\)"),
        (replace(PIECE, memory=PIECE.memory[:, :1]), r"\(L, 2, G, K, E\), got \(2, 1, 1, 3, 4\)"),
        (replace(PIECE, memory=PIECE.memory[:, :, :, :0]), r"got \(2, 2, 1, 0, 4\)"),
        (replace(PIECE, memory=PIECE.memory.double()), "bfloat16, float16, float32, got .*float64"),
    ],
)
def test_a_piece_that_cannot_be_stored_stops_the_whole_batch(bank, piece, message):
    with pytest.raises(InputError, match=message):
        bank.add([make_entry("good"), (Document(text=TEXT, id="bad"), [piece])])
    assert bank.count() == Counts(0, 0)


@pytest.mark.parametrize(
    "memory_shape", [(3, 2, 1, 3, 4), (2, 2, 2, 3, 4), (2, 2, 1, 3, 8)], ids=["L", "G", "E"]
)
@pytest.mark.parametrize("in_one_batch", [True, False])
def test_memories_of_another_layout_are_refused(bank, memory_shape, in_one_batch):
    good = make_entry("good")
    bad = (Document(text=TEXT, id="bad"), [make_piece(TEXT, shape=memory_shape)])
    message = r"'bad': expected memories of \(L=2, 2, G=1, K, E=4\) with keys of 8.*got \(L="
    if not in_one_batch:
        bank.add([good])
    with pytest.raises(InputError, match=message):
        bank.add([good, bad])
    assert bank.count().documents == (0 if in_one_batch else 1)


def test_keys_of_another_size_are_refused(bank):
    add(bank, "good")
    with pytest.raises(InputError, match=r"with keys of 8.*with keys of 9"):
        bank.add([(Document(text=TEXT), [make_piece(TEXT, key=make_key(0, 9))])])


def test_a_refused_batch_leaves_the_layout_open(bank):
    with pytest.raises(InputError):
        bank.add([make_entry("good"), (Document(text="no pieces", id="bad"), [])])
    bank.add([(Document(text=TEXT), [make_piece(TEXT, shape=(3, 2, 2, 1, 2))])])
    assert bank.count() == Counts(1, 1)


@pytest.mark.parametrize("known_text", [None, "old"])
def test_a_new_text_needs_pieces(bank, known_text):
    if known_text is not None:
        add(bank, known_text, id="d")
    with pytest.raises(InputError, match="'d': expected at least one compressed piece, got none"):
        bank.add([(Document(text="new", id="d"), [])])
    if known_text is not None:
        assert (bank.get("d").text, bank.get("d").memories) == (known_text, 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document(text=" \n"), "expected text to hold more than spaces"),
        (Document(text="x", id=" "), "expected id to hold more than spaces, got ' '"),
        (Document(text="x", title=None), "expected title to be a str, got None"),
        (Document(text="x", date=2020), "expected date to be a str, got 2020"),
        (Document(text=b"x"), "expected text to be a str, got b'x'"),
        (Document(text="x\ud800"), "text is not valid Unicode"),
        (Document(text="x", id="\ud800"), "id is not valid Unicode"),
        (Document(text="x", metadata=[1]), r"expected metadata to be a mapping, got \[1\]"),
        (Document(text="x", metadata={"a": {1}}), "metadata can't be written as JSON"),
        (Document(text="x", metadata={"a": float("nan")}), "metadata can't be written as JSON"),
        (Document(text="x", metadata={1: 2}), "use str as keys"),
        (Document(text="x", metadata={"a": (1,)}), "lists instead of tuples"),
        (Document(text="x", metadata={"a": "\ud800"}), "metadata can't be written as JSON"),
        (Document(text="x", metadata={"a": nested(64)}), "at most 64 objects and lists"),
    ],
)
def test_a_document_that_cannot_be_stored_is_refused(bank, document, message):
    with pytest.raises(DocumentError, match=message):
        bank.add([make_entry("good"), (document, [make_piece("x")])])
    with pytest.raises(DocumentError, match=message):
        bank.status_of(document)
    assert bank.count() == Counts(0, 0)


def test_metadata_may_be_nested_to_a_depth(bank):
    document = Document(text="x", id="deep", metadata={"a": nested(63)})
    bank.add([(document, [make_piece("x")])])
    assert bank.get("deep").metadata == document.metadata


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_number_that_is_not_finite_is_found(bank, number, dtype):
    piece = replace(PIECE, memory=one_wrong_number(number, dtype))
    with pytest.raises(InputError, match="got NaN or infinity in its memory"):
        bank.add([(Document(text=TEXT), [piece])])
