"""Filters: checked, and the same whether applied to one document, to columns or in SQL."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest

from cmt.dates import ends, known_from, now
from cmt.errors import InputError
from cmt.matching import KeyIndex
from cmt.records import Document, StoredDocument
from cmt.selection import FieldColumns, Fields, Selection, check_tags, select
from tests.unit.bank_pieces import make_entry, make_key

SELECTIONS = [
    {},
    {"namespace": None},
    {"namespace": "news"},
    {"namespace": "none"},
    {"tags": ["a"]},
    {"tags": ["b", "a"]},
    {"tags": ["c"], "namespace": None},
    {"since": "2024-06"},
    {"until": "2024-06"},
    {"until": "2024-05-31", "since": "2024-05-31"},
    {"since": "2023", "until": "2025", "tags": ["a"], "namespace": None},
    {"as_of": "2024-05-30"},
    {"as_of": "2024-05-31"},
    {"as_of": "2024-06-15"},
    {"as_of": "2030-01-01"},
    {"as_of": "2998-06", "namespace": None},
    {"as_of": "9000-01-01", "namespace": None},
]
LABELS = itertools.product(["default", "news"], [(), ("a",), ("a", "b"), ("c",)])
DATES = [None, "2024-05-31", "2024-06-01T12:00", "2024", "2999-01-01", "not a date"]
EXPIRIES = [None, "2024-06-10", "2999-01-01"]
DOCUMENTS = [
    Document(
        text=f"text {n}", id=f"{n}", namespace=namespace, tags=tags, date=date, expires_at=expiry
    )
    for n, ((namespace, tags), date, expiry) in enumerate(
        itertools.product(LABELS, DATES, EXPIRIES)
    )
]


@pytest.fixture
def filled(bank):
    """All combinations of fields, wrong dates as an old bank has them, and two of three superseded.

    One by a version that holds by now, one by a version to come.
    """
    bank.add([make_entry("before", 0, id="x")])
    bank.restore([(held(d), make_entry(d.text, n)[1]) for n, d in enumerate(DOCUMENTS)])
    for first, date in ((0, "2024-06-05"), (1, "2998-01-01")):
        for n, document in list(enumerate(DOCUMENTS))[first::3]:
            _, pieces = make_entry("newer text", 1000 + n)
            newer = Document(
                text="newer text",
                id=document.id,
                namespace=document.namespace,
                date=date,
                supersede=True,
            )
            bank.add([(newer, pieces)])
    return bank


def held(document: Document) -> StoredDocument:
    """A document as a bank has it."""
    own = {field.name: getattr(document, field.name) for field in fields(document)}
    del own["supersede"], own["stamped"]
    return StoredDocument(**own, added_at=now(), memories=1, memory_bytes=1)


@pytest.mark.parametrize("filters", SELECTIONS, ids=str)
def test_a_filter_selects_the_same_in_sql_in_columns_and_by_itself(filled, filters):
    selection = select(**filters)
    every = [
        version
        for document in filled.documents()
        for version in filled.history(document.id, namespace=document.namespace)
    ]
    expected = {
        (version.namespace, version.id, version.text)
        for version in every
        if selection.takes(
            Fields(
                document=0,
                namespace=version.namespace,
                tags=version.tags,
                starts=known_from(version.date, version.added_at),
                superseded=ends(version.superseded_at),
                expires=ends(version.expires_at),
            )
        )
    }
    listed = list(filled.documents(selection=selection))
    assert {(d.namespace, d.id, d.text) for d in listed} == expected
    (hits,) = KeyIndex(filled).search(make_key(5)[None], 1000, selection)
    sources = filled.sources([hit.memory_id for hit in hits])
    assert {(s.namespace, s.document_id, s.excerpt) for s in sources} == expected
    assert len(hits) == len(expected)


def test_what_sql_spares_itself_parsing_is_selected_alike(bank):
    """Every way to write a date, at every moment around it, and at the ends of time."""
    near = ["2024", "2024-01", "2024-01-01", "20240101", "2024-W01-1", "2024W011", "2023-W52-7"]
    zones = ["2023-12-31T23:59:59-23:59", "2024-01-01T00:00+23:59", "2024-W01-1T12:00-23:59"]
    dates = [*near, *zones, "0001", "9999-12-31", "2023-99-99", "Spring 2019", None]
    documents = [Document(text=f"{n}", id=f"{n}", date=date) for n, date in enumerate(dates)]
    bank.restore([(held(one), make_entry(one.text)[1]) for one in documents])
    days = [f"2023-12-{day}" for day in range(20, 32)]
    days += [f"2024-01-0{day}T{hour}:59" for day in range(1, 10) for hour in ("00", "23")]
    ends_of_time = ["0001-01-01T00:00+10:00", "0001", "9999-12-31", "9999-12-31T23:59-10:00"]
    for day in (*ends_of_time, *days, "2024-01-15"):
        selection = select(as_of=day)
        found = {one.id for one in bank.documents(selection=selection)}
        assert found == {
            one.id
            for one in bank.documents()
            if selection.holds(known_from(one.date, one.added_at), np.inf, np.inf)
        }
        assert bank.count_documents(selection) == len(found)


def test_a_version_to_come_is_selected_from_its_moment_on(bank, monkeypatch):
    bank.add([make_entry("sand", 1, id="a", date="2020-01-01")])
    bank.add([make_entry("gold", 2, id="a", date="2999-01-01T12:00", supersede=True)])
    index = KeyIndex(bank)
    begins = known_from("2999-01-01T12:00", "")
    for moment, text in ((begins - 1, "sand"), (begins, "gold")):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        assert [one.text for one in bank.documents(selection=select())] == [text]
        (hits,) = index.search(make_key(1)[None], 5, select())
        assert [one.excerpt for one in bank.sources([hit.memory_id for hit in hits])] == [text]


def test_a_day_that_has_begun_here_but_not_in_greenwich_has_begun(bank, monkeypatch):
    bank.add([make_entry("sand", 1, id="a", date="2020-01-01")])
    bank.add([make_entry("gold", 2, id="a", date="2998-01-02", supersede=True)])
    bank.add([make_entry("later", 3, id="b", date="2998-01-01T23:30")])
    monkeypatch.setattr("time.time", lambda: known_from("2998-01-01T23:00", ""))
    for clock, text in (("2998-01-01", "sand"), ("2998-01-02", "gold")):
        monkeypatch.setattr("time.strftime", lambda _, clock=clock: clock)
        assert [one.text for one in bank.documents(selection=select())] == [text]
        (hits,) = KeyIndex(bank).search(make_key(1)[None], 5)
        assert [one.excerpt for one in bank.sources([hit.memory_id for hit in hits])] == [text]


def test_filters_come_before_top_k(filled):
    """The best of what is selected, however much of what isn't is better."""
    index = KeyIndex(filled)
    selection = select(namespace="news", tags=["a", "b"])
    (everything,) = index.search(make_key(7)[None], 10_000, selection)
    assert len(everything) == 5
    (best,) = index.search(make_key(7)[None], 3, selection)
    assert best == everything[:3]
    (all_of_all,) = index.search(make_key(7)[None], 3, select(namespace=None))
    assert all_of_all != best


