"""A bank in memory: every piece of a dataset in order, with or without questions on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmt.compressor import Compressor
from cmt.datasets.qa import QADataset
from cmt.encoding import encode_documents
from cmt.errors import InputError
from cmt.resident import learn
from tests import small


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return small.compressor(vector_size=0)


@pytest.fixture(scope="module")
def dataset() -> QADataset:
    return small.long_dataset()


def test_learning_keeps_every_piece_in_order(compressor: Compressor, dataset: QADataset) -> None:
    tokens, owners = small.pieces(compressor, dataset)
    assert owners.count(1) > 1
    assert owners.count(3) > 1
    for batch_tokens in (16384, 150):
        bank = learn(compressor, dataset, batch_tokens=batch_tokens)
        assert bank.owners_D.tolist() == owners
        assert bank.memories.shape == (len(owners), 3, 2, 2, 4, 8)
        for number, piece in enumerate(tokens):
            [(_, encoded)] = encode_documents(compressor, [piece])
            memory, key = encoded.stacked(), encoded.document_keys_DC
            stored = bank.memories[number]
            assert stored.dtype == torch.bfloat16, "as the bank stores them"
            torch.testing.assert_close(stored.float(), memory[0], atol=1e-4, rtol=2**-8)
            torch.testing.assert_close(bank.keys[number], key[0], atol=2e-5, rtol=1e-4)


def test_documents_are_needed_and_questions_are_not(
    compressor: Compressor, dataset: QADataset
) -> None:
    nothing = QADataset(name="nothing", documents=(), articles=(), questions=())
    with pytest.raises(InputError, match="at least one document in nothing, got none"):
        learn(compressor, nothing)
    assert len(learn(compressor, replace(dataset, questions=())).keys) > 5
