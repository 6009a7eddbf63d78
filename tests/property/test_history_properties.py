"""Histories of a document against a model that sorts its versions by when they begin."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cmt import transfer
from cmt.bank import Bank
from cmt.dates import ends, known_from
from cmt.errors import InputError
from cmt.learning import changed_document
from cmt.matching import KeyIndex
from cmt.records import Document, StoredDocument
from cmt.selection import Fields, select
from tests.unit.bank_pieces import FINGERPRINT, make_key, make_piece

TEXTS = st.sampled_from(["one", "two", "three"])
DATES = st.sampled_from(["2015-06", "2016", "2016-01-01", "2018-03-01T12:00", "2020", "2990"])
DAYS = [f"{year}" for year in range(2014, 2022)] + ["2015-06-15", "2018-03-01", "2989", "2990"]


def holding(history: list[StoredDocument], day: str | None) -> list[str]:
    """Texts that `Selection.takes` takes as of a day, or now."""
    selection = select(as_of=day)
    return [
        one.text
        for one in history
        if selection.takes(
            Fields(
                document=0,
                namespace=one.namespace,
                tags=one.tags,
                starts=known_from(one.date, one.added_at),
                superseded=ends(one.superseded_at),
                expires=ends(one.expires_at),
            )
        )
    ]


@dataclass
class Version:
    """What the model knows of a version; `starts` is a moment, its own or what it gave way to."""

    text: str
    date: str | None
    added: str
    starts: float


class HistoryMachine(RuleBasedStateMachine):
    """Adds, supersedes, replaces, changes, purges one document; a step takes a second or none."""

    @initialize()
    def start(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = int(time.time()) - 10_000
        self.patch.setattr("cmt.bank.write.now", self.now)
        self.folder = tempfile.TemporaryDirectory()
        self.copies = 0
        self.seed = 0
        self.versions: list[Version] = []  # in the order of their numbers
        self.bank = Bank.open(Path(self.folder.name) / "0.sqlite", FINGERPRINT)
        self.index = KeyIndex(self.bank)

    def now(self) -> str:
        return datetime.fromtimestamp(self.clock, UTC).isoformat(timespec="seconds")

    def in_line(self) -> list[Version]:
        return sorted(self.versions, key=lambda one: one.starts)  # stable: then by number

    def held(self, day: str | None) -> list[str]:
        at = time.time() if day is None else select(as_of=day).at
        return [one.text for one in self.in_line() if one.starts <= at][-1:]

    def guesses(self) -> bool:
        """Whether versions that came before have no date: what they gave way to must stay."""
        return any(one.date is None for one in self.in_line()[:-1])

    def put(self, document: Document, *, known_only: bool = False) -> str:
        self.seed += 1
        entry = (document, [make_piece(document.text, self.seed)])
        return self.bank.add([entry], known_only=known_only)[0].status

    def set(self, document: Document) -> str:
        """A plain add in the model: the latest has this text and date now."""
        if not self.versions:
            self.append(document.text, document.date)
            return "added"
        *before, latest = self.in_line()
        same = latest.text == document.text
        latest.added = latest.added if same else self.now()
        latest.text = document.text
        stamp = known_from(document.date, "") if document.stamped else float("inf")
        if all(one.starts < stamp for one in before):
            latest.date = document.date
        latest.starts = known_from(latest.date, latest.added)
        return "unchanged" if same else "updated"

    def append(self, text: str, date: str | None) -> None:
        self.versions.append(Version(text, date, self.now(), known_from(date, self.now())))

    def supersede(self, document: Document) -> str:
        """A superseding add in the model."""
        text, date = document.text, document.date
        if not self.versions:
            self.append(text, date)
            return "added"
        before = [one for one in self.in_line() if one.starts <= time.time()]
        if date is None or document.stamped:
            if before and before[-1].text == text:
                return "unchanged"
            if date is None or (before and known_from(date, "") <= before[-1].starts):
                date = self.now()
        elif any((one.text, one.date) == (text, date) for one in self.versions):
            return "unchanged"
        latest = self.in_line()[-1]
        if latest.date is None:
            latest.starts = min(latest.starts, known_from(date, ""))
        self.append(text, date)
        return "updated"

    @rule()
    def wait(self) -> None:
        self.clock += 1

    @rule(text=TEXTS, date=st.none() | DATES, supersede=st.booleans(), stamped=st.booleans())
    def add(self, text: str, date: str | None, supersede: bool, stamped: bool) -> None:
        supersede = supersede or self.guesses()
        stamped = stamped and date is not None and date < "2990"  # a file's date lies behind
        document = Document(text=text, id="a", date=date, supersede=supersede, stamped=stamped)
        expected = self.supersede(document) if supersede else self.set(document)
        assert self.put(document) == expected

    @rule(
        changes=st.fixed_dictionaries(
            {}, optional={"text": TEXTS, "date": st.none() | DATES, "tags": st.just(["x"])}
        ),
        supersede=st.booleans(),
    )
    def change(self, changes: dict[str, Any], supersede: bool) -> None:
        if not self.versions or self.guesses():
            return
        stored = self.bank.get("a")
        document = changed_document(stored, changes, supersede=supersede)
        latest = self.in_line()[-1]
        assert (stored.text, stored.date) == (latest.text, latest.date)
        given = Document(
            text=changes.get("text", latest.text), date=changes.get("date", latest.date)
        )
        if supersede and given.text != latest.text:
            expected = self.supersede(Document(text=given.text, date=changes.get("date")))
        else:
            expected = self.set(given)
        assert self.put(document, known_only=True) == expected

    @rule()
    def expire(self) -> None:
        if not self.versions or self.in_line()[-1].starts > time.time():
            return
        changed = changed_document(self.bank.get("a"), {"expires_at": "2020"})
        assert self.put(changed, known_only=True) == "unchanged"
        assert self.bank.purge() == ["a"] * len(self.versions)
        self.versions = []

    @rule(text=TEXTS, date=DATES, more=st.none() | DATES)
    def meet_another_bank(self, text: str, date: str, more: str | None) -> None:
        """An import into a bank that has the id lets one version hold a day, or is refused."""
        folder = Path(self.folder.name)
        self.copies += 1
        export = folder / f"{self.copies}"
        transfer.export_bank(self.bank, export)
        with Bank.open(folder / f"{self.copies}-other.sqlite", FINGERPRINT) as other:
            for each in filter(None, (date, more)):
                document = Document(text=text, id="a", date=each, supersede=True)
                other.add([(document, [make_piece(text)])])
            held = other.history("a")
            try:
                transfer.import_bank(other, export)
            except InputError:
                assert other.history("a") == held
            for day in (None, *DAYS):
                assert len(holding(other.history("a"), day)) <= 1

    @rule()
    def move_to_another_bank(self) -> None:
        versions = list(self.bank.entries())
        own = [(one.text, one.date, one.added_at, one.superseded_at) for one, _ in versions]
        if len(set(own)) < len(own):
            return  # of one second, superseded before they held: an import takes one of such
        self.copies += 1
        folder = Path(self.folder.name)
        transfer.export_bank(self.bank, folder / f"{self.copies}")
        self.bank.close()
        self.bank = Bank.open(folder / f"{self.copies}.sqlite", FINGERPRINT)
        report = transfer.import_bank(self.bank, folder / f"{self.copies}")
        assert (report.documents, report.unchanged) == (len(versions), 0)
        assert [one for one, _ in self.bank.entries()] == [one for one, _ in versions]
        report = transfer.import_bank(self.bank, folder / f"{self.copies}")
        assert (report.documents, report.unchanged) == (0, len(versions))
        self.index = KeyIndex(self.bank)

    @invariant()
    def holds_what_the_model_says(self) -> None:
        if not getattr(self, "versions", None):
            assert not hasattr(self, "bank") or self.bank.stats().memories == 0
            return
        history = self.bank.history("a")
        expected = [(one.text, one.date, one.added) for one in self.in_line()]
        assert [(one.text, one.date, one.added_at) for one in history] == expected
        for day in (None, *DAYS):
            expected_texts = self.held(day)
            selection = select(as_of=day)
            assert holding(history, day) == expected_texts
            assert [one.text for one in self.bank.documents(selection=selection)] == expected_texts
            assert self.bank.count_documents(selection) == len(expected_texts)
            (hits,) = self.index.search(make_key(1)[None], 20, selection)
            sources = self.bank.sources([hit.memory_id for hit in hits])
            assert [source.excerpt for source in sources] == expected_texts

    def teardown(self) -> None:
        if hasattr(self, "bank"):
            assert self.bank.verify() == []
            self.bank.close()
            self.folder.cleanup()
            self.patch.undo()


HistoryMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=12)
TestHistoryMachine = HistoryMachine.TestCase


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(TEXTS, DATES), min_size=1, max_size=6), st.randoms())
def test_versions_that_are_added_again_in_any_order_change_nothing(versions, random):
    def put(text: str, date: str) -> str:
        document = Document(text=text, id="a", date=date, supersede=True)
        return bank.add([(document, [make_piece(text)])])[0].status

    with (
        tempfile.TemporaryDirectory() as folder,
        Bank.open(Path(folder) / "bank.sqlite", FINGERPRINT) as bank,
    ):
        for version in versions:
            put(*version)
        history = bank.history("a")
        assert {(one.text, one.date) for one in history} == set(versions)
        random.shuffle(versions)
        assert {put(*version) for version in versions} == {"unchanged"}
        assert bank.history("a") == history
        assert bank.verify() == []