@pytest.mark.parametrize("few", [1, 10_000])
def test_copied_rows_and_masked_scores_find_the_same(filled, monkeypatch, few):
    monkeypatch.setattr("cmt.matching._FEW", few)
    (hits,) = KeyIndex(filled).search(make_key(7)[None], 4, select(tags=["a"]))
    monkeypatch.undo()
    assert hits == KeyIndex(filled).search(make_key(7)[None], 4, select(tags=["a"]))[0]


def test_an_index_follows_fields_that_change_without_the_text(bank):
    bank.add([make_entry("sand", 1, id="a"), make_entry("silt", 2, id="b")])
    index = KeyIndex(bank)
    assert index.search(make_key(1)[None], 5, select(tags=["x"])) == [[]]
    bank.add([(Document(text="sand", id="a", tags=["x"]), [])])
    (hits,) = index.search(make_key(1)[None], 5, select(tags=["x"]))
    assert [hit.memory_id for hit in hits] == [1]
    bank.add([(Document(text="sand", id="a", expires_at="2020-01-01"), [])])
    (hits,) = index.search(make_key(1)[None], 5)
    assert [hit.memory_id for hit in hits] == [2]


def test_columns_stay_right_when_rows_go(bank):
    columns = FieldColumns()
    columns.reserve(4)
    fields = [Fields(n, f"n{n}", (), float(n), np.inf, np.inf) for n in range(3)]
    columns.append(fields)
    columns.remove(0)
    assert (columns.document(0), columns.starts(0)) == (2, 2.0)
    assert columns.selected(Selection(namespace="n2")).tolist() == [0]
    assert columns.selected(Selection(namespace="n0")).tolist() == []
    assert columns.selected(Selection(namespace=None)) is None


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"namespace": ""}, "expected namespace to be a word or a few on one line, got ''"),
        ({"namespace": 3}, "expected namespace to be a word"),
        ({"namespace": " a"}, "expected namespace to be a word"),
        ({"tags": "a"}, "expected tags to be a list of str, got 'a'"),
        ({"tags": ["a\nb"]}, "expected a tag to be a word"),
        ({"since": "soon"}, "expected since as in 2026-01-31"),
        ({"until": "soon"}, "expected until as in"),
        ({"as_of": "2026-99-01"}, "expected as_of as in"),
    ],
)
def test_wrong_filters_are_refused(filters, message):
    with pytest.raises(InputError, match=message):
        select(**filters)


def test_tags_are_sorted_each_once():
    assert check_tags(["b", "a", "b"]) == ("a", "b")
