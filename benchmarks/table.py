r"""The whole table on one machine, in a given time: `stream.py` once for every group of rows.

Training, streams and curves run side by side; costs, which are timed, have the machine to
themselves: the others are stopped meanwhile and go on afterwards. Jobs wait for the results that
they build on. What is measured already is not measured again, so a table that was cut short is gone
on with.

    python benchmarks/table.py --data DATA --seconds 1700 --steps 500
    python benchmarks/table.py --data DATA --only ours --only peers --seconds 1200
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, SMOKE = HERE / "results/stream", HERE.parent / "runs/smoke"  # stream.py's, without torch
LAST = 60  # seconds before the end no timed job is begun any more
TRIES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of `stream.py`.

    Attributes:
        rows, options: What it measures.
        after: It waits for these results, each ROW-PART.
        timed: Whether it must be alone.
        gigabytes: Of the device's memory that it takes at most, in batches of 256 questions.
        trains: How many times `--steps` it trains; 0: it is given no length.
        steps: That length.
    """

    rows: tuple[str, ...]
    options: tuple[str, ...]
    after: tuple[str, ...] = ()
    timed: bool = False
    gigabytes: int = 20
    trains: int = 0
    steps: int = 0


STREAM = ("--parts", "stream")
PASS = ("--parts", "stream", "retention")
CURVES = ("--parts", "stream", "retention", "robustness", "--shares", "0", "1")
WHOLE = ("--parts", "reading", *CURVES[1:])
ABLATED = (*STREAM, "--no-forgetting")

SETTINGS = {
    "spans": {"salient_spans"},
    "dense_model": {"dense_top1", "dense_top3", "dense_top5"},
}
"""What is told to some rows only."""


def with_costs(*jobs: Job) -> tuple[Job, ...]:
    """The jobs, and at their end one that measures what each of their rows costs."""
    results = [
        (row, [word for word in job.options if word in ("stream", "retention", "robustness")])
        for job in jobs
        for row in job.rows
    ]
    costs = Job(
        rows=tuple(row for row, _ in results),
        options=("--parts", "costs"),
        after=tuple(f"{row}-{parts[-1]}" for row, parts in results),
        timed=True,
        trains=max(job.trains for job in jobs),
    )
    return (*jobs, costs)


JOBS: dict[str, tuple[Job, ...]] = {
    "ours": (
        *with_costs(
            Job(rows=("kv_trained",), options=WHOLE, trains=1, gigabytes=55),
            Job(rows=("kv_memory",), options=(*WHOLE, "5", "20"), gigabytes=60),
            Job(rows=("kv_memory_rerank",), options=STREAM),
            Job(rows=("kv_trained_rerank",), options=STREAM, trains=1,
                after=("kv_trained-stream",)),
        ),
        # an ablation that has kv_trained's weights: here, so that no two groups train the same
        Job(rows=("kv_without_objective",), options=ABLATED, trains=1,
            after=("kv_trained-stream",)),
    ),
    "peers": with_costs(
        *(Job(rows=(row,), options=WHOLE, trains=1) for row in ("cmt_paper", "mac", "mbc")),
        Job(rows=("mac_hierarchical",), options=STREAM, trains=1, after=("mac-robustness",)),
    ),
    "gradient": with_costs(
        Job(rows=("uniform",), options=PASS, trains=2),
        *(Job(rows=(row,), options=PASS, trains=2, after=("uniform-choice",))
          for row in ("salient_spans", "camels")),
    ),
    "text": with_costs(
        Job(rows=("closed_book", "gold_text"), options=STREAM),
        Job(rows=("bm25_top1",), options=CURVES),
        Job(rows=("bm25_top3", "bm25_top5"), options=STREAM),
    ),
    "tuned": with_costs(
        Job(rows=("tuned_closed_book", "tuned_bm25_top1", "tuned_gold_text"), options=STREAM,
            trains=2, gigabytes=45),
    ),
    "dense": with_costs(Job(rows=("dense_top1", "dense_top3", "dense_top5"), options=STREAM)),
    "ablation": (
        Job(rows=("kv_full",), options=ABLATED, trains=1, gigabytes=55),
        Job(rows=("kv_without_matching",), options=ABLATED, trains=1, gigabytes=55),
        *(Job(rows=(f"cmt_paper_without_{part}",), options=ABLATED, trains=1)
          for part in ("objective", "matching", "top_k")),
        Job(rows=("kv_without_top_k",), options=(*ABLATED, "--questions", "200"), trains=1,
            after=("kv_full-stream",)),
    ),
}  # fmt: skip
"""Groups in the order they are wanted; none waits for another's results."""


