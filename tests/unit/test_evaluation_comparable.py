"""Which results may stand in one table, and what is told of the others."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from cmt.evaluation.comparable import Table, sift
from cmt.methods import ABLATIONS, METHODS


def record(row: str = "mac", commit: str = "abc1234", **settings: object) -> dict[str, object]:
    known = METHODS.get(row) or ABLATIONS.get(row)
    usual = {
        "dataset": "squad-dev-stream-1665", "questions": 8669, "base_model": "smollm2-135m",
        "checkpoint": "shipped", "recipe": "smollm2_135m.py", "seed": 0,
        "config": {} if known is None else asdict(known.config),
    }  # fmt: skip
    return {"row": row, "part": "stream", "commit": commit, "date": "2026-11-26T11:02:00",
            "settings": {**usual, **settings}}  # fmt: skip


def config(row: str, **changes: object) -> dict[str, object]:
    return {**asdict(METHODS[row].config), **changes}


@pytest.mark.parametrize(
    "other",
    [
        record(steps=300, batch_size=512, device="cpu", minutes=None),
        record("uniform", config=config("uniform", learning_rate=1e-4)),  # a candidate
        record("salient_spans", config=config("salient_spans", spans="elsewhere.json")),
        record("dense_top1", config=config("dense_top1", dense_model="a folder")),
        record("kv_memory", checkpoint="shipped 0123", recipe="smollm2_135m.py 4567"),
        record("mac", recipe="another.py", checkpoint="mine"),  # which it doesn't use
        record("mac", config={"a_field_of_old": 1}),
        record("a row of old"),
        record("kv_without_top_k", questions=200),
        record(dataset="another", questions=5),
    ],
)
def test_what_may_differ(other: dict[str, object]) -> None:
    assert sift([record("mbc"), other], Table()) == ([record("mbc"), other], [])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (record(commit="abc1234+"), "changed or unknown code"),
        (record(commit="unknown", seed=1), "changed or unknown code; seed=1, not 0"),
        (record(base_model="another"), "base_model=another, not smollm2-135m"),
        (record("mac", config=config("mac", group=2)), "group=2, not 0"),
        (record("kv_memory", checkpoint="mine 0123"), "checkpoint=mine, not shipped"),
        (record("kv_trained", recipe="my.py"), "recipe=my.py, not smollm2_135m.py"),
        (record(questions=200), "questions=200, of 8669"),
        (record("kv_without_top_k", questions=100), "questions=100, of 8669"),
        (record(asked=10), "asked=10, of 1000"),
    ],
)
def test_what_is_left_out(other: dict[str, object], reason: str) -> None:
    full = record("mbc", asked=1000)
    told = f"{other['row']} stream, {other['commit']}, 2026-11-26: {reason}"
    assert sift([other, full], Table()) == ([full], [told])


def test_a_table_of_another_seed() -> None:
    assert sift([record(), record(seed=1)], Table(seed=1))[0] == [record(seed=1)]


def test_results_that_are_left_out_are_no_fullest_ones() -> None:
    kept, left_out = sift([record(questions=9999, seed=1), record()], Table())
    assert kept == [record()]
    assert len(left_out) == 1
