"""`benchmarks/table.py`: jobs wait for each other, a timed one is alone, failures are told."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from cmt.methods import ABLATIONS, METHODS

TABLE = Path(__file__).parents[2] / "benchmarks" / "table.py"

# Stands in for stream.py: notes its words, fails for a row if told so, leaves results.
STAND_IN = """
import sys
from pathlib import Path
from typing import Any
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
rows = [words[i + 1] for i, word in enumerate(words) if word == "--method"]
parts = [word for word in words if word in ("stream", "retention", "robustness")]
with (out / "order.txt").open("a") as order:
    order.write(" ".join([*rows, *parts, *(w for w in words if w.isdigit() or "=" in w)]) + chr(10))
if "bm25_top1" in rows and "--broken" in words:
    sys.exit("broken")
for row in rows:
    for part in [*parts, "choice"]:
        (out / f"{row}-{part}-0.json").write_text("{}")
"""


def table(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    script = folder / "stand_in.py"
    script.write_text(STAND_IN)
    (folder / "out").mkdir()
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
    assert order[0] == "uniform retention 100 14"
    timed = order.index("uniform stream 100 14")
    assert timed > 0
    for row in ("salient_spans", "camels"):
        assert order.index(f"{row} retention 100 14") < order.index(f"{row} stream 100 14")


def test_a_setting_of_some_rows_is_told_to_them_only(tmp_path: Path) -> None:
    _, order = table(tmp_path, "--only", "gradient", "--spans", "spans.json")
    assert {"spans=spans.json" in line for line in order if "salient" in line} == {True}
    assert {"spans=spans.json" in line for line in order if "salient" not in line} == {False}


def test_every_row_is_in_the_table(tmp_path: Path) -> None:
    ran, order = table(tmp_path)
    assert ran.returncode == 0, ran.stderr
    rows = {word for line in order for word in line.split()}
    assert {*METHODS, *ABLATIONS} <= rows


def test_a_failing_job_is_tried_twice_and_told(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "text", "--broken")
    assert ran.returncode != 0
    assert "not measured: closed_book-stream (logs in " in ran.stderr
    assert len(order) == 2  # what waited for it was not begun
    assert "bm25_top1-retention-robustness-0-1: not begun" in ran.stdout
    assert "broken" in (tmp_path / "logs" / "closed_book-stream.log").read_text()


def test_time_that_is_over_cuts_short(tmp_path: Path) -> None:
    ran, order = table(tmp_path, "--only", "dense", "--seconds", "30")
    assert ran.returncode == 0, ran.stderr
    assert order == []  # a timed job is not begun in the last minute
    assert "dense_top1-stream: not begun" in ran.stdout


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