@dataclass(slots=True)
class Running:
    """A job that was begun."""

    job: Job
    name: str
    process: subprocess.Popen[bytes]
    since: float
    tries: int = 1
    stopped: bool = False

    def signal(self, number: signal.Signals) -> None:
        """Send to the job and all of its own processes."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # it has just ended


@dataclass(slots=True)
class Table:
    """The jobs of one invocation and what became of them."""

    options: argparse.Namespace
    more: Sequence[str]
    waiting: list[Job]
    running: list[Running] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Until everything is measured, nothing more can be, or the time is over."""
        try:
            while self._now() < self.options.seconds:
                self._reap()
                self._begin()
                if not self.running:
                    break
                self._give_way()
                time.sleep(0.2)
        finally:
            for own in self.running:
                own.signal(signal.SIGKILL)
                own.process.wait()
                self._say("cut short", own.name)
            for job in self.waiting:
                self._say("not begun", _name(job))

    def _now(self) -> float:
        return time.monotonic() - self.began

    def _alone(self) -> Running | None:
        return next((own for own in self.running if own.job.timed), None)

    def _begin(self) -> None:
        late = self._now() > self.options.seconds - LAST
        for job in list(self.waiting):
            alone = self._alone()
            if not self._is_ready(job) or (alone and (job.timed or self._is_warm(alone))):
                continue
            if not self._has_room(job) or (job.timed and late):
                continue
            self.waiting.remove(job)
            self._start(job)

    def _start(self, job: Job, tries: int = 1) -> None:
        options, name = self.options, _name(job)
        command = [sys.executable, str(options.script), "--out", str(options.out), *self.more]
        command += ["--commit", options.commit] if options.commit else []
        command += [word for row in job.rows for word in ("--method", row)]
        command += [*job.options]
        for setting, rows in SETTINGS.items():
            value = getattr(options, setting)
            command += ["--set", f"{setting}={value}"] if value and rows & {*job.rows} else []
        if job.steps:
            command += ["--steps", str(job.steps)]
        options.logs.mkdir(parents=True, exist_ok=True)
        with (options.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.running.append(Running(job, name, process, self._now(), tries))
        self._say("begun", name)

    def _is_ready(self, job: Job) -> bool:
        commit = f"-{self.options.commit}" if self.options.commit else ""
        found = self.options.out.glob
        return all(any(found(f"{result}-*{commit}.json")) for result in job.after)

    def _has_room(self, job: Job) -> bool:
        """Among the untimed jobs that are wanted, and in the device's memory; alone, always."""
        beside = [own.job for own in self.running]
        taken = sum(own.gigabytes for own in beside)
        places = self.options.side_by_side - sum(not own.timed for own in beside)
        fits = not beside or taken + job.gigabytes <= self.options.gigabytes
        return fits and (job.timed or places > 0)

    def _is_warm(self, alone: Running) -> bool:
        """A timed job's imports need no quiet."""
        return self._now() - alone.since > self.options.quiet_after

    def _give_way(self) -> None:
        """Stop everything beside a timed job, or let it go on."""
        alone = self._alone()
        quiet = alone is not None and self._is_warm(alone)
        for own in self.running:
            if own is not alone and own.stopped != quiet:
                own.signal(signal.SIGSTOP if quiet else signal.SIGCONT)
                own.stopped = quiet

    def _reap(self) -> None:
        for own in list(self.running):
            if (code := own.process.poll()) is None:
                continue
            self.running.remove(own)
            self._say(f"ended with {code}", own.name)
            if code and own.tries < TRIES:
                self._start(own.job, own.tries + 1)
            elif code:
                self.failed.append(own.name)

    def _say(self, what: str, name: str) -> None:
        print(f"{self._now():6.0f} s  {name}: {what}", flush=True)


def wanted(groups: Sequence[str], steps: int, lane_steps: Sequence[str]) -> list[Job]:
    """The groups' jobs, each with its group's steps.

    Raises:
        ValueError: A word of `lane_steps` that isn't GROUP=N.
    """
    own = dict.fromkeys(JOBS, steps)
    for text in lane_steps:
        group, _, number = text.partition("=")
        if group not in JOBS or not number.isdecimal() or not int(number):
            raise ValueError(f"expected GROUP=N with a group of {', '.join(JOBS)}, got {text!r}")
        own[group] = int(number)
    return [replace(job, steps=job.trains * own[group]) for group in groups for job in JOBS[group]]


def _name(job: Job) -> str:
    return "-".join([job.rows[0], *(word for word in job.options if not word.startswith("-"))])


def without(jobs: Sequence[Job], rows: Sequence[str]) -> Iterator[Job]:
    """The jobs without some rows; nothing waits for these any more."""
    for job in jobs:
        kept = tuple(row for row in job.rows if row not in rows)
        after = tuple(result for result in job.after if result.rpartition("-")[0] not in rows)
        if kept:
            yield replace(job, rows=kept, after=after)


def main() -> None:
    """Measure the groups that are wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other option is one of stream.py's, given to each of its runs.",
    )
    parser.add_argument("--only", action="append", choices=JOBS, help="a group; default: all")
    parser.add_argument("--without", action="append", default=[], metavar="ROW", help="leave out")
    parser.add_argument("--seconds", type=float, default=1700)
    parser.add_argument("--steps", type=int, default=500, help="of training, of each trained part")
    parser.add_argument("--lane-steps", action="append", default=[], metavar="GROUP=N",
                        help="--steps of a group's own")  # fmt: skip
    parser.add_argument("--side-by-side", type=int, default=3, metavar="N",
                        help="untimed jobs at once, at most")  # fmt: skip
    parser.add_argument("--gigabytes", type=int, default=78, metavar="GB",
                        help="of memory that jobs at once take, at most (%(default)s)")  # fmt: skip
    parser.add_argument("--commit", help="of the code, where there is no repository to ask")
    parser.add_argument("--out", type=Path, help="results; default: as of stream.py")
    parser.add_argument("--logs", type=Path, default=HERE.parent / "runs/table")
    parser.add_argument("--spans", type=Path, help="saved ones, where spaCy isn't")
    parser.add_argument("--dense-model", type=Path, help="folder of the embedding model")
    parser.add_argument("--script", type=Path, default=HERE / "stream.py", help="what a job runs")
    parser.add_argument("--quiet-after", type=float, default=15, metavar="SECONDS",
                        help="a timed job's start that needs no quiet")  # fmt: skip
    options, more = parser.parse_known_args()
    options.out = options.out or (SMOKE if "--smoke" in more else RESULTS)
    for name in ("side_by_side", "gigabytes"):
        if getattr(options, name) < 1:
            parser.error(f"expected --{name.replace('_', '-')} of at least 1")
    try:
        jobs = wanted(options.only or list(JOBS), options.steps, options.lane_steps)
    except ValueError as error:
        parser.error(str(error))
    table = Table(options, more, list(without(jobs, options.without)))
    table.run()
    if table.failed:
        sys.exit(f"not measured: {', '.join(table.failed)} (logs in {options.logs})")


if __name__ == "__main__":
    main()
