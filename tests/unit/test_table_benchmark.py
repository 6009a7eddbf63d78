"""`benchmarks/table.py`: jobs wait for each other, a timed one is alone, failures are told."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt.methods import ABLATIONS, METHODS
from cmt.methods.kv_memory import TrainedKvMemory

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "table.py"

# Stands in for stream.py: notes its words, fails for a row if told so, leaves results.
STAND_IN = """
import sys
import time
from pathlib import Path
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
rows = [words[i + 1] for i, word in enumerate(words) if word == "--method"]
parts = [word for word in words if word in ("stream", "retention", "robustness", "costs")]
with (out / "order.txt").open("a") as order:
    order.write(" ".join([*rows, *parts, *(w for w in words if w.isdigit() or "=" in w)]) + chr(10))
if "bm25_top1" in rows and "--broken" in words:
    sys.exit("broken")
commit = words[words.index("--commit") + 1] if "--commit" in words else "unknown"
if "--slow" in words:
    (out / "busy").touch(exist_ok=False)
    time.sleep(0.5)
    (out / "busy").unlink()
for row in rows:
    for part in [*parts, "choice"]:
        (out / f"{row}-{part}-0-{commit}.json").write_text("{}")
"""


def table(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    script = folder / "stand_in.py"
    script.write_text(STAND_IN)
    (folder / "out").mkdir(exist_ok=True)
    given = ["--script", script, "--out", folder / "out", "--logs", folder / "logs"]
    ran = subprocess.run(
        [sys.executable, TABLE, *map(str, given), "--quiet-after", "0", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    order = folder / "out" / "order.txt"
    return ran, order.read_text().splitlines() if order.exists() else []


def test_jobs_wait_for_what_they_build_on(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "gradient", "--steps", "7")
    assert ran.returncode == 0, ran.stderr
    assert order[0] == "uniform stream retention 14"
    assert sorted(order[1:3]) == [
        "camels stream retention 14", "salient_spans stream retention 14",
    ]  # fmt: skip
    assert order[3:] == ["uniform salient_spans camels costs 14"]


def test_a_group_has_steps_of_its_own(tmp_path: Path) -> None:
    groups = ("--only", "gradient", "--only", "peers")
    ran, order = table(tmp_path, *groups, "--steps", "7", "--lane-steps", "gradient=5")
    assert ran.returncode == 0, ran.stderr
    assert "uniform stream retention 10" in order
    assert "mac stream retention robustness 0 1 7" in order
    ran, _ = table(tmp_path, "--lane-steps", "gradients=5")
    assert ran.returncode == 2
    assert "expected GROUP=N with a group of ours, peers, gradient, " in ran.stderr
    assert "got 'gradients=5'" in ran.stderr


def test_rows_can_be_left_out(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "gradient", "--without", "camels", "--steps", "7")
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in order] == ["uniform", "salient_spans", "uniform"]
    assert order[-1].startswith("uniform salient_spans costs")


def test_only_so_many_run_side_by_side(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "peers", "--side-by-side", "1", "--slow")
    assert ran.returncode == 0, ran.stderr  # two at once would have failed
    assert [line.split()[0] for line in order] == [
        "cmt_paper", "mac", "mbc", "mac_hierarchical", "cmt_paper",
    ]  # fmt: skip
    ran, _ = table(tmp_path, "--side-by-side", "0")
    assert "expected --side-by-side of at least 1" in ran.stderr


def test_room_is_counted_in_jobs_and_in_memory() -> None:
    made = runpy.run_path(str(TABLE))

    def job(**kind: Any) -> Any:
        return made["Job"](rows=("mac",), options=(), **kind)

    def running(job: Any) -> Any:
        return made["Running"](job, "mac", None, 0.0)

    table = made["Table"](argparse.Namespace(side_by_side=2, gigabytes=60), [], [])
    assert table._has_room(job(gigabytes=99))  # nothing is beside it
    table.running = [running(job(timed=True, gigabytes=5)), running(job(gigabytes=30))]
    assert table._has_room(job(gigabytes=25))
    assert not table._has_room(job(gigabytes=26))
    assert not table._has_room(job(gigabytes=26, timed=True))  # what is stopped keeps its memory
    table.running.append(running(job(gigabytes=1)))
    assert not table._has_room(job(gigabytes=1))
    assert table._has_room(job(gigabytes=1, timed=True))


def test_results_of_another_commit_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "uniform-choice-0-older.json").write_text("{}")
    _, order = table(tmp_path, "--only", "gradient", "--commit", "abc1234")
    assert order[0] == "uniform stream retention 1000"
    assert (tmp_path / "out" / "camels-costs-0-abc1234.json").exists()


def test_groups_can_be_measured_apart() -> None:
    """No group waits for another's rows, and what is trained alike is in one, one after another."""
    jobs = runpy.run_path(str(TABLE))["JOBS"]
    group_of = {row: group for group, own in jobs.items() for job in own for row in job.rows}
    for group, own in jobs.items():
        for job in own:
            assert {group_of[result.rsplit("-", 1)[0]] for result in job.after} <= {group}
    recipe = runpy.run_path(str(ROOT / "recipes" / "smollm2_135m.py"))["recipe"]()
    trained: dict[str, list[str]] = defaultdict(list)
    for name, row in {**METHODS, **ABLATIONS}.items():
        if row.build == TrainedKvMemory.build:
            own = {key: value for key in ("alpha", "matching")
                   if (value := getattr(row.config, key)) is not None}  # fmt: skip
            trained[repr(replace(recipe.objectives, **own))].append(name)
        elif name.startswith(("mac", "cmt_paper")):
            trained[repr(replace(row.config, group=0))].append(name)
    assert sorted(sorted(rows) for rows in trained.values() if len(rows) > 1) == [
        ["kv_full", "kv_without_top_k"],
        ["kv_trained", "kv_trained_rerank", "kv_without_objective"],
        ["mac", "mac_hierarchical"],
    ]
    for rows in trained.values():
        own = [job for job in jobs[group_of[rows[0]]] if {*job.rows} & {*rows}]
        assert {group_of[row] for row in rows} == {group_of[rows[0]]}
        assert sum(not job.after for job in own) == 1


