"""What becomes of documents in a bank: replaced, superseded, expired, purged, forgotten."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from cmt.bank import Bank, Counts, Outcome
from cmt.bank.migrations import MIGRATIONS
from cmt.bank.tensor_bytes import tensor_to_bytes
from cmt.dates import span
from cmt.errors import CorruptRecordError, DocumentError, UnknownIdError
from cmt.learning import changed_document
from cmt.matching import KeyIndex
from cmt.records import Document
from cmt.selection import select
from tests.unit.bank_pieces import FINGERPRINT, add, keys_of, make_entry, make_key, make_piece

OLD = Path(__file__).parents[1] / "data" / "bank_v1.sql"


def texts(bank: Bank, **filters: object) -> list[str]:
    return [document.text for document in bank.documents(selection=select(**filters))]


# A bank of schema 1.


@pytest.fixture
def old(path):
    made = sqlite3.connect(path)
    made.executescript(OLD.read_text())
    made.close()
    return path


def test_a_bank_of_schema_1_keeps_everything(old):
    with Bank.open(old, FINGERPRINT) as bank:
        assert bank.verify() == []
        assert bank.count() == Counts(3, 3)
        mill = bank.get("mill")
        assert (mill.text, mill.title) == ("The mill of Selka burned down.", "Mill")
        assert (mill.date, mill.metadata, mill.memories) == ("2024-05-31", {"page": 3}, 1)
        assert (mill.namespace, mill.tags, mill.expires_at) == ("default", (), None)
        assert [d.text for d in bank.documents()][1:] == ["No id, no date.", "new text"]
        for memory_id, seed in zip(keys_of(bank), (1, 2, 4), strict=True):
            (memory,) = bank.memories([memory_id])
            assert torch.equal(memory.memory, make_piece("", seed).memory)
        (hits,) = KeyIndex(bank).search(make_key(1)[None], 1)
        assert bank.sources([hits[0].memory_id])[0].document_id == "mill"


def test_a_bank_of_schema_1_goes_on_as_any_other(old):
    with Bank.open(old, FINGERPRINT) as bank:
        assert add(bank, "No id, no date.").status == "unchanged"
        assert add(bank, "The mill was rebuilt.", 9, id="mill", supersede=True).status == "updated"
        assert bank.history("mill")[0].text.endswith("burned down.")
        assert bank.delete("changed")
        assert bank.verify() == []
    check = sqlite3.connect(old)
    assert check.execute("PRAGMA foreign_key_check").fetchall() == []
    assert check.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    check.close()


def test_damage_in_a_bank_of_schema_1_is_still_found_after_the_move(old):
    outside = sqlite3.connect(old)
    outside.execute("UPDATE documents SET title = 'x' WHERE id = 'mill'")
    outside.commit()
    outside.close()
    with Bank.open(old, FINGERPRINT) as bank:
        assert [problem.document_id for problem in bank.verify()] == ["mill"]


# Superseding.


def test_a_superseded_version_is_history_and_the_new_one_is_matched(bank):
    add(bank, "Ann is the mayor.", 1, id="mayor", date="2020-01-01")
    index = KeyIndex(bank)
    assert len(index.search(make_key(1)[None], 5)[0]) == 1
    changed = add(bank, "Bob is the mayor.", 2, id="mayor", date="2024-03-01", supersede=True)
    assert changed == Outcome("mayor", "updated")
    assert bank.get("mayor").text == "Bob is the mayor."
    assert bank.count() == Counts(1, 2)
    ann, bob = bank.history("mayor")
    assert (ann.text, ann.superseded_at) == ("Ann is the mayor.", "2024-03-01")
    assert (bob.text, bob.superseded_at) == ("Bob is the mayor.", None)
    (hits,) = index.search(make_key(1)[None], 5)
    assert [source.excerpt for source in bank.sources([h.memory_id for h in hits])] == [bob.text]
    assert bank.verify() == []


def test_as_of_a_date_the_version_of_that_date_is_found(bank):
    for year, name in ((2018, "Ann"), (2021, "Bob"), (2024, "Cid")):
        text = f"{name} is the mayor."
        add(bank, text, year, id="mayor", date=f"{year}-06-01", supersede=True)
    expected = {
        "2018-05-31": [],
        "2018-06-01": ["Ann"],
        "2021-05": ["Ann"],
        "2021-06-01": ["Bob"],
        "2024": ["Cid"],
    }
    for date, names in expected.items():
        assert [text.split()[0] for text in texts(bank, as_of=date)] == names


def test_a_version_dated_ahead_waits_and_the_one_before_it_goes_on(bank):
    add(bank, "sand", 1, id="a", date="2020-01-01")
    add(bank, "gold", 2, id="a", date="2999-01-01", supersede=True)
    add(bank, "soon", 3, id="b", date="2999-01-01")
    assert texts(bank) == ["sand"]
    assert texts(bank, as_of="2999-01-01") == ["gold", "soon"]
    assert [document.text for document in bank.documents()] == ["gold", "soon"]
    assert bank.get("a").text == "gold"
    assert bank.purge(history=True) == []
    add(bank, "silt", 4, id="a", supersede=True)  # from now on
    assert texts(bank) == ["silt"]
    assert texts(bank, as_of="2025") == ["sand"]
    assert texts(bank, as_of="2999-01-01") == ["gold", "soon"]
    assert [version.text for version in bank.history("a")] == ["sand", "silt", "gold"]
    assert bank.purge(history=True) == ["a"]
    assert texts(bank) == ["silt"]
    assert bank.verify() == []


def test_a_version_dated_before_the_one_held_comes_before_it(bank):
    add(bank, "Ann", 1, id="mayor", date="2018-01-01")
    add(bank, "Bob", 2, id="mayor", date="2022-01-01", supersede=True)
    backfilled = {"id": "mayor", "date": "2020-01-01", "supersede": True}
    assert add(bank, "Cid", 3, **backfilled) == Outcome("mayor", "updated")
    assert bank.get("mayor").text == "Bob"
    assert texts(bank) == ["Bob"]
    for year, name in ((2017, []), (2019, ["Ann"]), (2021, ["Cid"]), (2023, ["Bob"])):
        assert texts(bank, as_of=str(year)) == name
    held = [(version.text, version.superseded_at) for version in bank.history("mayor")]
    assert held == [("Ann", "2020-01-01"), ("Cid", "2022-01-01"), ("Bob", None)]
    index = KeyIndex(bank)
    (hits,) = index.search(make_key(1)[None], 5, select(as_of="2021"))
    assert [one.excerpt for one in bank.sources([hit.memory_id for hit in hits])] == ["Cid"]
    assert bank.status_of(Document(text="Cid", **backfilled)) == "unchanged"
    assert add(bank, "Cid", 3, title="Mayor", **backfilled) == Outcome("mayor", "unchanged")
    held = [(version.title, version.superseded_at) for version in bank.history("mayor")]
    assert held == [("", "2020-01-01"), ("Mayor", "2022-01-01"), ("", None)]
    assert bank.verify() == []


def test_a_version_that_an_old_bank_hid_comes_back_when_it_is_added_again(bank):
    ann = {"id": "mayor", "date": "2020-01-01", "supersede": True}
    add(bank, "Ann", 1, **ann)
    (held,) = bank.history("mayor")
    bank.delete("mayor")
    bank.restore([(replace(held, superseded_at="2019-01-01"), [make_piece("Ann", 1)])])
    bank.restore([(replace(held, text="Bob", date="2019-01-01"), [make_piece("Bob", 2)])])
    assert texts(bank) == ["Bob"]
    assert add(bank, "Ann", 1, **ann).status == "updated"
    assert texts(bank) == ["Ann"]
    assert texts(bank, as_of="2019") == ["Bob"]


def test_a_version_without_a_date_gives_way_to_any(bank):
    add(bank, "undated", 1, id="a")
    add(bank, "dated", 2, id="a", date="2020-01-01", supersede=True)
    assert texts(bank) == texts(bank, as_of="2020-01-01") == ["dated"]


def test_a_new_date_moves_the_end_of_the_version_before(bank):
    add(bank, "old", 1, id="a", date="2020-01-01")
    add(bank, "new", 2, id="a", date="2022-01-01", supersede=True)
    add(bank, "new", id="a", date="2999-01-01")
    assert texts(bank) == ["old"]
    add(bank, "newest", 3, id="a", date="2024-01-01")  # in the place of "new"
    assert texts(bank) == ["newest"]
    assert texts(bank, as_of="2023") == ["old"]
    assert bank.verify() == []


def test_a_version_that_gave_way_does_not_come_back_with_an_earlier_date(bank):
    add(bank, "undated", 1, id="a")
    add(bank, "dated", 2, id="a", date="2020-01-01", supersede=True)
    add(bank, "dated", id="a", date="2010-01-01")
    assert texts(bank) == texts(bank, as_of="2010-01-01") == ["dated"]
    add(bank, "dated", id="a", date="2999-01-01")
    assert texts(bank) == ["undated"]
    assert bank.verify() == []


def test_a_text_that_supersedes_without_a_date_gives_way_to_none(bank):
    add(bank, "Ann", 1, id="mayor", date="2024-01-01")
    add(bank, "Bob", 2, id="mayor", supersede=True)
    add(bank, "Mid", 3, id="mayor", date="2025-06-01", supersede=True)
    assert texts(bank) == ["Bob"]
    assert [version.text for version in bank.history("mayor")] == ["Ann", "Mid", "Bob"]
    assert bank.purge(history=True) == ["mayor", "mayor"]
    assert [version.text for version in bank.history("mayor")] == ["Bob"]


@pytest.mark.parametrize(
    ("versions", "held"),
    [
        ([("old", "2020"), ("cur", "2021"), ("cur", "2099")], {None: "cur", "2020": "old"}),
        ([("W", "2018"), ("X", "2020"), ("X", "2025")], {None: "X", "2019": "W", "2022": "X"}),
        ([("A", "2020"), ("B", "2022"), ("A", "2024")], {None: "A", "2021": "A", "2023": "B"}),
        ([("A", "2024"), ("B", "2022"), ("A", "2020")], {None: "A", "2021": "A", "2023": "B"}),
    ],
)
def test_a_text_that_comes_again_at_another_date_is_another_version(bank, versions, held):
    for _ in range(2):  # the second time nothing is new
        statuses = [
            add(bank, text, 1, id="a", date=date, supersede=True).status for text, date in versions
        ]
    assert statuses == ["unchanged"] * 3
    history = [(one.text, one.date) for one in bank.history("a")]
    assert history == sorted(versions, key=lambda one: one[1])
    for day, text in held.items():
        assert texts(bank, as_of=day) == [text]
    assert bank.verify() == []


def test_superseding_leaves_the_date_of_the_text_held(bank):
    add(bank, "sand", 1, id="a", date="2020-01-01")
    add(bank, "sand", id="a", title="Sand", supersede=True)
    (held,) = bank.history("a")
    assert (held.title, held.date) == ("Sand", "2020-01-01")
    add(bank, "sand", id="a")
    assert bank.get("a").date is None


@pytest.mark.parametrize("stamp", ["2020-01-01", "2022-01-01"])
def test_a_time_stamp_that_is_no_later_does_not_make_a_text_history(bank, stamp):
    add(bank, "old", 1, id="a", date="2020-01-01", stamped=True)
    add(bank, "new", 2, id="a", date="2022-01-01", stamped=True, supersede=True)
    back = {"id": "a", "date": stamp, "stamped": True, "supersede": True}
    assert add(bank, "old", 3, **back).status == "updated"
    assert texts(bank) == ["old"]
    assert texts(bank, as_of="2021") == ["old"]
    assert texts(bank, as_of="2023") == ["new"]
    assert add(bank, "old", 3, **back).status == "unchanged"
    assert add(bank, "old", 3, **{**back, "date": "2023-01-01"}).status == "unchanged"
    assert [version.text for version in bank.history("a")] == ["old", "new", "old"]
    add(bank, "ahead", 4, id="a", date="2999-01-01", supersede=True)
    assert add(bank, "new", 5, **back).status == "updated"
    assert texts(bank) == ["new"]


def test_a_time_stamp_does_not_put_the_latest_before_another_version(bank):
    for text, date in (("sand", "2001-01-01"), ("silt", "2017-01-01")):
        add(bank, text, 1, id="a", date=date, stamped=True, supersede=True)
    stamp = {"id": "a", "date": "1999-01-01", "stamped": True}
    for text, status in (("silt", "unchanged"), ("clay", "updated"), ("clay", "unchanged")):
        assert add(bank, text, 2, **stamp).status == status
        assert [(one.text, one.date, one.superseded_at) for one in bank.history("a")] == [
            ("sand", "2001-01-01", "2017-01-01"),
            (text, "2017-01-01", None),
        ]
    add(bank, "clay", id="a", date="2005-01-01", stamped=True)
    assert texts(bank, as_of="2006") == ["clay"]
    assert bank.verify() == []


@pytest.mark.parametrize("text", ["Bob", "Cid"])
@pytest.mark.parametrize(
    ("end", "date"),  # Ann ended by Bob's date, or when he was added; what he is added again with
    [
        ("2019-01-01", "2019-01-01"),
        ("2019-01-01", "2018-01-01"),
        ("2019-01-01", None),
        ("2024-05-01", "2019-01-01"),
        ("2024-05-01", "2018-01-01"),
        ("2024-05-01", "2019-06-01"),
        ("2024-05-01", None),
    ],
)
def test_a_plain_add_does_not_bring_back_what_an_old_bank_superseded(bank, text, end, date):
    add(bank, "Ann", 1, id="mayor", date="2020-01-01")
    (held,) = bank.history("mayor")
    bank.delete("mayor")
    old = [
        (replace(held, superseded_at=end), [make_piece("Ann", 1)]),
        (replace(held, text="Bob", date="2019-01-01"), [make_piece("Bob", 2)]),
    ]
    bank.restore(old)
    add(bank, text, 3, id="mayor", date=date)
    assert texts(bank) == [text]
    assert bank.get("mayor").text == text
    assert bank.verify() == []


@pytest.mark.parametrize("date", ["2024-01-01", None])
def test_a_text_may_come_back_within_a_second(bank, monkeypatch, date):
    monkeypatch.setattr("cmt.bank.write.now", lambda: "2025-01-01T12:00:00+00:00")
    add(bank, "X", 1, id="a", date=date)
    for text in ("A", "B", "A"):
        document = changed_document(bank.get("a"), {"text": text}, supersede=True)
        outcome = bank.add([(document, [make_piece(text)])], known_only=True)[0]
        assert outcome.status == "updated"
        assert texts(bank) == [bank.get("a").text] == [text]


def test_a_text_of_today_is_superseded_before_today_begins_in_greenwich(bank, monkeypatch):
    ahead = datetime.now(UTC).date() + timedelta(days=1)  # today, far enough in the east
    for module in ("bank.write", "selection"):
        monkeypatch.setattr(f"cmt.{module}.today", lambda: span(f"{ahead}")[0])
    today = {"id": "a", "date": f"{ahead}"}
    add(bank, "Ann", 1, **today)
    add(bank, "Bob", 2, id="a", supersede=True)
    assert texts(bank) == [bank.get("a").text] == ["Bob"]
    add(bank, "Cid", 3, id="a", date="2020-01-01", stamped=True, supersede=True)
    assert texts(bank) == [bank.get("a").text] == ["Cid"]
    assert {one.date for one in bank.history("a")} == {f"{ahead}"}


def test_a_date_that_moves_past_another_version_changes_places_with_it(bank):
    for year in (2016, 2020, 2024):
        add(bank, f"{year}", year, id="a", date=f"{year}", supersede=True)
    add(bank, "2024", id="a", date="2018")
    held = [(version.text, version.superseded_at) for version in bank.history("a")]
    assert held == [("2016", "2018"), ("2024", "2020"), ("2020", None)]
    assert texts(bank, as_of="2019") == ["2024"]
    assert texts(bank) == ["2020"]
    assert bank.get("a").text == "2020"
    assert bank.verify() == []


def test_a_document_of_one_version_is_written_once(bank):
    add(bank, "sand", 1, id="a", date="2020")
    cursor = bank.key_changes(0).cursor
    add(bank, "sand", 1, id="a", date="2021")
    assert bank.key_changes(cursor).cursor == cursor + 1


def test_a_stored_date_that_is_none_stays_and_another_is_refused(bank):
    add(bank, "sand", 1, id="a", date="2020")
    (held,) = bank.history("a")
    bank.delete("a")
    bank.restore([(replace(held, date="Spring 2019"), [make_piece("sand", 1)])])
    again = {"id": "a", "date": "Spring 2019"}
    assert bank.status_of(Document(text="sand", **again)) == "unchanged"
    assert add(bank, "sand", title="Sand", **again).status == "unchanged"
    assert add(bank, "silt", 2, **again).status == "updated"
    held = bank.get("a")
    assert (held.text, held.date) == ("silt", "Spring 2019")
    for other in ({"date": "Spring 2020"}, {"namespace": "news"}, {"id": "b"}):
        with pytest.raises(DocumentError, match=r"expected date as in .* got 'Spring 20"):
            add(bank, "silt", 2, **{**again, **other})
    assert bank.verify() == []


def test_an_undated_document_is_known_from_when_it_was_added(bank):
    add(bank, "undated", 1, id="a")
    assert texts(bank, as_of="2020-01-01") == []
    assert texts(bank, as_of="2999-01-01") == ["undated"]


def test_a_document_may_be_superseded_many_times_and_forgotten_with_its_history(bank):
    for n in range(4):
        add(bank, f"version {n}", n, id="a", supersede=True)
    assert [v.text for v in bank.history("a")] == [f"version {n}" for n in range(4)]
    assert add(bank, "version 3", id="a").status == "unchanged"
    assert bank.delete("a")
    assert bank.count() == Counts(0, 0)
    with pytest.raises(UnknownIdError):
        bank.history("a")


def test_a_damaged_version_is_not_made_history(bank, path):
    add(bank, "old", 1, id="a")
    outside = sqlite3.connect(path)
    outside.execute("UPDATE documents SET title = 'x'")
    outside.commit()
    outside.close()
    with pytest.raises(CorruptRecordError, match="document 'a': its fields"):
        add(bank, "new", 2, id="a", supersede=True)


# Expiry.


def test_what_has_expired_is_not_matched_and_is_purged(bank):
    add(bank, "stale", 1, id="old", expires_at="2020-01-01")
    add(bank, "fresh", 2, id="new", expires_at="2999-01-01")
    (hits,) = KeyIndex(bank).search(make_key(1)[None], 5)
    assert len(hits) == 1
    assert texts(bank) == ["fresh"]
    stats = bank.stats()
    assert (stats.documents, stats.expired, stats.superseded) == (2, 1, 0)
    assert bank.purge() == ["old"]
    assert bank.purge() == []
    assert bank.count() == Counts(1, 1)


def test_purge_takes_history_only_when_asked(bank):
    add(bank, "old", 1, id="a")
    add(bank, "new", 2, id="a", supersede=True)
    assert bank.purge() == []
    assert bank.stats().superseded == 1
    assert bank.purge(history=True) == ["a"]
    assert [version.text for version in bank.history("a")] == ["new"]


def test_a_version_that_was_purged_leaves_its_time_to_none(bank):
    for year, expiry in ((2018, None), (2020, "2021"), (2024, None)):
        fields = {"date": f"{year}", "expires_at": expiry, "supersede": True}
        add(bank, f"{year}", year, id="a", **fields)
    assert bank.purge() == ["a"]
    for year in (2026, 2016):
        add(bank, f"{year}", year, id="a", date=f"{year}", supersede=True)
    add(bank, "2026", id="a", date="2025")
    expected = {"2017": ["2016"], "2019": ["2018"], "2022": [], "2024": ["2024"], "2025": ["2026"]}
    for day, found in expected.items():
        assert texts(bank, as_of=day) == found
    assert bank.verify() == []


def test_history_is_purged_with_its_latest_version(bank):
    add(bank, "2020", 1, id="a", date="2020")
    add(bank, "2022", 2, id="a", date="2022", supersede=True, expires_at="2023")
    add(bank, "2020", 1, id="a", namespace="news", date="2020")
    assert bank.purge() == ["a", "a"]
    assert bank.count() == Counts(1, 1)
    with pytest.raises(UnknownIdError):
        bank.get("a")


def test_what_holds_until_an_expired_version_begins_outlives_it(bank):
    add(bank, "2020", 1, id="a", date="2020")
    add(bank, "2990", 2, id="a", date="2990", supersede=True, expires_at="2023")
    assert bank.purge() == ["a"]
    assert texts(bank) == ["2020"]
    change = changed_document(bank.get("a"), {"title": "T"})
    with pytest.raises(UnknownIdError, match="expected it in the bank, but its latest version was"):
        bank.add([(change, [])], known_only=True)


def test_a_superseded_text_stays_so_when_what_came_after_is_gone(bank):
    add(bank, "2020", 1, id="a", date="2020")
    (held,) = bank.history("a")
    bank.delete("a")
    bank.restore([(replace(held, superseded_at="2022"), [make_piece("2020", 1)])])
    add(bank, "2019", 2, id="a", date="2019", supersede=True)
    for day, found in ((None, []), ("2019-06", ["2019"]), ("2021", ["2020"]), ("2023", [])):
        assert texts(bank, as_of=day) == found


def test_an_expired_text_that_is_added_again_lives_again(bank):
    add(bank, "sand", 1, expires_at="2020-01-01")
    assert texts(bank) == []
    assert add(bank, "sand", 1).status == "unchanged"
    assert texts(bank) == ["sand"]


# Namespaces and tags.


def test_namespaces_hold_documents_of_the_same_id_apart(bank):
    add(bank, "sand", 1, id="a")
    assert add(bank, "silt", 2, id="a", namespace="news").status == "added"
    assert add(bank, "sand", 3, namespace="news").status == "added"
    assert bank.get("a").text == "sand"
    assert bank.get("a", namespace="news").text == "silt"
    assert bank.stats().namespaces == ("default", "news")
    assert bank.delete("a", namespace="news")
    assert not bank.delete("a", namespace="none")
    assert bank.get("a").text == "sand"
    with pytest.raises(UnknownIdError, match=r"no document with id 'a' is in .* namespace 'news'"):
        bank.get("a", namespace="news")


def test_tags_are_kept_sorted_and_taken_over(bank):
    add(bank, "sand", 1, id="a", tags=["wet", "fine", "wet"])
    assert bank.get("a").tags == ("fine", "wet")
    bank.add([(Document(text="sand", id="a", tags=["dry"]), [])])
    assert bank.get("a").tags == ("dry",)
    assert bank.verify() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"namespace": " "}, "document 'a': expected namespace to be a word"),
        ({"tags": "x"}, "document 'a': expected tags to be a list of str"),
        ({"tags": [""]}, "document 'a': expected a tag to be a word"),
        ({"tags": None}, "document 'a': expected tags to be a list"),
        ({"expires_at": "soon"}, "document 'a': expected expires_at as in"),
        ({"expires_at": ["2026"]}, "document 'a': expected expires_at as in"),
        (
            {"date": "31.01.2020"},
            "document 'a': expected date as in 2026-01-31 .* got '31.01.2020'",
        ),
        ({"date": ""}, "document 'a': expected date as in"),
    ],
)
def test_fields_that_cannot_be_stored_are_refused(bank, fields, message):
    with pytest.raises(DocumentError, match=message):
        add(bank, "sand", 1, id="a", **fields)


@pytest.mark.parametrize(
    "change", ["namespace = 'x'", "tags = '[\"x\"]'", "expires_at = 'x'", "superseded_at = 'x'"]
)
def test_a_changed_field_is_found(bank, path, change):
    add(bank, "sand", 1, id="a")
    outside = sqlite3.connect(path)
    outside.execute("UPDATE documents SET " + change)  # noqa: S608
    outside.commit()
    outside.close()
    assert [problem.document_id for problem in bank.verify()] == ["a"]


# Forgetting.


def in_files(path: Path, wanted: bytes) -> list[str]:
    return [file.name for file in path.parent.glob(f"{path.name}*") if wanted in file.read_bytes()]


@pytest.mark.parametrize("how", ["delete", "update", "purge", "history"])
def test_forgotten_bytes_are_gone_from_the_file_and_its_log(bank, path, how):
    large = (4, 2, 4, 16, 64)  # over many pages
    text = "The password is swordfish. " * 300
    piece = make_piece(text, 7, shape=large)
    expiry = "2020-01-01" if how == "purge" else None
    for n in range(5):
        other = make_piece("other", 100 + n, shape=large)
        bank.add([(Document(text=f"other text {n}", id=f"{n}"), [other])])
    bank.add([(Document(text=text, id="secret", expires_at=expiry), [piece])])
    for n in range(5, 8):
        other = make_piece("other", 100 + n, shape=large)
        bank.add([(Document(text=f"other text {n}", id=f"{n}"), [other])])
    raw = tensor_to_bytes(piece.memory)
    wanted = [b"swordfish", tensor_to_bytes(piece.key)]
    wanted += [raw[start : start + 64] for start in range(0, len(raw), 4096)]
    assert all(in_files(path, part) for part in wanted)
    newer = Document(text="nothing", id="secret", supersede=how == "history")
    if how in ("update", "history"):
        bank.add([(newer, [make_piece("nothing", 8, shape=large)])])
    if how == "delete":
        assert bank.delete("secret")
    if how in ("purge", "history"):
        assert bank.purge(history=True) == ["secret"]
    bank.wipe_log()
    assert [part for part in wanted if in_files(path, part)] == []
    bank.vacuum()
    assert [part for part in wanted if in_files(path, part)] == []
    assert bank.verify() == []
    assert all(make_entry(f"other text {n}")[0].text == bank.get(f"{n}").text for n in range(8))


def test_a_log_that_is_being_read_is_not_wiped(bank, path):
    add(bank, "sand", 1, id="a")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM documents").fetchone()
    add(bank, "silt", 2, id="b")
    assert bank.wipe_log() is False
    reader.close()
    assert bank.wipe_log() is True
