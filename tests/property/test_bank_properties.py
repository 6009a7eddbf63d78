"""The bank against a dictionary, and its search against brute force, on random inputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from torch.nn.functional import normalize

from cmt.bank import Bank
from cmt.bank.tensor_bytes import DTYPES, tensor_from_bytes, tensor_to_bytes
from cmt.matching import KeyIndex
from cmt.records import Document, EncodedPiece
from tests.unit.bank_pieces import FINGERPRINT, make_key, make_piece

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.builds(
    Document,
    text=TEXTS,
    id=st.none() | TEXTS,
    title=st.text(st.characters(exclude_categories=["Cs"])),
    date=st.none() | st.dates().map(str),
    source=st.text(st.characters(exclude_categories=["Cs"])),
    metadata=st.dictionaries(st.text(), JSON, max_size=4),
)


@st.composite
def bit_patterns(draw, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Any finite numbers of the dtype, drawn by their bits: zeros of both signs, subnormals."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size))), dtype=dtype)
    return torch.where(raw.isfinite(), raw, torch.zeros_like(raw)).reshape(shape)


@st.composite
def memories(draw) -> torch.Tensor:
    """A tensor of the layout (1, 2, 1, K, 2) with any K."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    return draw(bit_patterns(dtype, (1, 2, 1, draw(st.integers(1, 3)), 2)))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@given(memories())
def test_a_tensor_comes_back_from_its_bytes_bit_for_bit(tensor):
    name = str(tensor.dtype).removeprefix("torch.")
    back = tensor_from_bytes(tensor_to_bytes(tensor), tensor.shape, name)
    assert (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))


@given(memories())
def test_a_tensor_laid_out_otherwise_gives_the_same_bytes(tensor):
    turned = tensor.transpose(3, 4).contiguous().transpose(3, 4)
    assert tensor_to_bytes(turned) == tensor_to_bytes(tensor)


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, st.lists(memories(), min_size=1, max_size=3), st.data())
def test_any_document_is_read_back_as_it_was(document, tensors, data):
    pieces = []
    for seed, memory in enumerate(tensors):
        start = data.draw(st.integers(0, len(document.text) - 1))
        end = data.draw(st.integers(start + 1, len(document.text)))
        tokens = data.draw(st.integers(1, 2**40))
        pieces.append(
            EncodedPiece(start=start, end=end, tokens=tokens, key=make_key(seed), memory=memory)
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.sqlite"
        with Bank.open(path, FINGERPRINT) as bank:
            (outcome,) = bank.add([(document, pieces)])
        with Bank.open(path, FINGERPRINT, read_only=True) as bank:
            stored = bank.get(outcome.id)
            for field in ("text", "title", "date", "source", "metadata"):
                assert getattr(stored, field) == getattr(document, field)
            assert document.id in (None, stored.id)
            assert list(bank.documents()) == [stored]
            changes = bank.key_changes(0)
            read = bank.memories(changes.added_ids)
            sources = bank.sources(changes.added_ids)
            for piece, key, memory, source in zip(
                pieces, changes.added_keys, read, sources, strict=True
            ):
                assert (memory.start, memory.end, memory.tokens) == (
                    piece.start,
                    piece.end,
                    piece.tokens,
                )
                assert memory.memory.dtype == piece.memory.dtype
                assert bits(memory.memory) == bits(piece.memory)
                assert key.tobytes() == bits(piece.key)
                assert source.excerpt == document.text[piece.start : piece.end]
            assert bank.verify() == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any), min_size=1, max_size=12
    ),
    st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any),
    st.integers(1, 14),
    st.sets(st.integers(0, 11)),
)
def test_search_equals_brute_force(key_numbers, query_numbers, top_k, deleted):
    """Small whole numbers make equal keys and equal scores common."""
    keys = [normalize(torch.tensor(key, dtype=torch.float32), dim=0) for key in key_numbers]
    query = normalize(torch.tensor(query_numbers, dtype=torch.float32), dim=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        Bank.open(Path(folder) / "bank.sqlite", FINGERPRINT) as bank,
    ):
        index = KeyIndex(bank)
        for n, key in enumerate(keys):
            bank.add([(Document(text=f"{n}"), [make_piece(f"{n}", key=key)])])
            if n == len(keys) // 2:
                index.refresh()
        bank.add([(Document(text="last", id="last"), [make_piece("last", key=keys[0])])])
        ids = [bank.status_of(Document(text=f"{n}")) for n in range(len(keys))]
        assert ids == ["unchanged"] * len(keys)
        stored = {document.text: document.id for document in bank.documents()}
        for n in deleted & set(range(len(keys))):
            bank.delete(stored[f"{n}"])
        changes = bank.key_changes(0)
        cosines = (changes.added_keys.astype(np.float64) * query.numpy()).sum(axis=1)
        scores = np.clip(cosines, -1.0, 1.0)
        ranked = sorted(
            zip(scores.astype(np.float32).tolist(), changes.added_ids, strict=True),
            key=lambda pair: (-pair[0], pair[1]),
        )[:top_k]
        (hits,) = index.search(query[None], top_k)
        assert [hit.memory_id for hit in hits] == [memory_id for _, memory_id in ranked]
        assert [hit.score for hit in hits] == [score for score, _ in ranked]