def test_a_setting_of_some_rows_is_told_to_them_only(tmp_path: Path) -> None:
    _, order = table(tmp_path, "--only", "gradient", "--spans", "spans.json")
    assert {"spans=spans.json" in line for line in order if "salient" in line} == {True}
    assert {"spans=spans.json" in line for line in order if "salient" not in line} == {False}


def test_every_row_is_in_the_table(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--gigabytes", "999", "--side-by-side", "20")
    assert ran.returncode == 0, ran.stderr
    rows_with = {
        part: [word for line in order if part in line.split() for word in line.split()]
        for part in ("stream", "costs")
    }
    names = {
        part: sorted(word for word in words if word in METHODS or word in ABLATIONS)
        for part, words in rows_with.items()
    }
    assert names == {"stream": sorted({**METHODS, **ABLATIONS}), "costs": sorted(METHODS)}


def test_a_failing_job_is_tried_twice_and_told(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "text", "--broken")
    name = "bm25_top1-stream-retention-robustness-0-1"
    assert ran.returncode != 0
    assert f"not measured: {name} (logs in " in ran.stderr
    assert order.count("bm25_top1 stream retention robustness 0 1") == 2
    assert len(order) == 4  # what waited for it was not begun
    assert "closed_book-costs: not begun" in ran.stdout
    assert "broken" in (tmp_path / "logs" / f"{name}.log").read_text()


def test_time_that_is_over_cuts_short(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "dense", "--seconds", "30")
    assert ran.returncode == 0, ran.stderr
    assert order == ["dense_top1 dense_top3 dense_top5 stream"]
    assert "dense_top1-costs: not begun" in ran.stdout  # a timed job isn't in the last minute


def test_what_is_timed_is_alone(tmp_path: Path) -> None:
    made = runpy.run_path(str(TABLE))
    options = argparse.Namespace(quiet_after=0.0, seconds=60.0)

    def running(name: str, *, timed: bool) -> Any:
        job = made["Job"](rows=(name,), options=(), timed=timed)
        sleeping = subprocess.Popen(["sleep", "60"], start_new_session=True)
        return made["Running"](job, name, sleeping, -1.0)

    table = made["Table"](options, [], [])
    beside, alone = running("mac", timed=False), running("mbc", timed=True)
    table.running = [beside, alone]
    try:
        table._give_way()
        assert (beside.stopped, alone.stopped) == (True, False)
        assert os.WIFSTOPPED(os.waitpid(beside.process.pid, os.WUNTRACED)[1])
        table.running.remove(alone)
        table._give_way()
        assert not beside.stopped
        assert os.WIFCONTINUED(os.waitpid(beside.process.pid, os.WCONTINUED)[1])
    finally:
        for own in (beside, alone):
            own.process.kill()
            own.process.wait()