class BankMachine(RuleBasedStateMachine):
    """Changes, reopens and packs a bank, beside a dictionary that says what it must hold.

    The index lives through all of it and must hold the bank's keys whenever it is asked.
    """

    ids = Bundle("ids")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "bank.sqlite"
        self.expected: dict[str, tuple[str, dict[str, int], list[bytes]]] = {}
        self.seed = 0
        self.open()

    def open(self) -> None:
        self.bank = Bank.open(self.path, FINGERPRINT)
        self.index = KeyIndex(self.bank)

    @rule(target=ids, name=st.sampled_from("abcdef"))
    def name_an_id(self, name: str) -> str:
        return name

    @rule(
        batch=st.lists(
            st.tuples(
                ids, st.sampled_from(["one", "two", "three"]), st.integers(1, 3), st.integers(0, 1)
            ),
            min_size=1,
            max_size=3,
        )
    )
    def add(self, batch: list[tuple[str, str, int, int]]) -> None:
        entries, statuses = [], []
        for name, text, count, number in batch:
            pieces = []
            for _ in range(count):
                self.seed += 1
                pieces.append(make_piece(text, self.seed))
            document = Document(text=text, id=name, metadata={"number": number})
            entries.append((document, pieces))
            known = self.expected.get(name)
            if known is not None and known[0] == text:
                statuses.append("unchanged")
                self.expected[name] = (text, {"number": number}, known[2])
            else:
                statuses.append("added" if known is None else "updated")
                tensors = [bits(piece.memory) for piece in pieces]
                self.expected[name] = (text, {"number": number}, tensors)
        outcomes = self.bank.add(entries)
        assert [outcome.status for outcome in outcomes] == statuses
        assert [outcome.id for outcome in outcomes] == [name for name, *_ in batch]

    @rule(name=ids)
    def delete(self, name: str) -> None:
        assert self.bank.delete(name) == (self.expected.pop(name, None) is not None)

    @rule(name=ids, text=st.sampled_from(["one", "two", "three"]))
    def ask_status(self, name: str, text: str) -> None:
        known = self.expected.get(name)
        expected = "new" if known is None else "unchanged" if known[0] == text else "changed"
        assert self.bank.status_of(Document(text=text, id=name)) == expected

    @rule()
    def reopen(self) -> None:
        self.bank.close()
        self.open()

    @rule()
    def vacuum(self) -> None:
        self.bank.vacuum()

    @rule()
    def follow(self) -> None:
        self.index.refresh()

    @invariant()
    def holds_what_the_dictionary_says(self) -> None:
        if not hasattr(self, "bank"):
            return
        found = {document.id: document for document in self.bank.documents()}
        assert found.keys() == self.expected.keys()
        changes = self.bank.key_changes(0)
        tensors: dict[str, list[bytes]] = {name: [] for name in found}
        for memory in self.bank.memories(changes.added_ids):
            tensors[memory.document_id].append(bits(memory.memory))
        for name, (text, metadata, expected) in self.expected.items():
            assert (found[name].text, found[name].metadata) == (text, metadata)
            assert found[name].memories == len(expected)
            assert tensors[name] == expected

    @rule()
    def search_everything(self) -> None:
        count = self.bank.count().memories
        if count == 0:
            return
        (hits,) = self.index.search(make_key(0)[None], count + 1)
        assert sorted(hit.memory_id for hit in hits) == self.bank.key_changes(0).added_ids

    def teardown(self) -> None:
        if hasattr(self, "bank"):
            assert self.bank.verify() == []
            self.bank.close()
            self.folder.cleanup()


BankMachine.TestCase.settings = settings(deadline=None, max_examples=30, stateful_step_count=25)
TestBankMachine = BankMachine.TestCase
